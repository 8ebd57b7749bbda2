"""Kept self-tests of diffusers' pipelines: a later start draws one image, and finds the same."""

import shutil
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPAGPipeline
from torch.nn.modules.module import register_module_forward_pre_hook

from engine.loading.load import ModelSpec, load_models
from engine.pipelines.pipeline_model import Abilities, PipelineModel
from engine.self_test.self_test import SelfTest
from tasks.self_test_results import SelfTestFolder, machine_facts
from tests.integration.engine.tiny_families import build

SIDE = 64
LIMITS = {SIDE * SIDE: 4}
NUM_PASSES_OF_ONE_IMAGE = 3
"""Two steps, and one begun to see what the pipeline hands to its scheduler."""


@dataclass(frozen=True)
class Found:
    """What a start has found, and how much it drew for that."""

    result: SelfTest
    abilities: Abilities
    num_passes: int


@dataclass(frozen=True)
class Start:
    """All that a start of a worker is given."""

    spec: ModelSpec
    folder: Path
    machine: dict[str, str] = field(default_factory=machine_facts)
    self_test_seconds: float = inf
    test_again: bool = False

    def run(self) -> Found:
        passes: list[str] = []

        def note(module: torch.nn.Module, _: Any) -> None:
            if type(module).__name__ in ("UNet2DConditionModel", "SD3Transformer2DModel"):
                passes.append(type(module).__name__)

        hook = register_module_forward_pre_hook(note)
        try:
            loaded = load_models(
                [self.spec],
                device="cpu:0",
                row_limits={"tiny": LIMITS},
                num_threads=1,
                self_test_seconds=self.self_test_seconds,
                results=SelfTestFolder(self.folder, self.machine, test_again=self.test_again),
            )
        finally:
            hook.remove()
        model = loaded.models["tiny"]
        assert isinstance(model, PipelineModel)
        result = SelfTest(loaded.determinism, loaded.row_limits["tiny"], model.buckets)
        return Found(result, model.abilities, len(passes))


CLASSES: dict[str, dict[str, Any]] = {
    "stable_diffusion": {},
    "stable_diffusion_3": {},
    "pag": {"pipeline_class": StableDiffusionPAGPipeline},
}


@pytest.fixture(scope="module", params=CLASSES)
def tested(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Start, Found]:
    """A first start, which has tested its pipeline."""
    return first_start(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Start, Found]:
    """The same of Stable Diffusion alone."""
    return first_start("stable_diffusion", tmp_path_factory.mktemp("plain"))


def first_start(kind: str, folder: Path) -> tuple[Start, Found]:
    pipeline = build(kind.replace("pag", "stable_diffusion"), folder / "built", **CLASSES[kind])
    pipeline.save_pretrained(folder / "model")
    start = Start(ModelSpec("tiny", str(folder / "model")), folder / "results")
    found = start.run()
    assert found.num_passes > 5 * NUM_PASSES_OF_ONE_IMAGE
    return start, found


def test_S38_a_start_with_a_kept_result_draws_one_image_and_knows_the_same(
    tested: tuple[Start, Found],
) -> None:
    start, found = tested
    again = start.run()
    assert again.num_passes <= NUM_PASSES_OF_ONE_IMAGE
    assert (again.result, again.abilities) == (found.result, found.abilities)


CHANGES: dict[str, Any] = {
    "on demand": lambda start: replace(start, test_again=True),
    "another machine": lambda start: replace(start, machine={**start.machine, "cpu_flags": "other"}),
    "another scheduler": lambda start: replace(start, spec=replace(start.spec, schedulers=("ddim",))),
    "another size": lambda start: replace(start, spec=replace(start.spec, sizes=((64, 48),))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_S38_a_start_tests_a_pipeline_again_when_anything_of_it_has_changed(
    plain: tuple[Start, Found], change: str, tmp_path: Path
) -> None:
    start = replace(plain[0], folder=tmp_path / "results", self_test_seconds=0)
    shutil.copytree(plain[0].folder, start.folder)
    assert CHANGES[change](start).run().num_passes > 5 * NUM_PASSES_OF_ONE_IMAGE
    assert len(list(start.folder.iterdir())) == (1 if change == "on demand" else 2)  # it is of another key


def test_S38_a_result_whose_image_has_other_bits_or_that_is_forged_counts_as_none(
    plain: tuple[Start, Found], tmp_path: Path
) -> None:
    start = replace(plain[0], folder=tmp_path)
    found = start.run()
    [file] = tmp_path.iterdir()
    written = file.read_text()
    digest = written.partition('"output_digest": "')[2][:64]
    for old, new in (
        (digest, "0" * 64),
        (f'"num_guided_rows": {found.abilities.num_guided_rows}', '"num_guided_rows": 0'),
        ('"runs_alone": false', '"runs_alone": "no"'),
    ):
        assert old in written
        file.write_text(written.replace(old, new))
        again = start.run()
        assert again.num_passes > 5 * NUM_PASSES_OF_ONE_IMAGE
        assert again.abilities == found.abilities
