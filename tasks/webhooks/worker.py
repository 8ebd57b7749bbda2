"""The worker without a device: it delivers webhooks from the queue `cpu` and loads no engine.

A composition root, started by `calotype worker --device none`. Any number may run, wherever Postgres, the
broker and the receivers can be reached; it needs neither S3 nor torch. It owns the metrics of deliveries.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from celery import Celery, signals
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

from settings import Settings
from storage.database import Database
from storage.deliveries import AttemptRecord, DeliveryClaim
from storage.receivers import Backoff
from tasks.app import make_celery
from tasks.consumer_watchdog import EXIT_STALLED, ConsumerWatchdog
from tasks.metrics.server import serve_metrics
from tasks.pings import Pings
from tasks.queues import CPU_QUEUE, DELIVER
from tasks.ready import write_ready_file
from tasks.task_events import SilentRequest, TaskEvent, TaskEvents, Tell
from tasks.traces.tracer import Tracer
from tasks.webhooks.client import ATTEMPT_CODES, WebhookClient
from tasks.webhooks.deliver import Deliver, DeliverPlan, DeliveryObserver

log = structlog.get_logger()

DEVICE = "none"
MAX_CONNECTIONS = 8
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30)
"""Seconds of one attempt."""


def run_webhook_worker(settings: Settings, ready_file: Path | None = None, *, metrics_port: int = 0) -> int:
    """Deliver webhooks until SIGTERM, then finish the running attempts; returns the exit code."""
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
    app = make_celery(**settings.celery)
    task_events = TaskEvents()
    task_events.listen()
    metrics = SenderMetrics()
    tracer = Tracer.at(settings.traces_endpoint, "webhooks")
    spans = [DeliverySpans(tracer)] if tracer is not None else []
    deliver = Deliver(db, client, plan, observers=[FlowerDeliveryObserver(task_events.tell), metrics, *spans])
    serve_metrics(metrics.registry, settings.metrics_host, metrics_port)

    def end_stalled() -> None:
        deliver.stop()
        threading.Event().wait(settings.webhook_timeout_seconds)  # let running attempts finish
        os._exit(EXIT_STALLED)

    pings = Pings(app, DEVICE, str(uuid.uuid4()))
    watchdog = ConsumerWatchdog(
        pings.send,
        lambda: pings.is_connected,
        watchdog_seconds=settings.watchdog_seconds,
        on_stalled=end_stalled,
    )
    pings.listen(watchdog.received)
    try:
        return _serve(app, deliver, settings.webhook_threads, ready_file, pings, watchdog)
    finally:
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)
        db.close()
        if tracer is not None:
            tracer.stop()


def _serve(
    app: Celery,
    deliver: Deliver,
    num_threads: int,
    ready_file: Path | None,
    pings: Pings,
    watchdog: ConsumerWatchdog,
) -> int:
    def task(self_: Any, *arguments: Any, **_: Any) -> None:
        # A message only says "look for due deliveries, maybe for this one first"; it may be forged.
        del self_
        deliver(arguments[0] if arguments and isinstance(arguments[0], str) else None)

    consumers: list[Any] = []  # that of Celery, once it is ready

    class DeliveryRequest(SilentRequest):
        """Makes the loop poll again when a thread is free, which Celery does not tell it."""

        def send_event(self, *_: Any, **__: Any) -> None:
            """Send nothing, but wake the loop: Celery sends its events once a task is counted as ended."""
            for consumer in consumers:
                consumer.call_soon(_do_nothing)

    def ready(sender: Any, **_: Any) -> None:
        consumers.append(sender)
        log.info("worker_ready", device=DEVICE, queues=[CPU_QUEUE], threads=num_threads)
        write_ready_file(ready_file, device=DEVICE, tiers=[], queues=[CPU_QUEUE])
        watchdog.start()

    def shutting_down(**_: Any) -> None:
        watchdog.stop()
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)
        deliver.stop()

    def keep_logging(**_: Any) -> None:
        """Connected to `setup_logging`, it keeps Celery from replacing this process' log handlers."""

    app.task(name=DELIVER, bind=True, Request=DeliveryRequest)(task)
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


def _do_nothing() -> None:
    return


class FlowerDeliveryObserver(DeliveryObserver):
    """Sends Celery events to Flower under the delivery's id, no matter which message led to it."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def begun(self, claimed: DeliveryClaim) -> None:
        """Send STARTED; before it RETRY, without which Flower ignores a replayed delivery that had ended."""
        if claimed.num_attempts > 1:
            self._tell(claimed.id, TaskEvent("task-retried", {"exception": None, "result": None}))
        retries = claimed.num_attempts - 1
        self._tell(claimed.id, TaskEvent("task-started", {"retries": retries, "exception": None}))

    def attempted(self, claimed: DeliveryClaim, attempt: AttemptRecord, state: str | None) -> None:
        """Send SUCCESS, FAILURE or RETRY, without the URL and the response body."""
        answer = "no answer" if attempt.response_status is None else f"answered {attempt.response_status}"
        fields = {"result": None, "exception": None, "runtime": attempt.milliseconds / 1000}
        if state == "delivered":
            self._tell(claimed.id, TaskEvent("task-succeeded", {**fields, "result": answer}))
        elif state is not None:
            error = {"exception": f"{attempt.error_code}: {answer}"}
            type_ = "task-failed" if state == "failed" else "task-retried"
            self._tell(claimed.id, TaskEvent(type_, {**fields, **error}))


class DeliverySpans(DeliveryObserver):
    """Makes a span of each attempt of a webhook that belongs to a job."""

    def __init__(self, tracer: Tracer, clock: Callable[[], float] = time.time) -> None:
        self._tracer, self._clock = tracer, clock

    def attempted(self, claimed: DeliveryClaim, attempt: AttemptRecord, state: str | None) -> None:
        """Make the span of an attempt that ended just now."""
        if claimed.job_id is None:
            return
        now = self._clock()
        attributes: dict[str, str | int] = {
            "calotype.job.id": claimed.job_id,
            "calotype.webhook.event": claimed.event,
            "calotype.webhook.attempt": claimed.num_attempts,
            "calotype.webhook.state": state or "lost",
        }
        if attempt.response_status is not None:
            attributes["http.response.status_code"] = attempt.response_status
        span = self._tracer.begin(
            "webhook",
            kind="CLIENT",
            traceparent=claimed.traceparent,
            attributes=attributes,
            begun_at=now - attempt.milliseconds / 1000,
        )
        span.end(ended_at=now, error_code=attempt.error_code)


class SenderMetrics(DeliveryObserver):
    """The metrics of one webhook worker. No label names a receiver, of which accounts may have any number."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._attempts = Counter(
            "calotype_webhook_attempts",
            "Attempts, by the resulting state of their delivery; `lost`: another worker has claimed it.",
            ["state"],
            registry=registry,
        )
        self._failures = Counter(
            "calotype_webhook_failures", "Failed attempts, by error code.", ["code"], registry=registry
        )
        self._seconds = Histogram(
            "calotype_webhook_attempt_seconds",
            "Duration of an attempt, from the DNS lookup to the response.",
            buckets=BUCKETS,
            registry=registry,
        )
        # `increase()` misses the first event of a counter that did not exist before it.
        for state in ("delivered", "pending", "failed", "lost"):
            self._attempts.labels(state)
        for code in {*ATTEMPT_CODES.values(), "http_status", "redirect", "gone", "internal_error"}:
            self._failures.labels(code)

    def attempted(self, claimed: DeliveryClaim, attempt: AttemptRecord, state: str | None) -> None:  # noqa: ARG002
        """Count the attempt."""
        self._attempts.labels(state or "lost").inc()
        self._seconds.observe(attempt.milliseconds / 1000)
        if attempt.error_code is not None:
            self._failures.labels(attempt.error_code).inc()
