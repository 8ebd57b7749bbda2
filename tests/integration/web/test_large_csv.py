"""A CSV of 100,000 rows is accepted or refused as a whole, and each of its rows is checked."""

import io
import random
from typing import Any

import pytest
from sqlalchemy import text

from storage.database import Database
from tests.integration.web.conftest import Client, assert_problem

NUM_ROWS = 100_000
HEADER = "prompt,negative_prompt,seed,width,height,strict\n"


def row_of(number: int) -> tuple[str, str, int, str]:
    """The texts, the seed and the size of a row."""
    size = ("", "192", "128")[number % 3]
    return f"prompt {number}, “red”", f"not {number}" if number % 2 else "", number * 7, size


def csv_of(num_rows: int) -> str:
    rows = (
        f'"{prompt}",{negative},{seed},{size},{size},{"yes" if seed % 5 == 0 else ""}\n'
        for prompt, negative, seed, size in map(row_of, range(num_rows))
    )
    return HEADER + "".join(rows)


def upload(client: Client, text: str, **headers: str) -> Any:
    file = (io.BytesIO(text.encode()), "many.csv")
    return client("POST", "/v1/batches", data={"file": file}, headers=headers)


@pytest.fixture(scope="module")
def text_of_all() -> str:
    return csv_of(NUM_ROWS)


def test_a_hundred_thousand_rows_become_jobs_in_the_order_of_the_file(
    client: Client, database: Database, text_of_all: str
) -> None:
    answer = upload(client, text_of_all, **{"Idempotency-Key": "many"})
    assert answer.status_code == 202, answer.get_data(as_text=True)
    batch = answer.get_json()
    assert (batch["num_jobs"], batch["rows"]["new"]) == (NUM_ROWS, NUM_ROWS)
    assert batch["counts"]["queued"] == NUM_ROWS
    again = upload(client, text_of_all, **{"Idempotency-Key": "many"})
    assert (again.get_json()["id"], again.headers["Idempotent-Replayed"]) == (batch["id"], "true")
    lines = [2, NUM_ROWS + 1, *(random.randrange(3, NUM_ROWS) for _ in range(200))]
    query = text(
        """SELECT batch_line, prompt, negative_prompt, seed, width, tier, strict FROM jobs
            WHERE batch_id = :batch_id AND batch_line = ANY(:lines)"""
    )
    misplaced = text(
        """SELECT count(*) FROM (
               SELECT batch_line, row_number() OVER (ORDER BY created_at, id) AS by_time,
                      row_number() OVER (ORDER BY id) AS by_id
                 FROM jobs WHERE batch_id = :batch_id) AS placed
            WHERE batch_line <> by_time + 1 OR batch_line <> by_id + 1"""
    )
    with database.transaction(seconds=60) as connection:
        found = connection.execute(query, {"batch_id": batch["id"], "lines": lines}).all()
        assert connection.execute(misplaced, {"batch_id": batch["id"]}).scalar_one() == 0
        ended = "state = 'canceled', finished_at = clock_timestamp(), next_dispatch_at = NULL"
        connection.execute(text(f"UPDATE jobs SET {ended} WHERE batch_id = :id"), {"id": batch["id"]})
        connection.execute(text("DELETE FROM jobs WHERE batch_id = :id"), {"id": batch["id"]})
    assert len(found) == len(set(lines))
    for line, prompt, negative, seed, width, tier, strict in found:
        asked_prompt, asked_negative, asked_seed, size = row_of(line - 2)
        assert (prompt, negative, seed) == (asked_prompt, asked_negative, asked_seed)
        assert (width, tier, strict) == (int(size or 128), "hd" if size == "192" else "sd", seed % 5 == 0)


def test_one_bad_row_of_a_hundred_thousand_creates_nothing(
    client: Client, database: Database, account: str, text_of_all: str
) -> None:
    head, last = text_of_all[:-1].rsplit("\n", 1)
    answer = upload(client, f"{head.rsplit(chr(10), 1)[0]}\nprompt,,-1,,,\n{last}\n")
    problem = assert_problem(answer, 422, "invalid_csv")
    assert [(error["line"], error["field"]) for error in problem["errors"]] == [(NUM_ROWS, "seed")]
    assert client("GET", "/v1/batches").get_json()["batches"] == []
    with database.transaction() as connection:
        query = text("SELECT count(*) FROM jobs WHERE account_id = :id")
        assert connection.execute(query, {"id": account}).scalar_one() == 0


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ('"   ",,1,,,', "prompt"),
        (f"{'a' * 2001},,1,,,", "prompt"),
        (f"a,{'a' * 2001},1,,,", "negative_prompt"),
        (f"a,,{2**63},,,", "seed"),
        ("a\x07,,1,,,", "prompt"),
        ("a,,1,100,100,", "width"),
        ("a,,x,,,", "seed"),
        ("#REF!,,1,,,", "prompt"),
    ],
)
def test_a_row_like_those_before_is_checked_too(client: Client, row: str, field: str) -> None:
    before = "a red heart,not blue,1,,,\na red heart,,1,,,\n" * 3
    answer = upload(client, f"{HEADER}{before}{row}\n{before}")
    problem = assert_problem(answer, 422, "invalid_csv")
    assert {(error["line"], error["field"]) for error in problem["errors"]} >= {(8, field)}
    assert {error["line"] for error in problem["errors"]} == {8}


def test_rows_that_are_alike_have_their_own_texts_and_drawn_seeds(client: Client) -> None:
    # The second is decomposed, and is stored in NFC as the first is.
    rows = "".join(f"{word},,,,,\n" for word in ("café", "cafe\u0301", "tea", "tea"))
    batch = upload(client, HEADER + rows).get_json()
    found = client("GET", batch["links"]["jobs"]).get_json()["jobs"]
    assert sorted(job["prompt"] for job in found) == ["café", "café", "tea", "tea"]
    assert len({job["seed"] for job in found}) == 4
    assert all(0 <= job["seed"] < 2**32 for job in found)
