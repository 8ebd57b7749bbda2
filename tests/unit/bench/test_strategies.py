"""The arms of the engine's benchmark serve every request, and differ in nothing but the batching."""

import itertools
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from diffusers import DDIMScheduler

from bench.clock import WorkClock, in_turns
from bench.fifo import FifoEngine
from bench.latency import Solo, goodput, serve_in_turns
from bench.strategies import Continuous, Dynamic, Ended, Serve
from bench.workload import GUIDANCE_SCALES, STEPS, DueRequest, mixed_requests, poisson
from engine.errors import GenerationFailed, NumericError
from engine.exchange import Exchange
from engine.loading.load import LoadedModels
from engine.pipelines.pipeline_call import PipelineCall
from engine.request import GenerationRequest, SchedulerSpec
from tests.unit.engine.fakes import FakeModel

MAX_ROWS = 8


class CountingExchange(Exchange):
    """Counts the calls that it begins and those that end."""

    def __init__(self, other: Exchange) -> None:
        vars(self).update(vars(other))
        self.num_begun = self.num_ended = 0

    def begin(self, *args: Any, **kwargs: Any) -> PipelineCall:
        self.num_begun += 1
        return super().begin(*args, **kwargs)

    def _ended(self, is_whole: bool) -> None:
        super()._ended(is_whole)
        self.num_ended += 1


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def loaded(model: FakeModel) -> LoadedModels:
    return LoadedModels({"tiny": model}, {"tiny": {64 * 64: MAX_ROWS}}, "exact")


@pytest.fixture
def asked() -> list[GenerationRequest]:
    return mixed_requests(12, 64, seed=1)


def padded(loaded: LoadedModels) -> Dynamic:
    return Dynamic(loaded, max_rows=MAX_ROWS, timeout_seconds=0.0, by_steps=False)


def strategies(loaded: LoadedModels) -> dict[str, Serve]:
    return {
        "ours": Continuous(loaded),
        "first come, first served": Continuous(loaded, kind=FifoEngine),
        "keyed": Dynamic(loaded, max_rows=MAX_ROWS, timeout_seconds=0.01, by_steps=True),
        "padded": padded(loaded),
        "one at a time": Dynamic(loaded, max_rows=1, timeout_seconds=0.0, by_steps=True),
    }


@pytest.mark.parametrize("name", ["ours", "first come, first served", "keyed", "padded", "one at a time"])
def test_every_arrival_is_served_once_and_after_it_was_due(
    loaded: LoadedModels, asked: list[GenerationRequest], name: str
) -> None:
    arrivals = poisson(asked, rate=20, seed=1)
    (ended,) = serve_in_turns([strategies(loaded)[name]], arrivals)
    assert sorted(id(one.arrival) for one in ended) == sorted(map(id, arrivals))
    assert all(one.latency_seconds is not None and one.latency_seconds > 0 for one in ended)


def test_arms_that_take_turns_serve_the_same_arrivals(
    loaded: LoadedModels, asked: list[GenerationRequest]
) -> None:
    arrivals = poisson(asked, rate=20, seed=1)
    found = serve_in_turns(list(strategies(loaded).values()), arrivals)
    assert [{id(one.arrival) for one in ended} for ended in found] == [set(map(id, arrivals))] * 5


def test_a_padded_batch_runs_as_long_as_its_longest_and_at_its_own_rows(
    loaded: LoadedModels, model: FakeModel, asked: list[GenerationRequest]
) -> None:
    guided, unguided = (
        replace(asked[0], num_inference_steps=steps, guidance_scale=scale)
        for steps, scale in [(4, 4), (12, 1)]
    )
    places = [place for place in padded(loaded).run([guided, unguided]) if place is not None]
    assert places == [0, 1]
    assert model.step_sizes == [3] * 12


@pytest.mark.parametrize("name", ["ours", "padded"])
def test_an_arm_that_is_left_in_the_middle_ends_its_calls(
    loaded: LoadedModels, model: FakeModel, asked: list[GenerationRequest], name: str
) -> None:
    exchange = model.exchange = CountingExchange(model.exchange)
    serving = strategies(loaded)[name]([DueRequest(one, 0.0) for one in asked], WorkClock())
    assert isinstance(serving, Generator)
    for _ in range(3):
        next(serving)
    assert exchange.num_begun > exchange.num_ended == 0
    serving.close()
    assert exchange.num_begun == exchange.num_ended


def test_a_request_that_is_dropped_for_its_deadline_has_no_latency(
    loaded: LoadedModels, asked: list[GenerationRequest]
) -> None:
    late = DueRequest(replace(asked[0], seconds_left=0.0), 0.0)
    ((ended,),) = serve_in_turns([Continuous(loaded)], [late])
    assert ended.latency_seconds is None


def test_first_come_is_first_served_where_the_policy_would_not(
    loaded: LoadedModels, asked: list[GenerationRequest]
) -> None:
    """One row each, more of them than fit: the late and short ones wait for the long ones before them."""
    long, short = (replace(asked[0], num_inference_steps=steps, guidance_scale=1.0) for steps in (30, 4))
    arrivals = [*[DueRequest(long, 0.0)] * MAX_ROWS, *[DueRequest(short, 0.0)] * 4]
    (ended,) = serve_in_turns([Continuous(loaded, kind=FifoEngine)], arrivals)
    assert [one.arrival.request for one in ended] == [long] * MAX_ROWS + [short] * 4


@pytest.mark.parametrize(
    ("name", "prompt", "error"),
    [
        ("ours", "explode", GenerationFailed),
        ("padded", "explode", ValueError),
        ("padded", "cannot be encoded", RuntimeError),
        ("padded", "not a number", NumericError),
    ],
)
def test_an_arm_that_fails_says_so(
    loaded: LoadedModels, asked: list[GenerationRequest], name: str, prompt: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        serve_in_turns([strategies(loaded)[name]], [DueRequest(replace(asked[0], prompt=prompt), 0.0)])


class BrokenScheduler(DDIMScheduler):  # type: ignore[misc]  # diffusers exports lazily
    def step(self, *_: Any, **__: Any) -> Any:
        raise ValueError("no step")


def test_a_batch_whose_pipelines_own_code_fails_says_so(asked: list[GenerationRequest]) -> None:
    model = FakeModel(scheduler=BrokenScheduler(clip_sample=False))
    strategy = padded(LoadedModels({"tiny": model}, {"tiny": {64 * 64: MAX_ROWS}}, "exact"))
    with pytest.raises(ValueError, match="no step"):
        list(strategy.run([replace(asked[0], scheduler=SchedulerSpec("default"))]))


def test_the_work_is_the_same_for_the_same_seed_and_holds_every_class() -> None:
    requests = mixed_requests(400, 128, seed=3)
    assert requests == mixed_requests(400, 128, seed=3)
    assert {request.num_inference_steps for request in requests} == {4, 12, 20, 30, 50}
    assert 0.4 < sum(request.guidance_scale > 1 for request in requests) / 400 < 0.6
    assert len({len(request.prompt) for request in requests}) > 10


@pytest.mark.parametrize("seed", range(5))
def test_arrivals_come_at_just_the_rate_that_was_asked_for(asked: list[GenerationRequest], seed: int) -> None:
    arrivals = poisson(asked, rate=3.0, seed=seed)
    assert len(asked) / arrivals[-1].seconds == pytest.approx(3.0)
    gaps = [late.seconds - early.seconds for early, late in itertools.pairwise(arrivals)]
    assert min(gaps) > 0
    assert len(set(gaps)) == len(gaps)


@pytest.mark.parametrize(
    ("num_requests", "num_missed", "is_enough"),
    [(80, 8, True), (80, 9, False), (10, 1, True), (150, 16, False)],
)
def test_nine_in_ten_are_enough_whichever_misses_first(
    num_requests: int, num_missed: int, is_enough: bool
) -> None:
    solo = Solo({(steps, scale): 1.0 for steps in STEPS for scale in GUIDANCE_SCALES})

    def serve(arrivals: Sequence[DueRequest], _clock: WorkClock) -> Iterator[Sequence[Ended]]:
        for place, arrival in enumerate(arrivals):
            yield (Ended(arrival, None if place < num_missed else 3.0),)

    search = goodput(serve, solo, 1.0, side=128, seed=1, num_requests=num_requests, shares=[1.0])
    assert in_turns([search]) == [1.0 if is_enough else 0.0]
