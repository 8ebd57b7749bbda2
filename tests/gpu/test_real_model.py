"""One published model by its id, from this disk: its promise, and finite images.

`CALOTYPE_TEST_MODEL` is `ID@REVISION` or a folder; without it SD-Turbo is taken, as in its example file.
Nothing is downloaded unless `CALOTYPE_TEST_DOWNLOAD=1`.
"""

import os
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from catalogue.catalogue import load_catalogue
from engine.errors import LoadError
from engine.loading.hub import Hub
from engine.loading.load import ModelSpec, load_engine
from engine.pipelines.pipeline_model import LEFT_OUT
from engine.request import GenerationRequest, SchedulerSpec
from settings import ROOT
from tests.gpu.drawing import differences, drawn
from tests.gpu.test_promise import MAX_DIFFERENCE

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]
EXAMPLE = ROOT / "examples" / "models" / "few-step.toml"
LARGEST_ON_CPU = 128  # pixels a side; a GPU draws at the size of the example's tier


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    """The model that was asked for; skips where it is not on this disk."""
    wanted = os.environ.get("CALOTYPE_TEST_MODEL")
    may_download = os.environ.get("CALOTYPE_TEST_DOWNLOAD") == "1"
    if wanted is None:
        example = load_catalogue(EXAMPLE).model(None)
        assert example is not None
        found = ModelSpec(
            "m",
            example.path,
            revision=example.revision,
            variant=example.variant,
            dtype=example.dtype,
            local_files_only=not may_download,
        )
    else:
        path, _, revision = wanted.partition("@")
        found = ModelSpec("m", path, revision=revision or None, local_files_only=not may_download)
    try:
        folder = Hub().folder(
            found.path,
            revision=found.revision,
            variant=found.variant,
            local_files_only=not may_download,
            left_out=LEFT_OUT,
        )
    except LoadError as error:
        if may_download:
            raise
        pytest.skip(f"{found.path}: {error}; or set CALOTYPE_TEST_DOWNLOAD=1")
    return replace(found, path=str(folder))


def test_a_published_model_draws_finite_images_and_keeps_its_promise(
    spec: ModelSpec, device: str, note: Callable[[str], None]
) -> None:
    side = 512 if device.startswith("cuda") else LARGEST_ON_CPU
    started_at = time.monotonic()
    engine = load_engine([spec], device=device, row_limits={"m": {side * side: 8}}, num_threads=1)
    loaded_at = time.monotonic()
    requests = [_asked(number, side) for number in range(4)]
    alone = [drawn(engine, [request])[0] for request in requests]
    drawn_at = time.monotonic()
    in_company, _ = differences(drawn(engine, requests), alone)
    together_at = time.monotonic()
    note(
        f"{spec.path}: determinism {engine.determinism!r}; in company {in_company}/255;"
        f" loaded in {loaded_at - started_at:.0f} s, four images one by one in {drawn_at - loaded_at:.2f} s,"
        f" together in {together_at - drawn_at:.2f} s"
    )
    assert in_company <= MAX_DIFFERENCE[engine.determinism]
    assert all(image.shape == (side, side, 3) and np.ptp(image) > 50 for image in alone)


def _asked(number: int, side: int) -> GenerationRequest:
    return GenerationRequest(
        "m", f"a red heart on a white background {number}", side, side, 2 + number % 3, 0.0, seed=number,
        scheduler=SchedulerSpec("default"),
    )  # fmt: skip
