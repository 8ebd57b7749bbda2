"""The promise about round trips to Postgres: a submission takes two, and so does showing what has ended."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask

from catalogue.states import State
from settings import Settings
from storage import database
from storage.workloads import Workload
from tests.integration.web.conftest import Client, Draw
from web.app import create_app
from web.estimates.forecast import Forecast
from web.wiring import EXTENSION


@contextmanager
def counted() -> Iterator[list[str]]:
    """What this thread sends to Postgres; a request is answered on the thread of its client here."""
    sent: list[str] = []
    thread = threading.get_ident()

    def watch(_driver: Any, query: str, _values: Any, _account: Any) -> None:
        if threading.get_ident() == thread:
            sent.append(" ".join(query.split())[:60])

    database.WATCHERS.append(watch)
    try:
        yield sent
    finally:
        database.WATCHERS.remove(watch)


def test_a_post_takes_two_statements(client: Client) -> None:
    client.submit()  # the first one also connects
    with counted() as sent:
        answer = client.submit(width=128, height=128, headers={"Idempotency-Key": "two statements"})
    assert answer.status_code == 202
    assert [query.partition("(")[0] for query in sent] == [
        "SELECT account_id, key_id FROM use_key",
        "INSERT INTO jobs ",
    ]


def test_showing_a_finished_job_takes_two_statements(client: Client, draw: Draw) -> None:
    path = client.submit().headers["Location"]
    draw(path.rpartition("/")[2])
    with counted() as sent:
        job = client("GET", path).get_json()
    assert (job["state"], len(job["images"])) == (State.SUCCEEDED, 1)
    assert len(sent) == 2, sent


def test_showing_a_queued_job_takes_three_statements(client: Client) -> None:
    """The third reads its place in the queue."""
    path = client.submit().headers["Location"]
    with counted() as sent:
        job = client("GET", path).get_json()
    assert job["queue_position"] is not None
    assert len(sent) == 3, sent


@pytest.fixture
def stuck(settings: Settings) -> Iterator[Flask]:
    """The application while the workload cannot be read: whoever reads it gets no answer."""
    go_on = threading.Event()

    def read() -> Workload:
        assert go_on.wait(60)
        return Workload((), (), ())

    app = create_app(settings)
    forecast = Forecast(read, settings.catalogue)
    app.extensions[EXTENSION] = replace(app.extensions[EXTENSION], forecast=forecast)
    yield app
    go_on.set()


def test_no_request_waits_for_the_snapshot(stuck: Flask, api_key: str) -> None:
    client = Client(stuck.test_client(), api_key)
    answer = client.submit()
    job = answer.get_json()
    assert answer.status_code == 202
    assert (job["eta_seconds"], job["queue_position"]) == (None, None)
    assert job["waiting_reason"]["code"] == "unknown"
    shown = client("GET", answer.headers["Location"]).get_json()
    assert shown["eta_seconds"] is None
    assert shown["waiting_reason"]["code"] != "unknown", "its own place is read from its rows"
    tiers = client("GET", "/v1/tiers").get_json()["tiers"]
    assert {tier["eta_seconds"] for tier in tiers} == {None}
