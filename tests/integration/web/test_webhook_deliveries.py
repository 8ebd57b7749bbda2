"""The promises of `/v1/webhook-deliveries`: an account sees its own, every attempt, and may send again."""

from io import BytesIO
from ipaddress import ip_network
from typing import Any

import pytest
from sqlalchemy import text

from settings import Settings
from storage import accounts, deliveries
from storage.database import Database
from storage.deliveries import AttemptRecord
from web.app import create_app

from .conftest import Client, assert_problem

URL = "https://hooks.example.com/calotype"

pytestmark = pytest.mark.usefixtures("outbox")


def canceled_job(client: Client, url: str = URL) -> str:
    """A job that has ended and left a delivery; its id."""
    job: str = client.submit(webhook_url=url).get_json()["id"]
    assert client("DELETE", f"/v1/jobs/{job}").status_code == 200
    return job


def listed(client: Client, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client("GET", f"/v1/webhook-deliveries{query}").get_json()[
        "webhook_deliveries"
    ]
    return found


def attempt(database: Database, record: AttemptRecord, *, retry_seconds: float | None = None) -> None:
    claimed = deliveries.claim(database, max_per_account=4, lease_seconds=30)
    assert claimed is not None
    assert deliveries.record(database, claimed, record, retry_seconds=retry_seconds)


def test_a_delivery_is_shown_with_every_attempt(client: Client, database: Database) -> None:
    job = canceled_job(client)
    attempt(
        database, AttemptRecord(12, 500, "http_status", "the receiver answered 500", "oh"), retry_seconds=0
    )
    attempt(database, AttemptRecord(7, 204, answer=""))
    (delivery,) = listed(client)
    assert (delivery["event"], delivery["url"], delivery["job_id"]) == ("job.canceled", URL, job)
    shown = client("GET", f"/v1/webhook-deliveries/{delivery['id']}").get_json()
    assert (shown["state"], shown["num_attempts"], shown["next_attempt_at"]) == ("delivered", 2, None)
    assert [(each["number"], each["response_status"], each["error_code"]) for each in shown["attempts"]] == [
        (1, 500, "http_status"),
        (2, 204, None),
    ]
    assert "webhook_secret" not in str(shown)
    assert shown["links"]["job"].endswith(f"/v1/jobs/{job}")


def test_deliveries_are_listed_newest_first_by_page_and_filter(client: Client, database: Database) -> None:
    ids = [canceled_job(client) for _ in range(3)]
    attempt(database, AttemptRecord(1, 200))
    first = client("GET", "/v1/webhook-deliveries?limit=2").get_json()
    second = client("GET", f"/v1/webhook-deliveries?limit=2&cursor={first['next_cursor']}").get_json()
    found = first["webhook_deliveries"] + second["webhook_deliveries"]
    assert [each["job_id"] for each in found] == ids[::-1]
    assert second["next_cursor"] is None
    assert [each["job_id"] for each in listed(client, f"?job_id={ids[1]}")] == [ids[1]]
    assert [each["job_id"] for each in listed(client, "?state=delivered")] == [ids[0]]
    assert len(listed(client, "?state=pending&state=delivered")) == 3
    assert_problem(client("GET", "/v1/webhook-deliveries?state=lost"), 422, "invalid_request")


def test_a_delivery_is_sent_again_when_it_has_ended(client: Client, database: Database) -> None:
    canceled_job(client)
    (delivery,) = listed(client)
    address = f"/v1/webhook-deliveries/{delivery['id']}/replay"
    assert_problem(client("POST", address), 409, "delivery_is_pending")
    for record in (AttemptRecord(1, 200), AttemptRecord(1, 500, "http_status")):
        attempt(database, record)
        answer = client("POST", address)
        assert (answer.status_code, answer.get_json()["state"]) == (202, "pending")


def test_an_endless_history_is_shown_from_its_end(
    client: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.delivery_views.MAX_ATTEMPTS_SHOWN", 2)
    canceled_job(client)
    (delivery,) = listed(client)
    address = f"/v1/webhook-deliveries/{delivery['id']}"
    for number in range(3):
        if number:
            client("POST", f"{address}/replay")
        attempt(database, AttemptRecord(1, 200))
    shown = client("GET", address).get_json()
    assert shown["num_attempts"] == 3
    assert [one["number"] for one in shown["attempts"]] == [2, 3]


def test_another_accounts_deliveries_do_not_exist(
    client: Client, stranger: Client, database: Database
) -> None:
    canceled_job(client)
    (delivery,) = listed(client)
    attempt(database, AttemptRecord(1, 200))
    assert listed(stranger) == []
    assert listed(stranger, f"?job_id={delivery['job_id']}") == []
    assert_problem(stranger("GET", f"/v1/webhook-deliveries/{delivery['id']}"), 404, "not_found")
    assert_problem(stranger("POST", f"/v1/webhook-deliveries/{delivery['id']}/replay"), 404, "not_found")
    assert listed(client)[0]["state"] == "delivered"
    for nonsense in ("whd_1", "x" * 300, "whd_" + "0" * 32):
        assert_problem(client("GET", f"/v1/webhook-deliveries/{nonsense}"), 404, "not_found")


def test_the_secret_is_shown_to_its_account_and_kept_by_no_cache(
    client: Client, stranger: Client, database: Database, account: str
) -> None:
    answer = client("GET", "/v1/webhook-secret")
    assert answer.get_json() == {"webhook_secret": accounts.webhook_secret(database, account)}
    assert answer.headers["Cache-Control"] == "no-store"
    assert stranger("GET", "/v1/webhook-secret").get_json() != answer.get_json()
    changed = stranger("POST", "/v1/webhook-secret/rotate").get_json()
    assert stranger("GET", "/v1/webhook-secret").get_json() == changed
    assert client("GET", "/v1/webhook-secret").get_json() == answer.get_json()


def webhooks_check(client: Client) -> dict[str, Any]:
    check: dict[str, Any] = client("GET", "/readyz").get_json()["checks"]["webhooks"]
    return check


def due_since(database: Database, seconds: float) -> None:
    """As if everything that waits had been due for so long."""
    statement = text(
        """UPDATE webhook_deliveries SET next_attempt_at = clock_timestamp() - make_interval(secs => :seconds)
            WHERE state = 'pending'"""
    )
    with database.transaction() as connection:
        connection.execute(statement, {"seconds": seconds})


def test_readiness_says_that_nobody_sends_webhooks(client: Client, database: Database) -> None:
    canceled_job(client)
    assert webhooks_check(client) == {"ok": True, "detail": "no message is overdue"}
    due_since(database, 100)
    answer = client("GET", "/readyz")
    assert (answer.status_code, answer.get_json()["state"]) == (200, "degraded")
    check = answer.get_json()["checks"]["webhooks"]
    assert check["ok"] is False
    assert check["detail"].startswith("the oldest unsent message is 10")
    assert "--device none" in check["detail"]


def test_an_account_that_waits_for_its_receivers_does_not_count_as_unsent(
    client: Client, stranger: Client, database: Database
) -> None:
    for _ in range(2):
        canceled_job(client)
    due_since(database, 100)
    claimed = deliveries.claim(database, max_per_account=1, lease_seconds=30)
    assert claimed is not None
    assert webhooks_check(client)["ok"]
    canceled_job(stranger)
    with database.transaction() as connection:
        connection.execute(
            text(
                """UPDATE webhook_deliveries SET next_attempt_at = clock_timestamp() - interval '100 seconds'
                    WHERE account_id <> :id"""
            ),
            {"id": claimed.account_id},
        )
    assert not webhooks_check(client)["ok"]


def upload(client: Client, csv: bytes, **fields: str) -> Any:
    data = {"file": (BytesIO(csv), "a.csv"), **fields}
    return client("POST", "/v1/batches", data=data, content_type="multipart/form-data")


def test_a_batch_tells_its_end_once_and_a_row_with_a_url_of_its_own_tells_that_too(
    client: Client,
) -> None:
    csv = f"prompt,webhook_url\na,\nb,{URL}/row\n".encode()
    batch = upload(client, csv, webhook_url=URL).get_json()["id"]
    assert client("DELETE", f"/v1/batches/{batch}").status_code == 200
    assert sorted((each["event"], each["url"]) for each in listed(client)) == [
        ("batch.completed", URL),
        ("job.canceled", f"{URL}/row"),
    ]
    assert [each["event"] for each in listed(client, f"?batch_id={batch}")] == ["batch.completed"]


@pytest.mark.parametrize("url", ["http://example.com", "https://127.0.0.1/", "https://localhost/", "x"])
def test_a_batch_with_a_webhook_that_leads_inside_is_refused_by_name(client: Client, url: str) -> None:
    body = assert_problem(upload(client, b"prompt\na\n", webhook_url=url), 422, "invalid_request")
    assert [error["pointer"] for error in body["errors"]] == ["#/webhook_url"]
    body = assert_problem(upload(client, f"prompt,webhook_url\na,{url}\n".encode()), 422, "invalid_csv")
    assert [(error["line"], error["field"]) for error in body["errors"]] == [(2, "webhook_url")]


def test_a_network_that_was_opened_may_be_named(settings: Settings, api_key: str) -> None:
    opened = settings.model_copy(update={"webhook_allowed_networks": (ip_network("127.0.0.0/8"),)})
    client = Client(create_app(opened).test_client(), api_key)
    assert client.submit(webhook_url="https://127.0.0.1:8443/").status_code == 202
    assert client.submit(webhook_url="https://localhost:8443/").status_code == 202
    assert_problem(client.submit(webhook_url="https://10.0.0.1/"), 422, "invalid_request")
