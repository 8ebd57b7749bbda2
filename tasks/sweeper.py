"""The sweeper: heals what messages and dead workers leave behind, by looking at rows again and again.

It expires, reaps, feeds the lanes, replaces lost bells, rings for webhooks that are due and removes sessions
whose time is over. Any number of sweepers may run: every step is a guarded statement. It is a plain loop,
neither a Celery worker nor beat, since it must outlive the broker that it heals.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

from storage import deliveries, dispatches, jobs, receivers, sessions
from storage.database import Database
from storage.errors import StorageError, Unavailable
from storage.job_views import bad_ends, newest_event
from storage.workers import live_workers
from tasks.broker import Broker, BrokerDown
from tasks.dispatch import Dispatcher
from tasks.event_cursor import EventCursor
from tasks.metrics.sweeper import SweeperMetrics
from tasks.queues import CPU_QUEUE, LANES, queue_name

log = structlog.get_logger()

HEARTBEATS_BEFORE_REAPING = 2
"""That Postgres must have answered for, after it did not: each worker has one of them at least."""


@dataclass(frozen=True)
class SweepPlan:
    """How often, and how much at once; seconds."""

    sweep_seconds: float = 1
    heartbeat_seconds: float = 5
    redispatch_seconds: float = 15
    worker_alive_seconds: float = 20
    dispatches_per_slot: int = 2
    max_dispatches: int = 200
    webhooks_per_account: int = 4
    webhook_keep_seconds: float = 5 * 86_400


class Sweeper:
    """One loop over one database and one broker."""

    def __init__(
        self,
        db: Database,
        broker: Broker,
        dispatcher: Dispatcher,
        tiers: Iterable[str],
        plan: SweepPlan,
        *,
        clock: Callable[[], float] = time.monotonic,
        metrics: SweeperMetrics | None = None,
    ) -> None:
        self._db = db
        self._broker = broker
        self._dispatcher = dispatcher
        self._tiers = list(tiers)
        self._plan = plan
        self._clock = clock
        self._metrics = metrics or SweeperMetrics()
        self._reap_from = clock()
        self._epoch: str | None = None
        self._bad_ends = EventCursor(
            lambda: newest_event(db),
            lambda: newest_event(db),
            lambda after, limit: bad_ends(db, after=after, limit=limit),
            clock=clock,
        )

        self._parts = (
            self._reap,
            self._expire,
            self._count_bad_ends,
            self._notice_broker_loss,
            self._feed,
            self._replace_lost,
            self._tend_receivers,
            self._dispatch_deliveries,
            self._remove_sessions,
        )
        self._metrics.begin_failures(map(_name, self._parts))

    def run(self, stop: threading.Event, after_turn: Callable[[], None] = lambda: None) -> None:
        """Sweep until `stop` is set."""
        while not stop.is_set():
            self.sweep()
            after_turn()
            stop.wait(self._plan.sweep_seconds)

    def sweep(self) -> None:
        """One turn. A part that fails is logged and tried again at the next turn.

        A broker that does not answer is waited for once a turn, so that it does not hold up reaping.
        """
        asks_broker = (self._notice_broker_loss, self._feed, self._replace_lost, self._dispatch_deliveries)
        is_broker_down = False
        for part in self._parts:
            if is_broker_down and part in asks_broker:
                continue
            try:
                part()
            except (StorageError, BrokerDown) as error:
                if isinstance(error, Unavailable):
                    # Leases ran out while nobody could renew them: living workers renew them first.
                    self._reap_from = self._clock() + HEARTBEATS_BEFORE_REAPING * self._plan.heartbeat_seconds
                is_broker_down = is_broker_down or isinstance(error, BrokerDown)
                self._metrics.failures.labels(_name(part)).inc()
                log.warning("sweep_part_failed", part=_name(part), error=str(error))
            except Exception:
                # What one part trips over must not keep the others from healing.
                self._metrics.failures.labels(_name(part)).inc()
                log.exception("sweep_part_failed", part=_name(part))
        self._metrics.sweeps.inc()

    def _reap(self) -> None:
        if self._clock() < self._reap_from:
            return
        # Leases that a supervisor ended by hand must not wait long: the look costs one small index.
        while reaped := jobs.reap(self._db):
            for job_id, state in reaped:
                log.warning("job_reaped", job_id=job_id, state=state)

    def _expire(self) -> None:
        if num_expired := jobs.expire(self._db):
            self._metrics.expired.inc(num_expired)
            log.info("jobs_expired", count=num_expired)

    def _count_bad_ends(self) -> None:
        # From the events, since jobs are also taken back by workers and supervisors, and fail in workers.
        self._bad_ends.turn(self._metrics.ended_badly)

    def _notice_broker_loss(self) -> None:
        epoch, made = self._broker.epoch()
        is_new = made or (self._epoch is not None and epoch != self._epoch)
        if is_new and (count := dispatches.forget_all(self._db)):
            log.warning("broker_restarted", queued_jobs=count)
        self._epoch = epoch

    def _feed(self) -> None:
        slots = self._live_bulk_slots()
        for tier in self._tiers:
            wanted = self._plan.dispatches_per_slot * slots.get(tier, 0)
            room = min(wanted - self._broker.depth(queue_name(tier, "bulk")), self._plan.max_dispatches)
            self._dispatch_new(tier, "bulk", room)
            self._dispatch_new(tier, "interactive", self._plan.max_dispatches)

    def _dispatch_new(self, tier: str, lane: str, room: int) -> None:
        if room > 0:
            self._dispatch(
                dispatches.feed(self._db, tier, lane, room, redispatch_seconds=self._plan.redispatch_seconds)
            )

    def _replace_lost(self) -> None:
        for tier in self._tiers:
            for lane in LANES:
                head = self._broker.head(queue_name(tier, lane))
                found = dispatches.replace_lost(
                    self._db,
                    tier,
                    lane,
                    older_than=head,
                    limit=self._plan.max_dispatches,
                    redispatch_seconds=self._plan.redispatch_seconds,
                )
                if found:
                    self._metrics.redispatched.labels(tier, lane).inc(len(found))
                    log.warning("redispatched", tier=tier, lane=lane, count=len(found))
                self._dispatch(found)

    def _tend_receivers(self) -> None:
        receivers.release(self._db)
        receivers.wake(self._db)
        for delivery_id in receivers.fail_held(self._db, keep_seconds=self._plan.webhook_keep_seconds):
            log.warning("webhook_failed_unsent", delivery_id=delivery_id, error_code="receiver_paused")
        receivers.forget(self._db, after_seconds=self._plan.webhook_keep_seconds)

    def _dispatch_deliveries(self) -> None:
        # A lost bell is rung again by age, unlike a job's: there are few of them, and the queue is bounded.
        room = self._plan.max_dispatches - self._broker.depth(CPU_QUEUE)
        if room <= 0:
            return
        dispatched = deliveries.dispatch(
            self._db,
            limit=room,
            max_per_account=self._plan.webhooks_per_account,
            redispatch_seconds=self._plan.redispatch_seconds,
        )
        if not self._dispatcher.dispatch_deliveries(dispatched):
            deliveries.put_back(self._db, dispatched)

    def _remove_sessions(self) -> None:
        sessions.remove_expired(self._db)

    def _dispatch(self, dispatched: list[dispatches.Dispatch]) -> None:
        if not self._dispatcher.dispatch(dispatched):
            for dispatch in dispatched:
                dispatches.put_back(self._db, dispatch.job_id)

    def _live_bulk_slots(self) -> dict[str, int]:
        slots: dict[str, int] = {}
        for worker in live_workers(self._db, self._plan.worker_alive_seconds):
            for tier in worker.tiers:
                slots[tier] = slots.get(tier, 0) + worker.bulk_slots
        return slots


def _name(part: Callable[[], None]) -> str:
    return part.__name__.strip("_")
