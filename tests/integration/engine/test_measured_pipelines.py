"""Profiles of diffusers' pipelines: what is measured is what their passes, encodings and decodings take."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPAGPipeline

from catalogue.profile import Profile
from engine.loading.load import LoadedModels, ModelSpec, load_models
from engine.self_test.measurement import MIN_ROUNDS, Measurement
from tests.integration.engine.tiny_families import build
from tests.unit.engine.fakes import SetClock

SIDE = 64
LIMITS = {SIDE * SIDE: 8}
SHALLOW = 0.25
"""The share of a step that its outermost layers take."""


def load(folder: Path, kind: str, **changes: Any) -> LoadedModels:
    build(kind, folder / "built", **changes).save_pretrained(folder / "model")
    spec = ModelSpec("tiny", str(folder / "model"))
    return load_models([spec], device="cpu:0", row_limits={"tiny": LIMITS}, num_threads=1)


def measured(loaded: LoadedModels) -> tuple[Profile, list[int]]:
    """A profile on a clock that moves with the model's parts, and the rows of all passes of the denoiser."""
    model, clock, rows = loaded.models["tiny"], SetClock(), []
    pipeline = model._pipeline
    unet = getattr(pipeline, "unet", None)
    last, full = (unet.conv_out, unet.mid_block) if unet else (pipeline.transformer.proj_out,) * 2

    def ended(_: torch.nn.Module, args: Any) -> None:
        rows.append(len(args[0]))
        clock.now += SHALLOW * (1 + rows[-1] / 8)

    def went_deep(_: torch.nn.Module, args: Any) -> None:
        clock.now += (1 - SHALLOW) * (1 + len(args[0]) / 8)

    def encoded(*_: Any) -> None:
        clock.now += 0.25

    def decoded(*_: Any) -> None:
        clock.now += 0.5

    hooks = [
        last.register_forward_pre_hook(ended),
        full.register_forward_pre_hook(went_deep),
        pipeline.text_encoder.register_forward_pre_hook(encoded),
        pipeline.vae.decoder.register_forward_pre_hook(decoded),
    ]
    try:
        measurement = Measurement(model, width=SIDE, height=SIDE, scheduler="default", clock=clock)
        return measurement.profile(8, seconds=0, device_name="an abacus"), rows
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize(
    ("kind", "guided_rows", "texts", "cached_share"),
    [
        ("stable_diffusion", 2, 2, SHALLOW),
        # Of a transformer the hooks see the last layer alone, through which each pass goes.
        ("stable_diffusion_3", 2, 2, 1),
        ("flux", 1, 1, 1),
    ],
)
def test_every_bucket_of_a_pipeline_gets_the_seconds_that_it_takes(
    tmp_path: Path, kind: str, guided_rows: int, texts: int, cached_share: float
) -> None:
    loaded = load(tmp_path, kind)
    profile, rows = measured(loaded)
    [buckets] = loaded.models["tiny"].buckets.values()
    assert {step.num_rows: step.seconds for step in profile.steps} == pytest.approx(
        {size: 1 + size / 8 for size in buckets.sizes}
    )
    assert all(rows.count(size) > MIN_ROUNDS for size in buckets.sizes)
    assert (profile.encode_seconds, profile.decode_seconds) == (0.25 * texts, 0.5)
    assert profile.num_guided_rows == guided_rows
    assert profile.cached_share == pytest.approx(cached_share)
    assert profile.steps[0].peak_memory_bytes is None
    assert profile.key.device_kind.startswith("an abacus, ")


def test_a_pipeline_that_runs_alone_is_measured_at_the_rows_of_one_call(tmp_path: Path) -> None:
    loaded = load(tmp_path, "stable_diffusion", pipeline_class=StableDiffusionPAGPipeline)
    profile, _ = measured(loaded)
    assert loaded.models["tiny"].runs_alone
    assert profile.steps[-1].num_rows == profile.num_guided_rows == 3
