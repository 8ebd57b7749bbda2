"""A job is accepted once, shown to its owner, waited for, canceled, tried again; its link does not rot."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from flask import Flask

from settings import Settings
from storage import jobs
from storage.database import Database
from tests.integration.web.conftest import PNG, Client, Draw, assert_problem
from web.app import create_app
from web.wiring import EXTENSION, Wiring

FIELDS = {
    "id", "state", "eta_seconds", "queue_position", "waiting_reason", "progress", "attempt", "tier", "model",
    "lane", "prompt", "negative_prompt", "width", "height", "num_inference_steps", "guidance_scale",
    "guidance_cutoff", "step_cache", "scheduler", "seed", "num_images", "strict", "output_format",
    "output_quality", "image", "mask_image", "control_image", "strength", "loras", "pipeline_parameters",
    "images", "error",
    "warnings", "worker", "batch_id", "batch_line", "retry_of", "created_at", "started_at", "finished_at",
    "key_id", "tag", "cost", "timings", "links",
}  # fmt: skip


def test_a_job_is_accepted_and_can_be_found_at_its_address(client: Client) -> None:
    answer = client.submit(width=192, height=128, seed=5)
    assert answer.status_code == 202
    job = answer.get_json()
    assert set(job) == FIELDS
    assert (job["state"], job["tier"], job["seed"], job["images"]) == ("queued", "hd", 5, [])
    assert job["eta_seconds"] is None
    assert answer.headers["Location"] == job["links"]["self"]
    assert lasting(client("GET", answer.headers["Location"]).get_json()) == lasting(job)


def lasting(job: dict[str, Any]) -> dict[str, Any]:
    """A job without its place at one moment, which comes from a snapshot if it was just accepted."""
    return {name: value for name, value in job.items() if name not in ("queue_position", "waiting_reason")}


def dispatch_seq(database: Database, job_id: str) -> int:
    with database.transaction() as connection:
        found = connection.exec_driver_sql("SELECT dispatch_seq FROM jobs WHERE id = %s", (job_id,))
        return int(found.scalar_one())


def test_an_interactive_job_is_dispatched_and_a_bulk_job_left_to_workers(
    app: Flask, client: Client, database: Database
) -> None:
    wiring: Wiring = app.extensions[EXTENSION]
    dispatched = wiring.dispatcher.num_dispatched
    job_ids = [client.submit(lane=lane).get_json()["id"] for lane in ("interactive", "bulk")]
    assert wiring.dispatcher.num_dispatched == dispatched + 1
    assert [dispatch_seq(database, job_id) for job_id in job_ids] == [1, 0]


def is_dispatched(database: Database, job_id: str) -> bool:
    with database.transaction() as connection:
        query = "SELECT dispatch_number IS NOT NULL FROM jobs WHERE id = %s"
        return bool(connection.exec_driver_sql(query, (job_id,)).scalar_one())


def test_a_dead_broker_does_not_turn_a_job_away(settings: Settings, api_key: str, database: Database) -> None:
    dead = settings.model_copy(update={"broker_url": type(settings.broker_url)("redis://127.0.0.1:1/0")})
    client = Client(create_app(dead).test_client(), api_key)
    for _ in range(2):
        answer = client.submit()
        assert answer.status_code == 202
    assert client("GET", answer.headers["Location"]).get_json()["state"] == "queued"
    assert not is_dispatched(database, answer.get_json()["id"]), (
        "the sweeper dispatches it once the broker is back"
    )
    readiness = client("GET", "/readyz")
    assert readiness.status_code == 200
    assert readiness.get_json()["state"] == "degraded"
    assert readiness.get_json()["checks"]["broker"]["ok"] is False


def test_a_dead_database_is_unavailable_and_says_when_to_come_back(settings: Settings) -> None:
    url = type(settings.database_url)("postgresql://nobody@127.0.0.1:1/none")
    client = Client(create_app(settings.model_copy(update={"database_url": url})).test_client(), "calo_a_b")
    problem = client.submit()
    assert_problem(problem, 503, "database_unavailable")
    assert problem.headers["Retry-After"] == "2"
    readiness = client("GET", "/readyz")
    assert (readiness.status_code, readiness.get_json()["state"]) == (503, "unavailable")
    assert client("GET", "/healthz").status_code == 200
    assert "database does not answer" in client("GET", "/").get_data(as_text=True)


def test_a_finished_job_leads_to_its_image(client: Client, draw: Draw) -> None:
    job_id = client.submit().get_json()["id"]
    assert_problem(client("GET", f"/v1/jobs/{job_id}/images/0"), 404, "image_not_found")
    draw(job_id)
    job = client("GET", f"/v1/jobs/{job_id}").get_json()
    queued_seconds = job["timings"].pop("queued_seconds")
    assert (job["state"], job["progress"], job["timings"]) == ("succeeded", 1.0, {"denoise": 1.5})
    started_at, created_at = (datetime.fromisoformat(job[name]) for name in ("started_at", "created_at"))
    assert queued_seconds == pytest.approx((started_at - created_at).total_seconds(), abs=0.001)
    assert (job["worker"], job["attempt"]) == ("cpu:0@test", 1)
    (image,) = job["images"]
    assert set(image) == {
        *("index", "url", "width", "height", "sha256", "expires_at"),
        *("deleted_at", "missing_at"),
    }
    redirect = client("GET", f"/v1/jobs/{job_id}/images/0")
    assert (redirect.status_code, redirect.headers["Cache-Control"]) == (302, "no-store")
    for url in (image["url"], redirect.headers["Location"]):
        answer = httpx2.get(url, trust_env=False)
        assert (answer.content, answer.headers["content-type"]) == (PNG, "image/png")
    assert_problem(client("GET", f"/v1/jobs/{job_id}/images/1"), 404, "image_not_found")


def test_who_prefers_to_wait_gets_the_finished_job(client: Client, draw: Draw) -> None:
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(client.submit, headers={"Prefer": "wait=20"})
        draw(_only_job(client))
        response = answer.result(20)
    assert response.status_code == 200
    assert response.headers["Preference-Applied"] == "wait=20"
    assert response.get_json()["state"] == "succeeded"


def test_who_waits_in_vain_is_accepted(client: Client) -> None:
    response = client.submit(headers={"Prefer": "wait=0"})
    assert (response.status_code, response.get_json()["state"]) == (202, "queued")
    assert response.headers["Preference-Applied"] == "wait=0"


def test_a_long_poll_ends_with_the_job(client: Client, draw: Draw) -> None:
    job_id = client.submit().get_json()["id"]
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(client, "GET", f"/v1/jobs/{job_id}?wait=20")
        draw(job_id)
        assert answer.result(20).get_json()["state"] == "succeeded"
    assert client("GET", f"/v1/jobs/{job_id}?wait=20").get_json()["state"] == "succeeded"


def test_waiters_hold_no_connection_and_beyond_their_limit_nobody_waits(
    settings: Settings, api_key: str
) -> None:
    app = create_app(settings.model_copy(update={"max_waiters": 16}))
    client = Client(app.test_client(), api_key)
    wiring: Wiring = app.extensions[EXTENSION]
    job_id = client.submit().get_json()["id"]
    with ThreadPoolExecutor(16) as pool:
        # The pool has 10 connections: with one each, 16 waiters could not all wait.
        waiting = [
            pool.submit(Client(app.test_client(), api_key), "GET", f"/v1/jobs/{job_id}?wait=30")
            for _ in range(16)
        ]
        deadline = time.monotonic() + 10
        while wiring.waiter.num_waiters < 16:
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
        began = time.monotonic()
        assert client("GET", f"/v1/jobs/{job_id}?wait=30").get_json()["state"] == "queued"
        assert client.submit(headers={"Prefer": "wait=30"}).status_code == 202
        assert time.monotonic() - began < 5
        assert client("DELETE", f"/v1/jobs/{job_id}").status_code == 200
        assert {answer.result(10).get_json()["state"] for answer in waiting} == {"canceled"}


def test_the_same_key_and_body_is_the_same_job(client: Client, database: Database) -> None:
    first, second = (client.submit(headers={"Idempotency-Key": "k 1"}) for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 202)
    assert lasting(first.get_json()) == lasting(second.get_json())
    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"
    assert dispatch_seq(database, first.get_json()["id"]) == 1


def test_the_same_key_with_another_body_is_refused(client: Client) -> None:
    client.submit(headers={"Idempotency-Key": "k"})
    assert_problem(client.submit(seed=2, headers={"Idempotency-Key": "k"}), 422, "idempotency_key_reused")


def test_what_was_accepted_once_is_shown_again_whatever_is_served_now(
    client: Client, settings: Settings, tmp_path: Path
) -> None:
    keys = ({"Idempotency-Key": "many steps"}, {"Idempotency-Key": "again"})
    first = client.submit(num_inference_steps=120, headers=keys[0]).get_json()
    client("DELETE", f"/v1/jobs/{first['id']}")
    retry = client("POST", f"/v1/jobs/{first['id']}/retry", headers=keys[1]).get_json()
    served = settings.config.read_text().replace(
        "max_num_inference_steps = 150", "max_num_inference_steps = 50"
    )
    served = served.replace('schedulers = ["ddim", ', "schedulers = [")
    (tmp_path / "calotype.toml").write_text(served)
    app = create_app(settings.model_copy(update={"config": tmp_path / "calotype.toml"}))
    client = Client(app.test_client(), client.key)
    again = client.submit(num_inference_steps=120, headers=keys[0])
    assert (again.status_code, again.get_json()["id"]) == (202, first["id"])
    assert again.headers["Idempotent-Replayed"] == "true"
    assert_problem(client.submit(num_inference_steps=120), 422, "invalid_request")
    other = client.submit(num_inference_steps=121, headers=keys[0])
    assert_problem(other, 422, "idempotency_key_reused")
    again = client("POST", f"/v1/jobs/{first['id']}/retry", headers=keys[1])
    assert (again.status_code, again.get_json()["id"]) == (202, retry["id"])
    assert_problem(client("POST", f"/v1/jobs/{first['id']}/retry"), 409, "not_served")


def test_an_idempotency_key_belongs_to_its_account(client: Client, stranger: Client) -> None:
    jobs_made = {who.submit(headers={"Idempotency-Key": "k"}).get_json()["id"] for who in (client, stranger)}
    assert len(jobs_made) == 2


def test_twins_at_the_same_moment_make_one_job(app: Flask, api_key: str) -> None:
    def submit(_: int) -> str:
        twin = Client(app.test_client(), api_key)
        return str(twin.submit(headers={"Idempotency-Key": "k"}).get_json()["id"])

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(submit, range(8)))) == 1


def test_a_queued_job_is_canceled_once(client: Client) -> None:
    job_id = client.submit().get_json()["id"]
    assert client("DELETE", f"/v1/jobs/{job_id}").get_json()["state"] == "canceled"
    assert_problem(client("DELETE", f"/v1/jobs/{job_id}"), 409, "job_is_final")


def test_a_running_job_is_asked_to_stop(client: Client, database: Database) -> None:
    job_id = client.submit().get_json()["id"]
    worker = jobs.WorkerName("boot", "cpu:0")
    claim = jobs.claim(database, job_id, tiers=["sd"], worker=worker, lease_seconds=30)
    assert claim
    answer = client("DELETE", f"/v1/jobs/{job_id}")
    assert (answer.status_code, answer.get_json()["state"]) == (202, "running")
    assert jobs.fail(database, claim.lease, code="canceled", detail="", retryable=False) == "canceled"


def test_a_failed_job_says_why_and_can_be_tried_again(client: Client, database: Database) -> None:
    sent = {"seed": 9, "num_images": 2, "deadline_seconds": 600.0, "scheduler": "euler",
            "guidance_cutoff": 0.25, "preset": "thrifty"}  # fmt: skip
    job_id = client.submit(**sent).get_json()["id"]
    assert_problem(client("POST", f"/v1/jobs/{job_id}/retry"), 409, "job_is_not_final")
    worker = jobs.WorkerName("boot", "cpu:0")
    claim = jobs.claim(database, job_id, tiers=["sd"], worker=worker, lease_seconds=30)
    assert claim
    jobs.fail(database, claim.lease, code="out_of_memory", detail="too large", retryable=True)
    failed = client("GET", f"/v1/jobs/{job_id}").get_json()
    assert failed["error"] == {"code": "out_of_memory", "retryable": True, "detail": "too large"}
    headers = {"Idempotency-Key": "again"}
    answers = [client("POST", f"/v1/jobs/{job_id}/retry", headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    again = answers[0].get_json()
    assert answers[1].get_json()["id"] == again["id"] != job_id
    assert (again["retry_of"], again["state"], again["error"]) == (job_id, "queued", None)
    assert (failed["num_inference_steps"], failed["guidance_cutoff"], failed["step_cache"]) == (20, 0.25, 3)
    for name in (
        "prompt", "seed", "num_images", "scheduler", "width", "tier", "lane", "num_inference_steps",
        "guidance_cutoff", "step_cache",
    ):  # fmt: skip
        assert again[name] == failed[name]


def test_a_list_is_read_page_by_page_and_by_filter(client: Client) -> None:
    made = [
        client.submit(lane="bulk" if number % 2 else "interactive").get_json()["id"] for number in range(7)
    ]
    client("DELETE", f"/v1/jobs/{made[0]}")
    found: list[str] = []
    cursor = None
    while True:
        query = {"limit": 3, **({"cursor": cursor} if cursor else {})}
        page = client("GET", "/v1/jobs", query_string=query).get_json()
        found += [job["id"] for job in page["jobs"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == made[::-1]

    def ids(query: str) -> list[str]:
        return [job["id"] for job in client("GET", f"/v1/jobs?{query}").get_json()["jobs"]]

    assert ids("lane=bulk") == [made[5], made[3], made[1]]
    assert ids("state=canceled") == [made[0]]
    assert len(ids("state=canceled&state=queued")) == 7
    assert ids("tier=hd") == []
    assert ids("batch_id=bat_" + "0" * 26) == []


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=201", "limit=x", "cursor=x", "state=done", "lane=fast", "tier=%00", "tier=A",
        "batch_id=%00", "page=2", "state=queued&state=",
    ],
)  # fmt: skip
def test_a_query_that_means_nothing_is_refused(client: Client, query: str) -> None:
    problem = assert_problem(client("GET", f"/v1/jobs?{query}"), 422, "invalid_request")
    assert problem["errors"][0]["parameter"].split("/")[0] in query


@pytest.mark.parametrize("wait", ["-1", "nan", "inf", "x"])
def test_a_wait_that_means_nothing_is_refused(client: Client, wait: str) -> None:
    problem = assert_problem(client("GET", f"/v1/jobs/job_x?wait={wait}"), 422, "invalid_request")
    assert problem["errors"][0]["parameter"] == "wait"


def _only_job(client: Client) -> str:
    """The job that another thread is submitting for this account."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = client("GET", "/v1/jobs").get_json()["jobs"]
        if found:
            return str(found[0]["id"])
        threading.Event().wait(0.01)
    raise AssertionError("no job came")
