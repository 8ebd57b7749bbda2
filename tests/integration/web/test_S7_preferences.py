"""S7: `Prefer` in all its forms, and `Preference-Applied` says what was done, if anything was."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask

from settings import Settings
from tests.integration.web.conftest import Client, Draw
from web.api.request_headers import DEFAULT_WAIT_SECONDS
from web.app import create_app

LONGEST = 0.2


@pytest.fixture(scope="module")
def hasty_app(settings: Settings) -> Flask:
    """An application whose longest wait is short."""
    return create_app(settings.model_copy(update={"max_wait_seconds": LONGEST}))


@pytest.fixture
def hasty(hasty_app: Flask, api_key: str) -> Client:
    return Client(hasty_app.test_client(), api_key)


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        (["wait"], "wait=0.2"),
        (["wait=9999"], "wait=0.2"),
        (["wait=0.1"], "wait=0.1"),
        (['WAIT="0.1"'], "wait=0.1"),
        (["wait=0"], "wait=0"),
        (["respond-async"], "respond-async"),
        (["respond-async, wait=0.1"], "wait=0.1, respond-async"),
        (["return=minimal", "wait=0.1", "wait=0.2"], "wait=0.1"),
        (["return=minimal"], None),
        (["wait=soon"], None),
        (["wait=-5"], None),
        (['"'], None),
    ],
)
def test_S7_what_was_applied_of_a_preference_is_said_and_nothing_else(
    hasty: Client, prefer: list[str], applied: str | None
) -> None:
    headers = [("Authorization", f"Bearer {hasty.key}"), *(("Prefer", line) for line in prefer)]
    answer = hasty.http.post("/v1/jobs", json={"prompt": "a red heart"}, headers=headers)
    assert answer.status_code == 202
    assert answer.headers.get("Preference-Applied") == applied


def test_S7_a_wait_lasts_as_long_as_it_says_and_the_default_is_cut_as_any_other(hasty: Client) -> None:
    assert DEFAULT_WAIT_SECONDS > LONGEST
    for prefer in ("wait", "wait=9999"):
        began = time.monotonic()
        assert hasty.submit(headers={"Prefer": prefer}).status_code == 202
        assert time.monotonic() - began >= LONGEST


def test_S7_a_wait_that_ends_with_the_job_was_applied_and_was_not_asynchronous(
    client: Client, draw: Draw
) -> None:
    job_id = client.submit().get_json()["id"]
    with ThreadPoolExecutor() as pool:
        shown = pool.submit(client, "GET", f"/v1/jobs/{job_id}", headers={"Prefer": "respond-async, wait=20"})
        draw(job_id)
    answer = shown.result(30)
    assert (answer.status_code, answer.get_json()["state"]) == (200, "succeeded")
    assert answer.headers["Preference-Applied"] == "wait=20"


@pytest.mark.parametrize("query", ["?wait", "?wait=", "?wait=9999", "?wait=0.2", "?wait=1e3"])
def test_S7_a_long_poll_takes_the_same_numbers(hasty: Client, query: str) -> None:
    job_id = hasty.submit().get_json()["id"]
    began = time.monotonic()
    answer = hasty("GET", f"/v1/jobs/{job_id}{query}")
    assert (answer.status_code, answer.get_json()["state"]) == (200, "queued")
    assert time.monotonic() - began >= LONGEST
    assert "Preference-Applied" not in answer.headers


def test_S7_what_the_address_says_goes_before_what_the_header_prefers(hasty: Client) -> None:
    job_id = hasty.submit().get_json()["id"]
    shown = hasty("GET", f"/v1/jobs/{job_id}?wait=0", headers={"Prefer": "wait=0.1"})
    assert (shown.status_code, shown.headers.get("Preference-Applied")) == (200, None)
    shown = hasty("GET", f"/v1/jobs/{job_id}", headers={"Prefer": "wait=0.1"})
    assert (shown.status_code, shown.headers.get("Preference-Applied")) == (200, "wait=0.1")


def test_S7_whatever_is_accepted_without_waiting_says_so_to_whom_it_was_asked_of(client: Client) -> None:
    job_id = client.submit().get_json()["id"]
    assert client("DELETE", f"/v1/jobs/{job_id}").status_code == 200
    again = client("POST", f"/v1/jobs/{job_id}/retry", headers={"Prefer": "respond-async"})
    assert (again.status_code, again.headers["Preference-Applied"]) == (202, "respond-async")
    shown = client("GET", f"/v1/jobs/{job_id}", headers={"Prefer": "respond-async"})
    assert "Preference-Applied" not in shown.headers
