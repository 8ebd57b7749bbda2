"""The engine thread with a real model: preemption, cancellation, and models that do not load."""

import threading
from pathlib import Path
from typing import Any

import pytest

from catalogue.catalogue import load_catalogue
from engine.engine import Engine
from engine.errors import Canceled, LoadError
from engine.loading.load import ModelSpec, load_engine
from engine.request import SCHEDULERS, GenerationRequest, scheduler_named
from settings import ROOT
from tests.integration.engine.reference import MODELS

# diffusers' Euler scheduler calls numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BULK: dict[str, Any] = {
    "model": MODELS[0],
    "prompt": "a blue star",
    "width": 128,
    "height": 128,
    "num_inference_steps": 50,
    "guidance_scale": 4.0,
}


def test_interactive_takes_its_first_step_within_two_ticks(engine: Engine) -> None:
    """The engine is full of 50-step bulk work, of the same size and of others."""
    ticking = threading.Event()
    bulk = [
        engine.submit(
            GenerationRequest(**BULK, seed=seed, lane="bulk"),
            on_progress=lambda done, _: ticking.set() if done > 1 else None,
        )
        for seed in range(20)
    ]
    assert ticking.wait(60)
    for size in ({}, {"width": 64, "height": 64}):
        late = GenerationRequest(**{**BULK, "num_inference_steps": 2, **size}, seed=1)
        assert engine.submit(late).future.result(timeout=120).timings.num_ticks_waited <= 2
    assert not any(handle.future.done() for handle in bulk)
    for handle in bulk:
        handle.cancel()
    for handle in bulk:
        assert isinstance(handle.future.exception(timeout=60), Canceled)
        assert handle.progress < 1


def test_only_safetensors_are_loaded(tmp_path: Path, folders: dict[str, Path]) -> None:
    """A folder whose UNet is a pickle does not load, and neither does a missing folder."""
    folder = tmp_path / "pickled"
    for path in folders[MODELS[0]].rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(folders[MODELS[0]])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    for path in (folder, tmp_path / "absent"):
        with pytest.raises(LoadError, match="'broken'"):
            load_engine([ModelSpec("broken", str(path))], device="cpu:0", row_limits={"broken": {4096: 4}})


def test_a_device_that_does_not_exist_is_refused(folders: dict[str, Path]) -> None:
    path = str(folders[MODELS[0]])
    with pytest.raises(LoadError, match="device"):
        load_engine([ModelSpec("m", path)], device="tpu:0", row_limits={"m": {4096: 4}})


def test_catalogue_tells_the_truth_about_every_model() -> None:
    """The web checks only against `calotype.toml`, so all that it allows must run here."""
    catalogue = load_catalogue(ROOT / "calotype.toml")
    for model in catalogue.models:
        assert set(model.schedulers) <= set(SCHEDULERS)
        limits = {tier.max_pixels: tier.max_step_batch_rows for tier in model.tiers}
        spec = ModelSpec(model.name, str(ROOT / model.path), model.revision)
        engine = load_engine([spec], device="cpu:0", row_limits={model.name: limits}, num_threads=1)
        for tier in model.tiers:
            for scheduler in model.schedulers:
                handle = engine.submit(
                    GenerationRequest(
                        model=model.name,
                        prompt="a red heart on a white background",
                        width=tier.default_width,
                        height=tier.default_height,
                        num_inference_steps=1,
                        guidance_scale=model.max_guidance_scale,
                        scheduler=scheduler_named(scheduler),
                        seed=1,
                    )
                )
                while not engine.is_idle:
                    engine.tick()
                assert handle.future.result().pixels.shape == (tier.default_height, tier.default_width, 3)
        assert engine.determinism == "exact"
        loaded = engine._models.by_name[model.name]
        assert loaded.can_cache_steps == (model.max_step_cache > 1)
        for edge in (model.min_side, model.side_multiple):
            assert edge % loaded.pixels_per_latent == 0
