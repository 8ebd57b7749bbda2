"""What `[models.NAME.scheduler]` says reaches the model that a worker loads."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from catalogue import catalogue
from engine.errors import LoadError
from engine.loading.scheduler_overrides import SchedulerOverrides
from settings import ROOT, Settings
from tasks.loading import load_configured

TIER = "[models.tiny.tiers.sd]"


def models_of(folder: Path, entries: str) -> tuple[catalogue.Model, ...]:
    """The models of the shipped `calotype.toml` with these entries of the scheduler."""
    path = folder / "calotype.toml"
    shipped = (ROOT / "calotype.toml").read_text(encoding="utf-8")
    path.write_text(shipped.replace(TIER, f"[models.tiny.scheduler]\n{entries}\n\n{TIER}"), encoding="utf-8")
    return catalogue.load_catalogue(path).models


def test_the_catalogue_knows_every_override_of_the_engine() -> None:
    known = {one.name: one.default for one in fields(SchedulerOverrides)}
    assert {name: one.default for name, one in catalogue.SchedulerOverrides.model_fields.items()} == known


def test_a_worker_loads_a_model_with_the_overrides_of_its_entry(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        models = models_of(tmp_path, 'spacing = "leading"\nrescale_betas_zero_snr = false')
        loaded = load_configured(
            models, config=Settings().config, device="cpu:0", self_test_seconds=1, num_threads=1
        )
    finally:
        torch.set_num_threads(before)
    config = loaded.models["tiny"].scheduler.config
    assert (config.timestep_spacing, config.rescale_betas_zero_snr) == ("leading", False)
    assert config.prediction_type == "v_prediction", "what has no override is the folder's"


def test_a_worker_does_not_start_with_an_override_that_the_model_does_not_read(tmp_path: Path) -> None:
    models = models_of(tmp_path, "shift = 3.0")
    with pytest.raises(
        LoadError, match=r"model 'tiny' from .*: scheduler\.shift: its DDIMScheduler does not"
    ):
        load_configured(
            models, config=Settings().config, device="cpu:0", self_test_seconds=600, num_threads=1
        )
