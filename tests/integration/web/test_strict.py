"""`strict` from the API and from a CSV into the row, and the one case in which it is refused."""

import io

import pytest

from storage.database import Database
from storage.job_views import get
from storage.workers import Worker, heartbeat, say_goodbye
from tests.integration.web.conftest import Client, assert_problem


@pytest.fixture
def promised(database: Database):  # type: ignore[no-untyped-def]
    """Makes a live worker of tier `hd` that promises so much, until the test ends."""
    names: list[str] = []

    def determinism(said: str) -> None:
        names.append(f"boot-strict-{len(names)}")
        worker = Worker(f"wrk_s{len(names)}", names[-1], "host", 1, "cuda:0", ("hd",), 12, 8, said)
        heartbeat(database, worker, [], lease_seconds=30)

    yield determinism
    for name in names:
        say_goodbye(database, name)


def upload(client: Client, text: str, **headers: str):  # type: ignore[no-untyped-def]
    data = {"file": (io.BytesIO(text.encode()), "prompts.csv")}
    return client("POST", "/v1/batches", data=data, content_type="multipart/form-data", headers=headers)


def test_strict_is_stored_shown_and_kept_by_a_retry(client: Client, database: Database, account: str) -> None:
    job = client.submit(strict=True).get_json()
    assert job["strict"] is True
    assert get(database, account, job["id"]).parameters.strict
    assert client.submit().get_json()["strict"] is False
    client("DELETE", f"/v1/jobs/{job['id']}")
    assert client("POST", f"/v1/jobs/{job['id']}/retry").get_json()["strict"] is True


def test_a_csv_says_it_by_row(client: Client) -> None:
    batch = upload(client, "prompt,strict\na,true\nb,FALSE\nc,\n").get_json()
    jobs = client("GET", f"/v1/jobs?batch_id={batch['id']}").get_json()["jobs"]
    assert {job["prompt"]: job["strict"] for job in jobs} == {"a": True, "b": False, "c": False}
    refused = upload(client, "prompt,strict\na,true\nb,2\n")
    assert_problem(refused, 422, "invalid_csv")
    error = refused.get_json()["errors"][0]
    assert (error["line"], error["field"], error["detail"]) == (3, "strict", "should be true or false")


def test_it_is_refused_while_no_live_worker_repeats_itself(client: Client, promised) -> None:  # type: ignore[no-untyped-def]
    large = {"width": 192, "height": 192}
    promised("not repeatable")
    refused = client.submit(strict=True, **large)
    assert_problem(refused, 422, "invalid_request")
    assert refused.get_json()["errors"][0]["pointer"] == "#/strict"
    rows = upload(client, "prompt,strict,width,height\na,,192,192\nb,true,192,192\n")
    assert_problem(rows, 422, "invalid_csv")
    assert rows.get_json()["errors"][0]["line"] == 3
    assert client.submit(**large).status_code == 202
    assert client.submit(strict=True).status_code == 202, "of its tier nothing is known"
    tiers = {tier["name"]: tier for tier in client("GET", "/v1/tiers").get_json()["tiers"]}
    assert tiers["hd"]["determinism"] == "not repeatable"
    promised("within 1/255")
    assert client.submit(strict=True, **large).status_code == 202, (
        "that one can run it in step batches of its own"
    )


def test_S20_strict_rows_are_named_with_all_other_mistakes(client: Client, promised) -> None:  # type: ignore[no-untyped-def]
    promised("not repeatable")
    rows = "prompt,strict,width,height,seed\na,true,192,192,\nb,,,,x\nc,true,192,192,\n"
    problem = assert_problem(upload(client, rows), 422, "invalid_csv")
    assert [(error["line"], error["field"]) for error in problem["errors"]] == [
        (2, "strict"), (3, "seed"), (4, "strict"),
    ]  # fmt: skip
    assert (problem["num_errors"], problem["detail"][:14]) == (3, "line 2, strict")


def test_what_was_accepted_once_is_shown_again_whoever_lives_now(client: Client, promised) -> None:  # type: ignore[no-untyped-def]
    body = {"strict": True, "width": 192, "height": 192}
    key = {"Idempotency-Key": "strict-once"}
    job = client.submit(headers=key, **body).get_json()
    promised("not repeatable")
    again = client.submit(headers=key, **body)
    assert (again.status_code, again.get_json()["id"]) == (202, job["id"])
    assert again.headers["Idempotent-Replayed"] == "true"


def test_a_batch_that_was_accepted_once_is_shown_again_whoever_lives_now(client: Client, promised) -> None:  # type: ignore[no-untyped-def]
    rows, key = "prompt,strict,width,height\na,true,192,192\n", {"Idempotency-Key": "strict-batch"}
    batch = upload(client, rows, **key).get_json()
    promised("not repeatable")
    again = upload(client, rows, **key)
    assert (again.status_code, again.get_json()["id"]) == (202, batch["id"])
    assert again.headers["Idempotent-Replayed"] == "true"
    assert_problem(upload(client, rows), 422, "invalid_csv")
    other = upload(client, "prompt,strict,width,height\nb,true,192,192\n", **key)
    assert_problem(other, 422, "idempotency_key_reused")
