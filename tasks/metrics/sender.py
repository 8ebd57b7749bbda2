"""What the worker without a device tells Prometheus: webhook attempts by what came of them."""

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

from storage.deliveries import AttemptRecord, DeliveryClaim
from tasks.webhooks.client import ATTEMPT_CODES
from tasks.webhooks.deliver import DeliveryObserver

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30)


class SenderMetrics(DeliveryObserver):
    """The registry of one sender. No label names a receiver: there are as many as accounts wish."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._attempts = Counter(
            "calotype_webhook_attempts",
            "Attempts, by the state of their delivery then; `lost`: another sender has it.",
            ["state"],
            registry=registry,
        )
        self._failures = Counter(
            "calotype_webhook_failures", "Attempts that failed, by why.", ["code"], registry=registry
        )
        self._seconds = Histogram(
            "calotype_webhook_attempt_seconds",
            "From the look-up of the name to the answer.",
            buckets=BUCKETS,
            registry=registry,
        )
        # `increase()` misses the first event of a counter that was not there before it.
        for state in ("delivered", "pending", "failed", "lost"):
            self._attempts.labels(state)
        for code in {*ATTEMPT_CODES.values(), "http_status", "redirect", "gone", "internal_error"}:
            self._failures.labels(code)

    def attempted(self, claimed: DeliveryClaim, attempt: AttemptRecord, state: str | None) -> None:  # noqa: ARG002
        """Count it."""
        self._attempts.labels(state or "lost").inc()
        self._seconds.observe(attempt.milliseconds / 1000)
        if attempt.error_code is not None:
            self._failures.labels(attempt.error_code).inc()
