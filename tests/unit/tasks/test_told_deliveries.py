"""S23: Flower shows what became of each webhook delivery, and neither its address nor what was answered."""

from typing import Any

import pytest
from celery.events.state import State as FlowersState

from storage.deliveries import AttemptRecord, DeliveryClaim
from tasks.task_events import TaskEvent
from tasks.webhooks.worker import FlowerDeliveryObserver

DELIVERED = AttemptRecord(250, 204)
REFUSED = AttemptRecord(40, 500, "http_status", "the receiver answered 500", "a secret page")
UNREACHED = AttemptRecord(15_000, None, "timeout", "https://hooks.example/secret took too long")


class Flower:
    """Flower's own memory of one delivery."""

    def __init__(self) -> None:
        self.memory: Any = FlowersState()
        self.clock = 0
        self.observer = FlowerDeliveryObserver(self.tell)

    def tell(self, task_id: str, event: TaskEvent) -> None:
        self.clock += 1
        times = {"timestamp": self.clock, "local_received": self.clock, "clock": self.clock}
        more = {"uuid": task_id, "hostname": "none@host", "pid": 1, "utcoffset": 0, **times}
        self.memory.event({"type": event.type, **more, **event.fields})

    def attempt(self, number: int, attempt: AttemptRecord, state: str | None) -> dict[str, Any]:
        """What it shows after this attempt."""
        claim = DeliveryClaim(
            id="whd_1", account_id="acc_1", job_id="job_1", batch_id=None, event="job.succeeded",
            url="https://hooks.example/secret", webhook_secret="s", previous_webhook_secret=None,
            receiver="hooks.example:443", num_attempts=number, num_failures=number - 1, lease_token="t",
            is_probe=False,
        )  # fmt: skip
        self.observer.begun(claim)
        self.observer.attempted(claim, attempt, state)
        return dict(self.memory.tasks["whd_1"].as_dict())


@pytest.mark.parametrize(
    ("attempt", "state", "shown", "said"),
    [
        (DELIVERED, "delivered", "SUCCESS", ("answered 204", None)),
        (REFUSED, "pending", "RETRY", (None, "http_status: answered 500")),
        (UNREACHED, "failed", "FAILURE", (None, "timeout: no answer")),
        (DELIVERED, None, "STARTED", (None, None)),
    ],
)
def test_S23_a_delivery_is_shown_by_its_state(
    attempt: AttemptRecord, state: str | None, shown: str, said: tuple[str | None, str | None]
) -> None:
    task = Flower().attempt(1, attempt, state)
    assert (task["state"], (task["result"], task["exception"])) == (shown, said)
    assert "secret" not in str(task)


def test_S23_a_delivery_that_is_tried_again_or_replayed_is_shown_by_its_last_attempt() -> None:
    flower = Flower()
    assert flower.attempt(1, REFUSED, "pending")["state"] == "RETRY"
    assert flower.attempt(2, DELIVERED, "delivered")["state"] == "SUCCESS"
    task = flower.attempt(3, UNREACHED, "failed")
    assert (task["state"], task["retries"], task["runtime"]) == ("FAILURE", 2, 15.0)
