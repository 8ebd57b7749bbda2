"""A job that waits says why, from real rows; a batch says it for each tier; nobody learns of others' jobs."""

import csv
import io
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from prometheus_client import generate_latest
from sqlalchemy import text

from catalogue.profile import Profile, PublishedKey, StepCost
from catalogue.warnings import RequestWarning
from settings import Settings
from storage import accounts, batches, dispatches, jobs, submissions, workers
from storage.database import WATCHERS, Database
from storage.isolation import clear_isolated, set_isolated
from storage.job_views import StoredImage
from storage.jobs import Claim, WorkerName
from storage.profiles import TierProfile, publish
from storage.workers import Worker
from tests.fixtures.new_jobs import new_job
from tests.integration.web.conftest import Client
from web.app import create_app
from web.estimates.waiting_reasons import CODES
from web.wiring import EXTENSION, Wiring

Submit = Callable[..., str]
StartWorker = Callable[..., Worker]


@pytest.fixture
def tier() -> str:
    """A tier of this test's own: no other test's jobs or workers are in its queues."""
    return f"tier-{secrets.token_hex(4)}"


@pytest.fixture
def submit(database: Database, account: str, tier: str) -> Submit:
    """Makes a queued job in that tier; its id."""

    def make(owner: str = account, **changes: Any) -> str:
        new = new_job(owner, **{"tier": tier, **changes})
        return submissions.create(database, new, redispatch_seconds=15)[0].id

    return make


@pytest.fixture
def start_worker(database: Database, tier: str) -> Iterator[StartWorker]:
    """Lets a worker of that tier be live until the test is over."""
    started = []

    def start(*, interactive_slots: int = 2, bulk_slots: int = 2) -> Worker:
        boot_id = secrets.token_hex(8)
        worker = Worker(
            id=boot_id,
            boot_id=boot_id,
            host="test",
            pid=1,
            device="cpu:0",
            tiers=(tier,),
            interactive_slots=interactive_slots,
            bulk_slots=bulk_slots,
            determinism="exact",
        )
        workers.heartbeat(database, worker, [], lease_seconds=30)
        started.append(worker)
        return worker

    yield start
    for worker in started:
        workers.say_goodbye(database, worker.boot_id)


def claim(database: Database, job_id: str, tier: str, worker: Worker) -> Claim:
    found = jobs.claim(
        database, job_id, tiers=[tier], worker=WorkerName(worker.boot_id, "cpu:0"), lease_seconds=30
    )
    assert found is not None
    return found


def release(database: Database, claimed: Claim, *, backoff_seconds: float) -> None:
    released = jobs.release(
        database,
        claimed.lease,
        code="storage_unavailable",
        detail="",
        charged=True,
        max_attempts=5,
        backoff_seconds=backoff_seconds,
    )
    assert released == "queued"


def let_pass(database: Database, job_id: str, seconds: float) -> None:
    """Move the dispatch times of this job into the past."""
    with database.transaction() as connection:
        connection.execute(
            text(
                """UPDATE jobs SET dispatched_at = dispatched_at - make_interval(secs => :seconds),
                                   next_dispatch_at = next_dispatch_at - make_interval(secs => :seconds)
                    WHERE id = :id"""
            ),
            {"seconds": seconds, "id": job_id},
        )


def shown(client: Client, job_id: str) -> tuple[str, str, int | None]:
    """The code, the words and the position, and that a list says the same."""
    job = client("GET", f"/v1/jobs/{job_id}").get_json()
    (listed,) = [one for one in client("GET", "/v1/jobs").get_json()["jobs"] if one["id"] == job_id]
    assert (listed["waiting_reason"]["code"], listed["queue_position"]) == (
        job["waiting_reason"]["code"],
        job["queue_position"],
    )
    assert job["waiting_reason"]["code"] in CODES
    return job["waiting_reason"]["code"], job["waiting_reason"]["detail"], job["queue_position"]


def test_a_job_of_a_tier_without_a_live_worker_says_so(
    client: Client, submit: Submit, tier: str, start_worker: StartWorker, database: Database
) -> None:
    job_id = submit()
    assert shown(client, job_id) == (
        "no_live_worker",
        f"no live worker serves tier {tier!r}; the job waits until one starts",
        1,
    )
    worker = start_worker()
    assert shown(client, job_id)[0] == "about_to_start"
    workers.say_goodbye(database, worker.boot_id)
    assert shown(client, job_id)[0] == "no_live_worker"


def test_a_worker_that_drains_is_not_counted_on_though_it_beats(
    client: Client, submit: Submit, start_worker: StartWorker, database: Database
) -> None:
    job_id = submit()
    worker = start_worker()
    workers.heartbeat(database, worker, [], lease_seconds=30, is_leaving=True)
    assert shown(client, job_id)[0] == "no_live_worker"


def test_the_answer_to_a_submission_says_it_already(client: Client, settings: Settings) -> None:
    reason = client.submit().get_json()["waiting_reason"]
    assert reason["code"] in CODES
    impatient = create_app(settings.model_copy(update={"worker_alive_seconds": 1e-6}))
    answer = Client(impatient.test_client(), client.key).submit(width=192)
    assert answer.status_code == 202
    assert answer.get_json()["waiting_reason"]["code"] == "no_live_worker"
    assert "'hd'" in answer.get_json()["waiting_reason"]["detail"]


def test_a_job_is_accepted_and_shown_even_when_why_it_waits_cannot_be_read(
    client: Client, settings: Settings, database: Database
) -> None:
    app = create_app(settings)
    impatient = Database(settings.database_url.get_secret_value(), 2, transaction_seconds=1.5)
    app.extensions[EXTENSION] = replace(app.extensions[EXTENSION], db=impatient)
    who = Client(app.test_client(), client.key)
    with database.transaction() as connection:
        connection.execute(text("LOCK TABLE workers IN ACCESS EXCLUSIVE MODE"))
        answer = who.submit()
        again = who("GET", answer.headers["Location"])
    impatient.close()
    assert (answer.status_code, answer.get_json()["waiting_reason"]["code"]) == (202, "unknown")
    assert (again.status_code, again.get_json()["waiting_reason"]["code"]) == (200, "unknown")


def test_jobs_are_counted_that_come_first_in_the_same_lane(
    client: Client, submit: Submit, start_worker: StartWorker, tier: str
) -> None:
    start_worker()
    made = [submit() for _ in range(3)]
    submit(lane="bulk")
    assert [shown(client, job_id)[::2] for job_id in made] == [
        ("about_to_start", 1),
        ("jobs_ahead", 2),
        ("jobs_ahead", 3),
    ]
    assert shown(client, made[2])[1] == f"2 jobs ahead in tier {tier!r}, lane 'interactive'"


def test_another_accounts_jobs_are_a_number_and_its_bulk_jobs_not_even_that(
    client: Client, submit: Submit, start_worker: StartWorker, database: Database
) -> None:
    start_worker()
    stranger = accounts.create_account(database, "stranger")
    submit(stranger)
    assert shown(client, submit())[0::2] == ("jobs_ahead", 2)
    for _ in range(3):
        submit(stranger, lane="bulk")
    own = [submit(lane="bulk") for _ in range(2)]
    assert "0 jobs of yours" in shown(client, own[0])[1]
    assert shown(client, own[1]) == (
        "bulk_turn",
        "workers claim bulk jobs as slots get free, in turn between accounts; 1 job of yours ahead of it",
        None,
    )


def test_taken_slots_are_named_and_only_those_of_the_jobs_own_lane_count(
    client: Client, submit: Submit, start_worker: StartWorker, tier: str, database: Database
) -> None:
    worker = start_worker(interactive_slots=1, bulk_slots=2)
    claim(database, submit(), tier, worker)
    waiting = submit()
    assert shown(client, waiting) == (
        "all_slots_busy",
        f"all 1 interactive slots of the 1 live worker of tier {tier!r} are in use; 0 jobs ahead",
        1,
    )
    assert shown(client, submit(lane="bulk"))[0] == "bulk_turn"


def test_a_job_that_failed_once_says_with_what_and_when_it_is_tried_again(
    client: Client, submit: Submit, start_worker: StartWorker, tier: str, database: Database
) -> None:
    worker = start_worker()
    job_id = submit()
    release(database, claim(database, job_id, tier, worker), backoff_seconds=3600)
    code, detail, position = shown(client, job_id)
    assert (code, position) == ("retry_backoff", None)
    said = "1 of 5 attempts failed, the last with storage_unavailable; the next may start in "
    assert re.fullmatch(re.escape(said) + "(35[0-9]{2}|3600) s", detail)
    let_pass(database, job_id, 3601)
    assert shown(client, job_id)[0] == "dispatch_due"


def test_a_job_whose_worker_died_says_that_it_runs_alone_until_it_does(
    client: Client, submit: Submit, start_worker: StartWorker, tier: str, database: Database
) -> None:
    worker = start_worker()
    job_id = submit()
    claim(database, job_id, tier, worker)
    with database.transaction() as connection:
        past = "UPDATE jobs SET lease_expires_at = clock_timestamp() - interval '1 s' WHERE id = :id"
        connection.execute(text(past), {"id": job_id})
    assert (job_id, "queued") in jobs.reap(database)
    assert shown(client, job_id)[0] == "runs_alone"
    again = claim(database, job_id, tier, worker)
    assert client("GET", f"/v1/jobs/{job_id}").get_json()["state"] == "running"
    assert shown(client, job_id)[0] == "runs_alone"
    assert set_isolated(database, again.lease)
    assert client("GET", f"/v1/jobs/{job_id}").get_json()["waiting_reason"] is None
    assert clear_isolated(database, again.lease, progress=0.5)
    assert client("GET", f"/v1/jobs/{job_id}").get_json()["waiting_reason"] is None, "it has run alone"


def test_a_dispatch_that_no_idle_worker_receives_is_overdue(
    client: Client, submit: Submit, start_worker: StartWorker, tier: str, database: Database
) -> None:
    worker = start_worker()
    received, lost = submit(), submit()
    let_pass(database, lost, 60)
    assert shown(client, lost)[0] == "dispatch_overdue"
    claim(database, received, tier, worker)
    assert shown(client, lost)[0] == "about_to_start", "messages are received: only its turn has not come"
    undispatched = submit()
    dispatches.undispatch(database, undispatched)
    assert shown(client, undispatched)[0] == "dispatch_due"


def test_a_bulk_job_that_no_idle_worker_claims_is_overdue(
    client: Client, submit: Submit, start_worker: StartWorker, tier: str, database: Database
) -> None:
    worker = start_worker()
    first, second = submit(lane="bulk"), submit(lane="bulk")
    assert shown(client, first)[0] == "bulk_turn"
    for job_id in (first, second):
        let_pass(database, job_id, 60)
    code, detail, _ = shown(client, first)
    assert code == "dispatch_overdue"
    assert "no idle worker has claimed it" in detail
    claim(database, first, tier, worker)
    assert shown(client, second)[0] == "bulk_turn", "workers claim: only its turn has not come"


def test_a_job_that_does_not_wait_has_no_reason(
    client: Client, submit: Submit, start_worker: StartWorker, tier: str, database: Database
) -> None:
    worker = start_worker()
    job_id = submit()
    claimed = claim(database, job_id, tier, worker)
    running = client("GET", f"/v1/jobs/{job_id}").get_json()
    assert (running["state"], running["waiting_reason"], running["queue_position"]) == ("running", None, None)
    jobs.fail(database, claimed.lease, code="numeric_error", detail="", retryable=False)
    failed = client("GET", f"/v1/jobs/{job_id}").get_json()
    assert (failed["waiting_reason"], failed["queue_position"]) == (None, None)


def test_a_batch_says_for_each_tier_why_its_queued_jobs_wait(
    client: Client, account: str, start_worker: StartWorker, tier: str, database: Database
) -> None:
    worker = start_worker()
    rows = [
        new_job(account, lane="bulk", tier=tier if line < 4 else f"{tier}-x", batch_line=line)
        for line in range(1, 6)
    ]
    batch, _ = batches.create(database, account, "prompts.csv", rows)
    name = WorkerName(worker.boot_id, "cpu:0")
    _, failed = jobs.claim_next(database, tiers=[tier], worker=name, lease_seconds=30, limit=2)
    release(database, failed, backoff_seconds=3600)
    for seen in (
        client("GET", f"/v1/batches/{batch.id}").get_json(),
        client("GET", "/v1/batches").get_json()["batches"][0],
    ):
        found = [(wait["tier"], wait["num_jobs"], wait["code"]) for wait in seen["waiting_reasons"]]
        assert found == [(tier, 2, "bulk_turn"), (f"{tier}-x", 2, "no_live_worker")]
    assert client("DELETE", f"/v1/batches/{batch.id}").get_json()["waiting_reasons"] == []


def test_metrics_count_the_live_workers_of_each_tier(app: Flask) -> None:
    wiring: Wiring = app.extensions[EXTENSION]
    lines = generate_latest(wiring.metrics.registry).decode().splitlines()
    assert {line.split(" ")[0] for line in lines if line.startswith("calotype_tier_live_workers")} == {
        'calotype_tier_live_workers{tier="sd"}',
        'calotype_tier_live_workers{tier="hd"}',
    }


def test_metrics_tell_for_how_long_the_queued_jobs_would_keep_a_device_busy(
    app: Flask, client: Client, database: Database
) -> None:
    profile = Profile(
        key=PublishedKey(secrets.token_hex(8), "a processor", width=128, height=128),
        steps=(StepCost.of_median(2, 0.5),),
        encode_seconds=0.1,
        decode_seconds=0.2,
        num_guided_rows=2,
    )
    publish(database, [TierProfile("sd", "tiny", profile)])
    registry = app.extensions[EXTENSION].metrics.registry
    labels = {"tier": "sd", "lane": "interactive"}

    def queued() -> float:
        return float(registry.get_sample_value("calotype_queued_device_seconds", labels) or 0)

    before = queued()
    job = client.submit(num_inference_steps=7, width=128, height=128, guidance_scale=1.0).get_json()
    assert queued() > before
    client("DELETE", f"/v1/jobs/{job['id']}")
    assert queued() == pytest.approx(before)
    with database.transaction() as connection:
        connection.execute(
            text("DELETE FROM profiles WHERE fingerprint = :one"), {"one": profile.key.fingerprint}
        )


def test_a_scrape_reads_queued_and_running_work_at_once(app: Flask) -> None:
    """A job that is claimed meanwhile is in one of the two."""
    sent: list[str] = []

    def watch(_driver: Any, query: str, _values: Any, _account: Any) -> None:
        sent.append(query)

    WATCHERS.append(watch)
    try:
        generate_latest(app.extensions[EXTENSION].metrics.registry)
    finally:
        WATCHERS.remove(watch)
    assert sum("FROM open_work" in query for query in sent) == 1
    assert sum("JOIN profiles" in query for query in sent) == 1


def test_what_was_cut_is_said_by_the_job_and_in_the_batchs_results(
    client: Client, database: Database
) -> None:
    data = {"file": (io.BytesIO(b"prompt\na red heart\n"), "prompts.csv")}
    batch = client("POST", "/v1/batches", data=data).get_json()
    (job,) = client("GET", batch["links"]["jobs"]).get_json()["jobs"]
    claimed = jobs.claim(
        database, job["id"], tiers=["sd"], worker=WorkerName("boot", "cpu:0"), lease_seconds=30
    )
    assert claimed is not None
    cut = RequestWarning(code="prompt_cut", field="prompt", detail='it has 40 tokens: "a ring" was not used')
    image = StoredImage(0, 1, f"test/{job['id']}", "0" * 64, 1, 128, 128)
    assert jobs.finish(database, claimed.lease, stored=[image], warnings=[cut], timings={})
    done = client("GET", f"/v1/jobs/{job['id']}").get_json()
    assert done["warnings"] == [
        {"code": "prompt_cut", "field": "prompt", "detail": 'it has 40 tokens: "a ring" was not used'}
    ]
    (row,) = csv.DictReader(
        io.StringIO(client("GET", batch["links"]["results"]).get_data().decode("utf-8-sig"))
    )
    assert (row["error"], row["output_format"]) == ("", "png")
    assert row["warnings"] == 'prompt: it has 40 tokens: "a ring" was not used'
