"""The maintained counts agree with the rows, whatever has changed them."""

import math
import secrets
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from catalogue.states import State
from catalogue.step_cache import is_full_step
from storage import accounts, batches, counts, deliveries, delivery_views, dispatches, jobs, submissions
from storage.database import Database
from storage.errors import JobIsFinal
from storage.jobs import Claim, WorkerName
from storage.open_work import Work, open_work
from storage.workers import declare_dead
from tests.fixtures.new_jobs import new_job

SHAPES: tuple[dict[str, Any], ...] = (
    {},
    {"num_images": 3, "width": 64, "height": 192, "num_inference_steps": 11, "step_cache": 3},
    {"guidance_scale": 1.0, "num_inference_steps": 20, "step_cache": 2},
    {"num_inference_steps": 30, "guidance_cutoff": 0.35, "step_cache": 4, "num_images": 2},
    {"num_inference_steps": 9, "strength": 0.7},
)
WORKER = WorkerName("boot-counts", "cpu:0@test")
URL = "https://hooks.example.com/"


class History:
    """Random changes of the jobs of one account in tiers of its own."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.account = accounts.create_account(database, "counts")
        self.tiers = tuple(f"tier-{secrets.token_hex(4)}" for _ in range(2))
        self.batches: list[str] = []
        self.jobs: list[str] = []
        self.claims: list[Claim] = []

    def end(self) -> None:
        """Leave no open job to other tests, whose sweepers would end it."""
        statement = text(
            """UPDATE jobs SET state = 'canceled', finished_at = now(), next_dispatch_at = NULL,
                      dispatch_number = NULL, lease_token = NULL, lease_boot_id = NULL,
                      lease_expires_at = NULL
                WHERE tier = ANY(:tiers) AND state IN ('queued', 'running')"""
        )
        with self.database.transaction() as connection:
            connection.execute(statement, {"tiers": list(self.tiers)})

    def create(self, number: int) -> None:
        """A job, which may expire at once."""
        deadline = 0.0 if number % 3 == 0 else None
        job = new_job(
            self.account,
            tier=self.tiers[number % 2],
            lane=("interactive", "bulk")[number // 2 % 2],
            deadline_seconds=deadline,
            webhook_url=URL if number % 5 == 0 else None,
            **SHAPES[number % len(SHAPES)],
        )
        self.jobs.append(submissions.create(self.database, job, redispatch_seconds=15)[0].id)

    def create_batch(self, number: int) -> None:
        """A batch of a few jobs in both tiers."""
        lines = [
            new_job(
                self.account, tier=self.tiers[line % 2], lane="bulk", batch_line=line + 2, **SHAPES[line % 5]
            )
            for line in range(number % 7)
        ]
        batch, _ = batches.create(
            self.database, self.account, "x.csv", lines, webhook_url=URL if number % 2 else None
        )
        self.batches.append(batch.id)

    def claim_next(self, number: int) -> None:
        """Up to four bulk jobs."""
        self._keep(
            jobs.claim_next(
                self.database, tiers=self.tiers, worker=WORKER, lease_seconds=60, limit=1 + number % 4
            )
        )

    def claim(self, number: int) -> None:
        """Some job."""
        if self.jobs:
            job_id = self.jobs[number % len(self.jobs)]
            claimed = jobs.claim(self.database, job_id, tiers=self.tiers, worker=WORKER, lease_seconds=60)
            self._keep([] if claimed is None else [claimed])

    def finish(self, _number: int) -> None:
        """Half of the claimed jobs, at once."""
        ended, self.claims = self.claims[::2], self.claims[1::2]
        jobs.finish_each(
            self.database,
            [jobs.Finished(one.lease, [], [], {}, one.completes_batch) for one in ended],
        )

    def fail(self, number: int) -> None:
        """A claimed job."""
        if self.claims:
            lease = self.claims.pop(number % len(self.claims)).lease
            jobs.fail(self.database, lease, code="nan", detail="x", retryable=False)

    def release(self, number: int) -> None:
        """A claimed job, which fails if it was released before."""
        if self.claims:
            lease = self.claims.pop(number % len(self.claims)).lease
            jobs.release(
                self.database,
                lease,
                code="x",
                detail="x",
                charged=True,
                max_attempts=2,
                backoff_seconds=0,
            )

    def cancel(self, number: int) -> None:
        """Some job, queued or not."""
        if self.jobs:
            try:
                jobs.cancel(self.database, self.account, self.jobs[number % len(self.jobs)])
            except JobIsFinal:
                return

    def cancel_batch(self, number: int) -> None:
        """Some batch."""
        if self.batches:
            try:
                batches.cancel(self.database, self.account, self.batches[number % len(self.batches)])
            except JobIsFinal:
                return

    def expire(self, _number: int) -> None:
        """What is late."""
        jobs.expire(self.database)

    def reap(self, _number: int) -> None:
        """What the worker holds."""
        declare_dead(self.database, boot_id=WORKER.boot_id, on_device=[])
        self.claims = []

    def fold(self, number: int) -> None:
        """A few changes only."""
        counts.fold(self.database, limit=1 + number % 3)

    def send(self, number: int) -> None:
        """A webhook, which ends or is tried again."""
        claimed = deliveries.claim(self.database, max_per_account=100, lease_seconds=60)
        if claimed is not None:
            attempt = deliveries.AttemptRecord(1, 200 if number % 2 else 500, None if number % 2 else "http")
            deliveries.record(self.database, claimed, attempt, retry_seconds=60 if number % 3 else None)

    def _keep(self, claimed: list[Claim]) -> None:
        self.claims += claimed

    def check(self) -> None:
        """Every count is that of the rows, in one snapshot."""
        with self.database.transaction() as connection:
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            rows = connection.execute(
                text(
                    """SELECT batch_id, tier, lane, state, count(*) AS num, max(finished_at) AS finished_at
                         FROM jobs WHERE tier = ANY(:tiers) GROUP BY batch_id, tier, lane, state"""
                ),
                {"tiers": list(self.tiers)},
            ).all()
            depths = connection.execute(
                text("SELECT tier, lane, queued FROM queue_depths WHERE tier = ANY(:tiers)"),
                {"tiers": list(self.tiers)},
            ).all()
            of_batches = counts.of_batches(connection, self.batches)
            open_jobs = connection.execute(
                text("SELECT * FROM open_jobs WHERE tier = ANY(:tiers)"), {"tiers": list(self.tiers)}
            ).all()
            open_work = connection.execute(
                text("SELECT * FROM open_work WHERE tier = ANY(:tiers)"), {"tiers": list(self.tiers)}
            ).all()
            pending, counted = connection.execute(
                text(
                    """SELECT (SELECT count(*) FROM webhook_deliveries WHERE state = 'pending'), num_pending
                         FROM webhook_backlog"""
                )
            ).one()
        queued: Counter[tuple[str, str]] = Counter()
        by_batch: Counter[tuple[str, str, str]] = Counter()
        last: dict[tuple[str, str], Any] = {}
        for row in rows:
            if row.state == State.QUEUED:
                queued[row.tier, row.lane] += row.num
            if row.batch_id is not None:
                by_batch[row.batch_id, row.tier, row.state] += row.num
                ended = [at for at in (last.get((row.batch_id, row.tier)), row.finished_at) if at is not None]
                last[row.batch_id, row.tier] = max(ended, default=None)
        assert {(row.tier, row.lane): row.queued for row in depths} == dict(queued)
        assert {
            (one.batch_id, one.tier, state): count
            for one in of_batches
            for state, count in one.by_state.items()
            if count
        } == dict(by_batch)
        assert {(one.batch_id, one.tier): one.finished_at for one in of_batches} == last
        assert counted == pending
        work: dict[tuple[str, str, str], Counter[str]] = {}
        for row in open_jobs:
            work.setdefault((row.tier, row.lane, row.state), Counter()).update(work_of(row))
        names = Work.__dataclass_fields__
        assert {
            (row.tier, row.lane, row.state): {name: row._mapping[name] for name in names} for row in open_work
        } == {place: {name: found[name] for name in names} for place, found in work.items()}


def work_of(job: Any) -> dict[str, int]:
    """The work of a job that has run none of its steps, counted step by step."""
    num_guided = math.ceil(job.guidance_cutoff * job.num_inference_steps) if job.guidance_scale > 1 else 0
    steps = Counter(
        (is_full_step(index, job.step_cache, job.num_inference_steps), index < num_guided)
        for index in range(job.num_inference_steps)
    )
    pixels = job.num_images * job.width * job.height
    return {
        "encodings": job.num_images,
        "pixels": pixels,
        "full_steps": pixels * (steps[True, False] + steps[True, True]),
        "cached_steps": pixels * (steps[False, False] + steps[False, True]),
        "guided_full_steps": pixels * steps[True, True],
        "guided_cached_steps": pixels * steps[False, True],
    }


CHANGES: list[Callable[[History, int], None]] = [
    *(History.create, History.create, History.create_batch, History.claim_next, History.claim),
    *(History.finish, History.fail, History.release, History.cancel, History.cancel_batch),
    *(History.expire, History.reap, History.fold, History.send),
]


@pytest.mark.usefixtures("outbox")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(CHANGES), st.integers(0, 1000)), min_size=5, max_size=40))
def test_counts_are_exact_after_any_history(
    database: Database, changes: list[tuple[Callable[[History, int], None], int]]
) -> None:
    history = History(database)
    for change, number in changes:
        change(history, number)
    history.check()
    before = (
        dispatches.waiting(database),
        delivery_views.num_pending(database),
        open_work(database)["queued"],
    )
    while counts.fold(database):
        pass
    history.check()
    assert before == (
        dispatches.waiting(database),
        delivery_views.num_pending(database),
        open_work(database)["queued"],
    )
    history.end()


@pytest.mark.usefixtures("outbox")
def test_counts_are_exact_while_processes_change_jobs_at_once(database: Database) -> None:
    """Several histories over the same tiers and batches, and two processes that fold."""
    histories = [History(database) for _ in range(4)]
    for history in histories[1:]:
        history.account, history.tiers = histories[0].account, histories[0].tiers
        history.batches, history.jobs = histories[0].batches, histories[0].jobs
    errors: list[BaseException] = []

    def run(history: History, seed: int) -> None:
        try:
            for place in range(60):
                CHANGES[(seed * 7 + place * (seed + 3)) % len(CHANGES)](history, seed * 31 + place * 17)
        except BaseException as error:
            errors.append(error)

    def fold(stop: threading.Event) -> None:
        while not stop.is_set():
            counts.fold(database, limit=5)

    stop = threading.Event()
    folders = [threading.Thread(target=fold, args=(stop,)) for _ in range(2)]
    runners = [threading.Thread(target=run, args=(history, seed)) for seed, history in enumerate(histories)]
    for thread in (*folders, *runners):
        thread.start()
    for thread in runners:
        thread.join()
        histories[0].check()
    stop.set()
    for thread in folders:
        thread.join()
    assert not errors
    histories[0].check()
    while counts.fold(database):
        pass
    histories[0].check()
    histories[0].end()
    histories[0].check()


def test_a_change_that_is_rolled_back_is_not_counted(database: Database) -> None:
    history = History(database)
    history.create_batch(5)

    class Undo(Exception):
        """Ends the transaction."""

    def undone() -> None:
        with database.transaction() as connection:
            assert jobs.cancel_part_of_batch(connection, history.batches[0]) == 5
            raise Undo

    with pytest.raises(Undo):
        undone()
    history.check()
    history.end()
