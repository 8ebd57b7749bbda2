"""Faults by seeded schedule: only their cause fails, all others get the bytes of a run alone."""

import gc
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.device_work import translate
from engine.engine import Engine
from engine.errors import (
    Canceled,
    DeadlineExceeded,
    DeviceLost,
    EngineError,
    EngineStopped,
    GenerationFailed,
    NumericError,
    OutOfMemory,
)
from engine.loaded import Models
from engine.policy.policy import RECOVERY_STEPS
from engine.request import GenerationRequest, SchedulerSpec
from tests.unit.engine.fakes import FakeCachingModel, FakeModel, SetClock
from tests.unit.engine.fault_schedule import (
    LIMITS,
    SAMPLER_CHARGES,
    Run,
    Schedule,
    alone,
)
from tests.unit.engine.faulty_model import Fault, Faults, FaultyModel, Kind, SamplerFault

FAULTS: list[Fault] = ["out of memory", "exception", "not a number", "slow"]
Ask = Callable[..., GenerationRequest]


@settings(max_examples=80, deadline=None, derandomize=True, print_blob=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_only_the_cause_of_a_fault_is_charged_and_every_future_ends_once(seed: int) -> None:
    schedule = Schedule.drawn(random.Random(seed), faults=FAULTS)
    run = Run(schedule)
    run.to_the_end()
    assert run.ends == [1] * len(run.ends)
    assert not run.engine.fatal.is_set()
    num_charged_decoding = 0
    for number, handle in run.handles.items():
        request, error = schedule.requests[number], handle.future.exception(timeout=0)
        may_fail = schedule.charges(number)
        if error is None:
            assert not may_fail
            assert number not in run.faults.charged
            assert handle.future.result().pixels.tobytes() == alone(request), request
        elif isinstance(error, Canceled):
            assert number in schedule.cancels or number in run.steps_at_cancel
        elif isinstance(error, DeadlineExceeded):
            assert request.seconds_left is not None
        elif number not in run.faults.charged and not isinstance(error, may_fail):
            assert isinstance(error, GenerationFailed | NumericError | OutOfMemory)
            assert handle.progress == 1.0, "what else can charge it is its own decoding"
            num_charged_decoding += 1
    assert num_charged_decoding <= run.faults.num_decodings_charged + (
        sum(kind == "decode" and fault == "out of memory" for (kind, _), fault in schedule.faults.items())
        // 2
    )
    for number, num_steps in run.steps_at_cancel.items():
        steps_done = run.handles[number]._generation.step_index
        assert steps_done <= num_steps + 1, "the step that was under way, and no other"


def test_schedules_bring_about_every_kind_of_end_and_mixed_batches() -> None:
    """If one of them never happened, the test above would not cover it."""
    ends: Counter[type] = Counter()
    num_members, num_stopped_inside = 0.0, 0
    for seed in range(60):
        run = Run(Schedule.drawn(random.Random(seed), faults=FAULTS))
        run.to_the_end()
        for number, handle in run.handles.items():
            error = handle.future.exception(timeout=0)
            ends[type(error)] += 1
            num_members += 0.0 if error else handle.future.result().mean_step_batch
            num_stopped_inside += isinstance(error, Canceled) and number in run.steps_at_cancel
    kinds = (Canceled, DeadlineExceeded, EngineStopped, GenerationFailed, NumericError, OutOfMemory)
    assert all(ends[kind] >= 5 for kind in kinds), ends
    assert ends[type(None)] >= 50
    assert num_members / ends[type(None)] > 1.3
    assert num_stopped_inside >= 5


@settings(max_examples=25, deadline=None, derandomize=True, print_blob=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_lost_device_ends_everything_once_whatever_was_under_way(seed: int) -> None:
    drawn = Schedule.drawn(random.Random(seed), faults=["device lost", "out of memory", "exception"])
    kinds: list[Kind] = ["encode", "predict", "decode"]
    lost_at = random.Random(seed).choice(kinds)
    run = Run(replace(drawn, faults={**drawn.faults, (lost_at, 3): "device lost"}))
    for number in range(len(run.ends)):
        run.submit(number)
    run.engine.start()
    for handle in run.handles.values():
        handle.future.exception(timeout=10)
    run.engine.stop()
    assert run.ends == [1] * len(run.ends)
    for number, handle in run.handles.items():
        error = handle.future.exception(timeout=0)
        if error is None:
            assert handle.future.result().pixels.tobytes() == alone(drawn.requests[number])
        elif isinstance(error, DeviceLost):
            assert run.engine.fatal.is_set()
            assert error.retryable
    assert run.engine.is_idle


@pytest.mark.parametrize("fault", SAMPLER_CHARGES)
def test_failing_sampler_is_charged_alone_and_its_neighbours_draw_no_noise_twice(fault: SamplerFault) -> None:
    """Their samplers ran first in the same step: the noise that they drew must not be lost."""
    run = Run(Schedule([], [], {}, {}, {}, {9: fault}, set(), set()))
    plain = GenerationRequest("fake", "fine 0", 64, 64, 4, 1.0, seed=0, negative_prompt="fine 0")
    specs = [SchedulerSpec(eta=0.5), SchedulerSpec("euler_ancestral"), SchedulerSpec("dpmpp_2m")]
    requests = [replace(plain, seed=seed, scheduler=spec) for seed, spec in enumerate(specs)]
    handles = [run.engine.submit(request) for request in requests]
    culprit = run.engine.submit(replace(plain, prompt="fine 9", seed=9, scheduler=SchedulerSpec("euler")))
    while not run.engine.is_idle:
        run.engine.tick()
    assert isinstance(culprit.future.exception(timeout=0), SAMPLER_CHARGES[fault])
    for request, handle in zip(requests, handles, strict=True):
        assert handle.future.result(timeout=0).pixels.tobytes() == alone(request)


def test_memory_that_ran_out_at_encoding_or_decoding_is_tried_again_and_changes_no_bit() -> None:
    request = GenerationRequest("fake", "fine 1", 64, 64, 3, 2.0, seed=1, negative_prompt="fine 1")
    once: dict[tuple[Kind, int], Fault] = {("encode", 2): "out of memory", ("decode", 1): "out of memory"}
    engine = Engine({"fake": FaultyModel(Faults(once))}, {"fake": LIMITS}, determinism="exact")
    handle = engine.submit(request)
    while not engine.is_idle:
        engine.tick()
    assert handle.future.result().pixels.tobytes() == alone(request)


@pytest.mark.parametrize("kind", ["encode", "decode"])
def test_what_does_not_fit_twice_is_charged_alone(kind: Kind) -> None:
    faults: dict[tuple[Kind, int], Fault] = {(kind, 1): "out of memory", (kind, 2): "out of memory"}
    engine = Engine(
        {"fake": FaultyModel(Faults(faults))}, {"fake": LIMITS}, determinism="exact", clock=SetClock()
    )  # the clock does not move, so the order is that of arrival
    requests = [GenerationRequest("fake", f"fine {seed}", 64, 64, 2, 1.0, seed=seed) for seed in (1, 2)]
    handles = [engine.submit(request) for request in requests]
    while not engine.is_idle:
        engine.tick()
    errors = [handle.future.exception(timeout=0) for handle in handles]
    # The policy and its clock decide which of the two meets the faults.
    assert sorted(map(type, errors), key=str) == sorted([OutOfMemory, type(None)], key=str)
    spared = errors.index(None)
    assert handles[spared].future.result().pixels.tobytes() == alone(requests[spared])


def test_lowered_cap_recovers_once_memory_is_there_again(engine: Engine, model: FakeModel, ask: Ask) -> None:
    for seed in range(8):
        engine.submit(ask(seed=seed, num_inference_steps=900))
    model.max_rows = 4
    engine.tick()
    assert model.step_sizes == [8, 4, 4]
    for _ in range(RECOVERY_STEPS):
        engine.tick()
    assert set(model.step_sizes[3:]) == {4, 8}
    assert model.step_sizes.count(8) == 2, "it was tried once more, and did not fit"
    model.max_rows = 1000
    for _ in range(RECOVERY_STEPS + 1):
        engine.tick()
    assert model.step_sizes[-1] == 8


def test_nothing_large_is_kept_for_what_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    """Tasks keep handles, errors and images until the upload is done."""
    caplog.set_level("CRITICAL", "engine.device_work")  # pytest keeps log records, which keep tracebacks

    def num_tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) and thing.ndim == 4 for thing in gc.get_objects())

    faults: dict[tuple[Kind, int], Fault] = {("predict", 3): "out of memory", ("decode", 2): "not a number"}
    engine = Engine({"fake": FaultyModel(Faults(faults))}, {"fake": LIMITS}, determinism="exact")
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
    models = Models({"fake": FakeCachingModel()}, {"fake": LIMITS}, determinism="exact")
    generation = models.generation(ask(), submitted_at=0.0, num_ticks=0)
    generation.step_cache.keep(torch.zeros(1, 8), is_negative=False)
    generation.drop_tensors()
    assert generation.step_cache.num_bytes == 0


def test_engine_that_ends_for_an_unexpected_reason_charges_no_request(engine: Engine, ask: Ask) -> None:
    """After a bug outside the model's work the process must end; its jobs are retried in isolation."""
    handle = engine.submit(ask())
    engine._policy = None  # type: ignore[assignment]  # any bug will do
    engine.start()
    assert engine.fatal.wait(10)
    engine.stop()
    assert isinstance(handle.future.exception(timeout=10), DeviceLost)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", OutOfMemory),
        ("CUDA error: out of memory", OutOfMemory),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", OutOfMemory),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", OutOfMemory),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`", DeviceLost),
        ("cuDNN error: CUDNN_STATUS_BAD_PARAM", GenerationFailed),
    ],
)
def test_library_that_finds_no_memory_for_itself_is_out_of_memory(
    message: str, kind: type[EngineError]
) -> None:
    """cuBLAS and cuDNN allocate memory themselves and report it in their own words."""
    is_torchs = message.startswith("CUDA out of memory")
    error = torch.OutOfMemoryError(message) if is_torchs else RuntimeError(message)
    assert type(translate(error)) is kind


def test_long_tick_of_many_pieces_is_not_taken_for_hung(clock: SetClock) -> None:
    """Each encoding takes 50 seconds; the watchdog's 60 seconds must start anew after each."""
    seen: list[float] = []

    def pass_time() -> None:
        clock.now += 50.0
        seen.append(clock.now - engine.ticked_at)

    faults: dict[tuple[Kind, int], Fault] = {("encode", number): "slow" for number in range(1, 9)}
    model = FaultyModel(Faults(faults, on_slow=pass_time))
    engine = Engine({"fake": model}, {"fake": LIMITS}, determinism="exact", clock=clock)
    for seed in range(8):
        engine.submit(GenerationRequest("fake", f"fine {seed}", 64, 64, 2, 1.0, seed=seed))
    engine.tick()
    assert seen == [50.0] * 8


@pytest.mark.parametrize("kind", ["encode", "predict", "decode"])
def test_call_that_hangs_is_seen_by_the_watchdog_whatever_it_is(kind: Kind, clock: SetClock) -> None:
    seen: list[float] = []

    def hang() -> None:
        clock.now += 61.0
        assert not engine.is_idle
        seen.append(clock.now - engine.ticked_at)

    model = FaultyModel(Faults({(kind, 2): "slow"}, on_slow=hang))
    engine = Engine({"fake": model}, {"fake": LIMITS}, determinism="exact", clock=clock)
    for number in (1, 2):
        engine.submit(GenerationRequest("fake", f"fine {number}", 64, 64, 2, 1.0, seed=number))
    while not engine.is_idle:
        engine.tick()
    assert seen == [61.0]
