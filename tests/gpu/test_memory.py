"""A GPU's memory: limits that do not fit, steps that run out of it, and what an ended call leaves."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from engine.engine import Engine
from engine.errors import Canceled
from engine.policy.buckets import UNTESTED
from tests.gpu.drawing import MODEL, SHIPPED, Engines, asked, differences, drawn, finish

pytestmark = pytest.mark.filterwarnings("ignore")
LARGE = {"width": 512, "height": 512, "num_inference_steps": 2, "guidance_scale": 4.0}
SMALL_LIMIT, HIGH_LIMIT = 8, 512
"""Rows; at 512 x 512 pixels a row takes more than a thousandth of what 8 rows may take."""


@contextmanager
def little_memory(num_bytes: int) -> Iterator[None]:
    """Let this process reserve so many bytes more than it holds now, and no others."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(0) + num_bytes) / total, 0)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
        torch.cuda.empty_cache()


def num_bytes_used(work: Callable[[], object]) -> int:
    """The most that `work` had allocated beyond what was there before."""
    before = torch.cuda.memory_allocated(0)
    torch.cuda.reset_peak_memory_stats(0)
    work()
    return torch.cuda.max_memory_allocated(0) - before


def test_a_row_limit_that_does_not_fit_is_lowered_and_no_image_is_lost(
    engines: Engines, gpu: str, note: Callable[[str], None]
) -> None:
    small = engines.load(SHIPPED, rows=SMALL_LIMIT, side=512)
    requests = [asked(number, **LARGE) for number in range(12)]
    used = num_bytes_used(lambda: drawn(small, requests))
    with little_memory(3 * used):
        engine = engines.load(SHIPPED, rows=HIGH_LIMIT, side=512)
        (limit,) = engine._models.row_limits[MODEL].values()
        note(f"of {HIGH_LIMIT} rows {limit} fit into {3 * used >> 20} MiB, on {gpu}")
        assert 4 <= limit < HIGH_LIMIT
        images = drawn(engine, requests)
    worst, _ = differences(images, drawn(small, requests))
    assert worst <= 1


def test_a_step_that_runs_out_of_memory_is_split_and_no_image_is_lost(
    engines: Engines, gpu: str, caplog: pytest.LogCaptureFixture
) -> None:
    small = engines.load(SHIPPED, rows=SMALL_LIMIT, side=512)
    requests = [asked(number, **LARGE | {"num_inference_steps": 12}) for number in range(64)]
    used = num_bytes_used(lambda: drawn(small, requests[:12]))
    small._models.by_name[MODEL].buckets = UNTESTED  # those found would keep step batches to 8 rows
    untested = Engine(small._models.by_name, {MODEL: {512 * 512: HIGH_LIMIT}}, determinism=small.determinism)
    with little_memory(2 * used), caplog.at_level(logging.WARNING, logger="engine.device_work"):
        handles = [untested.submit(request) for request in requests]
        finish(untested)
    images = [handle.future.result(timeout=0).pixels for handle in handles]
    assert any("out_of_memory" in record.getMessage() for record in caplog.records), f"it fitted on {gpu}"
    worst, _ = differences(images, drawn(small, requests))
    assert worst <= 1


def test_a_call_that_is_canceled_gives_its_memory_back(engines: Engines, gpu: str) -> None:
    engine = engines.get(SHIPPED)
    requests = [asked(number, num_inference_steps=20) for number in range(3)]
    drawn(engine, requests)  # kept embeddings and the libraries' workspaces are there from now on
    before = torch.cuda.memory_allocated(0)
    handles = [engine.submit(request) for request in requests]
    for _ in range(6):
        engine.tick()
    assert torch.cuda.memory_allocated(0) > before
    for handle in handles:
        handle.cancel()
    finish(engine)
    assert all(isinstance(handle.future.exception(timeout=0), Canceled) for handle in handles)
    assert torch.cuda.memory_allocated(0) == before, gpu


def test_the_engine_says_how_much_memory_this_process_has_reserved(engines: Engines, device: str) -> None:
    engine = engines.get(SHIPPED)
    drawn(engine, [asked(1)])
    expected = torch.cuda.memory_reserved(0) if device.startswith("cuda") else None
    assert engine.device_memory_bytes() == expected
