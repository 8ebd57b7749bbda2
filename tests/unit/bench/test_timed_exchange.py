"""Where the seconds of an exchange go: to the modules, to the pipelines' own code, to the exchange itself."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from bench.saturation import Done
from bench.timed_exchange import Spent, TimedExchange, timed
from engine.pipelines.parked_call import Merger, ParkedCall
from engine.pipelines.steady_stack import on_steady_stack
from engine.request import GenerationRequest, SchedulerSpec
from tests.unit.engine.fakes import FakeModel, SetClock

STEP_SECONDS, ENCODING_SECONDS, DECODING_SECONDS, SCHEDULER_SECONDS, MERGING_SECONDS = (
    4.0,
    1.0,
    2.0,
    0.5,
    0.25,
)


class SlowMerger(Merger):
    """Takes its time to gather the arguments of a pass."""

    def __init__(self, clock: SetClock) -> None:
        super().__init__()
        self._clock = clock

    def merge(self, calls: Sequence[ParkedCall], num_rows: int) -> dict[str, Any]:
        self._clock.now += MERGING_SECONDS
        return super().merge(calls, num_rows)


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def model(clock: SetClock) -> FakeModel:
    """Its modules, its scheduler and the exchange's gathering each take what is written above."""

    def takes(seconds: float) -> None:
        clock.now += seconds

    class SlowScheduler(DDIMScheduler):  # type: ignore[misc]  # diffusers exports lazily
        def step(self, *args: Any, **kwargs: Any) -> Any:
            takes(SCHEDULER_SECONDS)
            return super().step(*args, **kwargs)

    model = FakeModel(scheduler=SlowScheduler(clip_sample=False))
    model.on_predict = lambda: takes(STEP_SECONDS)
    model.text_encoder.on_encode = lambda _: takes(ENCODING_SECONDS)
    model.vae.on_decode = lambda: takes(DECODING_SECONDS)
    return model


@pytest.fixture
def exchange(model: FakeModel, clock: SetClock) -> Iterator[TimedExchange]:
    with timed(model, clock) as exchange:
        exchange._merger = SlowMerger(clock)
        yield exchange


@on_steady_stack
@torch.inference_mode()
def draw(exchange: TimedExchange, num_calls: int, num_steps: int) -> None:
    calls = [exchange.begin(prompt="a", num_inference_steps=num_steps) for _ in range(num_calls)]
    for call in calls:
        exchange.run_to_denoiser(call)
    for _ in range(num_steps):
        exchange.run(calls)
    for call in calls:
        exchange.run_to_denoiser(call)


def test_each_second_is_of_a_module_of_a_pipeline_or_of_the_exchange(
    exchange: TimedExchange, clock: SetClock
) -> None:
    started_at = clock()
    draw(exchange, num_calls=2, num_steps=3)
    spent = exchange.spent
    assert spent.total == clock() - started_at
    assert spent.forward == 2 * ENCODING_SECONDS + 3 * STEP_SECONDS + 2 * DECODING_SECONDS
    assert spent.pipeline == 2 * 3 * SCHEDULER_SECONDS
    assert spent.exchange == (2 + 3 + 2) * MERGING_SECONDS


def test_the_model_has_its_own_exchange_again(model: FakeModel, clock: SetClock) -> None:
    own = model.exchange
    own.takes_float_timesteps = True
    with timed(model, clock) as exchange:
        assert model.exchange is exchange
        assert exchange.takes_float_timesteps, "it is set as the model's own is"
    assert model.exchange is own
    with pytest.raises(KeyError), timed(model, clock):
        raise KeyError
    assert model.exchange is own, "a run that fails leaves no timed one behind"


def test_requests_of_the_model_run_through_the_timed_exchange(model: FakeModel, clock: SetClock) -> None:
    with timed(model, clock) as exchange:
        own = SchedulerSpec("default")
        call = model.begin(GenerationRequest("", "a", 64, 64, 2, 1.0, seed=0, scheduler=own))
        exchange.run_to_denoiser(call)
        assert exchange.spent.forward == ENCODING_SECONDS
        call.end()


def test_what_is_left_of_the_seconds_of_ticks_is_the_engine() -> None:
    done = Done(seconds=10.0, bare_seconds=8.0, spent=Spent(forward=9.0, pipeline=0.5, total=9.7))
    assert (done.forward_share, done.share_of_bare) == (0.9, 0.8)
    assert done.beside == "the pipelines' own code 0.0500, the exchange 0.0200, the engine 0.0300"
