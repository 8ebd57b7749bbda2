"""The promises of the schedule: its pauses in order, a receiver's wish within a bound, and an end."""

from typing import cast

import pytest

from storage.database import Database
from storage.deliveries import DeliveryClaim
from tasks.webhooks.client import Answer, WebhookClient
from tasks.webhooks.deliver import Deliver, DeliverPlan, judge

PAUSES = (5.0, 30.0, 300.0)


def deliver(factor: float = 1.0) -> Deliver:
    plan = DeliverPlan(PAUSES, max_per_account=4, lease_seconds=30, public_url="")
    nothing = cast("Database", None), cast("WebhookClient", None)
    return Deliver(*nothing, plan, uniform=lambda low, high: low + (high - low) * factor)


def claimed(num_failures: int) -> DeliveryClaim:
    return DeliveryClaim(
        "whd", "acc", "job", None, "job.failed", "https://a", "s", None, "a", 1, num_failures, "t", False
    )


def test_each_failure_has_its_pause_and_the_last_has_none() -> None:
    pauses = [deliver(0.5).pause_after(claimed(failures), Answer(1, 500)) for failures in range(4)]
    assert pauses == [5.0, 30.0, 300.0, None]


def test_jitter_stays_within_a_tenth() -> None:
    assert deliver(0).pause_after(claimed(1), Answer(1, 500)) == pytest.approx(27)
    assert deliver(1).pause_after(claimed(1), Answer(1, 500)) == pytest.approx(33)


@pytest.mark.parametrize(
    ("status", "asked", "pause"),
    [(429, 60.0, 60.0), (503, 2.0, 5.0), (503, 1e9, 300.0), (500, 60.0, 5.0), (410, 60.0, None)],
)
def test_a_receiver_may_ask_for_patience_within_the_schedule(
    status: int, asked: float, pause: float | None
) -> None:
    answer = Answer(1, status, retry_after_seconds=asked)
    assert deliver(0.5).pause_after(claimed(0), answer) == pause


@pytest.mark.parametrize(
    ("status", "code"),
    [(200, None), (204, None), (299, None), (301, "redirect"), (304, "redirect"), (400, "http_status"),
     (410, "gone"), (500, "http_status")],
)  # fmt: skip
def test_only_a_2xx_has_delivered_it(status: int, code: str | None) -> None:
    assert judge(Answer(1, status)).error_code == code
