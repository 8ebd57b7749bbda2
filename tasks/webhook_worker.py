"""The worker without a device: it serves the queue `cpu`, and loads no engine. A composition root.

`calotype worker --device none`. Any number may run, anywhere that reaches Postgres, the broker and the
receivers; it needs neither S3 nor torch.
"""

import json
import os
import socket
import threading
import uuid
from pathlib import Path
from typing import Any

import structlog
from celery import Celery, signals

from settings import Settings
from storage.database import Database
from storage.receivers import Backoff
from tasks.app import make_celery
from tasks.consumer_watchdog import EXIT_DEAF, ConsumerWatchdog
from tasks.pings import Pings
from tasks.queues import CPU_QUEUE, DELIVER
from tasks.webhook_client import WebhookClient
from tasks.webhooks import Deliver, DeliverPlan

log = structlog.get_logger()

DEVICE = "none"
MAX_CONNECTIONS = 8


def run_webhook_worker(settings: Settings, ready_file: Path | None = None) -> int:
    """Deliver webhooks until SIGTERM, and let attempts in hand end; returns the exit code."""
    settings.require("database_url", "broker_url")
    db = Database(**settings.database, pool_size=min(settings.webhook_threads + 1, MAX_CONNECTIONS))
    client = WebhookClient(
        timeout_seconds=settings.webhook_timeout_seconds,
        allowed_networks=settings.webhook_allowed_networks,
        ports=settings.webhook_ports,
        ca_file=settings.ca_file,
    )
    plan = DeliverPlan(
        retry_seconds=settings.webhook_retry_seconds,
        max_per_account=settings.webhooks_per_account,
        lease_seconds=settings.webhook_timeout_seconds + settings.lease_seconds,
        public_url=settings.public_url,
        backoff=Backoff(pause_seconds=settings.webhook_pause_seconds),
    )
    app = make_celery(**settings.broker, tiers=[tier.name for tier in settings.catalogue.tiers])
    deliver = Deliver(db, client, plan)

    def end_deaf() -> None:
        deliver.stop()
        threading.Event().wait(settings.webhook_timeout_seconds)  # attempts in hand come to their end
        os._exit(EXIT_DEAF)

    pings = Pings(app, DEVICE, str(uuid.uuid4()))
    watchdog = ConsumerWatchdog(
        pings.send,
        lambda: pings.is_connected,
        watchdog_seconds=settings.watchdog_seconds,
        on_deaf=end_deaf,
    )
    pings.listen(watchdog.heard)
    try:
        return _serve(app, deliver, settings.webhook_threads, ready_file, pings, watchdog)
    finally:
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)
        db.close()


def _serve(
    app: Celery,
    deliver: Deliver,
    num_threads: int,
    ready_file: Path | None,
    pings: Pings,
    watchdog: ConsumerWatchdog,
) -> int:
    def task(self_: Any, *_: Any, **__: Any) -> None:
        # Whatever a message carries, it says no more than "look": the id in it is for people to read.
        del self_
        deliver()

    def ready(**_: Any) -> None:
        log.info("worker_ready", device=DEVICE, queues=[CPU_QUEUE], threads=num_threads)
        if ready_file is not None:
            _announce(ready_file)
        watchdog.start()

    def shutting_down(**_: Any) -> None:
        watchdog.stop()
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)
        deliver.stop()

    def keep_logging(**_: Any) -> None:
        """Connected to `setup_logging`, it keeps Celery from replacing this process' log handlers."""

    app.task(name=DELIVER, bind=True)(task)
    signals.setup_logging.connect(keep_logging, weak=False)
    signals.worker_ready.connect(ready, weak=False)
    signals.worker_shutting_down.connect(shutting_down, weak=False)
    worker = app.Worker(
        hostname=f"{DEVICE}@{socket.gethostname()}.{os.getpid()}",
        pool="threads",
        concurrency=num_threads,
        queues=[CPU_QUEUE, pings.queue_name],
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _announce(ready_file: Path) -> None:
    facts = {"pid": os.getpid(), "device": DEVICE, "tiers": [], "queues": [CPU_QUEUE]}
    unfinished = ready_file.with_name(ready_file.name + ".tmp")
    unfinished.write_text(json.dumps(facts))
    unfinished.replace(ready_file)
