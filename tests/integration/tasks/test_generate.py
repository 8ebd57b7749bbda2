"""The promises of the task, on real rows and real blobs, with an engine that does as it is told."""

import hashlib
import io
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from PIL import Image

from catalogue.accounting import Cost, DevicePrice
from catalogue.parameters import Lora
from catalogue.states import State
from catalogue.warnings import RequestWarning
from engine.errors import (
    Canceled,
    DeviceLost,
    EngineStopped,
    GenerationFailed,
    GenerationImpossible,
    NumericError,
    StrictUnavailable,
)
from engine.request import GenerationRequest
from storage import accounts, files, jobs
from storage.blobs import Blobs
from storage.database import Database
from storage.errors import Unavailable
from storage.files import NewFile
from storage.job_views import get
from storage.jobs import WorkerName
from storage.workers import Worker, live_workers
from tasks.generate import Generate, GeneratePlan
from tasks.heartbeat import Heartbeat
from tasks.in_flight import InFlightJobs
from tasks.isolation import Isolations
from tests.fixtures.pictures import picture
from tests.integration.tasks.conftest import FakeEngine, FakeHandle, MakeJob


def fail_with(error: Exception):  # type: ignore[no-untyped-def]
    return lambda handle: handle.future.set_exception(error)


def test_a_bell_becomes_images_that_belong_to_their_job(
    database: Database, blobs: Blobs, generate: Generate, make_job: MakeJob
) -> None:
    job = make_job(num_images=3, seed=2**63 - 2)
    generate(job.id)
    done = get(database, job.account_id, job.id)
    assert done.state is State.SUCCEEDED
    assert [image.seed for image in done.images] == [2**63 - 2, 2**63 - 1, 0]
    for image in done.images:
        data = blobs.get(image.object_key)
        assert hashlib.sha256(data).hexdigest() == image.sha256
        paint = hashlib.sha256(f"{job.id}|{image.seed}".encode()).digest()[:30]
        assert np.asarray(Image.open(io.BytesIO(data)))[0, :10].tobytes() == paint
    assert done.timings["mean_step_batch"] == 2.0
    assert done.timings["device_seconds"] == 0.5 * done.parameters.num_images
    assert done.timings["steps_cap"] == done.parameters.num_inference_steps * done.parameters.num_images


def test_a_change_of_price_does_not_rewrite_what_ended_jobs_cost(
    database: Database,
    worker_database: Database,
    blobs: Blobs,
    engine: FakeEngine,
    in_flight: InFlightJobs,
    tier: str,
    make_job: MakeJob,
) -> None:
    def at(per_hour: str | None) -> Generate:
        return Generate(
            db=worker_database,
            blobs=blobs,
            submit=engine.submit,
            in_flight=in_flight,
            isolations=Isolations(worker_database),
            worker=WorkerName(secrets.token_hex(4), "cpu:0@test"),
            tiers=[tier],
            plan=GeneratePlan(),
            price=None if per_hour is None else DevicePrice(Decimal(per_hour), "EUR"),
        )

    made = [make_job(num_images=2) for _ in range(3)]  # half a second of the device each
    for job, per_hour in zip(made, ("3.6", "7.2", None), strict=True):
        at(per_hour)(job.id)
    costs = [get(database, job.account_id, job.id).cost for job in made]
    assert costs == [Cost(Decimal("0.001"), "EUR"), Cost(Decimal("0.002"), "EUR"), None]


def test_what_a_job_leaves_out_reaches_the_engine(
    generate: Generate, engine: FakeEngine, make_job: MakeJob
) -> None:
    generate(make_job(guidance_cutoff=0.5, step_cache=3).id)
    (handle,) = engine.handles
    assert (handle.request.guidance_cutoff, handle.request.step_cache) == (0.5, 3)


@pytest.fixture
def red_file(database: Database, blobs: Blobs, account: str) -> str:
    """The id of a file of the account that tests' jobs belong to."""
    data = picture(96, 64)
    key = files.new_key(account, files.id_of(data))
    blobs.put(key, data, content_type="image/png", budget_seconds=10)
    new = NewFile(account, files.id_of(data), "image/png", len(data), key, 96, 64)
    return files.record(database, new, keep_seconds=60)[0].id


def test_input_images_reach_the_engine_as_pixels_and_are_named_in_the_image(
    database: Database,
    blobs: Blobs,
    generate: Generate,
    engine: FakeEngine,
    make_job: MakeJob,
    red_file: str,
) -> None:
    asked = {"image": [red_file], "mask_image": red_file, "loras": [{"name": "outline", "scale": 0.5}]}
    job = make_job(num_images=2, strength=0.5, **asked)
    accounts.embed_parameters(database, job.account_id, True)
    generate(job.id)
    assert get(database, job.account_id, job.id).state is State.SUCCEEDED
    for handle in engine.handles:
        ((image,), (mask,)) = (handle.request.inputs[name] for name in ("image", "mask_image"))
        assert (image.shape, mask.shape) == ((64, 96, 3), (64, 96))
        assert tuple(image[0, 0]) == (214, 34, 40)
        assert handle.request.parameters.loras == (Lora("outline", 0.5),)
    stored, _ = get(database, job.account_id, job.id).images
    told = png_text(blobs.get(stored.object_key))
    assert (told["image"], told["mask_image"], told["loras"]) == (red_file, red_file, "outline:0.5")


def test_a_job_whose_file_was_deleted_fails_by_its_name_and_is_not_tried_again(
    database: Database, generate: Generate, engine: FakeEngine, make_job: MakeJob, red_file: str
) -> None:
    job = make_job(image=[red_file])
    with database.transaction() as connection:
        connection.exec_driver_sql("UPDATE files SET deleted_at = now() WHERE id = %s", (red_file,))
    generate(job.id)
    ended = get(database, job.account_id, job.id)
    assert (ended.state, ended.error_code, ended.error_retryable) == (State.FAILED, "input_missing", False)
    assert red_file in str(ended.error_detail)
    assert engine.handles == []


def test_a_models_own_parameters_reach_the_engine_and_the_image(
    database: Database, blobs: Blobs, generate: Generate, engine: FakeEngine, make_job: MakeJob
) -> None:
    own = {"clip_skip": 2, "true_cfg_scale": 4.5, "zero_init": True, "mode": "Sharp"}
    job = make_job(pipeline_parameters=own)
    accounts.embed_parameters(database, job.account_id, True)
    generate(job.id)
    (handle,) = engine.handles
    assert handle.request.parameters.pipeline_parameters == own
    (image,) = get(database, job.account_id, job.id).images
    told = png_text(blobs.get(image.object_key))
    assert {name: told[name] for name in own} == {name: str(value) for name, value in own.items()}


def test_parameters_are_in_the_image_only_if_its_account_wants_them(
    database: Database, blobs: Blobs, generate: Generate, make_job: MakeJob
) -> None:
    """And then they draw it again: the seed is the image's own."""
    first = make_job(prompt="ein rötliches Herz", num_images=2, seed=7)
    generate(first.id)
    accounts.embed_parameters(database, first.account_id, True)
    second = make_job(prompt="ein rötliches Herz", num_images=2, seed=7)
    generate(second.id)
    (silent, _), (_, told) = (get(database, job.account_id, job.id).images for job in (first, second))
    assert png_text(blobs.get(silent.object_key)) == {}
    assert png_text(blobs.get(told.object_key)) == {
        "software": "calotype",
        "prompt": "ein rötliches Herz",
        "negative_prompt": "",
        "model": "tiny",
        "width": "16",
        "height": "8",
        "num_inference_steps": "4",
        "guidance_scale": "4.0",
        "guidance_cutoff": "1.0",
        "step_cache": "1",
        "scheduler": "ddim",
        "seed": "8",
        "job_id": second.id,
    }


def test_S38_a_job_is_named_while_its_image_files_are_made(
    worker_database: Database, blobs: Blobs, engine: FakeEngine, tier: str, make_job: MakeJob
) -> None:
    said: list[str] = []

    @contextmanager
    def encoding(job_id: str) -> Iterator[None]:
        said.append(job_id)
        yield

    generate = Generate(
        db=worker_database,
        blobs=blobs,
        submit=engine.submit,
        in_flight=InFlightJobs(),
        isolations=Isolations(worker_database),
        worker=WorkerName("b", "w"),
        tiers=[tier],
        plan=GeneratePlan(),
        encoding=encoding,
    )
    job = make_job(num_images=2)
    generate(job.id)
    assert said == [job.id, job.id]


def png_text(data: bytes) -> dict[str, str]:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return dict(picture.text)  # type: ignore[attr-defined]


def test_the_engine_is_told_whose_request_it_is(
    generate: Generate, engine: FakeEngine, make_job: MakeJob
) -> None:
    job = make_job()
    generate(job.id)
    assert engine.handles[0].request.account == job.account_id


def test_what_the_engine_warns_of_is_on_the_job_once_for_all_its_images(
    database: Database, generate: Generate, engine: FakeEngine, make_job: MakeJob
) -> None:
    job = make_job(num_images=2)
    engine.behave = lambda handle: handle.succeed((RequestWarning("prompt_cut", "prompt", "it is long"),))
    generate(job.id)
    done = get(database, job.account_id, job.id)
    assert done.warnings == (RequestWarning(code="prompt_cut", field="prompt", detail="it is long"),)


def test_a_bell_rung_many_times_runs_the_job_once(
    database: Database, generate: Generate, engine: FakeEngine, make_job: MakeJob
) -> None:
    job = make_job()
    for _ in range(5):
        generate(job.id)
    generate("job_of_nobody")
    assert len(engine.handles) == 1
    assert get(database, job.account_id, job.id).attempt == 1


@pytest.mark.parametrize(
    ("error", "state", "num_failures"),
    [
        (NumericError(), State.FAILED, 0),
        (GenerationFailed(), State.QUEUED, 1),
        (GenerationImpossible(), State.FAILED, 0),
        (EngineStopped(), State.QUEUED, 0),
        (StrictUnavailable(), State.QUEUED, 0),
        (ZeroDivisionError(), State.QUEUED, 1),
    ],
)
def test_the_errors_class_decides_whether_a_job_is_tried_again(
    database: Database,
    generate: Generate,
    engine: FakeEngine,
    make_job: MakeJob,
    error: Exception,
    state: State,
    num_failures: int,
) -> None:
    job = make_job()
    engine.behave = fail_with(error)
    generate(job.id)
    after = get(database, job.account_id, job.id)
    assert (after.state, after.num_failures) == (state, num_failures)


def test_one_failed_image_fails_the_job_with_its_own_reason(
    database: Database, generate: Generate, engine: FakeEngine, make_job: MakeJob
) -> None:
    job = make_job(num_images=3)

    def behave(handle: FakeHandle) -> None:
        if handle.request.seed == 2:
            handle.future.set_exception(NumericError())

    engine.behave = behave
    generate(job.id)
    failed = get(database, job.account_id, job.id)
    assert (failed.state, failed.error_code, failed.images) == (State.FAILED, "numeric_error", ())


def test_a_lost_device_writes_nothing_and_leaves_the_lease_to_be_ended(
    database: Database, generate: Generate, engine: FakeEngine, make_job: MakeJob
) -> None:
    job = make_job()
    engine.behave = fail_with(DeviceLost())
    generate(job.id)
    assert get(database, job.account_id, job.id).state is State.RUNNING


@pytest.fixture
def worker(tier: str) -> Worker:
    return Worker("w-" + tier, "b-" + tier, "host", 1, "cpu:0", (tier,), 4, 1, "exact")


@pytest.fixture
def heartbeat(
    worker_database: Database, in_flight: InFlightJobs, engine: FakeEngine, worker: Worker
) -> Heartbeat:
    """A heartbeat that the test triggers by hand."""
    return Heartbeat(
        worker_database,
        worker,
        in_flight,
        engine,
        heartbeat_seconds=5,
        lease_seconds=30,
        watchdog_seconds=60,
        end_process=lambda code: pytest.fail(f"ended with {code}"),
        clock=lambda: 0.0,
    )


def test_a_cancellation_reaches_the_engine_with_the_next_heartbeat(
    database: Database, generate: Generate, engine: FakeEngine, heartbeat: Heartbeat, make_job: MakeJob
) -> None:
    job = make_job()
    engine.behave = lambda _: None
    thread = threading.Thread(target=generate, args=(job.id,))
    thread.start()
    assert engine.submitted.wait(10)
    jobs.cancel(database, job.account_id, job.id)
    heartbeat.beat()
    thread.join(10)
    assert get(database, job.account_id, job.id).state is State.CANCELED


def test_a_worker_that_leaves_says_so_at_once_and_keeps_its_leases(
    database: Database,
    generate: Generate,
    engine: FakeEngine,
    heartbeat: Heartbeat,
    in_flight: InFlightJobs,
    worker: Worker,
    make_job: MakeJob,
) -> None:
    """It may finish for a minute what it has begun, and hears nothing more meanwhile."""

    def is_live() -> bool:
        return worker.boot_id in {one.boot_id for one in live_workers(database, 20)}

    job = make_job()
    engine.behave = lambda _: None
    thread = threading.Thread(target=generate, args=(job.id,))
    thread.start()
    assert engine.submitted.wait(10)
    heartbeat.start()
    try:
        assert is_live()
        heartbeat.leave()
        deadline = time.monotonic() + 4  # it beats every five seconds, unless it is told to hurry
        while is_live():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        heartbeat.beat()
        assert not is_live()
        assert get(database, job.account_id, job.id).state is State.RUNNING
        assert in_flight.all(), "what it has begun is still its own"
    finally:
        heartbeat.stop()
        jobs.cancel(database, job.account_id, job.id)
        heartbeat.beat()
        thread.join(10)


def test_a_worker_that_lost_its_lease_writes_nothing(
    database: Database,
    generate: Generate,
    engine: FakeEngine,
    heartbeat: Heartbeat,
    in_flight: InFlightJobs,
    make_job: MakeJob,
) -> None:
    job = make_job()
    engine.behave = lambda _: None
    thread = threading.Thread(target=generate, args=(job.id,))
    thread.start()
    assert engine.submitted.wait(10)
    lease = in_flight.all()[0].lease
    jobs.release(database, lease, code="test", detail="", charged=False, max_attempts=9, backoff_seconds=0)
    heartbeat.beat()
    thread.join(10)
    after = get(database, job.account_id, job.id)
    assert (after.state, after.num_failures, after.images) == (State.QUEUED, 0, ())


def test_a_quarantined_job_runs_alone_and_is_isolated_before_its_first_step(
    database: Database, generate: Generate, engine: FakeEngine, make_job: MakeJob
) -> None:
    job = make_job()
    engine.behave = fail_with(DeviceLost())
    generate(job.id)
    with database.transaction() as connection:
        connection.exec_driver_sql(
            "UPDATE jobs SET lease_expires_at = clock_timestamp() - interval '1 s' WHERE id = %s", (job.id,)
        )
    jobs.reap(database)
    solo_at_submit = []

    def behave(handle: FakeHandle) -> None:
        solo_at_submit.append((handle.request.isolated, get(database, job.account_id, job.id).isolated))
        handle.succeed()

    engine.behave = behave
    generate(job.id)
    assert solo_at_submit == [(True, True)]
    assert get(database, job.account_id, job.id).state is State.SUCCEEDED


def test_a_hung_engine_ends_the_process_and_a_busy_one_does_not(
    database: Database, in_flight: InFlightJobs, engine: FakeEngine
) -> None:
    now, codes = [100.0], list[int]()
    worker = Worker("w-hung", "b-hung", "host", 1, "cpu:0", ("sd",), 4, 1, "exact")
    heartbeat = Heartbeat(
        database,
        worker,
        in_flight,
        engine,
        heartbeat_seconds=5,
        lease_seconds=30,
        watchdog_seconds=60,
        end_process=codes.append,
        clock=lambda: now[0],
    )
    engine.is_idle, engine.ticked_at = False, 100.0
    for now[0] in range(105, 165, 5):  # as its thread looks
        heartbeat.beat()
    assert codes == []
    now[0] = 161.0
    heartbeat.beat()
    assert codes == [70]


def test_a_process_that_was_stopped_is_not_taken_for_one_that_hangs(
    database: Database, in_flight: InFlightJobs, engine: FakeEngine
) -> None:
    """Its engine has not ticked while it was stopped, and may now; if it does not either, it hangs."""
    now, codes = [100.0], list[int]()
    worker = Worker("w-stopped", "b-stopped", "host", 1, "cpu:0", ("sd",), 4, 1, "exact")
    heartbeat = Heartbeat(
        database,
        worker,
        in_flight,
        engine,
        heartbeat_seconds=5,
        lease_seconds=30,
        watchdog_seconds=60,
        end_process=codes.append,
        clock=lambda: now[0],
    )
    engine.is_idle, engine.ticked_at = False, 100.0
    heartbeat.beat()
    now[0] = 300.0  # SIGSTOP, and SIGCONT much later, in the middle of a long step
    for now[0] in (300.0, 305.0, 310.0, 330.0):
        heartbeat.beat()
    assert codes == []
    engine.ticked_at = 331.0
    for now[0] in range(335, 395, 5):
        heartbeat.beat()
    assert codes == []
    now[0] = 395.0
    heartbeat.beat()
    assert codes == [70]


def test_a_heart_that_fails_in_an_unforeseen_way_ends_the_process(
    database: Database, in_flight: InFlightJobs, engine: FakeEngine
) -> None:
    """A worker without a heartbeat would take jobs on leases that nobody renews."""
    ended = threading.Event()

    worker = Worker("w-broken", "b-broken", "host", 1, "cpu:0", ("sd",), 4, 1, "exact")
    heartbeat = Heartbeat(
        database,
        worker,
        in_flight,
        engine,
        heartbeat_seconds=0.01,
        lease_seconds=30,
        watchdog_seconds=60,
        end_process=lambda _: ended.set(),
    )
    heartbeat.start()
    heartbeat._worker = None  # type: ignore[assignment]  # any bug will do
    assert ended.wait(10)
    heartbeat.stop()


def test_when_a_later_image_is_refused_the_earlier_ones_are_stopped(
    database: Database, generate: Generate, engine: FakeEngine, make_job: MakeJob
) -> None:
    def behave(handle: FakeHandle) -> None:
        if handle.request.seed == 2:
            raise EngineStopped

    engine.behave = behave
    job = make_job(num_images=2)
    generate(job.id)
    assert isinstance(engine.handles[0].future.exception(timeout=0), Canceled)
    assert get(database, job.account_id, job.id).state is State.QUEUED


def test_a_quarantined_job_whose_lease_was_lost_does_not_begin(
    database: Database, generate: Generate, engine: FakeEngine, make_job: MakeJob
) -> None:
    job = make_job()
    engine.behave = fail_with(DeviceLost())
    generate(job.id)
    statement = "UPDATE jobs SET lease_expires_at = clock_timestamp() - interval '1 s' WHERE id = %s"

    def lose_the_lease() -> None:
        with database.transaction() as connection:
            connection.exec_driver_sql(statement, (job.id,))
        jobs.reap(database)

    lose_the_lease()
    begun: list[str] = []
    plain_submit = engine.submit

    def submit(
        request: GenerationRequest, *, before_first_step: Callable[[], object] | None = None
    ) -> FakeHandle:
        lose_the_lease()
        return plain_submit(request, before_first_step=before_first_step)

    engine.behave = lambda handle: begun.append(handle.request.job_id)
    generate._submit = submit
    generate(job.id)
    assert begun == []
    assert get(database, job.account_id, job.id).state is State.QUEUED


def test_S38_what_was_dropped_in_an_outage_is_given_back_uncharged_and_not_quarantined(
    database: Database,
    worker_database: Database,
    generate: Generate,
    engine: FakeEngine,
    in_flight: InFlightJobs,
    worker: Worker,
    make_job: MakeJob,
) -> None:
    class Away(Database):
        """Postgres, which does not answer at first."""

        is_away = True

        def run(self, *args: Any, **options: Any) -> Any:
            if self.is_away:
                raise Unavailable("it is away")
            return worker_database.run(*args, **options)

    now, db = [0.0], Away("postgresql://nobody@127.0.0.1:1/none", 1)
    heartbeat = Heartbeat(
        db,
        worker,
        in_flight,
        engine,
        heartbeat_seconds=5,
        lease_seconds=30,
        watchdog_seconds=60,
        end_process=lambda code: pytest.fail(f"ended with {code}"),
        clock=lambda: now[0],
    )
    job = make_job()
    engine.behave = lambda _: None
    thread = threading.Thread(target=generate, args=(job.id,))
    thread.start()
    assert engine.submitted.wait(60)
    now[0] = 31.0
    deadline = time.monotonic() + 60
    while not engine.handles[0].future.done() and time.monotonic() < deadline:
        heartbeat.beat()
    thread.join(60)
    assert get(database, job.account_id, job.id).state is State.RUNNING
    db.is_away = False
    heartbeat.beat()
    after = get(database, job.account_id, job.id)
    assert (after.state, after.quarantined, after.num_failures) == (State.QUEUED, False, 0)
    db.close()
