"""The promises of delivering: signed, at least once, on a schedule, and no receiver harms another's."""

import base64
import hashlib
import hmac
import ipaddress
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from standardwebhooks import Webhook, WebhookVerificationError

from catalogue.warnings import RequestWarning
from storage import accounts, deliveries, jobs
from storage.database import Database
from storage.delivery_views import Attempt, Delivery, get, list_deliveries
from storage.job_views import StoredImage
from storage.roles import DatabaseRole
from tasks.webhooks.client import WebhookClient
from tasks.webhooks.deliver import Deliver, DeliverPlan

from .conftest import MakeJob
from .receiver import Received, Receiver, answer

PUBLIC_URL = "https://images.example.com"
LOOPBACK = [ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")]
HOUR = 3600.0

MakeReceiver = Callable[..., Receiver]
Notify = Callable[..., Delivery]

pytestmark = pytest.mark.usefixtures("outbox")


@pytest.fixture
def notify(database: Database, make_job: MakeJob) -> Notify:
    """A job that ends at once, and the delivery that it left behind."""

    def make(url: str, account_id: str | None = None) -> Delivery:
        job = make_job(webhook_url=url, **({"account_id": account_id} if account_id else {}))
        jobs.cancel(database, job.account_id, job.id)
        (delivery,) = list_deliveries(database, job.account_id, job_id=job.id)
        return delivery

    return make


@pytest.fixture
def make_deliver(databases: dict[DatabaseRole, Database], ca_file: Path) -> Callable[..., Deliver]:
    def make(timeout_seconds: float = 20, **plan: Any) -> Deliver:
        client = WebhookClient(timeout_seconds=timeout_seconds, allowed_networks=LOOPBACK, ca_file=ca_file)
        defaults = {
            "retry_seconds": (HOUR,),
            "max_per_account": 4,
            "lease_seconds": 60,
            "public_url": PUBLIC_URL,
        }
        return Deliver(databases["sender"], client, DeliverPlan(**{**defaults, **plan}))

    return make


def seen(database: Database, delivery: Delivery) -> tuple[Delivery, list[Attempt]]:
    return get(database, delivery.account_id, delivery.id)


def make_due(database: Database, delivery: Delivery) -> None:
    """As if its pause, or the lease of who sends it, were over."""
    with database.transaction() as connection:
        connection.execute(
            text("UPDATE webhook_deliveries SET next_attempt_at = clock_timestamp() WHERE id = :id"),
            {"id": delivery.id},
        )


def test_a_delivery_is_signed_as_standard_webhooks_has_it(
    database: Database, account: str, notify: Notify, make_receiver: MakeReceiver, make_deliver: Any
) -> None:
    receiver = make_receiver(answer(204))
    delivery = notify(receiver.url())
    assert make_deliver()() == 1
    (request,) = receiver.received
    secret = accounts.webhook_secret(database, account)

    said = Webhook(secret).verify(request.body, request.headers)
    assert (said["type"], said["data"]["id"], said["data"]["state"]) == (
        "job.canceled",
        delivery.job_id,
        "canceled",
    )
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(request.body + b" ", request.headers)

    # The same by hand, from the text of the standard: the library signed it, too.
    signed = b".".join(
        (request.headers["webhook-id"].encode(), request.headers["webhook-timestamp"].encode(), request.body)
    )
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert request.headers["webhook-signature"] == f"v1,{expected}"
    assert request.headers["webhook-id"] == delivery.id

    after, (attempt,) = seen(database, delivery)
    assert (after.state, after.num_attempts, after.next_attempt_at) == ("delivered", 1, None)
    assert (attempt.number, attempt.response_status, attempt.error_code) == (1, 204, None)
    assert attempt.milliseconds is not None


def test_after_a_rotation_both_secrets_verify_until_the_old_one_has_had_its_time(
    database: Database, account: str, notify: Notify, make_receiver: MakeReceiver, make_deliver: Any
) -> None:
    receiver, deliver = make_receiver(answer(200)), make_deliver()
    old = accounts.webhook_secret(database, account)
    new = accounts.rotate_webhook_secret(database, account, grace_seconds=60)
    notify(receiver.url())
    deliver()
    for secret in (old, new):
        assert Webhook(secret).verify(receiver.received[0].body, receiver.received[0].headers)

    newest = accounts.rotate_webhook_secret(database, account, grace_seconds=0)
    notify(receiver.url())
    deliver()
    assert Webhook(newest).verify(receiver.received[1].body, receiver.received[1].headers)
    for secret in (old, new):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(receiver.received[1].body, receiver.received[1].headers)


def test_a_succeeded_job_is_told_with_links_that_do_not_rot_and_without_its_prompt(
    database: Database, tier: str, make_job: MakeJob, make_receiver: MakeReceiver, make_deliver: Any
) -> None:
    receiver = make_receiver(answer(200))
    job = make_job(webhook_url=receiver.url(), prompt="a secret wish")
    worker = jobs.WorkerName("boot", "cpu:0@test")
    claimed = jobs.claim(database, job.id, tiers=[tier], worker=worker, lease_seconds=30)
    assert claimed is not None
    image = StoredImage(0, 1, f"webhooks/{job.id}.png", "0" * 64, 10, 16, 8)
    warning = RequestWarning(code="prompt_cut", field="prompt", detail='"secret wish" was not used')
    assert jobs.finish(database, claimed.lease, stored=[image], warnings=[warning], timings={})
    make_deliver()()
    said = json.loads(receiver.received[0].body)
    here = f"{PUBLIC_URL}/v1/jobs/{job.id}"
    assert said["type"] == "job.succeeded"
    assert said["timestamp"] == said["data"]["finished_at"]
    assert said["data"]["links"] == {"self": here}
    assert [image["url"] for image in said["data"]["images"]] == [f"{here}/images/0"]
    assert said["data"]["warnings"] == [{"code": "prompt_cut", "field": "prompt"}]
    assert b"secret wish" not in receiver.received[0].body


def test_a_receiver_that_was_down_gets_it_on_schedule_under_the_same_id(
    database: Database, notify: Notify, make_receiver: MakeReceiver, make_deliver: Any
) -> None:
    receiver = make_receiver(answer(200))
    receiver.close()
    delivery = notify(receiver.url())
    deliver = make_deliver(retry_seconds=(HOUR, 2 * HOUR))
    assert deliver() == 1
    assert deliver() == 0, "it is not due before its pause is over"
    waiting, (first,) = seen(database, delivery)
    assert (waiting.state, first.error_code) == ("pending", "connection_failed")
    assert waiting.next_attempt_at is not None
    assert 0.85 * HOUR < (waiting.next_attempt_at - first.started_at).total_seconds() < 1.15 * HOUR

    back = make_receiver(answer(503), port=receiver.port)
    make_due(database, delivery)
    deliver()
    back.behave = answer(200)
    make_due(database, delivery)
    deliver()
    after, attempts = seen(database, delivery)
    assert after.state == "delivered"
    assert [attempt.error_code for attempt in attempts] == ["connection_failed", "http_status", None]
    assert {request.headers["webhook-id"] for request in back.received} == {delivery.id}


@pytest.mark.parametrize(
    ("status", "num_attempts", "code"), [(500, 3, "http_status"), (302, 3, "redirect"), (410, 1, "gone")]
)
def test_a_receiver_that_never_takes_it_is_given_up(
    status: int,
    num_attempts: int,
    code: str,
    database: Database,
    notify: Notify,
    make_receiver: MakeReceiver,
    make_deliver: Any,
) -> None:
    receiver = make_receiver(answer(status, b"no", Location="https://127.0.0.1:1/"))
    delivery = notify(receiver.url())
    deliver = make_deliver(retry_seconds=(0.0, 0.0))
    assert deliver() == num_attempts
    after, attempts = seen(database, delivery)
    assert (after.state, after.num_attempts) == ("failed", num_attempts)
    assert after.finished_at is not None
    assert [(each.response_status, each.error_code, each.answer) for each in attempts] == [
        (status, code, "no")
    ] * num_attempts


def test_a_fault_of_ours_takes_its_turn_in_the_schedule(
    database: Database, notify: Notify, make_deliver: Any
) -> None:
    delivery = notify("https://localhost/")
    with database.transaction() as connection:  # no secret that anything could be signed with
        connection.execute(
            text("UPDATE accounts SET webhook_secret = 'whsec_' WHERE id = :id"), {"id": delivery.account_id}
        )
    assert make_deliver(retry_seconds=(0.0,))() == 2
    after, attempts = seen(database, delivery)
    assert after.state == "failed"
    assert [attempt.error_code for attempt in attempts] == ["internal_error"] * 2


def test_many_bells_deliver_once(
    database: Database, notify: Notify, make_receiver: MakeReceiver, make_deliver: Any
) -> None:
    receiver = make_receiver(answer(200))
    delivery = notify(receiver.url())
    deliver = make_deliver()
    together([deliver] * 8)
    assert len(receiver.received) == 1
    assert seen(database, delivery)[0].num_attempts == 1


def test_a_receiver_that_hangs_delays_no_other_account(
    database: Database, notify: Notify, make_receiver: MakeReceiver, make_deliver: Any
) -> None:
    let_go = threading.Event()

    def hang(handler: BaseHTTPRequestHandler, request: Received) -> None:
        let_go.wait(60)
        answer(200)(handler, request)

    stuck, quick = make_receiver(hang), make_receiver(answer(200))
    other = accounts.create_account(database, "other")
    theirs = [notify(stuck.url()) for _ in range(6)]
    deliver = make_deliver(max_per_account=2, timeout_seconds=50)
    threads = [threading.Thread(target=deliver) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert stuck.wait_for(2)
    # The third found nothing that it may send; one that is late would take ours.
    while sum(thread.is_alive() for thread in threads) > 2:
        threading.Event().wait(0.01)
    ours = notify(quick.url(), other)
    assert deliver() == 1, "a thread is free for it, although the other account's deliveries are older"
    assert seen(database, ours)[0].state == "delivered"
    assert len(stuck.received) == 2
    let_go.set()
    for thread in threads:
        thread.join(60)
    assert {seen(database, each)[0].state for each in theirs} == {"delivered"}
    assert len(stuck.received) == 6


def test_a_sender_that_died_is_followed_and_cannot_write_any_more(
    database: Database, notify: Notify, make_receiver: MakeReceiver, make_deliver: Any
) -> None:
    receiver = make_receiver(answer(200))
    delivery = notify(receiver.url())
    dead = deliveries.claim(database, max_per_account=4, lease_seconds=60)
    assert dead is not None
    assert make_deliver()() == 0, "its lease holds"
    make_due(database, delivery)
    assert make_deliver()() == 1
    late = deliveries.AttemptRecord(5, 500, "http_status")
    assert deliveries.record(database, dead, late, retry_seconds=0) is None
    after, attempts = seen(database, delivery)
    assert after.state == "delivered"
    assert [attempt.error_code for attempt in attempts] == ["sender_lost", None]


def test_what_is_replayed_is_sent_again_on_a_fresh_schedule(
    database: Database, notify: Notify, make_receiver: MakeReceiver, make_deliver: Any
) -> None:
    receiver = make_receiver(answer(500))
    delivery = notify(receiver.url())
    deliver = make_deliver(retry_seconds=(0.0,))
    assert deliver() == 2
    deliveries.replay(database, delivery.account_id, delivery.id)
    assert deliver() == 2
    receiver.behave = answer(200)
    deliveries.replay(database, delivery.account_id, delivery.id)
    assert deliver() == 1
    after, attempts = seen(database, delivery)
    assert (after.state, [attempt.number for attempt in attempts]) == ("delivered", [1, 2, 3, 4, 5])
    assert {request.headers["webhook-id"] for request in receiver.received} == {delivery.id}


def test_a_stopped_sender_begins_nothing_more(
    database: Database, notify: Notify, make_receiver: MakeReceiver, make_deliver: Any
) -> None:
    delivery = notify(make_receiver(answer(200)).url())
    deliver = make_deliver()
    deliver.stop()
    assert deliver() == 0
    assert seen(database, delivery)[0].state == "pending"


def test_a_database_that_is_away_is_no_crash(ca_file: Path) -> None:
    away = Database("postgresql://nobody:x@127.0.0.1:9/none", 1)
    client = WebhookClient(timeout_seconds=1, ca_file=ca_file)
    assert Deliver(away, client, DeliverPlan((1.0,), 4, 60, PUBLIC_URL))("whd_a") == 0
    away.close()


def together(calls: list[Callable[[], object]]) -> None:
    """Run them at the same time, each in a thread."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        start.wait(30)
        call()

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
