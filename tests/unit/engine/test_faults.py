"""Faults by seeded schedule: who is not the cause gets the bytes of its solo run; each future ends once."""

import gc
import random
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.engine import Engine
from engine.errors import (
    Canceled,
    DeadlineExceeded,
    DeviceLost,
    GenerationFailed,
    NumericError,
    OutOfMemory,
)
from engine.handle import Handle
from engine.models import Models
from engine.policy import RECOVERY_STEPS
from engine.request import GeneratedImage, GenerationRequest, SchedulerSpec
from tests.unit.engine.fakes import FakeFamily, SetClock
from tests.unit.engine.faulty_family import CULPRITS, Fault, FaultyFamily, Kind

LIMITS = {64 * 64: 12, 128 * 64: 4}
FAULTS: list[Fault] = ["out of memory", "exception", "not a number", "slow"]
CHARGES = {"explode": GenerationFailed, "not a number": NumericError, "huge": OutOfMemory}
Ask = Callable[..., GenerationRequest]


@dataclass(frozen=True)
class Schedule:
    """What is asked and when, who is canceled, and which calls of the model fail."""

    requests: list[GenerationRequest]
    joins: list[int]
    cancels: dict[int, int]
    faults: dict[tuple[Kind, int], Fault]

    @classmethod
    def drawn(cls, rng: random.Random, *, faults: list[Fault]) -> "Schedule":
        requests = [_request(rng, number) for number in range(rng.randint(2, 12))]
        kinds: list[Kind] = ["encode", "predict", "predict", "predict", "decode"]
        return cls(
            requests,
            [rng.randint(0, 8) for _ in requests],
            {number: rng.randint(1, 12) for number in range(len(requests)) if rng.random() < 0.15},
            {(rng.choice(kinds), rng.randint(1, 24)): rng.choice(faults) for _ in range(rng.randint(0, 8))},
        )


def _request(rng: random.Random, number: int) -> GenerationRequest:
    word = rng.choice([*["fine"] * 8, *CULPRITS])
    return GenerationRequest(
        model="fake",
        prompt=f"{word} {number}",
        negative_prompt=f"fine {number}",
        width=rng.choice([64, 64, 128]),
        height=64,
        num_inference_steps=rng.randint(1, 6),
        guidance_scale=rng.choice([1.0, 2.0, 7.5]),
        guidance_cutoff=rng.choice([1.0, 0.5]),
        scheduler=rng.choice([SchedulerSpec(), SchedulerSpec(eta=0.5), SchedulerSpec("euler")]),
        seed=number,
        lane=rng.choice(["interactive", "bulk"]),
        strict=rng.random() < 0.1,
        solo=rng.random() < 0.1,
        seconds_left=rng.choice([None, None, 50.0]),
    )


def count_ends(handle: Handle, ends: list[int], number: int) -> None:
    def note(_: "Future[GeneratedImage]") -> None:
        ends[number] += 1

    handle.future.add_done_callback(note)


def alone(request: GenerationRequest) -> bytes:
    engine = Engine({"fake": FaultyFamily()}, {"fake": LIMITS}, promise="exact")
    handle = engine.submit(replace(request, seconds_left=None))
    while not engine.is_idle:
        engine.tick()
    return handle.future.result(timeout=0).pixels.tobytes()


@settings(max_examples=60, deadline=None, derandomize=True, print_blob=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_only_the_cause_of_a_fault_is_charged_and_every_future_ends_once(seed: int) -> None:
    schedule = Schedule.drawn(random.Random(seed), faults=FAULTS)
    clock = SetClock()

    def pass_time() -> None:
        clock.now += 60.0

    family = FaultyFamily(faults=schedule.faults, on_slow=pass_time)
    engine = Engine({"fake": family}, {"fake": LIMITS}, promise="exact", clock=clock)
    handles: dict[int, Handle] = {}
    ends = [0] * len(schedule.requests)
    for tick in range(2000):
        for number, request in enumerate(schedule.requests):
            if schedule.joins[number] == tick:
                handles[number] = engine.submit(request)
                count_ends(handles[number], ends, number)
            if schedule.cancels.get(number) == tick and number in handles:
                handles[number].cancel()
        engine.tick()
        if len(handles) == len(schedule.requests) and engine.is_idle:
            break
    assert ends == [1] * len(ends)
    assert not engine.fatal.is_set()

    num_charged_decoding = 0
    for number, handle in handles.items():
        request, error = schedule.requests[number], handle.future.exception(timeout=0)
        word = request.prompt.rpartition(" ")[0]
        if error is None:
            assert word == "fine"
            assert number not in family.charged
            assert handle.future.result().pixels.tobytes() == alone(request), request
        elif isinstance(error, Canceled):
            assert number in schedule.cancels
        elif isinstance(error, DeadlineExceeded):
            assert request.seconds_left is not None
        elif word == "fine" and number not in family.charged:
            assert isinstance(error, GenerationFailed | NumericError | OutOfMemory)
            assert handle.progress == 1.0, "what else can charge it is its own decoding"
            num_charged_decoding += 1
        elif word in CHARGES and number not in family.charged:
            assert isinstance(error, CHARGES[word])
    assert num_charged_decoding <= family.num_decodings_charged + (
        sum(kind == "decode" and fault == "out of memory" for (kind, _), fault in schedule.faults.items())
        // 2
    )


@settings(max_examples=25, deadline=None, derandomize=True, print_blob=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_lost_device_ends_everything_once_whatever_was_under_way(seed: int) -> None:
    schedule = Schedule.drawn(random.Random(seed), faults=["device lost", "out of memory", "exception"])
    family = FaultyFamily(faults={**schedule.faults, ("predict", 9): "device lost"})
    engine = Engine({"fake": family}, {"fake": LIMITS}, promise="exact")
    requests = [replace(request, seconds_left=None) for request in schedule.requests]
    handles = [engine.submit(request) for request in requests]
    ends = [0] * len(handles)
    for number, handle in enumerate(handles):
        count_ends(handle, ends, number)
    engine.start()
    for handle in handles:
        handle.future.exception(timeout=10)
    engine.stop()
    assert ends == [1] * len(ends)
    for request, handle in zip(requests, handles, strict=True):
        error = handle.future.exception(timeout=0)
        if error is None:
            assert handle.future.result().pixels.tobytes() == alone(request)
        elif isinstance(error, DeviceLost):
            assert engine.fatal.is_set()
            assert error.retryable
    assert engine.is_idle


def test_memory_that_ran_out_at_encoding_or_decoding_is_tried_again_and_changes_no_bit() -> None:
    request = GenerationRequest("fake", "fine 1", 64, 64, 3, 2.0, seed=1, negative_prompt="fine 1")
    once: dict[tuple[Kind, int], Fault] = {("encode", 2): "out of memory", ("decode", 1): "out of memory"}
    engine = Engine({"fake": FaultyFamily(faults=once)}, {"fake": LIMITS}, promise="exact")
    handle = engine.submit(request)
    while not engine.is_idle:
        engine.tick()
    assert handle.future.result().pixels.tobytes() == alone(request)


@pytest.mark.parametrize("kind", ["encode", "decode"])
def test_what_does_not_fit_twice_is_charged_alone(kind: Kind) -> None:
    faults: dict[tuple[Kind, int], Fault] = {(kind, 1): "out of memory", (kind, 2): "out of memory"}
    engine = Engine(
        {"fake": FaultyFamily(faults=faults)}, {"fake": LIMITS}, promise="exact", clock=SetClock()
    )  # a clock that stands still: the order is that of arrival
    requests = [GenerationRequest("fake", f"fine {seed}", 64, 64, 2, 1.0, seed=seed) for seed in (1, 2)]
    handles = [engine.submit(request) for request in requests]
    while not engine.is_idle:
        engine.tick()
    errors = [handle.future.exception(timeout=0) for handle in handles]
    # Which of the two met the faults is the policy's to say, and its clock's.
    assert sorted(map(type, errors), key=str) == sorted([OutOfMemory, type(None)], key=str)
    spared = errors.index(None)
    assert handles[spared].future.result().pixels.tobytes() == alone(requests[spared])


def test_lowered_cap_recovers_once_memory_is_there_again(
    engine: Engine, family: FakeFamily, ask: Ask
) -> None:
    for seed in range(8):
        engine.submit(ask(seed=seed, num_inference_steps=900))
    family.max_rows = 4
    engine.tick()
    assert family.step_sizes == [8, 4, 4]
    for _ in range(RECOVERY_STEPS):
        engine.tick()
    assert set(family.step_sizes[3:]) == {4, 8}
    assert family.step_sizes.count(8) == 2, "it was tried once more, and did not fit"
    family.max_rows = 1000
    for _ in range(RECOVERY_STEPS + 1):
        engine.tick()
    assert family.step_sizes[-1] == 8


def test_nothing_large_is_kept_for_what_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    """Handles, errors and images are held by tasks for as long as an upload takes."""
    caplog.set_level("CRITICAL", "engine.attempt")  # pytest keeps records, and they their tracebacks

    def num_tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) and thing.ndim == 4 for thing in gc.get_objects())

    faults: dict[tuple[Kind, int], Fault] = {("predict", 3): "out of memory", ("decode", 2): "not a number"}
    engine = Engine({"fake": FaultyFamily(faults=faults)}, {"fake": LIMITS}, promise="exact")
    before = num_tensors()
    handles = [
        engine.submit(
            GenerationRequest(
                "fake", f"{word} {number}", 64, 64, 4, 2.0, number, f"fine {number}",
                scheduler=SchedulerSpec(eta=0.5),
            )
        )
        for number, word in enumerate(["fine", "explode", "fine", "not a number", "fine", "huge"])
    ]  # fmt: skip
    handles[4].cancel()
    while not engine.is_idle:
        engine.tick()
    outcomes = [handle.future.exception(timeout=0) for handle in handles]
    assert sum(outcome is None for outcome in outcomes) == 1
    assert num_tensors() <= before


def test_a_step_cache_is_let_go_of_with_the_rest(ask: Ask) -> None:
    models = Models({"fake": FakeFamily()}, {"fake": LIMITS}, promise="exact")
    generation = models.generation(ask(), submitted_at=0.0, num_ticks=0)
    generation.step_cache.keep(torch.zeros(1, 8), is_negative=False)
    generation.drop_tensors()
    assert generation.step_cache.num_bytes == 0


def test_engine_that_ends_for_a_reason_nobody_foresaw_charges_nobody(engine: Engine, ask: Ask) -> None:
    """A bug outside the model's work: the process must end, and its jobs be tried again as suspects."""
    handle = engine.submit(ask())
    engine._policy = None  # type: ignore[assignment]  # any bug will do
    engine.start()
    assert engine.fatal.wait(10)
    engine.stop()
    assert isinstance(handle.future.exception(timeout=10), DeviceLost)


def test_long_tick_of_many_pieces_is_not_taken_for_hung(clock: SetClock) -> None:
    """Each encoding takes 50 seconds: the watchdog's 60 must not fall between two of them."""
    seen: list[float] = []

    def pass_time() -> None:
        clock.now += 50.0
        seen.append(clock.now - engine.ticked_at)

    faults: dict[tuple[Kind, int], Fault] = {("encode", number): "slow" for number in range(1, 9)}
    family = FaultyFamily(faults=faults, on_slow=pass_time)
    engine = Engine({"fake": family}, {"fake": LIMITS}, promise="exact", clock=clock)
    for seed in range(8):
        engine.submit(GenerationRequest("fake", f"fine {seed}", 64, 64, 2, 1.0, seed=seed))
    engine.tick()
    assert seen == [50.0] * 8
