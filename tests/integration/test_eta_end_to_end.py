"""`eta_seconds` over the API, from a profile to the last image: it is there, it falls, and it is right.

Everything is real but the model and the time: its forward passes move a clock by set seconds, and engine and
forecast read that clock. So what was said is compared with what then came, whatever the machine is doing.
"""

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from catalogue.determinism import DeterminismLevel
from engine.engine import Engine
from engine.loading.load import LoadedModels
from engine.policy.buckets import MULTIPLES_OF_FOUR
from engine.policy.due_times import QUANTUM_STEPS
from settings import Settings
from storage.blobs import Blobs
from storage.database import Database
from storage.jobs import WorkerName
from storage.profiles import publish
from storage.workers import Worker, say_goodbye
from storage.workloads import workload
from tasks.generate import Generate, GeneratePlan
from tasks.heartbeat import Heartbeat
from tasks.in_flight import InFlightJobs
from tasks.isolation import Isolations
from tasks.learned_profiles import LearnedProfiles
from tasks.profiles import ProfileFolder, measure_tier, worker_profiles
from tests.integration.web.conftest import Client
from tests.unit.engine.fakes import Costly, CostlyWalk, FakeCachingModel, SetClock
from web.app import create_app
from web.estimates.forecast import KEPT_SECONDS, Forecast
from web.wiring import EXTENSION

CONFIG = """
default_model = "abacus"

[models.abacus]
path = "nowhere"
schedulers = ["ddim"]
default_num_inference_steps = 20
default_guidance_scale = 4.0
min_side = 64
max_side = 128
step_cache = true

[models.abacus.tiers.{tier}]
default_width = 128
default_height = 128
max_pixels = 16384
max_step_batch_rows = 16

[[workers]]
device = "cpu:0"
tiers = ["{tier}"]
"""
NUM_SLOTS = 3
TICKS_A_LOOK = 3
TOLERANCE = 0.2
"""Of what it took: encoding and decoding are spread over the steps, and steps fall where they fall."""
A_STEP_SECONDS = 20.0
FULL_STEP_SECONDS = 24.0


def costly(clock: SetClock) -> FakeCachingModel:
    """A step takes 8 seconds and 1 a row, of which a cached step takes a quarter."""
    denoiser = Costly(clock, lambda num_rows: 8.0 + num_rows)
    model = FakeCachingModel(denoiser=denoiser)
    model.partial_forward = CostlyWalk(denoiser, cached_share=0.25)
    model.text_encoder.on_encode = lambda _: clock.advance(0.5)
    model.vae.on_decode = lambda: clock.advance(2.0)
    return model


@dataclass
class System:
    """The API, and a worker whose engine turns when the test says so."""

    client: Client
    clock: SetClock
    engine: Engine
    heartbeat: Heartbeat
    generate: Generate
    learned: LearnedProfiles
    threads: ThreadPoolExecutor
    boot_id: str
    dispatches: deque[str] = field(default_factory=deque)
    answered: list["Future[None]"] = field(default_factory=list)

    def submit(self, **fields: Any) -> dict[str, Any]:
        """A job as its first answer shows it; a worker receives its message as soon as a slot is free."""
        response = self.client.submit(**fields)
        assert response.status_code == 202, response.get_data(as_text=True)
        job: dict[str, Any] = response.get_json()
        return job

    def dispatch(self, job_id: str) -> None:
        """Queue the message of a job, as the broker does."""
        self.dispatches.append(job_id)

    def settle(self) -> None:
        """Receive messages while a slot is free, and wait until the engine has every job that holds a slot.

        One at a time: two threads might hand their jobs to the engine the other way round.
        """
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline
            num_held = sum(not future.done() for future in self.answered)
            if self.engine.num_generations != num_held:
                continue
            if num_held == NUM_SLOTS or not self.dispatches:
                return
            self.answered.append(self.threads.submit(self.generate, self.dispatches.popleft()))

    def turn(self, num_ticks: int) -> None:
        """Let the engine turn, and the worker send a heartbeat."""
        for _ in range(num_ticks):
            self.settle()
            if not self.engine.is_idle:
                self.engine.tick()
        self.settle()
        self.heartbeat.beat()

    def look(self, job_id: str) -> dict[str, Any]:
        """The job as the API shows it now."""
        job: dict[str, Any] = self.client("GET", f"/v1/jobs/{job_id}").get_json()
        return job


@pytest.fixture
def make_system(
    settings: Settings, database: Database, blobs: Blobs, api_key: str, tmp_path: Path
) -> Iterator[Callable[..., System]]:
    """Puts the system together, with a profile of its worker measured and published or without."""
    systems: list[System] = []

    def make(*, is_measured: bool, determinism: DeterminismLevel = "exact") -> System:
        clock, boot_id, name = SetClock(), secrets.token_hex(8), f"tier{secrets.token_hex(4)}"
        config = tmp_path / "calotype.toml"
        config.write_text(CONFIG.format(tier=name))
        ours = settings.model_copy(update={"config": config})
        (tier,) = ours.catalogue.tiers
        model = costly(clock)
        if determinism == "exact within a bucket":
            model.buckets = {(16, 16): MULTIPLES_OF_FOUR}  # as a self-test leaves it
        loaded = LoadedModels({"abacus": model}, {"abacus": {16384: 16}}, determinism)
        folder = ProfileFolder(tmp_path / "profiles")
        if is_measured:
            folder.write(name, measure_tier(tier, loaded, scheduler="ddim", seconds=0, clock=clock))
        profiles = worker_profiles(folder, [tier], loaded)
        publish(database, profiles.published)
        engine = Engine(
            loaded.models,
            profiles.engine.capped(loaded.row_limits),
            determinism=loaded.determinism,
            clock=clock,
            step_seconds=profiles.engine.step_seconds,
        )
        worker = Worker(
            boot_id, boot_id, "test", 1, "cpu:0", (name,), NUM_SLOTS, 1, determinism, profiles.fingerprints
        )
        in_flight = InFlightJobs()
        system = System(
            client=Client(app_on(clock, ours, database).test_client(), api_key),
            clock=clock,
            engine=engine,
            heartbeat=heartbeat_of(database, worker, in_flight, engine),
            generate=Generate(
                db=database,
                blobs=blobs,
                submit=engine.submit,
                in_flight=in_flight,
                isolations=Isolations(database),
                worker=WorkerName(boot_id, boot_id),
                tiers=[name],
                plan=GeneratePlan(),
            ),
            learned=LearnedProfiles(database, engine.seen_costs, [tier], loaded, profiles),
            threads=ThreadPoolExecutor(NUM_SLOTS),
            boot_id=boot_id,
        )
        systems.append(system)
        return system

    yield make
    for system in systems:
        system.threads.shutdown(wait=False, cancel_futures=True)
        system.engine.stop()
        say_goodbye(database, system.boot_id)


def app_on(clock: SetClock, settings: Settings, database: Database) -> Any:
    """The application, with a forecast that reads the engine's clock."""
    app = create_app(settings)
    forecast = Forecast(
        lambda: workload(database, alive_seconds=settings.worker_alive_seconds),
        settings.catalogue,
        clock,
        lambda work: work(),
    )
    app.extensions[EXTENSION] = replace(app.extensions[EXTENSION], forecast=forecast)
    return app


def heartbeat_of(database: Database, worker: Worker, in_flight: InFlightJobs, engine: Engine) -> Heartbeat:
    """A heartbeat that the test triggers."""
    return Heartbeat(
        database,
        worker,
        in_flight,
        engine,
        heartbeat_seconds=1,
        lease_seconds=60,
        watchdog_seconds=1e9,  # it reads another clock than the engine
        end_process=lambda code: pytest.fail(f"the worker ended with {code}"),
    )


@dataclass
class Watched:
    """What was said of one job, and when it was drawn, on the set clock."""

    said: list[tuple[float, float, str]] = field(default_factory=list)  # when, seconds, state
    drawn_at: float | None = None


def watch(system: System, requests: list[dict[str, Any]]) -> dict[str, Watched]:
    """Submit all at once, look at all of them every few ticks, until all are drawn."""
    system.heartbeat.beat()
    watched: dict[str, Watched] = {}
    answers: list[Any] = []
    for request in requests:
        job = system.submit(**request)
        watched[job["id"]] = Watched()
        if not request.get("strict"):
            answers.append(job["eta_seconds"])
    assert all(seconds is None for seconds in answers) or None not in answers
    system.clock.advance(2 * KEPT_SECONDS)  # the next snapshot simulates what was estimated by arithmetic
    for job_id, one in watched.items():
        one.said.append((system.clock.now, system.look(job_id)["eta_seconds"], "queued"))
        system.dispatch(job_id)
    while any(one.drawn_at is None for one in watched.values()):
        system.turn(TICKS_A_LOOK)
        for job_id, one in watched.items():
            if one.drawn_at is None:
                job = system.look(job_id)
                assert job["state"] in ("queued", "running", "succeeded")
                if job["state"] == "succeeded":
                    one.drawn_at = system.clock.now
                    assert job["eta_seconds"] is None
                else:
                    one.said.append((system.clock.now, job["eta_seconds"], job["state"]))
    return watched


def assert_honest(watched: dict[str, Watched]) -> None:
    """Every estimate was there, near what it then took, and less than the one before it."""
    assert_near(watched)
    for one in watched.values():
        seconds_said = [seconds for _, seconds, _ in one.said]
        assert seconds_said == sorted(set(seconds_said), reverse=True), one
    states = {state for one in watched.values() for _, _, state in one.said}
    assert states == {"queued", "running"}


def assert_near(watched: dict[str, Watched], lead_seconds: float = 0.0) -> None:
    """Every estimate was there and near what it then took, up to the lead that turns allow."""
    for one in watched.values():
        assert one.drawn_at is not None
        for now, seconds, state in one.said:
            assert seconds is not None, state
            took = one.drawn_at - now
            allowed = TOLERANCE * took + TICKS_A_LOOK * A_STEP_SECONDS + lead_seconds
            assert abs(seconds - took) <= allowed, (one, now)


def test_an_estimate_is_there_from_submission_on_and_falls_to_the_end(make_system: Any) -> None:
    system = make_system(is_measured=True)
    steps = (20, 5, 30, 12, 20, 8, 30)
    assert_honest(watch(system, [{"num_inference_steps": num_steps} for num_steps in steps]))


def test_an_estimate_counts_what_cutoff_and_step_cache_leave_out(make_system: Any) -> None:
    system = make_system(is_measured=True)
    less = {"num_inference_steps": 40, "guidance_cutoff": 0.5, "step_cache": 4}
    watched = watch(system, [less, {**less, "step_cache": 1}, {**less, "guidance_cutoff": 1.0}, less, less])
    assert_honest(watched)


@pytest.mark.parametrize("determinism", ["within 1/255", "exact within a bucket"])
def test_an_estimate_counts_that_strict_jobs_may_not_share_step_batches(
    make_system: Any, determinism: DeterminismLevel
) -> None:
    system = make_system(is_measured=True, determinism=determinism)
    assert_honest(watch(system, [{"num_inference_steps": 20, "strict": True}] * 5))


def test_an_estimate_counts_the_turns_that_strict_jobs_take_with_others(make_system: Any) -> None:
    system = make_system(is_measured=True, determinism="within 1/255")
    requests = [{"num_inference_steps": 40, "strict": is_strict} for is_strict in (True, False, True)]
    assert_near(watch(system, requests), lead_seconds=QUANTUM_STEPS * FULL_STEP_SECONDS)


def test_a_lone_job_that_leaves_work_out_has_a_shorter_estimate(make_system: Any) -> None:
    system = make_system(is_measured=True)
    (whole,) = watch(system, [{"num_inference_steps": 40}]).values()
    (less,) = watch(system, [{"num_inference_steps": 40, "step_cache": 4}]).values()
    assert less.said[0][1] < 0.6 * whole.said[0][1]
    for one in (whole, less):
        assert one.drawn_at is not None
        took = one.drawn_at - one.said[0][0]
        assert one.said[0][1] == pytest.approx(took, rel=0.1)


def test_without_a_profile_estimates_begin_once_the_first_job_has_run(make_system: Any) -> None:
    system = make_system(is_measured=False)
    (first,) = watch(system, [{"num_inference_steps": 20}]).values()
    assert {seconds for _, seconds, _ in first.said} == {None}
    assert len(system.learned.publish()) == 1
    (second,) = watch(system, [{"num_inference_steps": 30}]).values()
    assert second.drawn_at is not None
    for now, seconds, _ in second.said:
        assert seconds == pytest.approx(second.drawn_at - now, rel=TOLERANCE, abs=A_STEP_SECONDS)
    tiers = system.client("GET", "/v1/tiers").get_json()["tiers"]
    assert tiers[0]["eta_seconds"] == pytest.approx(20 * 12 + 3, rel=TOLERANCE)
