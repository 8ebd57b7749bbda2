"""What Flower is told of our tasks: Celery's events, with the state, the error and the runtime of a job.

Owns which event stands for which outcome, and sends events as this process' Celery worker does. Celery's own
would call every task that returns a success. It reads no row. The reasons are in ADR 0018.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from celery import signals
from celery.worker.request import Request

from storage.job_views import Outcome
from storage.states import State

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
"""Error codes whose details we wrote ourselves and quote nothing in. Any other detail is not shown: it may
quote a library, and with it a prompt, a path or a link; that of `invalid_prompt` quotes the prompt."""


@dataclass(frozen=True)
class TaskEvent:
    """One event of Celery's: its type, such as `task-succeeded`, and its fields."""

    type: str
    fields: dict[str, Any] = field(default_factory=dict)


Tell = Callable[[str, TaskEvent], None]
"""Tell Flower of the task with this id."""


class SilentRequest(Request):
    """A message whose task tells Flower by itself what became of it.

    It heeds no `revoke` and no `expires`: a job is canceled by its row, and its id may be sent again.
    """

    def send_event(self, type: str, **fields: Any) -> None:
        """Send nothing; only `task-received`, which does not pass here, is Celery's to send."""

    def revoked(self) -> bool:
        """Never: the guarded claim decides whether the job runs."""
        return False


class TaskEvents:
    """Sends events as this process' Celery worker does, which buffers them while the broker is away."""

    def __init__(self) -> None:
        self._consumer: Any = None

    def listen(self) -> None:
        """Find the Celery worker once it is ready; call this before it starts."""

        def ready(sender: Any, **_: Any) -> None:
            self._consumer = sender

        signals.worker_ready.connect(ready, weak=False)

    def tell(self, task_id: str, event: TaskEvent) -> None:
        """Tell Flower; nothing waits for it, and nothing is raised."""
        dispatcher = self._consumer and self._consumer.event_dispatcher
        if dispatcher:
            dispatcher.send(event.type, uuid=task_id, **event.fields)


def started(attempt: int) -> TaskEvent:
    """A worker has taken it up, for the `attempt`th time."""
    return TaskEvent("task-started", {"retries": attempt - 1, "exception": None, "result": None})


def event_of(outcome: Outcome | None) -> TaskEvent | None:
    """The event that shows this outcome; nothing for a job that another worker runs. `None`: no such job."""
    if outcome is None:
        return TaskEvent("task-revoked", {"exception": "there is no such job"})
    fields = {"result": None, "exception": None, "runtime": outcome.seconds}
    match outcome.state:
        case State.SUCCEEDED:
            return TaskEvent("task-succeeded", {**fields, "result": _summary(outcome)})
        case State.FAILED:
            return TaskEvent("task-failed", {**fields, "exception": _error(outcome)})
        case State.CANCELED:
            return TaskEvent("task-revoked", {**fields, "exception": "canceled: its owner asked for that"})
        case State.EXPIRED:
            reason = "expired: its deadline passed before a worker was free"
            return TaskEvent("task-revoked", {**fields, "exception": reason, "expired": True})
        case State.QUEUED:
            return TaskEvent("task-retried", {**fields, "exception": _error(outcome)})
        case State.RUNNING:
            return None


def _summary(outcome: Outcome) -> str:
    images = f"{outcome.num_images} image" + "s" * (outcome.num_images != 1)
    return f"{images}, {outcome.timings.get('device_seconds', 0.0):.2f} s of the device"


def _error(outcome: Outcome) -> str:
    code, detail = outcome.error_code or "queued", outcome.error_detail or ""
    if code == "generation_failed":
        name = detail.partition(":")[0]
        detail = name if name.isidentifier() else ""
    elif code not in OWN_WORDS:
        detail = ""
    return f"{code}: {detail}" if detail else code
