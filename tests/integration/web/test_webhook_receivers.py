"""S41: the owner of a receiver that fails is told, and may have it sent to again."""

from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text

from storage.database import Database

from .conftest import Client, assert_problem

URL = "https://hooks.example.com:8443/calotype"


@pytest.fixture
def paused(database: Database, account: str) -> str:
    """The account's receiver, paused; its id."""
    statement = text(
        """INSERT INTO webhook_receivers (account_id, receiver, state, num_failures, failing_since, paused_at,
                                          last_failed_at, last_error_code, last_error_detail)
           VALUES (:account, 'hooks.example.com:8443', 'paused', 250, clock_timestamp() - interval '5 days',
                   clock_timestamp(), clock_timestamp(), 'timeout', 'no answer')
           RETURNING id"""
    )
    with database.transaction() as connection:
        return str(connection.execute(statement, {"account": account}).scalar_one())


def listed(client: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client("GET", "/v1/webhook-receivers").get_json()["webhook_receivers"]
    return found


@pytest.mark.usefixtures("outbox", "paused")
def test_S41_a_paused_receiver_is_shown_to_its_account_and_resumed_by_it(
    client: Client, stranger: Client, paused: str
) -> None:
    (one,) = listed(client)
    assert (one["id"], one["receiver"], one["state"]) == (paused, "hooks.example.com:8443", "paused")
    assert (one["last_error_code"], one["next_probe_at"]) == ("timeout", None)
    assert one["failing_since"] < one["paused_at"]
    assert listed(stranger) == []
    address = f"/v1/webhook-receivers/{paused}/resume"
    assert one["links"]["resume"].endswith(address)
    assert_problem(stranger("POST", address), 404, "not_found")
    for nonsense in ("whr_1", "x" * 300, "whr_" + "0" * 32):
        assert_problem(client("POST", f"/v1/webhook-receivers/{nonsense}/resume"), 404, "not_found")
    answer = client("POST", address)
    assert answer.status_code == 202
    (resumed,) = answer.get_json()["webhook_receivers"]
    assert (resumed["state"], resumed["paused_at"]) == ("failing", None)
    assert resumed["next_probe_at"] is not None


@pytest.mark.usefixtures("outbox", "paused")
def test_S41_every_submission_and_delivery_that_names_a_paused_receiver_says_so(client: Client) -> None:
    job = client.submit(webhook_url=URL).get_json()
    assert [(each["code"], each["field"]) for each in job["warnings"]] == [
        ("webhook_receiver_paused", "webhook_url")
    ]
    assert client.submit(webhook_url="https://well.example.com/").get_json()["warnings"] == []
    assert client("DELETE", f"/v1/jobs/{job['id']}").status_code == 200
    (delivery,) = client("GET", "/v1/webhook-deliveries").get_json()["webhook_deliveries"]
    assert (delivery["state"], delivery["receiver_state"]) == ("pending", "paused")
    assert (delivery["held_at"], delivery["error_code"]) == (None, None)


@pytest.mark.usefixtures("outbox", "paused")
def test_S41_the_page_says_that_a_receiver_is_paused(
    app: Flask, client: Client, paused: str, api_key: str
) -> None:
    browser = app.test_client()
    browser.post("/session", data={"api_key": api_key})
    assert "hooks.example.com:8443 are paused" in browser.get("/").get_data(as_text=True)
    client("POST", f"/v1/webhook-receivers/{paused}/resume")
    assert "are paused" not in browser.get("/").get_data(as_text=True)
