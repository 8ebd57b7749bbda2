"""Bulk jobs are claimed on demand: a worker with free bulk slots claims queued rows, and starts their tasks.

Owns the bulk slots of a worker and the claims that wait for their task. It does not know which rows come
first, how a task is started, nor how a job is run.
"""

import threading
import time
from collections.abc import Callable, Sequence

import structlog

from storage.dispatches import last_account
from storage.errors import StorageError
from storage.jobs import Claim
from tasks.errors import TaskNotReceived

log = structlog.get_logger()

MAX_CLAIMED = 8
"""The rows of one claim: a small batch is spread over all workers that are free."""
GROUP_SHARE = 6
"""A claim waits until a sixth of the slots is free: a statement costs as much for one row as for four."""
GROUP_SECONDS = 0.02
"""The longest that a free slot waits for others."""
LOOK_AGAIN_SECONDS = 0.1
"""The time after which a claim that found too few rows is repeated once: another worker may have locked rows
that it did not take."""
MAX_PAUSE_SECONDS = 5.0
"""The longest pause after errors."""


class BulkDemand:
    """A thread that keeps the bulk slots of a worker filled, and never holds more rows than slots.

    It claims when slots are free and rows may be due: after `wake`, as long as claims return as many rows as
    they ask for, and every `poll_seconds`, since no message tells that a retry is due. `claim_next` gets the
    number of rows and the account behind which the turns begin. `receive` starts the task of a claim, which
    must call `run` with the job's id. `run_claim` runs the job, and `release` gives jobs back uncharged.
    """

    def __init__(
        self,
        claim_next: Callable[[int, str], Sequence[Claim]],
        *,
        receive: Callable[[Claim], None],
        run_claim: Callable[[Claim], None],
        release: Callable[[Sequence[Claim]], object],
        num_slots: int,
        poll_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._claim_next = claim_next
        self._receive = receive
        self._run_claim = run_claim
        self._release = release
        self._num_slots = num_slots
        self._group = max(1, num_slots // GROUP_SHARE)
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._changed = threading.Condition()
        self._num_held = 0  # rows that are asked for, wait for their task, or run
        self._waiting: dict[str, Claim] = {}  # by job
        self._is_due = True
        self._poll_at = self._free_at = clock()
        self._is_leaving = False
        self._is_polled = False  # this claim is due to no more than the time that has passed
        self._after_account = ""
        self._thread = threading.Thread(target=self._run, name="bulk", daemon=True)

    @property
    def num_held(self) -> int:
        """The number of bulk slots that are in use."""
        with self._changed:
            return self._num_held

    def start(self) -> None:
        """Start to claim; call it once `receive` can start tasks."""
        self._thread.start()

    def wake(self) -> None:
        """Claim now if a slot is free, or as soon as one is: rows may be due."""
        with self._changed:
            self._is_due = True
            self._changed.notify_all()

    def run(self, job_id: str) -> bool:
        """Run the job on this thread if its claim waits here, then free its slot; returns whether it did."""
        with self._changed:
            claim = self._waiting.pop(job_id, None)
        if claim is None:
            return False
        try:
            self._run_claim(claim)
        finally:
            self._free(1)
        return True

    def leave(self) -> None:
        """Claim no more; rows whose task has not been started go back uncharged."""
        with self._changed:
            self._is_leaving = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Leave, and release the claims whose task did not begin; call it once no more tasks begin."""
        self.leave()
        if self._thread.ident is not None:
            self._thread.join()
        with self._changed:
            waiting = list(self._waiting.values())
        self._give_back(waiting)

    def _run(self) -> None:
        num_failures = 0
        while num_rows := self._reserve():
            if self._fill(num_rows):
                num_failures = 0
                continue
            num_failures += 1
            self._pause(pause_seconds(num_failures))

    def _reserve(self) -> int:
        """Wait until a claim is due, and take the slots for it; returns how many, 0 if the worker leaves."""
        with self._changed:
            while not self._is_leaving:
                now = self._clock()
                self._is_polled = not self._is_due and now >= self._poll_at
                self._is_due = self._is_due or self._is_polled
                num_free = self._num_slots - self._num_held
                wait_seconds = None
                if num_free and not self._is_due:
                    wait_seconds = self._poll_at - now
                elif num_free:
                    wait_seconds = self._free_at + GROUP_SECONDS - now
                    if num_free >= self._group or wait_seconds <= 0:
                        num_rows = min(num_free, MAX_CLAIMED)
                        self._num_held += num_rows
                        self._is_due = False  # before the claim: whatever is woken for meanwhile is seen
                        return num_rows
                self._changed.wait(wait_seconds)
        return 0

    def _fill(self, num_rows: int) -> bool:
        """Claim for slots that were taken, and start the tasks; returns whether all went well."""
        try:
            claims = self._claim_next(num_rows, self._after_account)
        except Exception as error:
            # If this thread ended, bulk jobs would wait for ever in a worker that looks healthy.
            if isinstance(error, StorageError):
                log.warning("bulk_not_claimed", error=str(error))
            else:
                log.exception("bulk_not_claimed")
            self.wake()
            self._free(num_rows)
            return False
        with self._changed:
            self._waiting |= {claim.job.id: claim for claim in claims}
            is_over = self._is_polled and not claims
            seconds = self._poll_seconds if is_over else min(LOOK_AGAIN_SECONDS, self._poll_seconds)
            self._poll_at = self._clock() + seconds
            self._is_due = self._is_due or len(claims) >= num_rows
        self._free(num_rows - len(claims))
        self._after_account = last_account(self._after_account, [claim.job.account_id for claim in claims])
        not_begun = [claim for claim in claims if self._is_leaving or not self._begin(claim)]
        self._give_back(not_begun)
        return not not_begun

    def _begin(self, claim: Claim) -> bool:
        try:
            self._receive(claim)
        except Exception as error:
            if isinstance(error, TaskNotReceived):
                log.warning("bulk_task_not_started", job_id=claim.job.id, error=str(error))
            else:
                log.exception("bulk_task_not_started", job_id=claim.job.id)
            return False
        return True

    def _give_back(self, claims: Sequence[Claim]) -> None:
        """Release the claims among these that wait, all at once; one whose task has begun stays."""
        with self._changed:
            waiting = [claim for claim in claims if self._waiting.pop(claim.job.id, None) is not None]
        if not waiting:
            return
        try:
            self._release(waiting)
        except Exception as error:
            # Their leases will expire, and another worker takes them.
            log.warning(
                "bulk_not_released",
                job_ids=[claim.job.id for claim in waiting],
                error=type(error).__name__,
            )
        finally:
            self._free(len(waiting))

    def _free(self, num_slots: int) -> None:
        with self._changed:
            if self._num_held == self._num_slots:
                self._free_at = self._clock()
            self._num_held -= num_slots
            self._changed.notify_all()

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_leaving, seconds)


def pause_seconds(num_failures: int) -> float:
    """The pause after this many failures in a row."""
    return float(min(MAX_PAUSE_SECONDS, 0.1 * 2 ** min(num_failures, 10)))
