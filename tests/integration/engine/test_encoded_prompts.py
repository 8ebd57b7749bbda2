"""Cached prompts: fewer encodings, the same bytes, and each account uses only its own."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from engine.engine import Engine
from engine.loading.load import ModelSpec, load_engine
from engine.pipelines.pipeline_model import PipelineModel
from engine.request import GenerationRequest, SchedulerSpec
from tests.integration.engine.tiny_families import build

KINDS = ("stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "flux", "pixart", "sana")
SIDE = 64
LIMITS = {SIDE * SIDE: 8}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {kind: build(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def engine_of(pipeline: Any) -> Engine:
    """An engine of this pipeline, not started, with an empty cache."""
    return Engine({"tiny": PipelineModel(pipeline)}, {"tiny": LIMITS}, determinism="exact")


def asked(**changes: Any) -> GenerationRequest:
    request = GenerationRequest("tiny", "a red heart", SIDE, SIDE, 3, 4.0, 1, account="alice")
    return replace(request, **{"scheduler": SchedulerSpec("default"), **changes})


def drawn(engine: Engine, request: GenerationRequest) -> np.ndarray:
    handle = engine.submit(request)
    while not engine.is_idle:
        engine.tick()
    return handle.future.result(timeout=0).pixels


@contextmanager
def encodings_of(pipeline: Any) -> Iterator[list[str]]:
    """The names of the text encoders that run inside the block."""
    ran: list[str] = []
    encoders = [name for name in pipeline.components if name.startswith("text_encoder")]
    hooks = [
        getattr(pipeline, name).register_forward_pre_hook(lambda *_, name=name: ran.append(name))
        for name in encoders
        if getattr(pipeline, name) is not None
    ]
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_its_account_has_asked_for_is_not_encoded_again_and_draws_the_same_bytes(
    pipelines: dict[str, Any], kind: str
) -> None:
    engine = engine_of(pipelines[kind])
    drawn(engine, asked())
    for changes in ({}, {"seed": 7}, {"num_inference_steps": 5}):
        with encodings_of(pipelines[kind]) as ran:
            kept = drawn(engine, asked(**changes))
        assert ran == []
        with encodings_of(pipelines[kind]) as ran:
            encoded = drawn(engine_of(pipelines[kind]), asked(**changes))
        assert ran
        assert kept.tobytes() == encoded.tobytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"account": "bob"},
        {"account": ""},
        {"prompt": "a red heart "},
        {"negative_prompt": "a ring"},
        {"guidance_scale": 1.0},
    ],
    ids=str,
)
def test_another_prompt_or_another_account_is_encoded_again(
    pipelines: dict[str, Any], changes: dict[str, Any]
) -> None:
    pipeline = pipelines["stable_diffusion"]
    engine = engine_of(pipeline)
    drawn(engine, asked())
    with encodings_of(pipeline) as ran:
        drawn(engine, asked(**changes))
    assert ran


def test_prompts_without_an_account_are_not_kept(pipelines: dict[str, Any]) -> None:
    pipeline = pipelines["stable_diffusion"]
    engine = engine_of(pipeline)
    drawn(engine, asked(account=""))
    with encodings_of(pipeline) as ran:
        drawn(engine, asked(account=""))
    assert ran


def test_empty_prompts_are_encoded_once_for_all_accounts(pipelines: dict[str, Any]) -> None:
    pipeline = pipelines["stable_diffusion"]
    engine = engine_of(pipeline)
    first = drawn(engine, asked(prompt=""))
    with encodings_of(pipeline) as ran:
        again = [drawn(engine, asked(prompt="", account=account)) for account in ("bob", "")]
    assert ran == []
    assert {one.tobytes() for one in again} == {first.tobytes()}


def test_memory_that_runs_out_takes_the_kept_prompts_along(pipelines: dict[str, Any]) -> None:
    pipeline = pipelines["stable_diffusion"]
    engine = engine_of(pipeline)
    drawn(engine, asked())
    prompts = engine._runner._prompts
    assert prompts.num_bytes > 0
    engine._runner.free([])
    assert prompts.num_bytes == 0
    with encodings_of(pipeline) as ran:
        drawn(engine, asked())
    assert ran


class Noisy(StableDiffusionPipeline):  # type: ignore[misc]  # untyped
    """It encodes prompts with noise from torch's global generator."""

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        positive, negative = super().encode_prompt(*args, **kwargs)
        return positive + torch.randn(positive.shape), negative


class Writing(StableDiffusionPipeline):  # type: ignore[misc]  # untyped
    """Its `encode_prompt` sets an attribute that the call reads."""

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        self._shift = 0.5
        return super().encode_prompt(*args, **kwargs)

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        return super().prepare_latents(*args, **kwargs) + self._shift


class Reading(StableDiffusionPipeline):  # type: ignore[misc]  # untyped
    """Its tensors depend on the guidance scale, which is not an argument of the method."""

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        positive, negative = super().encode_prompt(*args, **kwargs)
        return positive * self._guidance_scale, negative


@pytest.mark.parametrize("strange", [Noisy, Writing, Reading])
def test_a_strange_encode_prompt_draws_what_it_draws_without_anything_kept(
    pipelines: dict[str, Any], strange: type
) -> None:
    pipeline = strange(**pipelines["stable_diffusion"].components, requires_safety_checker=False)
    engine = engine_of(pipeline)
    for changes in ({}, {}, {"seed": 7}, {"guidance_scale": 3.0}):
        kept = drawn(engine, asked(**changes))
        assert kept.tobytes() == drawn(engine_of(pipeline), asked(**changes)).tobytes()


def test_tensors_that_a_call_changes_in_place_stay_as_they_were_for_the_next(
    pipelines: dict[str, Any],
) -> None:
    class Changing(StableDiffusionPipeline):  # type: ignore[misc]  # untyped
        @functools.wraps(StableDiffusionPipeline.__call__)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            encode: Any = self.encode_prompt  # type: ignore[has-type]  # untyped

            def doubled(*args: Any, **kwargs: Any) -> Any:
                positive, negative = encode(*args, **kwargs)
                return positive.mul_(2), negative

            self.encode_prompt = doubled
            return super().__call__(*args, **kwargs)

    pipeline = Changing(**pipelines["stable_diffusion"].components, requires_safety_checker=False)
    engine = engine_of(pipeline)
    images = {drawn(engine, asked()).tobytes() for _ in range(3)}
    assert len(images) == 1


def test_a_loaded_engine_keeps_prompts(pipelines: dict[str, Any], tmp_path: Path) -> None:
    pipelines["flux"].save_pretrained(tmp_path / "flux")
    spec = ModelSpec("tiny", str(tmp_path / "flux"))
    limits = {"tiny": LIMITS}
    engine = load_engine([spec], device="cpu:0", row_limits=limits, num_threads=1, self_test_seconds=0)
    first = drawn(engine, asked())
    assert engine._runner._prompts.num_bytes > 0
    assert drawn(engine, asked()).tobytes() == first.tobytes()
    engine.stop()
