"""S41: attempts to a receiver that fails are bounded, and nothing that waits for it is lost."""

import ipaddress
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from sqlalchemy import text

from storage import accounts, deliveries, receivers
from storage.database import Database
from storage.delivery_views import list_deliveries
from storage.receivers import FAILURES_BEFORE_HOLD, Backoff
from storage.receivers import Receiver as Known
from tasks.webhooks.client import WebhookClient
from tasks.webhooks.deliver import Deliver, DeliverPlan

from .conftest import MakeJob
from .receiver import Received, Receiver, answer

LOOPBACK = [ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")]
HOUR, DAY = 3600.0, 86_400.0
SCHEDULE = (6 * HOUR,) * 6

MakeReceiver = Callable[..., Receiver]

pytestmark = pytest.mark.usefixtures("outbox")


@pytest.fixture
def deliver(database: Database, ca_file: Path) -> Deliver:
    client = WebhookClient(timeout_seconds=0.5, allowed_networks=LOOPBACK, ca_file=ca_file)
    plan = DeliverPlan(SCHEDULE, 4, 60, "https://images.example.com", Backoff(first_probe_seconds=300))
    return Deliver(database, client, plan)


def notify(database: Database, account: str, url: str, count: int) -> None:
    """So many deliveries to this URL, due now."""
    statement = text(
        """
        WITH batch AS (
            INSERT INTO batches (id, account_id, filename, num_jobs, created_at)
            SELECT 'bat_' || replace(gen_random_uuid()::text, '-', ''), :account, 'a.csv', 1,
                   clock_timestamp()
              FROM generate_series(1, :count)
            RETURNING id
        )
        INSERT INTO webhook_deliveries (id, account_id, event, url, next_attempt_at, batch_id)
        SELECT 'whd_' || replace(gen_random_uuid()::text, '-', ''), :account, 'batch.completed', :url,
               clock_timestamp(), id
          FROM batch
        """
    )
    with database.transaction() as connection:
        connection.execute(statement, {"account": account, "url": url, "count": count})


def known(database: Database, account: str) -> Known:
    (one,) = receivers.list_receivers(database, account)
    return one


def counts(database: Database, account: str) -> dict[str, int]:
    query = text(
        """SELECT CASE WHEN held_at IS NULL THEN state ELSE 'held' END AS standing, count(*)
             FROM webhook_deliveries WHERE account_id = :account GROUP BY 1"""
    )
    with database.transaction() as connection:
        return {row[0]: row[1] for row in connection.execute(query, {"account": account})}


def num_attempts(database: Database, account: str) -> int:
    query = text("SELECT sum(num_attempts) FROM webhook_deliveries WHERE account_id = :account")
    with database.transaction() as connection:
        return int(connection.execute(query, {"account": account}).scalar_one())


def later(database: Database, seconds: float) -> None:
    """As if so much time had gone by since everything that is written down of receivers and deliveries."""
    moved = "{0} = {0} - make_interval(secs => :seconds)"
    for table, columns in (
        ("webhook_receivers", ("failing_since", "next_probe_at", "paused_at", "last_failed_at")),
        ("webhook_deliveries", ("next_attempt_at", "held_at")),
    ):
        values = ", ".join(moved.format(column) for column in columns)
        with database.transaction() as connection:
            connection.execute(text(f"UPDATE {table} SET {values}"), {"seconds": seconds})


def probe(database: Database, deliver: Deliver) -> int:
    """What the sweeper and a sender do when the probe is due; how many attempts."""
    later(database, 1800)
    receivers.wake(database)
    return deliver()


def test_S41_thousands_of_deliveries_to_a_dead_host_cost_a_few_attempts_and_all_arrive(
    database: Database, account: str, make_receiver: MakeReceiver, deliver: Deliver
) -> None:
    total = receivers.HELD_AT_ONCE + 500  # held in two statements
    receiver = make_receiver(answer(200))
    receiver.close()
    notify(database, account, receiver.url(), total)
    attempts = 0
    while made := deliver():
        attempts += made
    assert attempts == FAILURES_BEFORE_HOLD
    assert counts(database, account) == {"held": total - attempts, "pending": attempts}
    assert known(database, account).state == "failing"
    for _ in range(8):
        assert probe(database, deliver) == 1, "one probe at a time"
    assert num_attempts(database, account) == FAILURES_BEFORE_HOLD + 8

    back = make_receiver(answer(200), port=receiver.port)
    assert probe(database, deliver) >= 1, "within one back-off of half an hour"
    released = 0
    for _ in range(total // receivers.HELD_AT_ONCE + 1):
        released += receivers.release(database)
    assert released >= total - attempts - 9
    assert counts(database, account).get("held", 0) == 0
    assert sum(counts(database, account).values()) == total
    # The rest goes at the usual pace: what is left of it here is cut short.
    with database.transaction() as connection:
        connection.execute(
            text(
                """UPDATE webhook_deliveries SET state = 'delivered', next_attempt_at = NULL,
                          finished_at = clock_timestamp()
                    WHERE state = 'pending' AND id NOT IN (
                          SELECT id FROM webhook_deliveries WHERE state = 'pending' LIMIT 20)"""
            )
        )
    later(database, 7 * HOUR)
    deliver()
    assert counts(database, account) == {"delivered": total}
    assert len(back.received) >= 20
    receivers.release(database)
    assert receivers.list_receivers(database, account) == []


def test_S41_a_host_that_accepts_and_never_answers_is_held_too(
    database: Database, account: str, make_receiver: MakeReceiver, deliver: Deliver
) -> None:
    let_go = threading.Event()

    def hang(_: BaseHTTPRequestHandler, __: Received) -> None:
        let_go.wait(30)

    receiver = make_receiver(hang)
    notify(database, account, receiver.url(), 20)
    assert deliver() == FAILURES_BEFORE_HOLD
    assert known(database, account).last_error_code == "timeout"
    assert deliver() == 0
    let_go.set()


def test_S41_another_receiver_of_the_account_and_another_account_are_not_held_up(
    database: Database, account: str, make_receiver: MakeReceiver, deliver: Deliver
) -> None:
    dead, well = make_receiver(answer(500)), make_receiver(answer(200))
    notify(database, account, dead.url(), 30)
    deliver()
    other = accounts.create_account(database, "other")
    notify(database, account, dead.url(), 3)
    notify(database, account, well.url(), 3)
    notify(database, other, dead.url(), 1)
    assert deliver() == 4
    assert len(well.received) == 3
    assert [each.state for each in list_deliveries(database, other)] == ["pending"]
    assert receivers.list_receivers(database, other) == []


def test_S41_a_message_that_is_never_taken_keeps_its_mates_waiting_for_few_probes(
    database: Database, account: str, make_receiver: MakeReceiver, deliver: Deliver
) -> None:
    def behave(handler: BaseHTTPRequestHandler, request: Received) -> None:
        answer(404 if request.path == "/gone-bad" else 200)(handler, request)

    receiver = make_receiver(behave)
    notify(database, account, receiver.url("/gone-bad"), 10)
    deliver()
    notify(database, account, receiver.url("/fine"), 5)
    assert deliver() == 0
    for _ in range(2):
        probe(database, deliver)
    receivers.release(database)
    deliver()
    fine = [each.state for each in list_deliveries(database, account) if each.url.endswith("/fine")]
    assert fine == ["delivered"] * 5


def test_S41_a_receiver_that_fails_for_days_is_paused_and_its_owner_is_told(
    database: Database,
    account: str,
    make_receiver: MakeReceiver,
    make_job: MakeJob,
    deliver: Deliver,
    capsys: pytest.CaptureFixture[str],
) -> None:
    receiver = make_receiver(answer(500))
    notify(database, account, receiver.url(), 20)
    deliver()
    probe(database, deliver)
    assert known(database, account).state == "failing"
    later(database, 5 * DAY)
    assert probe(database, deliver) == 1
    one = known(database, account)
    assert (one.state, one.next_probe_at, one.last_error_code) == ("paused", None, "http_status")
    assert "webhook_receiver_paused" in "".join(capsys.readouterr())
    assert receivers.num_receivers(database, "paused") == 1
    sent = len(receiver.received)
    notify(database, account, receiver.url(), 3)
    later(database, 7 * HOUR)
    assert probe(database, deliver) == 0
    assert len(receiver.received) == sent, "nothing is sent to it"
    held = counts(database, account)["held"]
    assert {each.receiver_state for each in list_deliveries(database, account)} == {"paused"}
    warning = make_job(webhook_url=receiver.url("/other")).warnings[0]
    assert (warning.code, warning.field) == ("webhook_receiver_paused", "webhook_url")
    assert make_job(webhook_url="https://elsewhere.example.com/").warnings == ()

    receiver.behave = answer(200)
    receivers.resume(database, account, one.id)
    receivers.wake(database)
    assert deliver() == 1
    receivers.release(database)
    assert deliver() >= held - 1
    assert set(counts(database, account)) <= {"delivered", "pending"}


def test_S41_what_waits_for_a_paused_receiver_too_long_fails_with_a_code_and_can_be_replayed(
    database: Database, account: str, make_receiver: MakeReceiver, deliver: Deliver
) -> None:
    receiver = make_receiver(answer(500))
    notify(database, account, receiver.url(), 8)
    deliver()
    later(database, 5 * DAY)
    probe(database, deliver)
    later(database, DAY)
    assert receivers.fail_held(database, keep_seconds=2 * DAY) == []
    held = counts(database, account)["held"]
    later(database, DAY + 1)
    assert len(receivers.fail_held(database, keep_seconds=2 * DAY)) == held
    failed = [each for each in list_deliveries(database, account) if each.state == "failed"]
    assert {each.error_code for each in failed} == {"receiver_paused"}
    receiver.behave = answer(200)
    deliveries.replay(database, account, failed[0].id)
    deliver()
    states = {each.id: each.state for each in list_deliveries(database, account)}
    assert states[failed[0].id] == "delivered", "a replay resumes its receiver"


def test_S41_what_is_known_of_a_receiver_is_forgotten_when_nothing_waits_for_it(
    database: Database, account: str, make_receiver: MakeReceiver, deliver: Deliver
) -> None:
    notify(database, account, make_receiver(answer(500)).url(), 8)
    deliver()
    later(database, 10 * DAY)
    assert receivers.forget(database, after_seconds=5 * DAY) == 0
    with database.transaction() as connection:
        connection.execute(
            text(
                """UPDATE webhook_deliveries SET state = 'failed', next_attempt_at = NULL, held_at = NULL,
                          finished_at = clock_timestamp()"""
            )
        )
    assert receivers.forget(database, after_seconds=5 * DAY) == 1
    assert receivers.list_receivers(database, account) == []
