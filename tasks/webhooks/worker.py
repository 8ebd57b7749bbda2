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
from storage.deliveries import AttemptRecord, DeliveryClaim
from storage.receivers import Backoff
from tasks.app import make_celery
from tasks.consumer_watchdog import EXIT_DEAF, ConsumerWatchdog
from tasks.metrics.sender import SenderMetrics
from tasks.metrics.server import serve_metrics
from tasks.pings import Pings
from tasks.queues import CPU_QUEUE, DELIVER
from tasks.task_events import SilentRequest, TaskEvent, TaskEvents, Tell
from tasks.webhooks.client import WebhookClient
from tasks.webhooks.deliver import Deliver, DeliverPlan, DeliveryObserver

log = structlog.get_logger()

DEVICE = "none"
MAX_CONNECTIONS = 8


def run_webhook_worker(settings: Settings, ready_file: Path | None = None, *, metrics_port: int = 0) -> int:
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
    task_events = TaskEvents()
    task_events.listen()
    metrics = SenderMetrics()
    deliver = Deliver(db, client, plan, observers=[FlowerDeliveryObserver(task_events.tell), metrics])
    serve_metrics(metrics.registry, settings.metrics_host, metrics_port)

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

    app.task(name=DELIVER, bind=True, Request=SilentRequest)(task)
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


class FlowerDeliveryObserver(DeliveryObserver):
    """Tells Flower of each delivery under its own id, whichever message woke this process."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def begun(self, claimed: DeliveryClaim) -> None:
        """STARTED; also a delivery that had ended and is replayed, which only RETRY takes back."""
        if claimed.num_attempts > 1:
            self._tell(claimed.id, TaskEvent("task-retried", {"exception": None, "result": None}))
        retries = claimed.num_attempts - 1
        self._tell(claimed.id, TaskEvent("task-started", {"retries": retries, "exception": None}))

    def attempted(self, claimed: DeliveryClaim, attempt: AttemptRecord, state: str | None) -> None:
        """SUCCESS, FAILURE, or RETRY until the next attempt; neither the address nor what was answered."""
        answer = "no answer" if attempt.response_status is None else f"answered {attempt.response_status}"
        fields = {"result": None, "exception": None, "runtime": attempt.milliseconds / 1000}
        if state == "delivered":
            self._tell(claimed.id, TaskEvent("task-succeeded", {**fields, "result": answer}))
        elif state is not None:
            error = {"exception": f"{attempt.error_code}: {answer}"}
            type_ = "task-failed" if state == "failed" else "task-retried"
            self._tell(claimed.id, TaskEvent(type_, {**fields, **error}))
