"""The sweeper: repairs what lost messages and dead workers leave behind, by looking at the rows periodically.

It expires and reaps jobs, dispatches interactive jobs that were not dispatched and redispatches those whose
message was lost, dispatches webhook deliveries that are due and deletes expired sessions. Bulk jobs need no
dispatch: workers claim them. Any number of sweepers may run: every step is a guarded
statement. It is a plain loop, neither a Celery worker nor beat, since it must outlive the broker.
`run_sweeper` is a composition root.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from catalogue.catalogue import SettingsError
from settings import Settings
from storage import counts, dispatches, jobs, possible_crashes, receivers, sessions
from storage.blobs import Blobs
from storage.database import Database
from storage.due_work import DueWork, all_work, due_work
from storage.errors import StorageError, Unavailable
from storage.job_views import bad_ends, newest_event
from storage.notifications import WEBHOOKS_DUE, Listener
from storage.queue_facts import oldest_queued
from tasks.app import make_celery
from tasks.broker import Broker
from tasks.collectors import CollectionPlan, ErasureCollector, FileCollector, OrphanCollector
from tasks.dispatch import Dispatcher
from tasks.errors import BrokerDown
from tasks.event_cursor import EventCursor
from tasks.metrics.server import serve_metrics
from tasks.metrics.sweeper import SweeperMetrics
from tasks.queues import DISPATCHED_LANE, queue_name
from tasks.webhooks.dispatch import DeliveryDispatch

log = structlog.get_logger()

HEARTBEATS_BEFORE_REAPING = 2
"""The heartbeat periods to wait after an outage of Postgres before reaping: each worker gets at least one."""

SILENT_LEASES = 20
"""A process that may have crashed and was silent for so many lease periods counts as dead."""

DUE_WORK = "due_work"
"""The name by which a failure of `due_work` is counted and logged, as those of the parts are."""


def run_sweeper(settings: Settings, stop: threading.Event, alive_file: Path | None = None) -> None:
    """Sweep until `stop` is set; touches `alive_file` after every turn, for a health check."""
    settings.require("database_url", "broker_url")
    tiers = [tier.name for tier in settings.catalogue.tiers]
    db = Database(**settings.database, pool_size=5)  # for the sweeps, the collectors and the metrics
    broker = Broker(**settings.broker)
    plan = SweepPlan(
        sweep_seconds=settings.sweep_seconds,
        heartbeat_seconds=settings.heartbeat_seconds,
        redispatch_seconds=settings.redispatch_seconds,
        webhooks_per_account=settings.webhooks_per_account,
        webhook_keep_seconds=settings.webhook_keep_seconds,
        silent_seconds=SILENT_LEASES * settings.lease_seconds,
    )

    def after_turn() -> None:
        if alive_file is not None:
            alive_file.touch()

    metrics = SweeperMetrics(tiers)
    _start_collectors(settings, db, stop, metrics)
    dispatcher = Dispatcher(make_celery(**settings.celery))
    metrics.watch_dispatches(dispatcher)
    metrics.watch_queues(lambda: oldest_queued(db))
    serve_metrics(metrics.registry, settings.metrics_host, settings.metrics_port)
    sweeper = Sweeper(db, broker, dispatcher, tiers, plan, metrics=metrics)
    listener = Listener(**settings.database)
    with dispatching_when_told(sweeper.deliveries, listener, stop):
        sweeper.run(stop, after_turn)
    broker.close()
    db.close()


@contextmanager
def dispatching_when_told(
    deliveries: DeliveryDispatch, listener: Listener, stop: threading.Event
) -> Iterator[None]:
    """Dispatch webhooks when Postgres notifies us of one, beside the sweeps, which may take long."""
    listener.subscribe(WEBHOOKS_DUE, deliveries.tell, catch_up=deliveries.tell)
    thread = threading.Thread(target=deliveries.run, args=(stop,), daemon=True, name="deliveries")
    thread.start()
    listener.start()
    yield
    listener.stop()
    deliveries.tell()
    thread.join()


def _start_collectors(
    settings: Settings, db: Database, stop: threading.Event, metrics: SweeperMetrics
) -> None:
    """Start the collectors if an object store is configured, in threads: a slow store delays no sweep."""
    try:
        settings.require_store()
    except SettingsError as error:
        log.warning("orphans_not_collected", error=str(error))
        return
    plan = CollectionPlan(orphan_seconds=settings.orphan_seconds)
    blobs = Blobs(**settings.object_store)
    orphans = OrphanCollector(db, blobs, plan, on_deleted=metrics.orphans_deleted.inc)
    files = FileCollector(db, blobs, on_deleted=metrics.files_deleted.inc)
    erased = ErasureCollector(db, blobs, settings.retention, on_erased=metrics.jobs_erased.inc)
    for name, run in {"orphans": orphans.run, "files": files.run, "erasure": erased.run}.items():
        threading.Thread(target=run, args=(stop,), daemon=True, name=name).start()


@dataclass(frozen=True)
class SweepPlan:
    """How often the sweeper runs (seconds), and how much it does at once."""

    sweep_seconds: float = 1
    heartbeat_seconds: float = 5
    redispatch_seconds: float = 15
    max_dispatches: int = 200
    webhooks_per_account: int = 4
    webhook_keep_seconds: float = 5 * 86_400
    silent_seconds: float = 600


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
        self._last_accounts: dict[str, str] = {}  # by tier: those whose turn was the last one of a feed
        self._known_due: DueWork | None = None
        self.deliveries = DeliveryDispatch(
            db,
            broker,
            dispatcher,
            max_dispatches=plan.max_dispatches,
            max_per_account=plan.webhooks_per_account,
            redispatch_seconds=plan.redispatch_seconds,
        )
        self._bad_ends = EventCursor(
            lambda: newest_event(db),
            lambda: newest_event(db),
            lambda after, limit: bad_ends(db, after=after, limit=limit),
            clock=clock,
        )

        self._parts = (
            self._reap,
            self._charge_silent,
            self._expire,
            self._count_bad_ends,
            self._notice_broker_loss,
            self._feed,
            self._redispatch_lost,
            self._undispatch_bulk,
            self._fold_counts,
            self._tend_receivers,
            self._dispatch_deliveries,
            self._remove_sessions,
        )
        self._metrics.begin_failures([DUE_WORK, *map(_name, self._parts)])

    def run(self, stop: threading.Event, after_turn: Callable[[], None] = lambda: None) -> None:
        """Sweep until `stop` is set."""
        while not stop.is_set():
            self.sweep()
            after_turn()
            stop.wait(self._plan.sweep_seconds)

    def sweep(self) -> None:
        """Run every part once. A part that fails is logged, and runs again at the next turn.

        After one timeout of the broker the turn skips the parts that need it, so that reaping is not delayed.
        """
        self._known_due = None
        asks_broker = (self._notice_broker_loss, self._feed, self._redispatch_lost, self._dispatch_deliveries)
        is_broker_down = False
        for part in self._parts:
            if is_broker_down and part in asks_broker:
                continue
            try:
                part()
            except Exception as error:  # a bug in one part must not stop the others
                is_broker_down = is_broker_down or isinstance(error, BrokerDown)
                self._note_failure(_name(part), error)
        self._metrics.sweeps.inc()

    def _note_failure(self, part: str, error: Exception) -> None:
        """Count and log what a part raised."""
        if isinstance(error, Unavailable):
            # Leases expired while no worker could renew them: let live workers renew them first.
            self._reap_from = self._clock() + HEARTBEATS_BEFORE_REAPING * self._plan.heartbeat_seconds
        self._metrics.failures.labels(part).inc()
        if isinstance(error, (StorageError, BrokerDown)):
            log.warning("sweep_part_failed", part=part, error=str(error))
        else:
            log.error("sweep_part_failed", part=part, exc_info=error)

    @property
    def _due(self) -> DueWork:
        """What there is to do in this turn: read once, and again after a part that makes other work due."""
        if self._known_due is None:
            try:
                self._known_due = due_work(
                    self._db,
                    self._tiers,
                    webhook_keep_seconds=self._plan.webhook_keep_seconds,
                    silent_seconds=self._plan.silent_seconds,
                )
            except Exception as error:  # a table that cannot be read must stop only the part that needs it
                self._note_failure(DUE_WORK, error)
                self._known_due = all_work(self._tiers)
        return self._known_due

    def _reap(self) -> None:
        # `_due` comes before the clock: if it cannot be read, reaping must wait.
        if not self._due.has_expired_leases or self._clock() < self._reap_from:
            return
        # It runs every turn, since a supervisor may have ended leases early; it reads the running jobs.
        while reaped := jobs.reap(self._db):
            self._known_due = None
            for job_id, state in reaped:
                log.warning("job_reaped", job_id=job_id, state=state)

    def _charge_silent(self) -> None:
        if not self._due.has_silent_processes or self._clock() < self._reap_from:
            return
        for job_id in possible_crashes.settle_silent(self._db, silent_seconds=self._plan.silent_seconds):
            log.warning("crash_charged", job_id=job_id, silent_seconds=self._plan.silent_seconds)

    def _expire(self) -> None:
        if self._due.has_passed_deadlines and (num_expired := jobs.expire(self._db)):
            self._known_due = None
            self._metrics.expired.inc(num_expired)
            log.info("jobs_expired", count=num_expired)

    def _count_bad_ends(self) -> None:
        # Counted from events, since workers and supervisors reap jobs too, and jobs fail in workers.
        self._bad_ends.turn(self._metrics.ended_badly)

    def _notice_broker_loss(self) -> None:
        epoch, is_new = self._broker.epoch()
        if not is_new:
            return
        if count := dispatches.forget_all(self._db):
            self._known_due = None
            log.warning("broker_restarted", queued_jobs=count)
        self._broker.remember_epoch(epoch)  # last: if a step before fails, the next turn forgets the rest

    def _feed(self) -> None:
        for tier in self._due.undispatched:
            found = dispatches.feed(
                self._db,
                tier,
                DISPATCHED_LANE,
                self._plan.max_dispatches,
                redispatch_seconds=self._plan.redispatch_seconds,
                after_account=self._last_accounts.get(tier, ""),
            )
            self._last_accounts[tier] = found.last_account
            self._dispatch(found.dispatches)

    def _redispatch_lost(self) -> None:
        for tier in self._due.dispatched:
            found = dispatches.redispatch_lost(
                self._db,
                tier,
                DISPATCHED_LANE,
                older_than=self._broker.head(queue_name(tier, DISPATCHED_LANE)),
                limit=self._plan.max_dispatches,
                redispatch_seconds=self._plan.redispatch_seconds,
            )
            if found:
                self._metrics.redispatched.labels(tier, DISPATCHED_LANE).inc(len(found))
                log.warning("redispatched", tier=tier, lane=DISPATCHED_LANE, count=len(found))
            self._dispatch(found)

    def _undispatch_bulk(self) -> None:
        # While a sweeper of the version before runs as well: workers claim only jobs without a dispatch.
        for tier in self._due.dispatched_bulk:
            if count := dispatches.undispatch_bulk(self._db, tier):
                log.info("bulk_undispatched", tier=tier, count=count)

    def _fold_counts(self) -> None:
        if self._due.has_count_changes:
            while counts.fold(self._db) >= counts.FOLDED_AT_ONCE:
                pass

    def _tend_receivers(self) -> None:
        if not self._due.has_due_receivers:
            return
        if receivers.release(self._db) + receivers.wake(self._db):
            self._known_due = None
        for delivery_id in receivers.fail_held(self._db, keep_seconds=self._plan.webhook_keep_seconds):
            log.warning("webhook_failed_unsent", delivery_id=delivery_id, error_code="receiver_paused")
        receivers.forget(self._db, after_seconds=self._plan.webhook_keep_seconds)

    def _dispatch_deliveries(self) -> None:
        if self._due.has_deliveries:
            self.deliveries()

    def _remove_sessions(self) -> None:
        if self._due.has_expired_sessions:
            sessions.remove_expired(self._db)

    def _dispatch(self, dispatched: list[dispatches.Dispatch]) -> None:
        if not self._dispatcher.dispatch(dispatched):
            for dispatch in dispatched:
                dispatches.undispatch(self._db, dispatch.job_id)


def _name(part: Callable[[], None]) -> str:
    return part.__name__.strip("_")
