"""The promises about batches: all rows or none, and a state that its jobs add up to."""

from collections.abc import Callable
from typing import Any

import pytest

from storage import accounts, batches, jobs
from storage.database import Database
from storage.errors import IdempotencyMismatch, JobIsFinal, NotFound
from storage.job_views import StoredImage, list_jobs
from storage.jobs import Claim
from storage.new_jobs import JOBS_AT_ONCE, NewJobs
from tests.fixtures.new_jobs import new_job

ClaimJob = Callable[..., Claim]


def create(database: Database, account: str, count: int, **options: Any) -> batches.Batch:
    rows = [new_job(account, lane="bulk", batch_line=2 + number, seed=number) for number in range(count)]
    return batches.create(database, account, "p.csv", rows, **options)[0]


def finish(database: Database, claim: Claim) -> None:
    image = StoredImage(0, 1, claim.job.id, "ab" * 32, 10, 128, 128)
    assert jobs.finish(database, claim.lease, stored=[image], warnings=[], timings={})


def test_a_batch_is_created_with_all_of_its_jobs_in_the_order_of_its_file(
    database: Database, account: str
) -> None:
    batch = create(database, account, 1200)
    assert (batch.state, batch.num_jobs, batch.counts) == ("running", 1200, {"queued": 1200})
    found = list(batches.jobs_of(database, account, batch.id))
    assert [job.batch_line for job in found] == list(range(2, 1202))
    assert [job.parameters.seed for job in found] == list(range(1200))


def test_a_batch_keeps_every_value_of_its_jobs(database: Database, account: str) -> None:
    texts = [
        "NULL",
        "null",
        "",
        "{}",
        '"',
        "\\",
        '\\"',
        "a,b",
        "{a,b}",
        "two\nlines\t",
        "'quoted'",
        "%s :id",
        "✓ 🟢",
    ]
    own: dict[str, Any] = {
        "guidance_scale": 0.1, "step_cache": 3, "num_images": 4, "output_format": "webp", "output_quality": 7,
        "strict": True, "strength": 1 / 3, "seed": 2**63 - 1,
        "loras": [{"name": "ink", "scale": 0.3}, {"name": "outline", "scale": -2.0}],
        "pipeline_parameters": {"clip_skip": 2, "word": 'a "b"', "is": True, "share": 0.1},
    }  # fmt: skip
    rows = [
        new_job(
            account, lane="bulk", batch_line=2 + number, prompt=text, negative_prompt=text[::-1], **options
        )
        for number, (text, options) in enumerate((text, options) for text in texts for options in ({}, own))
    ]
    batch, _ = batches.create(database, account, "p.csv", rows)
    found = list(batches.jobs_of(database, account, batch.id))
    assert [job.parameters for job in found] == [row.parameters for row in rows]
    assert {(job.model, job.tier, job.lane, job.webhook_url) for job in found} == {
        ("tiny", "sd", "bulk", None)
    }


def test_a_batch_that_is_in_several_pieces_keeps_its_order(database: Database, account: str) -> None:
    long = "a" * 2000  # a piece is limited in characters too
    rows = [
        new_job(account, lane="bulk", batch_line=number, prompt=f"{number} {long}", seed=number)
        for number in range(1, 2 * JOBS_AT_ONCE)
    ]
    with NewJobs(rows) as new:
        assert [len(piece.jobs) for piece in new.pieces()] == [len(piece.jobs) for piece in new.pieces()]
        assert len(list(new.pieces())) > 3
        batch, _ = batches.create(database, account, "p.csv", new)
    assert [job.parameters for job in batches.jobs_of(database, account, batch.id)] == [
        row.parameters for row in rows
    ]


def test_a_bad_row_creates_nothing_at_all(database: Database, account: str) -> None:
    rows = [new_job(account, lane="bulk", batch_line=2), new_job(account, lane="bulk", batch_line=2)]
    with pytest.raises(Exception, match="batch_line"):
        batches.create(database, account, "p.csv", rows)
    assert batches.list_batches(database, account) == []
    assert list_jobs(database, account) == []


def test_the_state_is_what_the_jobs_add_up_to(database: Database, account: str, claim_job: ClaimJob) -> None:
    batch = create(database, account, 2)
    first, second = batches.jobs_of(database, account, batch.id)
    finish(database, claim_job(first.id))
    assert batches.get(database, account, batch.id).state == "running"
    jobs.cancel(database, account, second.id)
    after = batches.get(database, account, batch.id)
    assert (after.state, after.finished_at is not None) == ("partially_failed", True)


def test_canceling_a_batch_cancels_what_is_left_and_keeps_what_is_done(
    database: Database, account: str, claim_job: ClaimJob
) -> None:
    batch = create(database, account, 3)
    done, running, _ = batches.jobs_of(database, account, batch.id)
    finish(database, claim_job(done.id))
    held = claim_job(running.id)
    counts = batches.cancel(database, account, batch.id).counts
    assert counts == {"succeeded": 1, "running": 1, "canceled": 1}
    assert jobs.fail(database, held.lease, code="canceled", detail="", retryable=False) == "canceled"
    with pytest.raises(JobIsFinal):
        batches.cancel(database, account, batch.id)


def test_another_accounts_batch_is_not_there(database: Database, account: str) -> None:
    batch = create(database, account, 1)
    stranger = accounts.create_account(database, "stranger")
    for look in (batches.get, batches.cancel, lambda *args: list(batches.jobs_of(*args))):
        with pytest.raises(NotFound):
            look(database, stranger, batch.id)


def test_an_idempotency_key_makes_one_batch(database: Database, account: str) -> None:
    first = create(database, account, 2, idempotency_key="k", request_hash="h")
    assert create(database, account, 2, idempotency_key="k", request_hash="h").id == first.id
    with pytest.raises(IdempotencyMismatch):
        create(database, account, 2, idempotency_key="k", request_hash="other")
