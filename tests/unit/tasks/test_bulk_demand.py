"""The promises about demand: slots are filled as rows come, never overfilled, and no claim is lost."""

import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from storage.errors import Unavailable
from storage.jobs import Claim
from tasks.bulk import MAX_CLAIMED, MAX_PAUSE_SECONDS, BulkDemand, pause_seconds
from tasks.errors import TaskNotReceived

NEVER = 3600.0


class Worker:
    """Rows that a test adds, and tasks that run once the test says so."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self.sizes: list[int] = []  # of the claims, by the rows that they asked for
        self.after: list[str] = []
        self.started: list[str] = []
        self.ended: list[str] = []
        self.released: list[str] = []
        self.num_releases = 0
        self.before_claim: Callable[[], None] = lambda: None
        self.before_answer: Callable[[], None] = lambda: None
        self.before_receive: Callable[[], None] = lambda: None
        self.before_release: Callable[[], None] = lambda: None
        self._changed = threading.Condition()
        self.demand: BulkDemand

    def make(self, num_slots: int, **options: Any) -> BulkDemand:
        self.demand = BulkDemand(
            self._claim,
            receive=self._receive,
            release=self._release,
            num_slots=num_slots,
            **{
                "run_claim": lambda claim: self._note(self.ended, claim.job.id),
                "poll_seconds": NEVER,
                **options,
            },
        )
        return self.demand

    def add(self, *job_ids: str) -> None:
        with self._changed:
            self.rows += job_ids
        self.demand.wake()

    def wait(self, holds: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(holds, 30), vars(self)

    def _claim(self, num_rows: int, after_account: str) -> Sequence[Claim]:
        self.before_claim()
        with self._changed:
            self.sizes.append(num_rows)
            self.after.append(after_account)
            found, self.rows[:num_rows] = self.rows[:num_rows], []
            self._changed.notify_all()
        self.before_answer()
        return [
            cast("Claim", SimpleNamespace(job=SimpleNamespace(id=job_id, account_id=f"of-{job_id}")))
            for job_id in found
        ]

    def _receive(self, claim: Claim) -> None:
        self.before_receive()
        self._note(self.started, claim.job.id)

    def _release(self, claims: Sequence[Claim]) -> None:
        self.num_releases += 1
        self.before_release()
        for claim in claims:
            self._note(self.released, claim.job.id)

    def _note(self, where: list[str], job_id: str) -> None:
        with self._changed:
            where.append(job_id)
            self._changed.notify_all()


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.demand.stop()


def test_a_row_that_a_wake_tells_of_is_claimed_without_waiting_for_the_next_poll(worker: Worker) -> None:
    worker.make(4).start()
    worker.wait(lambda: len(worker.sizes) == 1)
    worker.add("a")
    worker.wait(lambda: worker.started == ["a"])
    assert worker.demand.run("a")
    assert (worker.ended, worker.demand.num_held) == (["a"], 0)


def test_without_any_wake_rows_are_found_by_the_next_poll(worker: Worker) -> None:
    demand = worker.make(4, poll_seconds=0.01)
    demand.start()
    worker.rows.append("a")
    worker.wait(lambda: worker.started == ["a"])


def test_no_more_rows_are_held_than_there_are_slots_and_every_end_makes_room(worker: Worker) -> None:
    demand = worker.make(5)
    worker.rows += [f"job-{number}" for number in range(50)]
    demand.start()
    for number in range(50):
        worker.wait(lambda number=number: len(worker.started) >= min(50, number + 5))  # type: ignore[misc]
        assert demand.num_held <= 5
        assert len(worker.started) <= number + 5
        assert demand.run(worker.started[number])
    worker.wait(lambda: worker.ended == [f"job-{number}" for number in range(50)])


def test_claims_go_on_while_they_are_full_and_rest_once_one_is_not(worker: Worker) -> None:
    demand = worker.make(30, clock=lambda: 0.0)  # no poll is due
    worker.rows += [f"job-{number}" for number in range(18)]
    demand.start()
    worker.wait(lambda: len(worker.started) == 18)
    worker.add("last")
    worker.wait(lambda: len(worker.started) == 19)
    assert worker.sizes == [MAX_CLAIMED] * 4  # 8 + 8 + 2, and the one that the wake asked for


def test_a_wake_during_a_claim_that_finds_nothing_is_not_lost(worker: Worker) -> None:
    demand = worker.make(4, clock=lambda: 0.0)  # no poll is due
    asked, go_on = threading.Event(), threading.Event()

    def answer_late() -> None:
        asked.set()
        assert go_on.wait(30)

    worker.before_answer = answer_late
    demand.start()
    assert asked.wait(30)
    worker.add("a")
    go_on.set()
    worker.wait(lambda: worker.started == ["a"])


def test_accounts_take_turns_over_claims(worker: Worker) -> None:
    demand = worker.make(1)
    worker.rows += ["a", "b"]
    demand.start()
    worker.wait(lambda: worker.started == ["a"])
    demand.run("a")
    worker.wait(lambda: worker.started == ["a", "b"])
    assert worker.after == ["", "of-a"]


def test_slots_that_are_free_one_by_one_are_filled_by_one_statement(worker: Worker) -> None:
    """The clock stands still, so that no slot waits too long for others."""
    demand = worker.make(24, clock=lambda: 0.0)
    worker.rows += [f"job-{number}" for number in range(100)]
    demand.start()
    worker.wait(lambda: len(worker.started) == 24)
    for number in range(8):
        demand.run(f"job-{number}")
        worker.wait(lambda number=number: len(worker.started) >= 24 + (number + 1) // 4 * 4)  # type: ignore[misc]
    assert worker.sizes == [8, 8, 8, 4, 4]


def test_a_free_slot_waits_for_others_for_a_moment_only(worker: Worker) -> None:
    demand = worker.make(24)
    worker.rows += [f"job-{number}" for number in range(25)]
    demand.start()
    worker.wait(lambda: len(worker.started) == 24)
    demand.run("job-0")
    worker.wait(lambda: len(worker.started) == 25)


@pytest.mark.parametrize("error", [Unavailable("away"), ZeroDivisionError()])
def test_a_claim_that_fails_takes_no_slot_and_is_tried_again(worker: Worker, error: Exception) -> None:
    demand, errors = worker.make(2), [error]

    def fail() -> None:
        if errors:
            raise errors.pop()

    worker.before_claim = fail
    worker.rows += ["a", "b"]
    demand.start()
    worker.wait(lambda: worker.started == ["a", "b"])
    assert demand.num_held == 2


def test_a_task_that_celery_refuses_gives_its_row_and_its_slot_back(worker: Worker) -> None:
    demand, refusals = worker.make(1), [TaskNotReceived("no")]

    def refuse() -> None:
        if refusals:
            raise refusals.pop()

    worker.before_receive = refuse
    worker.rows += ["a", "b"]
    demand.start()
    worker.wait(lambda: worker.started == ["b"])
    assert (worker.released, demand.num_held) == (["a"], 1)


def test_rows_that_come_after_the_worker_began_to_leave_go_back(worker: Worker) -> None:
    demand = worker.make(2)
    asked, go_on = threading.Event(), threading.Event()

    def answer_late() -> None:
        asked.set()
        assert go_on.wait(30)

    worker.before_answer = answer_late
    worker.rows += ["a", "b", "c"]
    demand.start()
    assert asked.wait(30)
    demand.leave()
    go_on.set()
    worker.wait(lambda: worker.released == ["a", "b"])
    demand.stop()
    assert (worker.started, worker.rows, demand.num_held) == ([], ["c"], 0)
    assert worker.num_releases == 1


def test_claims_whose_task_never_began_go_back_at_the_end_and_others_stay(worker: Worker) -> None:
    demand = worker.make(2)
    worker.rows += ["a", "b"]
    demand.start()
    worker.wait(lambda: worker.started == ["a", "b"])
    demand.run("a")
    demand.stop()
    assert (worker.ended, worker.released) == (["a"], ["b"])
    assert not demand.run("b"), "its claim is gone, so its task must not run it"


@pytest.mark.parametrize("is_away", [False, True])
def test_all_claims_go_back_at_the_end_by_one_release_which_is_not_tried_again(
    worker: Worker, is_away: bool
) -> None:
    """Each release is retried for a lease's length, so that one by one they would outlast every drain."""
    demand = worker.make(20)
    worker.rows += [f"job-{number}" for number in range(20)]
    demand.start()
    worker.wait(lambda: len(worker.started) == 20)

    def fail() -> None:
        raise Unavailable("away")

    if is_away:
        worker.before_release = fail
    demand.stop()
    assert worker.num_releases == 1
    assert worker.released == ([] if is_away else worker.started)
    assert demand.num_held == 0


def test_a_task_without_a_claim_here_is_not_run(worker: Worker) -> None:
    assert not worker.make(1).run("forged")


def test_a_job_that_raises_frees_its_slot(worker: Worker) -> None:
    demand = worker.make(1, run_claim=lambda _: 1 / 0)
    worker.rows.append("a")
    demand.start()
    worker.wait(lambda: worker.started == ["a"])
    with pytest.raises(ZeroDivisionError):
        demand.run("a")
    assert demand.num_held == 0


def test_the_pause_after_very_many_failures_is_still_a_pause() -> None:
    assert pause_seconds(2000) == MAX_PAUSE_SECONDS
    assert [pause_seconds(number) for number in (1, 2)] == [0.2, 0.4]
