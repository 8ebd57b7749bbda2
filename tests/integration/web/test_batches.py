"""A CSV becomes bulk jobs at once, all or none; its results can be read while it runs."""

import csv
import io
from typing import Any

import pytest

from storage import jobs
from storage.database import Database
from tests.integration.web.conftest import Client, Draw, assert_problem

PROMPTS = b'\xef\xbb\xbfprompt,seed,width,height\n"a red heart, large",7,,\n=1+1,8,192,192\na blue star,,,\n'


def upload(client: Client, data: bytes = PROMPTS, headers: dict[str, str] | None = None, **form: str) -> Any:
    file = (io.BytesIO(data), "../my prompts.csv")
    return client("POST", "/v1/batches", data={"file": file, **form}, headers=headers or {})


def read(client: Client, url: str) -> list[dict[str, str]]:
    answer = client("GET", url)
    assert (answer.status_code, answer.mimetype) == (200, "text/csv")
    return list(csv.DictReader(io.StringIO(answer.get_data().decode("utf-8-sig"))))


def test_a_csv_becomes_bulk_jobs(client: Client) -> None:
    answer = upload(client)
    assert answer.status_code == 202
    batch = answer.get_json()
    assert (batch["state"], batch["num_jobs"], batch["percent"]) == ("running", 3, 0)
    assert batch["filename"] == "my prompts.csv"
    assert batch["counts"]["queued"] == 3
    assert answer.headers["Location"] == batch["links"]["self"]
    found = client("GET", batch["links"]["jobs"]).get_json()["jobs"]
    by_line = {job["batch_line"]: job for job in found}
    assert sorted(by_line) == [2, 3, 4]
    assert {job["lane"] for job in found} == {"bulk"}
    assert (by_line[2]["prompt"], by_line[2]["seed"], by_line[2]["tier"]) == ("a red heart, large", 7, "sd")
    assert (by_line[3]["tier"], by_line[3]["width"]) == ("hd", 192)
    assert client("GET", "/v1/batches").get_json()["batches"] == [batch]


def test_a_row_may_ask_for_less_work_by_name_and_by_field(client: Client) -> None:
    batch = upload(
        client, b"prompt,preset,step_cache,guidance_cutoff\na,thrifty,2,\nb,fast,,0.5\n"
    ).get_json()
    found = client("GET", batch["links"]["jobs"]).get_json()["jobs"]
    asked = {
        job["prompt"]: (job["num_inference_steps"], job["step_cache"], job["guidance_cutoff"])
        for job in found
    }
    assert asked == {"a": (20, 2, 0.5), "b": (4, 1, 0.5)}


def test_results_are_there_while_the_batch_runs(client: Client, draw: Draw, database: Database) -> None:
    batch = upload(client).get_json()
    results = batch["links"]["results"]
    before = read(client, results)
    assert [(row["line"], row["state"], row["images"]) for row in before] == [
        ("2", "queued", ""),
        ("3", "queued", ""),
        ("4", "queued", ""),
    ]
    assert before[1]["prompt"] == "'=1+1"
    draw(before[0]["job_id"])
    worker = jobs.WorkerName("boot", "cpu:0")
    claim = jobs.claim(database, before[1]["job_id"], tiers=["hd"], worker=worker, lease_seconds=30)
    assert claim
    jobs.fail(database, claim.lease, code="out_of_memory", detail="=too large", retryable=True)
    after = read(client, results)
    assert [row["state"] for row in after] == ["succeeded", "failed", "queued"]
    assert after[0]["images"].endswith(f"/v1/jobs/{before[0]['job_id']}/images/0")
    assert client("GET", after[0]["images"]).status_code == 302
    assert after[1]["error"] == "out_of_memory: =too large"
    (error,) = read(client, batch["links"]["errors"])
    assert (error["line"], error["error_code"], error["retryable"]) == ("3", "out_of_memory", "true")
    now = client("GET", batch["links"]["self"]).get_json()
    assert (now["state"], now["percent"]) == ("running", 66.7)
    draw(before[2]["job_id"])
    done = client("GET", batch["links"]["self"]).get_json()
    assert (done["state"], done["percent"]) == ("partially_failed", 100)
    assert done["finished_at"] is not None


def test_what_is_left_of_a_batch_can_be_canceled(client: Client, draw: Draw) -> None:
    batch = upload(client).get_json()
    draw(read(client, batch["links"]["results"])[0]["job_id"])
    canceled = client("DELETE", batch["links"]["cancel"]).get_json()
    assert canceled["counts"]["succeeded"] == 1
    assert canceled["counts"]["canceled"] == 2
    assert_problem(client("DELETE", f"/v1/batches/{batch['id']}"), 409, "job_is_final")


def test_the_same_key_and_file_is_the_same_batch(client: Client) -> None:
    headers = {"Idempotency-Key": "k"}
    first, second = (upload(client, headers=headers) for _ in range(2))
    assert first.get_json()["id"] == second.get_json()["id"]
    assert second.headers["Idempotent-Replayed"] == "true"
    other = upload(client, b"prompt\nanother\n", headers=headers)
    assert_problem(other, 422, "idempotency_key_reused")
    assert_problem(upload(client, headers=headers, model="tiny"), 422, "idempotency_key_reused")


def test_the_form_says_the_model_of_rows_that_name_none(client: Client) -> None:
    assert upload(client, model="tiny").status_code == 202
    problem = assert_problem(upload(client, model="huge"), 422, "invalid_csv")
    assert {error["field"] for error in problem["errors"]} == {"model"}


def test_batches_are_listed_page_by_page(client: Client) -> None:
    made = [upload(client, b"prompt\na\n").get_json()["id"] for _ in range(3)]
    page = client("GET", "/v1/batches?limit=2").get_json()
    rest = client("GET", f"/v1/batches?limit=2&cursor={page['next_cursor']}").get_json()
    assert [batch["id"] for batch in page["batches"] + rest["batches"]] == made[::-1]
    assert rest["next_cursor"] is None


def test_a_large_batch_is_read_in_pages(client: Client) -> None:
    lines = b"".join(b"prompt %d\n" % number for number in range(1200))
    batch = upload(client, b"prompt\n" + lines).get_json()
    rows = read(client, batch["links"]["results"])
    assert [row["prompt"] for row in rows] == [f"prompt {number}" for number in range(1200)]


def test_S36_ten_thousand_wrong_rows_are_counted_and_the_first_are_shown(client: Client) -> None:
    wrong = b"a,x,x,x\n" * 10_000
    answer = upload(client, b"prompt,seed,width,height\n" + wrong)
    body = answer.get_json()
    assert (answer.status_code, len(body["errors"]), body["num_errors"]) == (422, 100, 30_000)
    assert len(answer.get_data()) < 1_000_000


@pytest.mark.parametrize("header", [b"prompt," * 20_000, b"a," * 200_000])
def test_S36_a_header_of_many_columns_is_refused_by_the_limit(client: Client, header: bytes) -> None:
    answer = upload(client, header + b"\na\n")
    assert_problem(answer, 422, "invalid_csv")
    assert answer.get_json()["detail"] == "line 1: the header has more than 64 columns"


def test_S36_an_upload_of_many_parts_is_refused(client: Client) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nprompt\r\n'
    answer = client("POST", "/v1/batches", data=part * 1000, content_type="multipart/form-data; boundary=x")
    assert_problem(answer, 413, "body_too_large")


def test_S36_what_is_no_key_or_session_of_ours_is_not_looked_into(client: Client) -> None:
    key = {"Authorization": "Bearer calo_" + "a" * 4000}
    assert_problem(client.http.get("/v1/jobs", headers=key), 401, "unauthenticated")
    client.http.set_cookie("calotype_session", "a" * 4000)
    assert_problem(client.http.get("/v1/jobs"), 401, "unauthenticated")
