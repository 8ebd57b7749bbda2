"""Usage over HTTP: keys, tags and costs of jobs, sums of one account, and clear refusals."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from flask import Flask

from catalogue.accounting import Cost
from storage import accounts, counts, jobs
from storage.database import Database
from tests.integration.web.conftest import Client, assert_problem
from tests.integration.web.test_batches import read, upload


def finish(database: Database, job_id: str, *, seconds: float = 2.0, cost: str | None = "0.001") -> None:
    """Do what a worker does, which has used its device for so long."""
    worker = jobs.WorkerName("boot", "cpu:0@test")
    claim = jobs.claim(database, job_id, tiers=["sd", "hd"], worker=worker, lease_seconds=30)
    assert claim is not None
    timings = {"device_seconds": seconds}
    price = None if cost is None else Cost(Decimal(cost), "USD")
    assert jobs.finish(database, claim.lease, stored=[], warnings=[], timings=timings, cost=price)


def usage(client: Client, query: str = "") -> dict[str, Any]:
    answer = client("GET", f"/v1/usage{query}")
    assert answer.status_code == 200, answer.get_data(as_text=True)
    body: dict[str, Any] = answer.get_json()
    return body


def test_a_job_shows_its_key_its_tag_and_its_cost(client: Client, database: Database, account: str) -> None:
    job = client.submit(tag="project-7").get_json()
    (key,) = accounts.list_keys(database, account)
    assert (job["key_id"], job["tag"], job["cost"]) == (key.id, "project-7", None)
    finish(database, job["id"])
    shown = client("GET", f"/v1/jobs/{job['id']}").get_json()
    assert shown["cost"] == {"amount": 0.001, "currency": "USD"}
    assert shown["timings"]["device_seconds"] == 2.0


def test_a_job_without_a_price_costs_null_and_not_zero(client: Client, database: Database) -> None:
    job = client.submit().get_json()
    finish(database, job["id"], cost=None)
    assert client("GET", f"/v1/jobs/{job['id']}").get_json()["cost"] is None
    (row,) = usage(client)["data"]
    assert (row["cost"], row["device_seconds"], row["unpriced_device_seconds"]) == (None, 2.0, 2.0)


def test_a_retry_keeps_the_tag_and_has_the_key_of_its_request(
    app: Flask, client: Client, database: Database, account: str
) -> None:
    job = client.submit(tag="a").get_json()
    client("DELETE", f"/v1/jobs/{job['id']}")
    other = accounts.create_key(database, account, "other")
    again = Client(app.test_client(), other.plaintext)("POST", f"/v1/jobs/{job['id']}/retry").get_json()
    assert (again["tag"], again["key_id"]) == ("a", other.id)
    assert again["key_id"] != job["key_id"]


def test_a_tag_is_part_of_the_request_that_an_idempotency_key_repeats(client: Client) -> None:
    headers = {"Idempotency-Key": "tagged"}
    assert client.submit(tag="a", headers=headers).status_code == 202
    assert_problem(client.submit(tag="b", headers=headers), 422, "idempotency_key_reused")


def test_rows_of_a_csv_have_their_own_tags_or_that_of_the_upload(client: Client, database: Database) -> None:
    batch = upload(client, b"prompt,tag\na,\nb,own\nc,\n", tag="upload").get_json()
    found = {job["prompt"]: job for job in client("GET", batch["links"]["jobs"]).get_json()["jobs"]}
    assert {prompt: job["tag"] for prompt, job in found.items()} == {"a": "upload", "b": "own", "c": "upload"}
    assert [row["tag"] for row in read(client, batch["links"]["results"])] == ["upload", "own", "upload"]
    for prompt in "ab":
        finish(database, found[prompt]["id"])
    shown = client("GET", batch["links"]["self"]).get_json()
    assert (shown["device_seconds"], shown["unpriced_device_seconds"]) == (4.0, 0.0)
    assert shown["cost"] == {"amount": 0.002, "currency": "USD"}
    client("DELETE", batch["links"]["self"])
    again = client("POST", f"/v1/batches/{batch['id']}/retry").get_json()
    (retried,) = client("GET", again["links"]["jobs"]).get_json()["jobs"]
    assert (retried["prompt"], retried["tag"]) == ("c", "upload")
    by_batch = usage(client, "?by=batch&by=tag")["data"]
    assert [(row["batch_id"], row["tag"], row["num_jobs"]) for row in by_batch] == [
        (batch["id"], "own", 1),
        (batch["id"], "upload", 1),
    ]


def test_the_tag_of_an_upload_is_checked_once(client: Client) -> None:
    problem = assert_problem(upload(client, b"prompt\na\nb\n", tag="not a tag"), 422, "invalid_request")
    assert [error["pointer"] for error in problem["errors"]] == ["#/tag"]


def test_a_wrong_tag_of_a_row_is_reported_by_line(client: Client) -> None:
    problem = assert_problem(upload(client, b"prompt,tag\na,ok\nb,not a tag\n"), 422, "invalid_csv")
    assert [(error["line"], error["field"]) for error in problem["errors"]] == [(3, "tag")]


def test_jobs_are_listed_by_tag(client: Client, stranger: Client) -> None:
    tagged = [client.submit(tag="x").get_json()["id"] for _ in range(3)]
    client.submit(tag="y")
    client.submit()
    stranger.submit(tag="x")
    page = client("GET", "/v1/jobs?tag=x&limit=2").get_json()
    rest = client("GET", f"/v1/jobs?tag=x&limit=2&cursor={page['next_cursor']}").get_json()
    assert [job["id"] for job in (*page["jobs"], *rest["jobs"])] == tagged[::-1]
    assert rest["next_cursor"] is None
    client("DELETE", f"/v1/jobs/{tagged[0]}")
    (canceled,) = client("GET", "/v1/jobs?tag=x&state=canceled").get_json()["jobs"]
    assert canceled["id"] == tagged[0]


def test_usage_is_summed_by_what_is_asked(
    client: Client, stranger: Client, database: Database, account: str
) -> None:
    for number, tag in enumerate(("a", "a", "b", None)):
        job = client.submit(**({"tag": tag} if tag else {}), num_images=1 + number).get_json()
        finish(database, job["id"], cost=None if tag is None else "0.001")
        if number == 1:
            counts.fold(database)
    finish(database, stranger.submit(tag="a").get_json()["id"])
    found = usage(client, "?by=tag")
    assert [(row["tag"], row["num_jobs"], row["num_images"]) for row in found["data"]] == [
        (None, 1, 4),
        ("a", 2, 3),
        ("b", 1, 3),
    ]
    assert "day" not in found["data"][0]
    assert found["total"] == {
        "num_jobs": 4,
        "num_images": 10,
        "device_seconds": 8.0,
        "cost": {"amount": 0.003, "currency": "USD"},
        "unpriced_device_seconds": 2.0,
    }
    today = datetime.now(UTC).date()
    (row,) = usage(client)["data"]
    assert row["day"] in {str(today), str(today - timedelta(days=1))}
    (key,) = accounts.list_keys(database, account)
    (row,) = usage(client, f"?by=key&key_id={key.id}&tag=a")["data"]
    assert (row["key_id"], row["num_jobs"]) == (key.id, 2)


def test_pages_of_usage_follow_each_other(client: Client, database: Database) -> None:
    for tag in "cabd":
        finish(database, client.submit(tag=tag).get_json()["id"])
    query, found, pages = "?by=tag&by=day&limit=2", [], 0
    cursor = ""
    while True:
        page = usage(client, query + cursor)
        found += [row["tag"] for row in page["data"]]
        assert page["total"]["num_jobs"] == 4
        pages += 1
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert (found, pages) == (["a", "b", "c", "d"], 2)


def test_usage_of_nothing_is_zero_and_not_an_error(client: Client) -> None:
    found = usage(client, "?since=2020-01-01&until=2020-02-01")
    assert (found["data"], found["since"], found["until"]) == ([], "2020-01-01", "2020-02-01")
    assert found["total"]["num_jobs"] == 0
    assert found["total"]["cost"] is None


def test_usage_is_that_of_the_last_thirty_days_unless_asked_otherwise(client: Client) -> None:
    found = usage(client)
    days = [datetime.fromisoformat(found[name]) for name in ("since", "until")]
    assert days[1] - days[0] == timedelta(days=30)
    assert usage(client, "?until=2026-03-02")["since"] == "2026-01-31"
    assert usage(client, "?until=0001-01-02")["since"] == "0001-01-01"


@pytest.mark.parametrize(
    ("query", "parameter", "said"),
    [
        ("since=yesterday", "since", "should be a date such as"),
        ("since=1700000000", "since", "should be a date such as"),
        ("until=2026-02-30", "until", "is not a day of the calendar"),
        ("since=2026-02-01&until=2026-02-01", "since", "should be before until"),
        ("since=2020-01-01&until=2026-01-01", "since", "the limit is 400"),
        ("by=price", "by", "'day', 'key', 'batch', 'tag' or 'tier'"),
        ("tag=not%20a%20tag", "tag", "should have only"),
        ("key_id=key", "key_id", "should match"),
        ("batch_id=1", "batch_id", "should match"),
        ("cursor=x", "cursor", "is not a next_cursor"),
        ("cursor=WyIyMDI2LTk5LTk5Il0", "cursor", "is not a next_cursor"),  # ["2026-99-99"]
        ("by=tag&cursor=WyIyMDI2LTAxLTAxIiwiIl0", "cursor", "is not a next_cursor"),  # of two texts
        ("limit=0", "limit", "greater than or equal to 1"),
        ("day=1", "day", "is unknown"),
    ],
)
def test_a_wrong_query_is_named_with_its_limit(client: Client, query: str, parameter: str, said: str) -> None:
    problem = assert_problem(client("GET", f"/v1/usage?{query}"), 422, "invalid_request")
    (error,) = problem["errors"]
    assert error["parameter"] == parameter
    assert said in error["detail"]


@pytest.mark.parametrize(
    ("tag", "said"), [("x" * 65, "the limit is 64"), ("a b", "should have only"), ("", "at least one")]
)
def test_a_wrong_tag_is_refused_with_its_field_and_limit(client: Client, tag: str, said: str) -> None:
    problem = assert_problem(client.submit(tag=tag), 422, "invalid_request")
    (error,) = problem["errors"]
    assert error["pointer"] == "#/tag"
    assert said in error["detail"]


def test_a_tag_and_a_batch_cannot_be_combined_in_a_list(client: Client) -> None:
    batch = upload(client).get_json()["id"]
    problem = assert_problem(client("GET", f"/v1/jobs?tag=a&batch_id={batch}"), 422, "invalid_request")
    assert problem["errors"] == [{"parameter": "tag", "detail": "cannot be combined with batch_id"}]


def test_usage_needs_a_key_or_a_session(app: Flask) -> None:
    assert_problem(app.test_client().get("/v1/usage"), 401, "unauthenticated")


def test_a_job_of_a_page_has_the_key_of_its_session(client: Client, database: Database, account: str) -> None:
    client.http.post("/", data={"api_key": client.key, "prompt": "a red heart"})
    (job,) = client("GET", "/v1/jobs").get_json()["jobs"]
    (key,) = accounts.list_keys(database, account)
    assert job["key_id"] == key.id
    finish(database, job["id"], cost="0.000000417")
    page = client.http.get(f"/jobs/{job['id']}").get_data(as_text=True)
    assert ">0.000000417 USD<" in page, "a small cost is not shown as nothing"
