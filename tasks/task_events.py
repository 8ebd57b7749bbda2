"""The Celery events that Flower gets about our tasks, with the state, the error and the runtime of a job.

Owns which event represents which outcome, and sends events through this process' Celery worker. Celery's own
events would report every task that returns as a success. It reads no rows. ADR 0018 gives the reasons.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from celery import signals
from celery.worker.request import Request

from catalogue.states import State
from storage.job_views import Outcome

OWN_WORDS = frozenset(
    {
        "canceled",
        "deadline_exceeded",
        "engine_stopped",
        "internal_error",
        "invalid_request",
        "lease_overdue",
        "numeric_error",
        "out_of_memory",
        "strict_unavailable",
        "worker_lost",
    }
)
"""Error codes whose details are our own text without quotations. Other details are not shown: they may quote
a library, and with it a prompt, a path or a link; the detail of `invalid_prompt` quotes the prompt."""


@dataclass(frozen=True)
class TaskEvent:
    """One Celery event: its type, such as `task-succeeded`, and its fields."""

    type: str
    fields: dict[str, Any] = field(default_factory=dict)


Tell = Callable[[str, TaskEvent], None]
"""Send an event about the task with this id."""


class SilentRequest(Request):
    """A Celery request that sends no events of its own, since the task sends them.

    It ignores `revoke` and `expires`: a job is canceled by its row, and its id may be sent again. It does not
    acknowledge its message, which the broker has forgotten (`no_ack` in `tasks.app`).
    """

    def acknowledge(self) -> None:
        """Take note without asking the broker."""
        self.acknowledged = True

    def send_event(self, type: str, **fields: Any) -> None:
        """Send nothing. Celery sends `task-received` by another path."""

    def revoked(self) -> bool:
        """Return `False`: the guarded claim decides whether the job runs."""
        return False


class TaskEvents:
    """Sends events through this process' Celery worker, which buffers them while the broker is down."""

    def __init__(self) -> None:
        self._consumer: Any = None

    def listen(self) -> None:
        """Start to send once the Celery worker is ready; call this before it starts."""

        def ready(sender: Any, **_: Any) -> None:
            self._consumer = sender

        signals.worker_ready.connect(ready, weak=False)

    def tell(self, task_id: str, event: TaskEvent) -> None:
        """Send an event without waiting; raises nothing."""
        dispatcher = self._consumer and self._consumer.event_dispatcher
        if dispatcher:
            dispatcher.send(event.type, uuid=task_id, **event.fields)


def started(attempt: int) -> TaskEvent:
    """The event of a job that a worker has claimed, in its `attempt`th attempt (from 1)."""
    return TaskEvent("task-started", {"retries": attempt - 1, "exception": None, "result": None})


def event_of(outcome: Outcome | None) -> TaskEvent | None:
    """The event for this outcome; `None` while a worker runs the job. No outcome means no such job."""
    if outcome is None:
        return TaskEvent("task-revoked", {"exception": "there is no such job"})
    fields = {"result": None, "exception": None, "runtime": outcome.seconds}
    match outcome.state:
        case State.SUCCEEDED:
            return TaskEvent("task-succeeded", {**fields, "result": _summary(outcome)})
        case State.FAILED:
            return TaskEvent("task-failed", {**fields, "exception": _error(outcome)})
        case State.CANCELED:
            return TaskEvent("task-revoked", {**fields, "exception": "canceled by its owner"})
        case State.EXPIRED:
            reason = "expired: its deadline passed before a worker was free"
            return TaskEvent("task-revoked", {**fields, "exception": reason, "expired": True})
        case State.QUEUED:
            return TaskEvent("task-retried", {**fields, "exception": _error(outcome)})
        case State.RUNNING:
            return None


def _summary(outcome: Outcome) -> str:
    images = f"{outcome.num_images} image" + "s" * (outcome.num_images != 1)
    return f"{images}, {outcome.timings.get('device_seconds', 0.0):.2f} s on the device"


def _error(outcome: Outcome) -> str:
    code, detail = outcome.error_code or "queued", outcome.error_detail or ""
    if code == "generation_failed":
        name = detail.partition(":")[0]
        detail = name if name.isidentifier() else ""
    elif code not in OWN_WORDS:
        detail = ""
    return f"{code}: {detail}" if detail else code
