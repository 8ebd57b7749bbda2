"""Encoding and decoding hold up the next step by a bounded slice, and neither ever starves."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis.strategies import booleans, floats, integers, sampled_from

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


class Waiting(NamedTuple):
    """A generation whose text or image waits."""

    lane: str


def interactive(count: int) -> list[Waiting]:
    return [Waiting("interactive")] * count


def bulk(count: int) -> list[Waiting]:
    return [Waiting("bulk")] * count


@settings(deadline=None)  # on a busy machine an example may take long
@given(
    step=floats(0.001, 10),
    each=floats(0.0001, 10),
    num_members=integers(1, 40),
    num_running=integers(0, 40),
    lane=sampled_from([interactive, bulk]),
)
def test_a_step_waits_for_its_slice_and_one_more_at_most(
    step: float, each: float, num_members: int, num_running: int, lane: Callable[[int], list[Waiting]]
) -> None:
    clock = SetClock()
    side_work = SideWork(clock)
    side_work.stepped(step)
    members, running = lane(num_members), lane(num_running)
    num_encoded, seconds = spent(clock, each, side_work.to_encode(members, running))
    assert 1 <= num_encoded <= num_members
    assert seconds <= ENCODING_SHARE * step + each + 1e-6
    num_decoded, seconds = spent(clock, each, side_work.to_decode(members, running))
    assert num_decoded >= 1
    assert num_members - num_decoded <= max(num_running, num_members - 1)
    if num_running >= num_members:
        assert seconds <= DECODING_SHARE * step + each + 1e-6


@settings(deadline=None)  # on a busy machine an example may take long
@given(step=floats(0.01, 1), each=floats(0.001, 3), slowdown=floats(0.01, 1), is_decoding=booleans())
def test_bulk_work_takes_its_share_of_interactive_steps_between_them(
    step: float, each: float, slowdown: float, is_decoding: bool
) -> None:
    clock = SetClock()
    side_work = SideWork(clock, slowdown)
    turn = side_work.to_decode if is_decoding else side_work.to_encode
    num_done = 0
    for _ in range(1000):
        side_work.stepped(step)
        done, _ = spent(clock, each, turn(bulk(40), interactive(1)))
        assert done <= 1
        num_done += done
    most = 1 + slowdown * 1000 * step / each
    assert num_done * each <= most * each + 1e-6, "one may go before it has been paid for"
    assert num_done >= min(1000, most) / 2 - 1, "and whatever the load, bulk work goes on"


def test_steps_of_bulk_work_pay_for_nothing() -> None:
    clock = SetClock()
    side_work = SideWork(clock)
    side_work.stepped(1)
    assert spent(clock, 0.2, side_work.to_decode(bulk(4), interactive(1)))[0] == 1
    side_work.stepped(9, is_interactive=False)
    assert spent(clock, 0.2, side_work.to_decode(bulk(3), interactive(1)))[0] == 0
    assert spent(clock, 0.2, side_work.to_decode(bulk(3), bulk(1)))[0] == 3, "no interactive work is there"


def test_interactive_images_are_decoded_before_the_next_step_of_bulk_work() -> None:
    clock = SetClock()
    side_work = SideWork(clock)
    side_work.stepped(1)
    assert spent(clock, 0.6, side_work.to_decode(interactive(8), bulk(20)))[0] == 8
    assert spent(clock, 0.6, side_work.to_decode(interactive(8), [*bulk(20), *interactive(1)]))[0] == 7


def test_a_bulk_image_is_decoded_if_no_step_came_since_the_last_one() -> None:
    """The step may wait for it, as that of an isolated generation does, and only steps pay."""
    clock = SetClock()
    side_work = SideWork(clock)
    side_work.stepped(1.0, is_interactive=True)
    for num_left in (3, 2, 1):
        assert spent(clock, 5.0, side_work.to_decode(bulk(num_left), interactive(1)))[0] == 1


def test_bulk_images_and_texts_wait_from_the_moment_at_which_interactive_work_arrives() -> None:
    clock = SetClock()
    side_work = SideWork(clock)
    side_work.stepped(1)
    for turn in (side_work.to_decode, side_work.to_encode):
        begun_at = clock.now
        done, _ = spent(clock, 0.1, turn(bulk(8), bulk(8), lambda: clock.now - begun_at >= 0.2))  # noqa: B023
        assert done == 2


def test_before_the_first_step_nothing_is_held_back() -> None:
    clock = SetClock()
    assert spent(clock, 9.0, SideWork(clock).to_encode(interactive(5), []))[0] == 5


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


def test_a_finished_bulk_image_is_decoded_although_interactive_work_never_ends(
    slow_engine: Engine, ask: Ask
) -> None:
    slow_engine.submit(ask(num_inference_steps=50))
    bulk = [slow_engine.submit(ask(seed=seed, num_inference_steps=1, lane="bulk")) for seed in range(3)]
    done = []
    for _ in range(30):
        slow_engine.tick()
        done.append(sum(handle.future.done() for handle in bulk))
    assert done[-1] == 3
    pauses = [tick for tick in range(1, 30) if done[tick] > done[tick - 1]]
    assert all(later - sooner >= 6 for sooner, later in pairwise(pauses)), "0.6 s each are six steps' share"


def test_bulk_work_steps_only_when_interactive_images_are_decoded(
    slow_engine: Engine, slow_model: FakeModel, ask: Ask
) -> None:
    bulk = [slow_engine.submit(ask(seed=seed, lane="bulk", num_inference_steps=50)) for seed in range(8)]
    slow_engine.tick()
    interactive = [slow_engine.submit(ask(seed=seed, num_inference_steps=1)) for seed in range(4)]
    slow_engine.tick()
    assert all(handle.future.done() for handle in interactive)
    assert len(slow_model.step_sizes) == 2
    assert not any(handle.future.done() for handle in bulk)
