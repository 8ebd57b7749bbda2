"""Encoding and decoding hold up the next step by a bounded slice, and neither ever starves."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis.strategies import floats, integers

from engine.engine import Engine
from engine.errors import Canceled, DeadlineExceeded
from engine.generation import Handle
from engine.policy.side_work import DECODING_SHARE, ENCODING_SHARE, SideWork
from engine.request import GenerationRequest
from tests.unit.engine.fakes import FakeModel, SetClock

Ask = Callable[..., GenerationRequest]


def spent(clock: SetClock, seconds_each: float, turns: object) -> tuple[int, float]:
    """How many got their turn, at `seconds_each`, and how long it took."""
    began_at, num_done = clock.now, 0
    for _ in turns:  # type: ignore[attr-defined]
        clock.now += seconds_each
        num_done += 1
    return num_done, clock.now - began_at


@given(
    step=floats(0.001, 10),
    each=floats(0.0001, 10),
    num_members=integers(1, 40),
    num_running=integers(0, 40),
)
def test_a_step_waits_for_its_slice_and_one_more_at_most(
    step: float, each: float, num_members: int, num_running: int
) -> None:
    clock = SetClock()
    side_work = SideWork(clock)
    side_work.stepped(step)
    num_encoded, seconds = spent(clock, each, side_work.to_encode(range(num_members)))
    assert 1 <= num_encoded <= num_members
    assert seconds <= ENCODING_SHARE * step + each + 1e-6
    num_decoded, seconds = spent(clock, each, side_work.to_decode(range(num_members), num_running))
    assert num_decoded >= 1
    assert num_members - num_decoded <= max(num_running, num_members - 1)
    if num_running >= num_members:
        assert seconds <= DECODING_SHARE * step + each + 1e-6


def test_before_the_first_step_nothing_is_held_back() -> None:
    clock = SetClock()
    assert spent(clock, 9.0, SideWork(clock).to_encode(range(5)))[0] == 5


@pytest.fixture
def slow_model(clock: SetClock) -> FakeModel:
    """A step takes a second, an encoding 0.15 and a decoding 0.6."""
    model = FakeModel()
    model.text_encoder.on_encode = lambda _: clock.advance(0.15)
    model.on_predict = lambda: clock.advance(1)
    model.vae.on_decode = lambda: clock.advance(0.6)
    return model


@pytest.fixture
def slow_engine(slow_model: FakeModel, clock: SetClock) -> Engine:
    return Engine({"fake": slow_model}, {"fake": {64 * 64: 8}}, determinism="exact", clock=clock)


def test_a_burst_of_prompts_joins_over_several_ticks(slow_engine: Engine, ask: Ask, clock: SetClock) -> None:
    running = slow_engine.submit(ask(num_inference_steps=50))
    slow_engine.tick()
    for seed in range(6):
        slow_engine.submit(ask(f"prompt {seed}", seed=seed, num_inference_steps=50))
    waits = []
    for _ in range(4):
        before = clock.now
        slow_engine.tick()
        waits.append(clock.now - before - 1)
    assert max(waits) <= ENCODING_SHARE + 0.15 + 1e-6
    assert sum(waits) == pytest.approx(6 * 0.15)
    assert not running.future.done()


def test_finished_images_never_wait_while_more_of_them_wait_than_run(
    slow_engine: Engine, ask: Ask, clock: SetClock
) -> None:
    """Eight end together beside nobody; at 0.6 s each a step's second would leave six of them."""
    handles = [slow_engine.submit(ask(seed=seed, num_inference_steps=1)) for seed in range(8)]
    slow_engine.tick()
    assert all(handle.future.done() for handle in handles)
    late = slow_engine.submit(ask(num_inference_steps=3))
    before = clock.now
    slow_engine.tick()
    assert clock.now - before < 2
    assert not late.future.done()


def test_who_arrives_while_finished_images_are_decoded_waits_for_a_steps_seconds(
    slow_engine: Engine, slow_model: FakeModel, ask: Ask
) -> None:
    handles = [slow_engine.submit(ask(seed=seed, num_inference_steps=1)) for seed in range(8)]
    late: list[Handle] = []
    handles[0].future.add_done_callback(lambda _: late.append(slow_engine.submit(ask(seed=9))))
    slow_engine.tick()
    assert sum(handle.future.done() for handle in handles) == 2, "0.6 s each, beside a step of 1 s"
    slow_engine.tick()
    assert len(slow_model.step_sizes) == 2, "it has had its first step"
    while not all(handle.future.done() for handle in (*handles, *late)):
        slow_engine.tick()


def test_what_is_canceled_or_late_is_not_decoded(
    slow_engine: Engine, slow_model: FakeModel, ask: Ask, clock: SetClock
) -> None:
    decoded: list[float] = []

    def note() -> None:
        clock.advance(0.6)
        decoded.append(clock.now)

    slow_model.vae.on_decode = note
    first = slow_engine.submit(ask(num_inference_steps=1))
    canceled = slow_engine.submit(ask(seed=2, num_inference_steps=1))
    late = slow_engine.submit(ask(seed=3, num_inference_steps=1, seconds_left=1.5 + 3 * 0.15))
    first.future.add_done_callback(lambda _: canceled.cancel())
    slow_engine.tick()
    assert isinstance(canceled.future.exception(timeout=0), Canceled)
    assert isinstance(late.future.exception(timeout=0), DeadlineExceeded)
    assert len(decoded) == 1


def test_a_suspect_begins_when_no_image_of_others_is_left_to_decode(
    slow_engine: Engine, slow_model: FakeModel, ask: Ask
) -> None:
    slow_engine.submit(ask(seed=9, num_inference_steps=20))
    others = [slow_engine.submit(ask(seed=seed, num_inference_steps=1)) for seed in range(4)]
    left: list[int] = []

    def begin() -> None:
        left.append(sum(not other.future.done() for other in others))

    slow_engine.tick()
    assert not all(other.future.done() for other in others), "one waits beside whoever runs"
    quarantined = slow_engine.submit(ask(isolated=True, num_inference_steps=2), before_first_step=begin)
    while not quarantined.future.done():
        slow_engine.tick()
    assert left == [0]
    assert len(slow_model.step_sizes) == 3, "no step was spent on waiting"
