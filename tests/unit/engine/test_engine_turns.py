"""The engine's loop with a fake model, by `tick` or in its thread: joins, cancels, faults, endings."""

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from engine.engine import Engine
from engine.errors import (
    Canceled,
    DeadlineExceeded,
    DeviceLost,
    EngineStopped,
    GenerationFailed,
    NumericError,
    OutOfMemory,
    RequestInvalid,
)
from engine.generation import Handle
from engine.pipelines.scheduler_classes import SAMPLERS
from engine.request import GenerationRequest, SchedulerSpec, scheduler_named
from tests.unit.engine.fakes import FakeModel, SetClock

Ask = Callable[..., GenerationRequest]


def turn_until_done(engine: Engine, *handles: Handle) -> None:
    for _ in range(1000):
        if all(handle.future.done() for handle in handles):
            return
        engine.tick()
    raise AssertionError("not done after 1000 ticks")


def pixels(handle: Handle) -> np.ndarray:
    return handle.future.result(timeout=0).pixels


def alone(model: FakeModel, request: GenerationRequest) -> np.ndarray:
    engine = Engine({"fake": model}, {"fake": {128 * 128: 4}}, determinism="exact")
    handle = engine.submit(request)
    turn_until_done(engine, handle)
    return pixels(handle)


def test_late_request_joins_the_next_step(engine: Engine, ask: Ask) -> None:
    first = engine.submit(ask(num_inference_steps=4))
    engine.tick()
    second = engine.submit(ask(seed=2, num_inference_steps=2))
    turn_until_done(engine, first, second)
    assert second.future.result().timings.num_ticks_waited == 1
    assert engine.num_ticks == 4, "both shared the two steps of the second"
    assert first.future.result().mean_step_batch == 1.5
    assert second.future.result().mean_step_batch == 2.0
    assert first.future.result().not_fuller == {"alone": 4}


def test_members_share_the_seconds_of_their_step_batches_by_their_rows(
    model: FakeModel, clock: SetClock, ask: Ask
) -> None:
    """The guided member has two of three rows; encoding and decoding count for each member alone."""
    engine = Engine({"fake": model}, {"fake": {128 * 128: 4}}, determinism="exact", clock=clock)

    def take_three_seconds() -> None:
        clock.now += 3

    model.on_predict = take_three_seconds
    guided = engine.submit(ask(guidance_scale=4.0, num_inference_steps=2))
    plain = engine.submit(ask(guidance_scale=1.0, num_inference_steps=2))
    turn_until_done(engine, guided, plain)
    assert guided.future.result().timings.device_seconds == pytest.approx(4)
    assert plain.future.result().timings.device_seconds == pytest.approx(2)


def test_different_samplers_steps_and_scales_share_a_step_batch(
    engine: Engine, model: FakeModel, ask: Ask
) -> None:
    requests = [
        ask(seed=1, num_inference_steps=3),
        ask(seed=2, scheduler=SchedulerSpec("ddim", eta=1.0), guidance_scale=3.0),
        ask(seed=3, scheduler=SchedulerSpec("ddim", spacing="trailing"), guidance_scale=7.0),
        ask(seed=4, scheduler=SchedulerSpec("euler")),  # its timesteps are not integers
    ]
    handles = [engine.submit(request) for request in requests]
    turn_until_done(engine, *handles)
    assert engine.num_ticks == 4
    for request, handle in zip(requests, handles, strict=True):
        assert np.array_equal(pixels(handle), alone(model, request))


def test_forward_pass_runs_at_bucket_sizes_only(engine: Engine, model: FakeModel, ask: Ask) -> None:
    handles = [engine.submit(ask(seed=i, guidance_scale=1.0 + i % 2)) for i in range(4)]
    turn_until_done(engine, *handles)
    assert set(model.step_sizes) == {8}, "two guided and two unguided generations are six rows"


def test_guidance_past_its_cutoff_costs_one_row(engine: Engine, model: FakeModel, ask: Ask) -> None:
    halves = [engine.submit(ask(seed=i, guidance_scale=4.0, guidance_cutoff=0.5)) for i in range(4)]
    turn_until_done(engine, *halves)
    assert model.step_sizes == [8, 8, 4, 4]


def test_cancel_takes_effect_at_the_next_step_boundary(engine: Engine, model: FakeModel, ask: Ask) -> None:
    kept, dropped = engine.submit(ask()), engine.submit(ask(seed=2))
    engine.tick()
    dropped.cancel()
    engine.tick()
    with pytest.raises(Canceled):
        dropped.future.result(timeout=0)
    assert dropped.progress == 0.25
    turn_until_done(engine, kept)
    assert np.array_equal(pixels(kept), alone(model, ask()))


def test_caller_cannot_cancel_behind_the_engines_back(engine: Engine, ask: Ask) -> None:
    handle = engine.submit(ask())
    assert not handle.future.cancel()
    turn_until_done(engine, handle)
    handle.cancel()
    assert pixels(handle).shape == (64, 64, 3)


def test_cancel_takes_effect_between_the_passes_of_a_decoding(
    engine: Engine, model: FakeModel, clock: SetClock, ask: Ask
) -> None:
    """Some pipelines denoise again after their decoder; each of these passes runs alone."""
    handle = engine.submit(ask())
    ticked_at: list[float] = []

    def cancel() -> None:
        clock.now += 1.0
        ticked_at.append(engine.ticked_at)
        if len(ticked_at) == 2:
            handle.cancel()

    model.vae.on_decode = cancel
    model.num_decodings = 5
    turn_until_done(engine, handle)
    assert isinstance(handle.future.exception(timeout=0), Canceled)
    assert ticked_at == [1000.0, 1001.0], "the watchdog sees each pass end"


def test_deadline_is_kept_at_step_boundaries(engine: Engine, clock: SetClock, ask: Ask) -> None:
    handle = engine.submit(ask(seconds_left=5.0))
    engine.tick()
    clock.now += 5.0
    engine.tick()
    with pytest.raises(DeadlineExceeded):
        handle.future.result(timeout=0)
    assert engine.is_idle


def test_progress_counts_steps_and_a_failing_callback_is_dropped(engine: Engine, ask: Ask) -> None:
    seen: list[tuple[int, int]] = []

    def fail(done: int, steps: int) -> None:
        seen.append((done, steps))
        raise KeyError("caller's mistake")

    counted: list[tuple[int, int]] = []
    handles = [
        engine.submit(ask(), on_progress=lambda done, steps: counted.append((done, steps))),
        engine.submit(ask(seed=2), on_progress=fail),
    ]
    turn_until_done(engine, *handles)
    assert counted == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert seen == [(1, 4)]
    assert handles[1].progress == 1.0


def test_timings_add_up(engine: Engine, model: FakeModel, clock: SetClock, ask: Ask) -> None:
    def take_a_second() -> None:
        clock.now += 1.0

    model.on_predict = take_a_second
    handle = engine.submit(ask())
    clock.now += 3.0
    turn_until_done(engine, handle)
    timings = handle.future.result().timings
    assert (timings.waiting_seconds, timings.denoising_seconds, timings.decoding_seconds) == (3.0, 4.0, 0.0)


def test_interactive_preempts_bulk_within_two_ticks(engine: Engine, ask: Ask) -> None:
    bulk = [engine.submit(ask(seed=i, lane="bulk", num_inference_steps=50)) for i in range(30)]
    for _ in range(20):
        engine.tick()
    late = engine.submit(ask(seed=99, width=128, height=128))
    turn_until_done(engine, late)
    assert late.future.result().timings.num_ticks_waited <= 2
    turn_until_done(engine, *bulk)
    assert all(handle.future.result().num_steps == 50 for handle in bulk)


def test_batch_that_does_not_fit_is_split_and_no_one_is_charged(
    engine: Engine, model: FakeModel, ask: Ask
) -> None:
    model.max_rows = 4
    requests = [ask(seed=i, scheduler=SchedulerSpec(eta=1.0)) for i in range(8)]
    handles = [engine.submit(request) for request in requests]
    turn_until_done(engine, *handles)
    assert model.step_sizes == [8, 4, 4, *[4] * 6], "one step too large, then the cap has learned"
    for request, handle in zip(requests, handles, strict=True):
        assert np.array_equal(pixels(handle), alone(model, request))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from DEIS of diffusers
@pytest.mark.parametrize("name", SAMPLERS["diffusion"])
def test_history_and_noise_survive_a_step_that_ran_out_of_memory(
    engine: Engine, model: FakeModel, ask: Ask, name: str
) -> None:
    """It fails in the middle of trajectories of many lengths; each continues from where it was."""
    requests = [ask(seed=i, num_inference_steps=3 + i, scheduler=scheduler_named(name)) for i in range(8)]
    handles = [engine.submit(request) for request in requests]
    engine.tick()
    engine.tick()
    model.max_rows = 4
    engine.tick()
    assert model.step_sizes == [8, 8, 8, 4, 4]
    turn_until_done(engine, *handles)
    for request, handle in zip(requests, handles, strict=True):
        assert np.array_equal(pixels(handle), alone(model, request))


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ("explode", GenerationFailed),
        ("not a number", NumericError),
        ("huge", OutOfMemory),
        ("cannot be encoded", GenerationFailed),
    ],
)
def test_failing_generation_never_touches_its_neighbours(
    engine: Engine, model: FakeModel, ask: Ask, prompt: str, error: type[Exception]
) -> None:
    specs = [SchedulerSpec(eta=0.5), SchedulerSpec("dpmpp_2m"), SchedulerSpec("lcm")]
    requests = [ask(seed=i, scheduler=spec, guidance_scale=2.0) for i, spec in enumerate(specs)]
    handles = [engine.submit(request) for request in requests]
    engine.tick()
    culprit = engine.submit(ask(prompt, seed=9))
    turn_until_done(engine, culprit, *handles)
    with pytest.raises(error):
        culprit.future.result(timeout=0)
    for request, handle in zip(requests, handles, strict=True):
        assert np.array_equal(pixels(handle), alone(model, request))
    assert engine.is_idle
    assert not engine.fatal.is_set()


def test_model_that_runs_alone_holds_up_its_own_requests_and_no_others(clock: SetClock, ask: Ask) -> None:
    """Calls of such a model may change shared modules, so the next begins when one has been decoded."""
    alone_model, other = FakeModel(), FakeModel()
    alone_model.runs_alone = True
    models = {"fake": alone_model, "other": other}
    limits = {64 * 64: 8}
    engine = Engine(models, dict.fromkeys(models, limits), determinism="exact", clock=clock)
    events: list[str] = []
    alone_model.text_encoder.on_encode = lambda text: events.append(f"{text} begins")
    alone_model.vae.on_decode = lambda: events.append("decoded")

    def take_a_second() -> None:
        clock.now += 1.0

    alone_model.on_predict = other.on_predict = take_a_second
    handles = [engine.submit(ask(f"{number}", seed=number, num_inference_steps=20)) for number in range(2)]
    engine.tick()
    beside = [engine.submit(replace(ask(seed=seed), model="other")) for seed in range(2)]
    turn_until_done(engine, *beside)
    assert not handles[0].future.done(), "the others went in between"
    turn_until_done(engine, *handles)
    assert events == ["0 begins", "decoded", "1 begins", "decoded"]
    assert {handle.future.result().mean_step_batch for handle in handles} == {1.0}
    assert {handle.future.result().mean_step_batch for handle in beside} == {2.0}


def test_lost_device_fails_everything_as_retryable_and_asks_for_an_exit(engine: Engine, ask: Ask) -> None:
    handles = [engine.submit(ask()), engine.submit(ask("lose the device", seed=2))]
    engine.start()
    assert engine.fatal.wait(10)
    for handle in handles:
        error = handle.future.exception(timeout=10)
        assert isinstance(error, DeviceLost)
        assert error.retryable
        assert "illegal memory access" in str(error)
    with pytest.raises(EngineStopped):
        engine.submit(ask())
    engine.stop()


def test_hung_step_shows_in_ticked_at(model: FakeModel, clock: SetClock, engine: Engine, ask: Ask) -> None:
    """What the heartbeat checks: the engine is not idle, and the last tick is old."""
    entered, leave = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        assert leave.wait(10)

    model.on_predict = hang
    engine.start()
    handle = engine.submit(ask(num_inference_steps=1))
    assert entered.wait(10)
    clock.now += 100.0
    assert not engine.is_idle
    assert engine.num_generations == 1
    assert clock() - engine.ticked_at == 100.0
    leave.set()
    handle.future.result(timeout=10)
    assert engine.drain(10)
    assert engine.is_idle
    engine.stop()
    assert engine.ticked_at == clock()


def test_engine_that_was_idle_for_long_is_not_taken_for_hung(
    engine: Engine, clock: SetClock, ask: Ask
) -> None:
    """Between `submit` and the thread's next tick, the heartbeat must not see an old tick with new work."""
    engine.tick()
    clock.now += 1000.0
    engine.submit(ask())
    assert not engine.is_idle
    assert engine.ticked_at == clock()


def test_hook_that_fails_before_the_first_step_ends_only_its_own(engine: Engine, ask: Ask) -> None:
    calls: list[str] = []

    def fail() -> None:
        calls.append("called")
        raise EngineStopped("not marked")

    kept = engine.submit(ask(), before_first_step=lambda: calls.append("kept"))
    dropped = engine.submit(ask(seed=2, isolated=True), before_first_step=fail)
    turn_until_done(engine, kept, dropped)
    assert sorted(calls) == ["called", "kept"], "each once"
    assert isinstance(dropped.future.exception(timeout=0), EngineStopped)
    assert pixels(kept).shape == (64, 64, 3)


def test_an_isolated_text_is_encoded_once_its_job_is_noted_as_on_the_device(
    engine: Engine, model: FakeModel, ask: Ask
) -> None:
    events: list[str] = []
    model.text_encoder.on_encode = events.append
    model.vae.on_decode = lambda: events.append("decoded")
    engine.submit(ask("first", num_inference_steps=2))
    quarantine = [
        engine.submit(
            ask(name, num_inference_steps=2, isolated=True),
            before_first_step=lambda name=name: events.append(f"{name} noted"),  # type: ignore[misc]
        )
        for name in ("one", "two")
    ]
    turn_until_done(engine, *quarantine)
    assert events == ["first", "one noted", "one", "decoded", "two noted", "two", "decoded"]


def test_an_isolated_job_whose_text_loses_the_device_is_the_only_one_noted(
    engine: Engine, model: FakeModel, ask: Ask
) -> None:
    noted: list[str] = []

    def lose(text: str) -> None:
        if text == "poison":
            raise RuntimeError("CUDA error: device-side assert triggered")

    model.text_encoder.on_encode = lose
    names = ("innocent", "poison", "later")
    for name in names:
        engine.submit(ask(name, isolated=True), before_first_step=lambda name=name: noted.append(name))  # type: ignore[misc]
    engine.start()
    assert engine.fatal.wait(10)
    assert noted == ["innocent", "poison"]


def test_drain_finishes_all_images_of_a_job_of_which_one_has_begun(engine: Engine, ask: Ask) -> None:
    begun_nameless = engine.submit(ask(seed=52))
    images = [engine.submit(ask(seed=seed, job_id="job_1")) for seed in range(12)]  # eight rows at once
    other = engine.submit(ask(seed=50, job_id="job_2"))
    nameless = engine.submit(ask(seed=51))
    engine.tick()
    engine.drain(0.0)
    engine.tick()
    assert isinstance(other.future.exception(timeout=0), EngineStopped)
    assert isinstance(nameless.future.exception(timeout=0), EngineStopped), "no name is no job"
    turn_until_done(engine, begun_nameless, *images)
    assert begun_nameless.future.exception(timeout=0) is None
    assert all(image.future.exception(timeout=0) is None for image in images)


def test_drain_finishes_what_has_begun_gives_up_the_rest_and_takes_nothing_new(
    engine: Engine, model: FakeModel, ask: Ask
) -> None:
    begun, leave = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert leave.wait(10)

    model.on_predict = hold
    engine.start()
    first = engine.submit(ask())
    assert begun.wait(10)
    alone = engine.submit(ask(isolated=True))
    assert not engine.drain(0.0)
    leave.set()
    assert engine.drain(10)
    assert first.future.exception(timeout=0) is None
    assert isinstance(alone.future.exception(timeout=0), EngineStopped)
    with pytest.raises(EngineStopped):
        engine.submit(ask())
    engine.stop()


def test_stop_ends_what_is_unfinished_as_retryable(engine: Engine, model: FakeModel, ask: Ask) -> None:
    begun = threading.Event()
    model.on_predict = begun.set
    engine.start()
    handle = engine.submit(ask(num_inference_steps=1000))
    assert begun.wait(10)
    assert not engine.drain(0.0)
    engine.stop()
    error = handle.future.exception(timeout=0)
    assert isinstance(error, EngineStopped)
    assert error.retryable
    assert not engine.fatal.is_set()


def test_engine_that_never_started_can_be_stopped(engine: Engine, ask: Ask) -> None:
    handle = engine.submit(ask())
    engine.stop()
    assert isinstance(handle.future.exception(timeout=0), EngineStopped)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"width": 60}, "not a multiple of 8"),
        ({"width": 136, "height": 128}, "above 16384 pixels"),
        ({"num_inference_steps": 1001}, "above 1000"),
    ],
)
def test_what_the_model_cannot_do_is_refused_at_submit(
    engine: Engine, ask: Ask, changes: dict[str, int], complaint: str
) -> None:
    with pytest.raises(RequestInvalid, match=complaint):
        engine.submit(ask(**changes))
    assert engine.is_idle
