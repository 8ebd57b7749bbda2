"""Bad input is refused with the field and the limit named, never with a 500, and creates nothing."""

import io
import json
from typing import Any

import pytest
from sqlalchemy import func, select

from storage.database import Database
from storage.tables import jobs
from tests.integration.web.conftest import Client, assert_problem

OK: dict[str, Any] = {"prompt": "a red heart"}


def num_jobs(database: Database, account: str) -> int:
    with database.transaction() as connection:
        query = select(func.count()).select_from(jobs).where(jobs.c.account_id == account)
        return int(connection.execute(query).scalar_one())


@pytest.mark.parametrize(
    ("fields", "pointer", "words"),
    [
        ({"prompt": None}, "#/prompt", "required"),
        ({"prompt": "a\0b"}, "#/prompt", "NUL"),
        ({"prompt": "\ud800"}, "#/prompt", "surrogate"),
        ({"prompt": "a" * 10_000}, "#/prompt", "2000"),
        ({"width": 513}, "#/width", "256"),
        ({"width": 100_000, "height": 100_000}, "#/width", "36864"),
        ({"num_inference_steps": 0}, "#/num_inference_steps", "1"),
        ({"num_inference_steps": 10**6}, "#/num_inference_steps", "150"),
        ({"seed": -1}, "#/seed", "0"),
        ({"seed": 2**64}, "#/seed", "9223372036854775807"),
        ({"guidance": 4}, "#/guidance", "guidance_scale"),
        ({"a/b~c": 4}, "#/a~1b~0c", "is unknown"),
        ({"webhook_url": "https://169.254.169.254/"}, "#/webhook_url", "private"),
        ({"scheduler": "\0"}, "#/scheduler", "ddim"),
        ({"model": "\0"}, "#/model", "tiny"),
    ],
)
def test_a_field_that_cannot_be(
    client: Client, database: Database, account: str, fields: dict[str, Any], pointer: str, words: str
) -> None:
    body = json.dumps({**OK, **fields})
    answer = client("POST", "/v1/jobs", data=body, content_type="application/json")
    problem = assert_problem(answer, 422, "invalid_request")
    details = [error["detail"] for error in problem["errors"] if error["pointer"] == pointer]
    assert any(words in detail for detail in details), problem
    assert num_jobs(database, account) == 0


def test_a_missing_prompt(client: Client, database: Database, account: str) -> None:
    problem = assert_problem(client("POST", "/v1/jobs", json={"seed": 1}), 422, "invalid_request")
    assert problem["errors"] == [{"pointer": "#/prompt", "detail": "is required"}]
    assert num_jobs(database, account) == 0


@pytest.mark.parametrize(
    ("data", "content_type", "status"),
    [
        (b'{"prompt": "a", "guidance_scale": NaN}', "application/json", 400),
        (b'{"prompt": "a", "guidance_scale": 1e999}', "application/json", 400),
        (b'{"prompt": "a", "prompt": "b"}', "application/json", 400),
        (b'{"prompt": ', "application/json", 400),
        (b"", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"[" * 30_000 + b"]" * 30_000, "application/json", 400),
        (b"[" * 50_000 + b"]" * 50_000, "application/json", 413),
        (b'{"seed": ' + b"1" * 5_000 + b"}", "application/json", 400),
        (b'{"prompt": "' + b"a" * 70_000 + b'"}', "application/json", 413),
        (b'{"prompt": "a"}', "text/plain", 415),
        (b'{"prompt": "a"}', "", 415),
        (b'{"prompt": "a"}', "application/json; charset=utf-16", 415),
        (b"prompt=a", "application/x-www-form-urlencoded", 415),
        (b"[]", "application/json", 422),
        (b'"{\\"prompt\\": \\"a\\"}"', "application/json", 422),
    ],
)
def test_a_body_that_cannot_be(
    client: Client, database: Database, account: str, data: bytes, content_type: str, status: int
) -> None:
    answer = client("POST", "/v1/jobs", data=data, content_type=content_type)
    codes = {
        400: "malformed_body",
        413: "body_too_large",
        415: "unsupported_media_type",
        422: "invalid_request",
    }
    assert_problem(answer, status, codes[status])
    assert num_jobs(database, account) == 0


def upload(client: Client, data: bytes, **form: str) -> Any:
    return client("POST", "/v1/batches", data={"file": (io.BytesIO(data), "prompts.csv"), **form})


@pytest.mark.parametrize(
    ("data", "line", "field", "words"),
    [
        (b"", 1, "", "no row"),
        (b"prompt\n", 1, "", "no row"),
        (b"prompt,width\nok,128\nbad,512\n", 3, "width", "256"),
        (b"prompt,seed\nok,1\nbad,-1\n", 3, "seed", "0"),
        (b"prompt,seed\nok,1\nbad,x\n", 3, "seed", "whole number"),
        (b"prompt,seed\nok,1\n,2\n", 3, "prompt", "1 character"),
        (b"prompt,scheduler\nok,pndm\n", 2, "scheduler", "ddim, euler"),
        (b"prompt,model\nok,huge\n", 2, "model", "tiny"),
        (b"prompt,colour\nok,red\n", 1, "colour", "not a known column"),
        (b"prompt,seed\na,1,b\n", 2, "", "3 cells"),
        (b"prompt\n" + b"a" * 2001 + b"\n", 2, "prompt", "2000"),
        (b"prompt\na\0b\n", 2, "", "NUL"),
        (b"\x89PNG\r\n\x1a\n\0\0", 1, "", "PNG"),
        (b"\x1f\x8b\x08", 1, "", "gzip"),
        (b"prompt\n\x81\n", 2, "", "UTF-8"),
        (b"prompt\n" + b"a\n" * 100_001, 100_002, "", "100000 rows"),
    ],
)
def test_a_csv_with_a_bad_row_is_reported_by_line(
    client: Client, database: Database, account: str, data: bytes, line: int, field: str, words: str
) -> None:
    problem = assert_problem(upload(client, data), 422, "invalid_csv")
    assert {(error["line"], error["field"]) for error in problem["errors"]} == {(line, field)}
    assert words in problem["errors"][0]["detail"]
    assert num_jobs(database, account) == 0
    assert client("GET", "/v1/batches").get_json()["batches"] == []


def test_every_bad_line_is_reported_up_to_a_hundred(client: Client) -> None:
    problem = assert_problem(upload(client, b"prompt,seed\n" + b"a,-1\n" * 150), 422, "invalid_csv")
    assert [error["line"] for error in problem["errors"]] == list(range(2, 102))
    assert problem["num_errors"] == 150


def test_an_upload_that_is_too_large_names_the_limit(client: Client) -> None:
    # Written out, since the test client would spool a body of this size to a file that it leaves open.
    part = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\nprompt\n%b\r\n--x--\r\n'
    )
    body = part % (b"a" * 50_200_000)
    answer = client("POST", "/v1/batches", data=body, content_type="multipart/form-data; boundary=x")
    problem = assert_problem(answer, 413, "body_too_large")
    assert "50000000 bytes" in problem["detail"]


@pytest.mark.parametrize(
    "options",
    [
        {"data": {}, "content_type": "multipart/form-data"},
        {"data": {"file": "prompt\na\n"}, "content_type": "multipart/form-data"},
        {"data": {"csv": (io.BytesIO(b"prompt\na\n"), "a.csv")}},
        {"data": {"file": (io.BytesIO(b"prompt\na\n"), "a.csv"), "lane": "interactive"}},
    ],
)
def test_an_upload_without_its_file_names_the_field(client: Client, options: dict[str, Any]) -> None:
    problem = assert_problem(client("POST", "/v1/batches", **options), 422, "invalid_request")
    assert "file" in problem["errors"][0]["detail"]


def test_a_csv_as_the_body_is_of_the_wrong_type(client: Client) -> None:
    answer = client("POST", "/v1/batches", data=b"prompt\na\n", content_type="text/csv")
    assert_problem(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("key", ["", "a" * 256, "\u00e9"])
def test_an_idempotency_key_that_cannot_be(client: Client, key: str) -> None:
    assert_problem(client.submit(headers={"Idempotency-Key": key}), 422, "invalid_request")
