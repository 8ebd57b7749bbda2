"""The sweeper's process, put together. A composition root; what it does is `tasks.sweeper`'s."""

import threading
from pathlib import Path

import structlog

from catalogue.catalogue import SettingsError
from settings import Settings
from storage.blobs import Blobs
from storage.database import Database
from storage.queue_facts import oldest_queued
from tasks.app import make_celery
from tasks.broker import Broker
from tasks.collectors.files import FileCollector
from tasks.collectors.orphans import CollectionPlan, OrphanCollector
from tasks.dispatch import Dispatcher
from tasks.metrics.server import serve_metrics
from tasks.metrics.sweeper import SweeperMetrics
from tasks.sweeper import Sweeper, SweepPlan

log = structlog.get_logger()


def run_sweeper(settings: Settings, stop: threading.Event, alive_file: Path | None = None) -> None:
    """Sweep until `stop` is set; `alive_file` is touched after every turn, for a health check to look at."""
    settings.require("database_url", "broker_url")
    tiers = [tier.name for tier in settings.catalogue.tiers]
    db = Database(**settings.database, pool_size=4)  # the sweeps', the orphans', the files' and the metrics'
    broker = Broker(**settings.broker)
    plan = SweepPlan(
        sweep_seconds=settings.sweep_seconds,
        heartbeat_seconds=settings.heartbeat_seconds,
        redispatch_seconds=settings.redispatch_seconds,
        worker_alive_seconds=settings.worker_alive_seconds,
        dispatches_per_slot=settings.dispatches_per_slot,
        webhooks_per_account=settings.webhooks_per_account,
        webhook_keep_seconds=settings.webhook_keep_seconds,
    )

    def after_turn() -> None:
        if alive_file is not None:
            alive_file.touch()

    metrics = SweeperMetrics(tiers)
    _collect_objects(settings, db, stop, metrics)
    dispatcher = Dispatcher(make_celery(**settings.broker, tiers=tiers))
    metrics.watch_dispatches(dispatcher)
    metrics.watch_queues(lambda: oldest_queued(db))
    serve_metrics(metrics.registry, settings.metrics_host, settings.metrics_port)
    Sweeper(db, broker, dispatcher, tiers, plan, metrics=metrics).run(stop, after_turn)
    broker.close()
    db.close()


def _collect_objects(
    settings: Settings, db: Database, stop: threading.Event, metrics: SweeperMetrics
) -> None:
    """Orphans and files, in threads of their own: a store that hangs holds up no sweep. Not without one."""
    try:
        settings.require("s3_endpoint", "s3_access_key", "s3_secret_key")
    except SettingsError as error:
        log.warning("orphans_not_collected", error=str(error))
        return
    plan = CollectionPlan(orphan_seconds=settings.orphan_seconds)
    blobs = Blobs(**settings.object_store)
    orphans = OrphanCollector(db, blobs, plan, on_deleted=metrics.orphans_deleted.inc)
    files = FileCollector(db, blobs, on_deleted=metrics.files_deleted.inc)
    for name, run in {"orphans": orphans.run, "files": files.run}.items():
        threading.Thread(target=run, args=(stop,), daemon=True, name=name).start()
