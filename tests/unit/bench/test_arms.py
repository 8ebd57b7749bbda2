"""The arms of the engine's benchmark serve every request, and differ in nothing but the batching."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from bench.arms import Dynamic, Ended, Serve, continuous
from bench.workload import DueRequest, mixed_requests, num_row_steps, poisson
from engine.load import LoadedModels
from engine.request import GenerationRequest
from tests.unit.engine.fakes import FakeFamily

MAX_ROWS = 8


@pytest.fixture
def family() -> FakeFamily:
    return FakeFamily()


@pytest.fixture
def loaded(family: FakeFamily) -> LoadedModels:
    return LoadedModels({"tiny": family}, {"tiny": {64 * 64: MAX_ROWS}}, "exact")


@pytest.fixture
def asked() -> list[GenerationRequest]:
    return mixed_requests(12, 64, seed=1)


def padded(loaded: LoadedModels) -> Dynamic:
    return Dynamic(loaded, max_rows=MAX_ROWS, timeout_seconds=0.0, by_steps=False)


def arms(loaded: LoadedModels) -> dict[str, Serve]:
    def ours(arrivals: Sequence[DueRequest]) -> list[Ended]:
        return continuous(loaded, arrivals)

    return {
        "ours": ours,
        "keyed": Dynamic(loaded, max_rows=MAX_ROWS, timeout_seconds=0.01, by_steps=True),
        "padded": padded(loaded),
        "one at a time": Dynamic(loaded, max_rows=1, timeout_seconds=0.0, by_steps=True),
    }


@pytest.mark.parametrize("name", ["ours", "keyed", "padded", "one at a time"])
def test_every_arrival_is_served_once_and_after_it_was_due(
    loaded: LoadedModels, asked: list[GenerationRequest], name: str
) -> None:
    arrivals = poisson(asked, rate=20, seed=1)
    ended = arms(loaded)[name](arrivals)
    assert sorted(id(one.arrival) for one in ended) == sorted(map(id, arrivals))
    assert all(one.latency_seconds is not None and one.latency_seconds > 0 for one in ended)


def test_a_keyed_batch_computes_no_row_in_vain_and_a_padded_one_as_long_as_its_longest(
    loaded: LoadedModels, family: FakeFamily, asked: list[GenerationRequest]
) -> None:
    short, long = (replace(asked[0], num_inference_steps=steps, guidance_scale=4.0) for steps in (4, 12))
    assert list(padded(loaded).run([short, long])) == [0, 1]
    assert family.step_sizes == [4] * 12
    assert num_row_steps(short) + num_row_steps(long) == 8 + 24


def test_a_request_that_is_dropped_for_its_deadline_has_no_latency(
    loaded: LoadedModels, asked: list[GenerationRequest]
) -> None:
    (ended,) = continuous(loaded, [DueRequest(replace(asked[0], seconds_left=0.0), 0.0)])
    assert ended.latency_seconds is None


def test_the_work_is_the_same_for_the_same_seed_and_holds_every_class() -> None:
    requests = mixed_requests(400, 128, seed=3)
    assert requests == mixed_requests(400, 128, seed=3)
    assert {request.num_inference_steps for request in requests} == {4, 12, 20, 30, 50}
    assert 0.4 < sum(request.guidance_scale > 1 for request in requests) / 400 < 0.6
    assert len({len(request.prompt) for request in requests}) > 10
