"""The promises of the state machine, on a real Postgres."""

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from catalogue.states import State
from catalogue.warnings import RequestWarning
from storage import accounts, jobs, submissions
from storage.database import Database
from storage.errors import IdempotencyMismatch, JobIsFinal, NotFound
from storage.isolation import clear_isolated, set_isolated
from storage.job_views import Job, StoredImage, get, list_jobs
from storage.jobs import Claim, Lease, WorkerName
from storage.transition_values import MAX_CRASHES
from storage.workers import Worker, declare_dead, heartbeat
from tests.fixtures.new_jobs import new_job
from tests.integration.storage.conftest import WORKER, MakeJob

ClaimJob = Callable[..., Claim]


def picture(claim: Claim, index: int = 0) -> StoredImage:
    return StoredImage(index, 1, f"{claim.job.id}/{claim.lease.attempt}/{index}", "ab" * 32, 10, 128, 128)


def finish(database: Database, claim: Claim) -> bool:
    return jobs.finish(database, claim.lease, stored=[picture(claim)], warnings=[], timings={})


def release(database: Database, claim: Claim, **changes: object) -> str | None:
    options: dict[str, object] = {
        "code": "storage_unavailable",
        "detail": "no bucket",
        "charged": True,
        "max_attempts": 2,
        "backoff_seconds": 0,
    }
    return jobs.release(database, claim.lease, **{**options, **changes})  # type: ignore[arg-type]


def events(database: Database, job: Job) -> list[str]:
    query = text("SELECT transition FROM job_events WHERE job_id = :id ORDER BY id")
    with database.transaction() as connection:
        return [row.transition for row in connection.execute(query, {"id": job.id})]


def let_leases_run_out(database: Database, job: Job) -> None:
    statement = text(
        "UPDATE jobs SET lease_expires_at = clock_timestamp() - interval '1 second' WHERE id = :id"
    )
    with database.transaction() as connection:
        connection.execute(statement, {"id": job.id})


def test_a_job_is_claimed_by_exactly_one_of_many(database: Database, make_job: MakeJob) -> None:
    job = make_job()
    barrier = threading.Barrier(8)
    won: list[Claim] = []

    def race(number: int) -> None:
        barrier.wait()
        worker = WorkerName(f"boot-{number}", f"worker-{number}")
        claimed = jobs.claim(database, job.id, tiers=["sd"], worker=worker, lease_seconds=30)
        if claimed:
            won.append(claimed)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert won[0].lease.attempt == 1
    assert get(database, job.account_id, job.id).worker == won[0].job.worker


def test_a_worker_gets_no_job_of_a_tier_that_it_does_not_serve(database: Database, make_job: MakeJob) -> None:
    job = make_job(tier="hd")
    assert jobs.claim(database, job.id, tiers=["sd"], worker=WORKER, lease_seconds=30) is None


def test_a_finished_job_has_its_images_and_one_final_event(
    database: Database, make_job: MakeJob, claim_job: ClaimJob
) -> None:
    job = make_job(num_images=2)
    claim = claim_job(job.id)
    stored = [picture(claim, 0), picture(claim, 1)]
    cut = RequestWarning(
        code="prompt_cut", field="prompt", detail="it has 80 tokens and the text encoder reads the first 75"
    )
    assert jobs.finish(
        database, claim.lease, stored=stored, warnings=[cut], timings={"denoising_seconds": 1.5}
    )
    done = get(database, job.account_id, job.id)
    assert done.state is State.SUCCEEDED
    assert [image.index for image in done.images] == [0, 1]
    assert (done.warnings, done.timings, done.progress) == ((cut,), {"denoising_seconds": 1.5}, 1)
    assert events(database, job) == ["claim", "finish"]


def test_a_warning_of_an_older_release_can_still_be_read(
    database: Database, make_job: MakeJob, claim_job: ClaimJob
) -> None:
    """0.1.0 wrote sentences; final rows are never rewritten, so reading takes them as they are."""
    claim = claim_job(make_job().id)
    with database.transaction() as connection:
        connection.execute(
            text("""UPDATE jobs SET warnings = '["prompt: the prompt has 82 tokens: cut"]' WHERE id = :id"""),
            {"id": claim.job.id},
        )
    (warning,) = get(database, claim.job.account_id, claim.job.id).warnings
    assert warning == RequestWarning("prompt_cut", "prompt", "the prompt has 82 tokens: cut")


def test_a_stale_worker_cannot_write(database: Database, make_job: MakeJob, claim_job: ClaimJob) -> None:
    job = make_job()
    stale = claim_job(job.id)
    let_leases_run_out(database, job)
    jobs.reap(database)
    fresh = claim_job(job.id)
    assert not finish(database, stale)
    assert jobs.fail(database, stale.lease, code="x", detail="", retryable=False) is None
    assert release(database, stale) is None
    assert finish(database, fresh)
    assert {image.object_key for image in get(database, job.account_id, job.id).images} == {
        picture(fresh).object_key
    }


@pytest.mark.parametrize("part", ["attempt", "token"])
def test_both_halves_of_the_fence_count(
    database: Database, make_job: MakeJob, claim_job: ClaimJob, part: str
) -> None:
    claim = claim_job(make_job().id)
    wrong: Lease = (
        replace(claim.lease, attempt=2)
        if part == "attempt"
        else replace(claim.lease, token="00000000-0000-4000-8000-000000000000")
    )
    assert not jobs.finish(database, wrong, stored=[], warnings=[], timings={})
    assert finish(database, claim)


def test_a_transient_error_is_tried_again_until_its_tries_are_used_up(
    database: Database, make_job: MakeJob, claim_job: ClaimJob
) -> None:
    job = make_job()
    assert release(database, claim_job(job.id)) == "queued"
    assert release(database, claim_job(job.id)) == "failed"
    failed = get(database, job.account_id, job.id)
    assert (failed.error_code, failed.error_retryable, failed.attempt) == ("storage_unavailable", True, 2)


def test_a_drain_costs_a_job_no_try(database: Database, make_job: MakeJob, claim_job: ClaimJob) -> None:
    job = make_job()
    for _ in range(4):
        assert release(database, claim_job(job.id), charged=False, code="engine_stopped") == "queued"
    assert get(database, job.account_id, job.id).num_failures == 0


def test_a_crash_quarantines_jobs_and_charges_only_the_one_that_ran_alone(
    database: Database, make_job: MakeJob, claim_job: ClaimJob
) -> None:
    culprit, mate = make_job(), make_job()
    dead = WorkerName("dead", "dead")
    for job in (culprit, mate):
        claim_job(job.id, worker=dead)
    taken_back = declare_dead(database, boot_id="dead", on_device=None)
    assert dict(taken_back) == {culprit.id: "queued", mate.id: "queued"}
    for charge in (1, 2, 3):
        claimed = claim_job(culprit.id, worker=dead)
        assert claimed.job.quarantined
        assert set_isolated(database, claimed.lease)
        claim_job(mate.id, worker=dead)
        reaped = dict(declare_dead(database, boot_id="dead", on_device=None))
        assert reaped[culprit.id] == ("failed" if charge == 3 else "queued")
        assert reaped[mate.id] == "queued"
    assert get(database, culprit.account_id, culprit.id).error_code == "worker_lost"
    assert get(database, mate.account_id, mate.id).num_crashes == 0


@pytest.fixture
def claim_quarantined(database: Database, make_job: MakeJob, claim_job: ClaimJob) -> ClaimJob:
    """A job whose worker died, claimed again."""

    def claim(**changes: object) -> Claim:
        job = make_job()
        claim_job(job.id)
        let_leases_run_out(database, job)
        jobs.reap(database)
        return claim_job(job.id, **changes)

    return claim


def num_crashes(database: Database, claim: Claim) -> int:
    """After a crash of the process that holds it."""
    with database.transaction() as connection:
        holder = text("SELECT lease_boot_id FROM jobs WHERE id = :id")
        boot_id = connection.execute(holder, {"id": claim.job.id}).scalar_one()
    if boot_id is not None:
        declare_dead(database, boot_id=boot_id, on_device=None)
    return get(database, claim.job.account_id, claim.job.id).num_crashes


def test_one_job_of_a_process_is_isolated_at_a_time(database: Database, claim_quarantined: ClaimJob) -> None:
    """Who ran alone before is done: what the process dies of now is the doing of who runs alone now."""
    before, after = (claim_quarantined(worker=WorkerName("one", "one")) for _ in range(2))
    elsewhere = claim_quarantined(worker=WorkerName("two", "two"))
    for claim in (elsewhere, before, after):
        assert set_isolated(database, claim.lease)
    assert [num_crashes(database, claim) for claim in (before, after, elsewhere)] == [0, 1, 1]


def test_a_job_that_ran_alone_is_not_charged_for_what_comes_after(
    database: Database, claim_quarantined: ClaimJob
) -> None:
    claim = claim_quarantined()
    assert set_isolated(database, claim.lease)
    assert clear_isolated(database, claim.lease, progress=0.5)
    assert get(database, claim.job.account_id, claim.job.id).progress == 0.5
    assert not clear_isolated(database, claim.lease, progress=0.5), "it is not isolated any more"
    assert num_crashes(database, claim) == 0


def test_a_mark_is_written_by_its_holder_alone(
    database: Database, claim_quarantined: ClaimJob, claim_job: ClaimJob
) -> None:
    """A stale worker neither takes a charge off the next one, nor flags the job of another."""
    stale = claim_quarantined()
    let_leases_run_out(database, stale.job)
    jobs.reap(database)
    fresh = claim_job(stale.job.id)
    assert not set_isolated(database, stale.lease)
    assert not get(database, fresh.job.account_id, fresh.job.id).isolated
    assert set_isolated(database, fresh.lease)
    assert not clear_isolated(database, stale.lease, progress=1)
    assert num_crashes(database, fresh) == 1


def test_a_mark_that_waited_for_its_row_asks_again_whether_the_lease_is_held(
    database: Database, claim_quarantined: ClaimJob
) -> None:
    """The job was given back and claimed anew, by the same process, while the statement waited."""
    stale = claim_quarantined()
    flagged: list[bool] = []
    thread = threading.Thread(target=lambda: flagged.append(set_isolated(database, stale.lease)))
    with database.transaction() as connection:
        connection.execute(text("SELECT 1 FROM jobs WHERE id = :id FOR UPDATE"), {"id": stale.job.id})
        thread.start()
        waits = text(
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%isolated%'"
        )
        while not connection.execute(waits).all():
            connection.execute(text("SELECT pg_stat_clear_snapshot()"))
        change = text("UPDATE jobs SET lease_token = gen_random_uuid() WHERE id = :id")
        connection.execute(change, {"id": stale.job.id})
    thread.join(10)
    assert flagged == [False]
    assert not get(database, stale.job.account_id, stale.job.id).isolated


def test_a_dead_process_loses_its_leases_at_once_and_others_keep_theirs(
    database: Database, make_job: MakeJob, claim_job: ClaimJob
) -> None:
    dead, alive = make_job(), make_job()
    claim_job(dead.id, worker=WorkerName("dead", "dead"))
    claim_job(alive.id, worker=WorkerName("alive", "alive"))
    assert declare_dead(database, boot_id="dead", on_device=None) == [(dead.id, "queued")]
    assert get(database, alive.account_id, alive.id).state is State.RUNNING


def details(database: Database, job: Job) -> list[tuple[str, str]]:
    """Who held it and what is said of that, for each time that it was reaped."""
    query = text(
        "SELECT worker, detail FROM job_events WHERE job_id = :id AND transition = 'reap' ORDER BY id"
    )
    with database.transaction() as connection:
        return [(row.worker, row.detail) for row in connection.execute(query, {"id": job.id})]


def test_S38_only_what_was_on_the_device_of_a_dead_process_is_quarantined(
    database: Database, make_job: MakeJob, claim_job: ClaimJob
) -> None:
    on_device, waiting = make_job(), make_job()
    for job in (on_device, waiting):
        claim_job(job.id, worker=WorkerName("dead", "cpu:0@here/dead"))
    taken_back = declare_dead(database, boot_id="dead", on_device={on_device.id})
    assert dict(taken_back) == {on_device.id: "queued", waiting.id: "queued"}
    assert [get(database, job.account_id, job.id).quarantined for job in (on_device, waiting)] == [
        True,
        False,
    ]
    worker = "cpu:0@here/dead"
    assert details(database, on_device) == [(worker, "it was on the device when its process died")]
    assert details(database, waiting) == [(worker, "it was not on the device when its process died")]


def test_S38_a_quarantined_job_is_charged_only_where_it_was_on_the_device(
    database: Database, make_job: MakeJob, claim_job: ClaimJob
) -> None:
    """Its process may die between two of its steps, by what other threads do."""
    quarantined = make_job()
    claim_job(quarantined.id, worker=WorkerName("first", "first"))
    declare_dead(database, boot_id="first", on_device={quarantined.id})
    for on_device, num_crashes in ((set(), 0), ({quarantined.id}, 1), (None, 2), (set(), 2)):
        claimed = claim_job(quarantined.id, worker=WorkerName("next", "next"))
        assert set_isolated(database, claimed.lease)
        declare_dead(database, boot_id="next", on_device=on_device)
        after = get(database, quarantined.account_id, quarantined.id)
        assert (after.quarantined, after.isolated, after.num_crashes) == (True, False, num_crashes)


def test_S38_a_job_that_kills_its_process_off_the_device_is_quarantined_at_the_third_death(
    database: Database, make_job: MakeJob, claim_job: ClaimJob
) -> None:
    job = make_job()
    for is_quarantined in (False, False, True):
        claim_job(job.id, worker=WorkerName("dead", "dead"))
        declare_dead(database, boot_id="dead", on_device=set())
        after = get(database, job.account_id, job.id)
        assert (after.quarantined, after.num_crashes) == (is_quarantined, 0)


def test_S38_a_quarantined_job_is_charged_for_deaths_whose_record_names_it_alone(
    database: Database, make_job: MakeJob, claim_job: ClaimJob
) -> None:
    """It kills as its image becomes a file, when it is not isolated any more."""
    job = make_job()
    for on_device, state, num_crashes in (
        ({job.id}, "queued", 0),
        ({job.id, "another"}, "queued", 0),
        ({job.id}, "queued", 1),
        ({job.id}, "queued", 2),
        ({job.id}, "failed", 3),
    ):
        claim_job(job.id, worker=WorkerName("dead", "dead"))
        assert declare_dead(database, boot_id="dead", on_device=on_device) == [(job.id, state)]
        assert get(database, job.account_id, job.id).num_crashes == num_crashes


def test_S38_a_lease_that_runs_out_quarantines_its_job(
    database: Database, make_job: MakeJob, claim_job: ClaimJob
) -> None:
    """Its host is lost, and with it what the device worked on."""
    job = make_job()
    claim_job(job.id)
    let_leases_run_out(database, job)
    jobs.reap(database)
    assert get(database, job.account_id, job.id).quarantined
    assert [detail for _, detail in details(database, job)] == ["its lease ran out"]


def test_a_heartbeat_brings_back_what_was_canceled_and_what_was_lost(
    database: Database, make_job: MakeJob, claim_job: ClaimJob
) -> None:
    kept, canceled, lost = (claim_job(make_job().id, lease_seconds=1) for _ in range(3))
    jobs.cancel(database, canceled.job.account_id, canceled.job.id)
    let_leases_run_out(database, lost.job)
    jobs.reap(database)
    worker = Worker("w", "boot-hb", "host", 1, "cpu:0", ("sd",), 4, 4, "exact")
    held = [(claim.lease, 0.5) for claim in (kept, canceled, lost)]
    beat = heartbeat(database, worker, held, lease_seconds=30)
    assert beat.canceled == {canceled.job.id}
    assert beat.lost == {lost.job.id}
    assert get(database, kept.job.account_id, kept.job.id).progress == 0.5


def test_canceling_a_running_job_ends_it_as_canceled_whatever_the_worker_says(
    database: Database, make_job: MakeJob, claim_job: ClaimJob
) -> None:
    for write in (
        lambda claim: jobs.fail(database, claim.lease, code="canceled", detail="", retryable=False),
        lambda claim: release(database, claim),
    ):
        claim = claim_job(make_job().id)
        assert jobs.cancel(database, claim.job.account_id, claim.job.id).state is State.RUNNING
        assert write(claim) == "canceled"


def test_a_final_job_cannot_be_canceled_and_another_accounts_job_is_not_there(
    database: Database, make_job: MakeJob
) -> None:
    job = make_job()
    stranger = accounts.create_account(database, "stranger")
    with pytest.raises(NotFound):
        jobs.cancel(database, stranger, job.id)
    assert jobs.cancel(database, job.account_id, job.id).state is State.CANCELED
    with pytest.raises(JobIsFinal):
        jobs.cancel(database, job.account_id, job.id)


def test_a_job_past_its_deadline_expires_and_is_not_claimed(database: Database, make_job: MakeJob) -> None:
    job = make_job(deadline_seconds=0.0)
    assert jobs.claim(database, job.id, tiers=["sd"], worker=WORKER, lease_seconds=30) is None
    assert jobs.expire(database) >= 1
    assert get(database, job.account_id, job.id).state is State.EXPIRED


def test_a_deadline_crosses_to_the_worker_as_seconds_left(make_job: MakeJob, claim_job: ClaimJob) -> None:
    left = claim_job(make_job(deadline_seconds=100.0).id).seconds_left
    assert left is not None
    assert 90 < left <= 100
    assert claim_job(make_job().id).seconds_left is None


def test_every_final_state_leaves_one_delivery_for_the_webhook(
    database: Database, make_job: MakeJob, claim_job: ClaimJob
) -> None:
    url = "https://example.com/hook"
    succeeded = claim_job(make_job(webhook_url=url).id)
    finish(database, succeeded)
    failed = claim_job(make_job(webhook_url=url).id)
    jobs.fail(database, failed.lease, code="numeric_error", detail="", retryable=False)
    canceled = make_job(webhook_url=url)
    jobs.cancel(database, canceled.account_id, canceled.id)
    expired = make_job(webhook_url=url, deadline_seconds=0.001)
    while get(database, expired.account_id, expired.id).state is State.QUEUED:
        jobs.expire(database)
    query = text("SELECT event FROM webhook_deliveries WHERE job_id = ANY(:ids) ORDER BY event")
    with database.transaction() as connection:
        ids = [succeeded.job.id, failed.job.id, canceled.id, expired.id]
        found = [row.event for row in connection.execute(query, {"ids": ids})]
    assert found == ["job.canceled", "job.expired", "job.failed", "job.succeeded"]


def test_a_job_that_is_given_up_for_lost_leaves_its_delivery(
    database: Database, make_job: MakeJob, claim_job: ClaimJob
) -> None:
    job = make_job(webhook_url="https://example.com/hook")
    for _ in range(MAX_CRASHES + 1):
        if get(database, job.account_id, job.id).state is not State.QUEUED:
            break
        claimed = claim_job(job.id, worker=WorkerName("dead", "dead"))
        if claimed.job.quarantined:
            set_isolated(database, claimed.lease)
        declare_dead(database, boot_id="dead", on_device=None)
    query = text("SELECT event FROM webhook_deliveries WHERE job_id = :id")
    with database.transaction() as connection:
        found = [row.event for row in connection.execute(query, {"id": job.id})]
    assert (get(database, job.account_id, job.id).error_code, found) == ("worker_lost", ["job.failed"])


def test_a_transition_that_is_rolled_back_leaves_no_delivery(
    database: Database, make_job: MakeJob, claim_job: ClaimJob
) -> None:
    """Image rows that the schema refuses take the end of the job back, and the webhook with it."""
    claimed = claim_job(make_job(webhook_url="https://example.com/hook").id)
    image = StoredImage(0, 1, f"twice/{claimed.job.id}.png", "0" * 64, 10, 16, 8)
    with pytest.raises(IntegrityError):
        jobs.finish(database, claimed.lease, stored=[image, image], warnings=[], timings={})
    query = text("SELECT count(*) FROM webhook_deliveries WHERE job_id = :id")
    with database.transaction() as connection:
        assert connection.execute(query, {"id": claimed.job.id}).scalar_one() == 0
    assert get(database, claimed.job.account_id, claimed.job.id).state is State.RUNNING


def test_an_idempotency_key_makes_one_job(database: Database, account: str) -> None:
    request = new_job(account, idempotency_key="k", request_hash="h1")
    first, created, _ = submissions.create(database, request, redispatch_seconds=15)
    again, created_again, _ = submissions.create(database, request, redispatch_seconds=15)
    assert (created, created_again, first.id) == (True, False, again.id)
    with pytest.raises(IdempotencyMismatch):
        submissions.create(database, replace(request, request_hash="h2"), redispatch_seconds=15)


def test_the_schema_itself_refuses_to_change_the_past(
    database: Database, make_job: MakeJob, claim_job: ClaimJob
) -> None:
    claim = claim_job(make_job().id)
    finish(database, claim)
    for change in ("state = 'queued'", "prompt = 'other'", "attempt = 7"):
        with pytest.raises(IntegrityError, match="final"), database.transaction() as connection:
            connection.execute(text(f"UPDATE jobs SET {change} WHERE id = :id"), {"id": claim.job.id})


@pytest.mark.parametrize(
    "change",
    [
        "attempt = attempt + 1",
        "state = 'running'",
        "next_dispatch_at = NULL",
        "finished_at = clock_timestamp()",
        "isolated = true",
        "seed = -1",
    ],
)
def test_the_schema_itself_refuses_an_impossible_row(
    database: Database, make_job: MakeJob, change: str
) -> None:
    job = make_job()
    with pytest.raises(IntegrityError), database.transaction() as connection:
        connection.execute(text(f"UPDATE jobs SET {change} WHERE id = :id"), {"id": job.id})


def test_lists_page_from_new_to_old_without_gaps(database: Database, make_job: MakeJob) -> None:
    made = [make_job(prompt=str(number)).id for number in range(5)]
    account = get(database, _account_of(database, made[0]), made[0]).account_id
    first = list_jobs(database, account, limit=3)
    last = first[-1]
    rest = list_jobs(database, account, limit=3, before=(last.created_at, last.id))
    assert [job.id for job in first + rest] == made[::-1]


def _account_of(database: Database, job_id: str) -> str:
    with database.transaction() as connection:
        found = connection.execute(text("SELECT account_id FROM jobs WHERE id = :id"), {"id": job_id})
        return str(found.scalar_one())
