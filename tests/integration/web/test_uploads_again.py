"""A report that is uploaded again continues: what succeeded is not drawn twice, what failed is."""

import csv
import io
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import update

from storage import jobs
from storage.database import Database
from storage.tables import jobs as job_table
from tests.integration.web.conftest import Client, Draw, assert_problem
from web.api.batches import max_report_bytes
from web.wiring import EXTENSION, Wiring

PROMPTS = (
    "prompt,seed,guidance_scale\na red heart… à côté,7,4.5\n=1+1,8,\na blue star,,\n'quoted',9,\n".encode()
)
Fail = Callable[[str], None]
Row = dict[str, str]


@pytest.fixture
def fail(database: Database) -> Fail:
    """Does to a job what a worker does that cannot draw it."""

    def end(job_id: str) -> None:
        claim = jobs.claim(
            database, job_id, tiers=["sd", "hd"], worker=jobs.WorkerName("boot", "cpu:0"), lease_seconds=30
        )
        assert claim
        jobs.fail(database, claim.lease, code="out_of_memory", detail="too large", retryable=True)

    return end


@pytest.fixture
def small_uploads(app: Flask) -> Iterator[int]:
    """The API takes a CSV of so many bytes and ten rows."""
    usual: Wiring = app.extensions[EXTENSION]
    app.extensions[EXTENSION] = replace(usual, max_csv_bytes=400, max_csv_rows=10)
    yield 400
    app.extensions[EXTENSION] = usual


def upload(client: Client, data: bytes, headers: dict[str, str] | None = None, **form: str) -> Any:
    file = (io.BytesIO(data), "results.csv")
    return client("POST", "/v1/batches", data={"file": file, **form}, headers=headers or {})


def report(client: Client, batch: Any, name: str = "results", query: str = "") -> bytes:
    return bytes(client("GET", f"{batch['links'][name]}{query}").get_data())


def rows_of(data: bytes) -> list[Row]:
    return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))


def written(rows: list[Row]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def half_done(client: Client, draw: Draw, fail: Fail) -> tuple[Any, list[Row]]:
    """A batch of four jobs: one drawn, one failed, one canceled, one queued; and its results."""
    batch = upload(client, PROMPTS).get_json()
    rows = rows_of(report(client, batch))
    draw(rows[0]["job_id"])
    fail(rows[1]["job_id"])
    client("DELETE", f"/v1/jobs/{rows[2]['job_id']}")
    return batch, rows_of(report(client, batch))


def counts(new: int = 0, retried: int = 0, succeeded: int = 0, still_open: int = 0) -> dict[str, int]:
    return {
        "new": new, "retried": retried, "already_succeeded": succeeded, "still_open": still_open,
    }  # fmt: skip


def test_S22_results_that_are_uploaded_again_run_what_came_to_nothing(
    client: Client, draw: Draw, fail: Fail
) -> None:
    batch, rows = half_done(client, draw, fail)
    answer = upload(client, report(client, batch))
    assert answer.status_code == 202
    again = answer.get_json()
    assert (again["num_jobs"], again["rows"]) == (2, counts(retried=2, succeeded=1, still_open=1))
    assert again["read_as"] == "commas, UTF-8"
    made = client("GET", again["links"]["jobs"]).get_json()["jobs"]
    asked = {job["retry_of"]: (job["prompt"], job["seed"], job["batch_line"]) for job in made}
    assert asked == {
        rows[1]["job_id"]: ("=1+1", 8, 3),
        rows[2]["job_id"]: ("a blue star", int(rows[2]["seed"]), 4),
    }
    shown = rows_of(report(client, again))
    assert [(row["line"], row["state"]) for row in shown] == [
        ("2", "succeeded"), ("3", "queued"), ("4", "queued"), ("5", "queued"),
    ]  # fmt: skip
    assert [row["job_id"] for row in shown[::3]] == [rows[0]["job_id"], rows[3]["job_id"]]


def test_S22_errors_that_are_uploaded_again_have_all_that_their_jobs_need(
    client: Client, draw: Draw, fail: Fail
) -> None:
    batch, rows = half_done(client, draw, fail)
    errors = report(client, batch, "errors")
    assert [row["error_code"] for row in rows_of(errors)] == ["out_of_memory", ""]
    again = upload(client, errors).get_json()
    assert (again["num_jobs"], again["rows"]) == (2, counts(retried=2))
    draw(rows_of(report(client, again))[0]["job_id"])
    # The same file once more: one of its jobs is drawn, the other has not ended.
    third = upload(client, errors).get_json()
    assert (third["num_jobs"], third["state"], third["rows"]) == (0, "succeeded", counts(0, 0, 1, 1))
    assert rows_of(report(client, third))[0]["retry_of"] == rows[1]["job_id"]


def test_S22_a_retry_that_failed_too_is_tried_again_from_the_first_file(
    client: Client, draw: Draw, fail: Fail
) -> None:
    batch, rows = half_done(client, draw, fail)
    errors = report(client, batch, "errors")
    first = rows_of(report(client, upload(client, errors).get_json()))
    fail(first[0]["job_id"])
    again = upload(client, errors).get_json()
    (job,) = client("GET", again["links"]["jobs"]).get_json()["jobs"]
    assert (job["retry_of"], job["seed"], again["rows"]) == (first[0]["job_id"], 8, counts(0, 1, 0, 1))
    assert rows[1]["job_id"] != job["retry_of"]


def test_S22_a_file_of_which_all_is_done_makes_a_batch_without_jobs(client: Client, draw: Draw) -> None:
    batch = upload(client, PROMPTS).get_json()
    for row in rows_of(report(client, batch)):
        draw(row["job_id"])
    done = report(client, batch)
    again = upload(client, done).get_json()
    assert (again["state"], again["percent"], again["num_jobs"]) == ("succeeded", 100, 0)
    assert (again["rows"], again["finished_at"] is not None) == (counts(succeeded=4), True)
    assert rows_of(report(client, again)) == rows_of(done)
    assert client("GET", again["links"]["self"]).get_json() == again


def test_S22_edited_rows_are_new_jobs_and_emptied_cells_keep_what_was(
    client: Client, draw: Draw, fail: Fail
) -> None:
    _, rows = half_done(client, draw, fail)
    rows[0]["prompt"] = "a green heart"
    rows[1] = {**dict.fromkeys(rows[1], ""), "job_id": rows[1]["job_id"], "line": "3"}
    rows[2]["deadline_seconds"] = "3600"
    rows.append({**dict.fromkeys(rows[0], ""), "prompt": "one more"})
    again = upload(client, written(rows)).get_json()
    assert again["rows"] == counts(new=2, retried=2, still_open=1)
    (warning,) = again["warnings"]
    assert (warning["code"], warning["detail"].partition(":")[0]) == ("rows_edited", "line 2")
    made = {job["prompt"]: job for job in client("GET", again["links"]["jobs"]).get_json()["jobs"]}
    assert made.keys() == {"a green heart", "=1+1", "a blue star", "one more"}
    assert [made[name]["retry_of"] for name in ("a green heart", "one more")] == [None, None]
    assert (made["a green heart"]["seed"], made["a green heart"]["guidance_scale"]) == (7, 4.5)
    assert made["=1+1"]["retry_of"] == rows[1]["job_id"]


def test_S22_a_row_without_a_line_of_its_own_gets_one_above_all_others(
    client: Client, draw: Draw, fail: Fail
) -> None:
    batch, _ = half_done(client, draw, fail)
    errors = rows_of(report(client, batch, "errors"))
    assert [row["line"] for row in errors] == ["3", "4"]
    new = dict.fromkeys(errors[0], "")
    file = [{**new, "prompt": "no line"}, errors[1], {**new, "prompt": "a taken line", "line": "4"}]
    again = upload(client, written(file)).get_json()
    made = client("GET", again["links"]["jobs"]).get_json()["jobs"]
    # The file's first line has no number, and line 5 is another row's of the batch that it continues.
    assert {job["prompt"]: job["batch_line"] for job in made} == {
        "no line": 6, "a blue star": 4, "a taken line": 7,
    }  # fmt: skip


@pytest.mark.parametrize("excel", [False, True])
def test_S22_a_report_of_the_largest_file_that_is_accepted_is_taken_back(
    client: Client, small_uploads: int, excel: bool
) -> None:
    data = b"prompt\n" + b"\xfc" * 50 + b"a" * 50 + b"\n" + b"b" * (small_uploads - 109) + b"\n"
    assert len(data) == small_uploads
    batch = upload(client, data, encoding="windows-1252").get_json()
    again = report(client, batch)
    assert len(again) > small_uploads
    if excel:
        again = again.decode("utf-8-sig").encode("utf-16")
    assert upload(client, again).get_json()["rows"] == counts(still_open=2)
    problem = assert_problem(upload(client, data + b"c"), 413, "body_too_large")
    assert f"larger than {small_uploads} bytes" in problem["detail"]
    most = max_report_bytes(small_uploads, 10)
    problem = assert_problem(upload(client, again + b" " * most), 413, "body_too_large")
    assert f"larger than {most} bytes" in problem["detail"]


def test_S22_only_the_job_id_is_needed(client: Client, draw: Draw, fail: Fail) -> None:
    _, rows = half_done(client, draw, fail)
    ids = "\n".join(row["job_id"] for row in rows)
    assert upload(client, f"job_id\n{ids}\n".encode()).get_json()["rows"] == counts(0, 2, 1, 1)


def test_S22_added_and_edited_rows_are_new_each_time_unless_their_key_is_the_same(
    client: Client, draw: Draw, fail: Fail
) -> None:
    _, rows = half_done(client, draw, fail)
    edited = rows[0] | {"seed": "77"}
    added = dict.fromkeys(rows[0], "") | {"prompt": "a star"}
    data, key = written([edited, added]), {"Idempotency-Key": "rows-of-today"}
    first, second, keyed, again = [upload(client, data, sent).get_json() for sent in ({}, {}, key, key)]
    assert [batch["rows"] for batch in (first, second, keyed)] == [counts(new=2)] * 3
    assert len({batch["id"] for batch in (first, second, keyed)}) == 3
    assert again["id"] == keyed["id"]


def test_S9_a_delimiter_by_word_and_by_itself_are_the_same_request(client: Client) -> None:
    key = {"Idempotency-Key": "two-spellings"}
    data = b"prompt;seed\na red heart;1\n"
    forms = [{"delimiter": "semicolon", "encoding": "UTF8"}, {"delimiter": ";", "encoding": "utf-8"}]
    first, again = [upload(client, data, key, **form).get_json() for form in forms]
    assert first["id"] == again["id"]


def test_S22_the_original_file_sent_again_is_drawn_again_and_its_report_continues(client: Client) -> None:
    first, second = [upload(client, PROMPTS).get_json() for _ in range(2)]
    assert [first["rows"]["new"], second["rows"]["new"]] == [4, 4]
    assert upload(client, report(client, second)).get_json()["rows"] == counts(still_open=4)


def test_S22_a_prompt_that_a_file_cannot_hold_as_it_is_was_not_edited(client: Client, draw: Draw) -> None:
    prompts = [
        "\ufeffa mark",
        "#N/A",
        "=1+1",
        "'=2",
        " space ",
        "two\nlines",
        'a "quote"; and, all',
        "e\u0301",
    ]
    ids = [client.submit(prompt=prompt, lane="bulk").get_json()["id"] for prompt in prompts]
    for job_id in ids:
        draw(job_id)
    first = upload(client, ("job_id\n" + "\n".join(ids)).encode()).get_json()
    for query in ("", "?delimiter=semicolon", "?delimiter=tab&bom=false"):
        again = upload(client, report(client, first, query=query)).get_json()
        assert again["rows"] == counts(succeeded=len(prompts))


def test_S22_the_id_of_a_json_job_is_its_job_id_and_other_ids_are_passed_over(client: Client) -> None:
    job = client.submit(seed=5).get_json()
    client("DELETE", f"/v1/jobs/{job['id']}")
    data = f"id,prompt,state,seed\n{job['id']},a red heart,canceled,5\n17,a star,,\n"
    assert upload(client, data.encode()).get_json()["rows"] == counts(new=1, retried=1)


@pytest.mark.parametrize("name", ["results", "errors"])
def test_S22_another_accounts_report_is_refused_by_line(
    client: Client, stranger: Client, draw: Draw, fail: Fail, name: str
) -> None:
    batch, rows = half_done(client, draw, fail)
    answer = upload(stranger, report(client, batch, name))
    problem = assert_problem(answer, 422, "invalid_csv")
    num_rows = len(rows) if name == "results" else 2
    assert [(error["line"], error["field"]) for error in problem["errors"]] == [
        (line, "job_id") for line in range(2, 2 + num_rows)
    ]
    assert stranger("GET", "/v1/batches").get_json()["batches"] == []
    assert_problem(stranger("POST", f"/v1/batches/{batch['id']}/retry"), 404, "not_found")


@pytest.mark.parametrize("job_id", ["job_" + "0" * 26, "nonsense", "7"])
def test_S22_an_id_that_is_no_jobs_is_refused_by_line(client: Client, job_id: str) -> None:
    problem = assert_problem(upload(client, f"prompt,job_id\na,\nb,{job_id}\n".encode()), 422, "invalid_csv")
    assert [(error["line"], error["field"]) for error in problem["errors"]] == [(3, "job_id")]
    assert f"is not a job of this account: '{job_id}'" in problem["detail"]


def test_S22_a_row_that_is_there_twice_is_tried_once(client: Client, draw: Draw, fail: Fail) -> None:
    _, rows = half_done(client, draw, fail)
    again = upload(client, written([rows[1], rows[1], rows[1]])).get_json()
    assert again["rows"] == counts(retried=1, still_open=2)
    shown = rows_of(report(client, again))
    assert len(shown) == 3
    # All of them show the try that was begun for the first of them, and not the one that came to nothing.
    draw(shown[0]["job_id"])
    assert [row["state"] for row in rows_of(report(client, again))] == ["succeeded"] * 3
    assert report(client, again, "errors").count(b"\n") == 1


@pytest.mark.parametrize("seconds", [0.0004, 0.0000001, 0.25, 3600])
def test_S22_a_short_deadline_is_reported_as_one_that_can_be_sent_again(
    client: Client, seconds: float
) -> None:
    batch = upload(client, f"prompt,deadline_seconds\na,{seconds:.7f}\n".encode()).get_json()
    (row,) = rows_of(report(client, batch))
    assert float(row["deadline_seconds"]) == max(round(seconds, 3), 0.001)
    client("DELETE", f"/v1/jobs/{row['job_id']}")
    for query in ("", "?delimiter=semicolon"):
        again = upload(client, report(client, batch, query=query))
        assert again.status_code == 202, again.get_json()


def test_S22_two_uploads_at_once_try_each_row_once(client: Client, draw: Draw, fail: Fail) -> None:
    batch, rows = half_done(client, draw, fail)
    errors = written([row for row in rows_of(report(client, batch, "errors")) for _ in range(2)])
    answers: list[Any] = []
    start = threading.Barrier(6)

    def send() -> None:
        own = Client(client.http.application.test_client(), client.key)
        start.wait()
        answers.append(upload(own, errors).get_json())

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer["rows"]["retried"] for answer in answers) == [0, 0, 0, 0, 0, 2]
    shown = [[row["job_id"] for row in rows_of(report(client, answer))] for answer in answers]
    assert shown == [shown[0]] * 6
    made = client("GET", "/v1/jobs?limit=100").get_json()["jobs"]
    assert sorted(job["retry_of"] for job in made if job["retry_of"]) == sorted(
        row["job_id"] for row in rows[1:3]
    )


@pytest.mark.parametrize("name", ["results", "errors"])
def test_S22_a_report_from_a_german_excel_continues(
    client: Client, draw: Draw, fail: Fail, name: str
) -> None:
    batch, _ = half_done(client, draw, fail)
    text = report(client, batch, name, "?delimiter=semicolon").decode("utf-8-sig")
    assert "4,5;" in text or name == "errors"
    again = upload(client, text.replace("false", "FALSCH").encode("cp1252")).get_json()
    assert again["read_as"] == ("semicolons, Windows-1252" if name == "results" else "semicolons, UTF-8")
    assert (again["rows"]["new"], again["rows"]["retried"]) == (0, 2)


def test_S22_one_call_runs_the_failed_rows_of_a_batch_again(client: Client, draw: Draw, fail: Fail) -> None:
    batch, rows = half_done(client, draw, fail)
    answer = client("POST", client("GET", batch["links"]["self"]).get_json()["links"]["retry"])
    again = answer.get_json()
    assert (answer.status_code, answer.headers["Location"]) == (202, again["links"]["self"])
    assert (again["rows"], again["retry_of"]) == (counts(0, 2, 1, 1), batch["id"])
    assert [row["line"] for row in rows_of(report(client, again))] == ["2", "3", "4", "5"]
    made = client("GET", again["links"]["jobs"]).get_json()["jobs"]
    assert {job["retry_of"] for job in made} == {rows[1]["job_id"], rows[2]["job_id"]}
    twice = client("POST", f"/v1/batches/{batch['id']}/retry").get_json()
    assert (twice["num_jobs"], twice["rows"]) == (0, counts(0, 0, 1, 3))


def test_S22_a_retry_with_an_idempotency_key_is_the_same_batch(
    client: Client, draw: Draw, fail: Fail
) -> None:
    batch, _ = half_done(client, draw, fail)
    answers = [
        client("POST", f"/v1/batches/{batch['id']}/retry", headers={"Idempotency-Key": "k"}) for _ in range(2)
    ]
    assert answers[0].get_json() == answers[1].get_json()
    assert answers[1].headers["Idempotent-Replayed"] == "true"


def test_S22_a_batch_that_is_not_there_cannot_be_tried_again(client: Client) -> None:
    assert_problem(client("POST", "/v1/batches/bat_" + "0" * 26 + "/retry"), 404, "not_found")
    assert_problem(client("POST", "/v1/batches/nonsense/retry"), 404, "not_found")


@pytest.mark.usefixtures("outbox")
def test_S22_a_batch_without_jobs_tells_its_webhook_at_once(client: Client, draw: Draw) -> None:
    batch = upload(client, PROMPTS).get_json()
    for row in rows_of(report(client, batch)):
        draw(row["job_id"])
    url = "https://hooks.example.com/calotype"
    again = upload(client, report(client, batch), webhook_url=url).get_json()
    (delivery,) = client("GET", f"/v1/webhook-deliveries?batch_id={again['id']}").get_json()[
        "webhook_deliveries"
    ]
    assert (delivery["event"], delivery["url"]) == ("batch.completed", url)


def test_S22_a_model_that_is_served_no_more_is_refused_by_line(
    client: Client, draw: Draw, fail: Fail, database: Database
) -> None:
    batch = upload(client, b"prompt\na\nb\nc\n").get_json()
    with database.transaction() as connection:
        connection.execute(update(job_table).where(job_table.c.batch_id == batch["id"]).values(model="gone"))
    rows = rows_of(report(client, batch))
    draw(rows[0]["job_id"])
    fail(rows[1]["job_id"])
    fail(rows[2]["job_id"])
    problem = assert_problem(upload(client, report(client, batch)), 422, "invalid_csv")
    lines = [(3, "model"), (4, "model")]
    assert [(error["line"], error["field"]) for error in problem["errors"]] == lines
    problem = assert_problem(client("POST", f"/v1/batches/{batch['id']}/retry"), 409, "not_served")
    assert problem["detail"].startswith("line 3: ")
    assert ([(error["line"], error["field"]) for error in problem["errors"]], problem["num_errors"]) == (
        lines,
        2,
    )


def test_S21_results_begin_with_a_byte_order_mark_unless_told_otherwise(client: Client) -> None:
    batch = upload(client, PROMPTS).get_json()
    for name in ("results", "errors"):
        assert report(client, batch, name).startswith(b"\xef\xbb\xbfline,prompt,state,job_id,")
        assert report(client, batch, name, "?bom=false").startswith(b"line,prompt,state,job_id,")
    assert "a red heart… à côté".encode() in report(client, batch)
    answer = client("GET", batch["links"]["results"])
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"


def test_S21_results_can_have_the_delimiter_and_the_decimals_of_another_country(client: Client) -> None:
    batch = upload(client, PROMPTS).get_json()
    first = report(client, batch, query="?delimiter=semicolon&bom=false").decode().splitlines()[1]
    assert re.match(r"2;a red heart… à côté;queued;job_\w+;.*;4,5;", first)
    assert report(client, batch, query="?delimiter=tab").decode("utf-8-sig").startswith("line\tprompt\t")
    problem = assert_problem(
        client("GET", batch["links"]["results"] + "?delimiter=x"), 422, "invalid_request"
    )
    assert problem["errors"][0]["parameter"] == "delimiter"


def test_S15_S16_the_answer_says_how_the_file_was_read_and_what_was_assumed(client: Client) -> None:
    data = "prompt;seed\nein grüner Kreis;7\n".encode("cp1252")
    batch = upload(client, data).get_json()
    assert batch["read_as"] == "semicolons, Windows-1252"
    (warning,) = batch["warnings"]
    assert (warning["code"], "'ein grüner Kreis;7'" in warning["detail"]) == ("encoding_assumed", True)
    assert client("GET", batch["links"]["self"]).get_json() == batch
    assert client("GET", "/v1/batches").get_json()["batches"] == [batch]


def test_S15_S16_delimiter_and_encoding_can_be_given(client: Client) -> None:
    data = "prompt;seed\nкрасное сердце, большое;7\n".encode("cp1251")  # noqa: RUF001
    assert_problem(upload(client, data), 422, "invalid_csv")
    batch = upload(client, data, encoding="windows-1251", delimiter="semicolon").get_json()
    assert (batch["read_as"], batch["warnings"]) == ("semicolons, Windows-1251", [])
    (job,) = client("GET", batch["links"]["jobs"]).get_json()["jobs"]
    assert job["prompt"] == "красное сердце, большое"
    same = upload(client, data, encoding="windows-1251", delimiter="auto")
    assert same.get_json()["read_as"] == "semicolons, Windows-1251"
    assert upload(client, PROMPTS, encoding="", delimiter="").get_json()["read_as"] == "commas, UTF-8"
    problem = assert_problem(upload(client, data, encoding="zlib", delimiter="x"), 422, "invalid_request")
    assert [error["pointer"] for error in problem["errors"]] == ["#/delimiter", "#/encoding"]


def test_S15_another_encoding_is_another_request(client: Client) -> None:
    headers = {"Idempotency-Key": "k"}
    assert upload(client, PROMPTS, headers).status_code == 202
    other = upload(client, PROMPTS, headers, encoding="utf-8")
    assert_problem(other, 422, "idempotency_key_reused")


def test_S18_S20_what_is_wrong_before_a_quote_that_is_never_closed_is_named_too(client: Client) -> None:
    data = b'prompt,seed\na,x\nb,y\n"c,3\n' + b"d,4\n" * 1000
    problem = assert_problem(upload(client, data), 422, "invalid_csv")
    found = [(error["line"], error["field"]) for error in problem["errors"]]
    assert (found, problem["num_errors"]) == ([(2, "seed"), (3, "seed"), (4, "prompt")], 3)


def test_S10_S20_everything_that_is_wrong_with_a_row_is_named(client: Client) -> None:
    data = b"prompt,seed,width,scheduler\na,x,999,ddim\nb,1,128,pndm\n,y,,\nc,1,2,3,4\n"
    problem = assert_problem(upload(client, data), 422, "invalid_csv")
    found = [(error["line"], error["field"]) for error in problem["errors"]]
    assert set(found) == {
        (2, "seed"), (2, "width"), (3, "scheduler"), (4, "seed"), (4, "prompt"), (5, ""),
    }  # fmt: skip


def test_S22_empty_fields_of_a_form_are_not_given(client: Client) -> None:
    answer = upload(client, b"prompt\na\n", model="", webhook_url="", delimiter="", encoding="")
    assert answer.status_code == 202, answer.get_json()


def test_S20_what_is_wrong_beside_the_file_is_named_with_its_rows(client: Client) -> None:
    data = b"prompt,seed\na,x\nb,y\n"
    problem = assert_problem(upload(client, data, webhook_url="http://x", colour="red"), 422, "invalid_csv")
    places = [error.get("line", error.get("pointer")) for error in problem["errors"]]
    assert (places, problem["num_errors"]) == (["#/colour", "#/webhook_url", 2, 3], 4)
    assert problem["detail"].startswith("line 2, seed: ")
    torn = data + b'"c\n'
    problem = assert_problem(upload(client, torn, webhook_url="http://x"), 422, "invalid_csv")
    assert [error.get("line", error.get("pointer")) for error in problem["errors"]] == [
        "#/webhook_url", 2, 3, 4,
    ]  # fmt: skip
    headless = assert_problem(upload(client, b"seed\n1\n", webhook_url="http://x"), 422, "invalid_csv")
    assert [error.get("line", error.get("pointer")) for error in headless["errors"]] == ["#/webhook_url", 1]
    alone = upload(client, b"prompt\na\n", webhook_url="http://x")
    assert assert_problem(alone, 422, "invalid_request")["errors"][0]["pointer"] == "#/webhook_url"
    unread = assert_problem(
        upload(client, data, webhook_url="http://x", encoding="y"), 422, "invalid_request"
    )
    assert [error["pointer"] for error in unread["errors"]] == ["#/webhook_url", "#/encoding"]
    assert client("GET", "/v1/batches").get_json()["batches"] == []
