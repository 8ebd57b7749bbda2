"""A model's own parameters go the whole way: accepted, stored, shown, reported, drawn again."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from catalogue.catalogue import tier_for
from storage.database import Database
from storage.job_views import get
from tests.fixtures.catalogues import PARAMETERS, catalogue_with
from tests.integration.web.conftest import Client, Draw, assert_problem
from web.api.admission import Admission
from web.wiring import EXTENSION, Wiring

OWN = {"clip_skip": 2, "true_cfg_scale": 4.5, "zero_init": True, "mode": "Sharp", "prompt_2": "=1+1"}


@pytest.fixture
def declared(app: Flask, tmp_path: Path) -> Iterator[Wiring]:
    """The API serves a model with parameters of its own; what is given to it is what it served before."""
    usual: Wiring = app.extensions[EXTENSION]
    catalogue = catalogue_with(tmp_path, PARAMETERS)
    app.extensions[EXTENSION] = replace(usual, catalogue=catalogue, admission=Admission(catalogue, tier_for))
    yield usual
    app.extensions[EXTENSION] = usual


def upload(client: Client, data: bytes) -> Any:
    return client("POST", "/v1/batches", data={"file": (io.BytesIO(data), "prompts.csv")})


@pytest.mark.usefixtures("declared")
def test_they_are_stored_shown_and_kept_by_a_retry(
    client: Client, database: Database, account: str, draw: Draw
) -> None:
    job = client.submit(pipeline_parameters=OWN).get_json()
    assert job["pipeline_parameters"] == OWN
    assert get(database, account, job["id"]).parameters.pipeline_parameters == OWN
    draw(job["id"])
    again = client("POST", f"/v1/jobs/{job['id']}/retry").get_json()
    assert (again["pipeline_parameters"], again["seed"]) == (OWN, job["seed"])
    assert client.submit().get_json()["pipeline_parameters"] == {"clip_skip": 1, "mode": "plain"}


@pytest.mark.usefixtures("declared")
def test_a_value_that_is_not_declared_creates_nothing(client: Client) -> None:
    body = assert_problem(
        client.submit(pipeline_parameters={"clip_skip": 9, "eta": 1}), 422, "invalid_request"
    )
    assert {(error["pointer"], error["detail"]) for error in body["errors"]} == {
        ("#/pipeline_parameters/clip_skip", "is above 4"),
        (
            "#/pipeline_parameters/eta",
            "is not a parameter of model 'tiny'; "
            "there is: clip_skip, true_cfg_scale, zero_init, mode, prompt_2",
        ),
    }
    assert client("GET", "/v1/jobs").get_json()["jobs"] == []


@pytest.mark.usefixtures("declared")
def test_a_model_lists_them_with_types_limits_and_defaults(client: Client) -> None:
    (model,) = client("GET", "/v1/models").get_json()["models"]
    assert model["parameters"][0] == {
        "name": "clip_skip",
        "type": "int",
        "default": 1,
        "min": 0,
        "max": 4,
        "choices": [],
        "unit": "",
        "description": "layers of the text encoder to leave out",
    }
    sharp = next(preset for preset in model["presets"] if preset["name"] == "sharp")
    assert sharp["pipeline_parameters"] == {"mode": "Sharp", "clip_skip": 2}


@pytest.mark.usefixtures("declared")
def test_null_and_left_out_are_one_request_for_an_idempotency_key(client: Client) -> None:
    key = {"Idempotency-Key": "own"}
    first = client.submit(pipeline_parameters={"clip_skip": 2}, headers=key)
    same = client.submit(pipeline_parameters={"clip_skip": 2, "mode": None}, headers=key)
    assert (same.get_json()["id"], same.headers["Idempotent-Replayed"]) == (first.get_json()["id"], "true")
    assert_problem(client.submit(pipeline_parameters={}, headers=key), 422, "idempotency_key_reused")


def test_a_retry_of_what_a_model_takes_no_longer_says_what(
    client: Client, declared: Wiring, app: Flask, draw: Draw
) -> None:
    job = client.submit(pipeline_parameters={"clip_skip": 2}).get_json()
    draw(job["id"])
    app.extensions[EXTENSION] = declared
    body = assert_problem(client("POST", f"/v1/jobs/{job['id']}/retry"), 409, "not_served")
    assert "clip_skip" in body["detail"]
    assert client("GET", f"/v1/jobs/{job['id']}").get_json()["pipeline_parameters"]["clip_skip"] == 2


@pytest.mark.usefixtures("declared")
def test_a_report_has_a_column_for_each_and_can_be_uploaded_again(client: Client, draw: Draw) -> None:
    rows = b"prompt,clip_skip,mode,prompt_2,true_cfg_scale\na,2,Sharp,'=1+1\t ,4.5\nb,,,,\n"
    batch = upload(client, rows).get_json()
    jobs = client("GET", f"/v1/jobs?batch_id={batch['id']}").get_json()["jobs"]
    by_prompt = {job["prompt"]: job for job in jobs}
    assert by_prompt["a"]["pipeline_parameters"] == {
        "clip_skip": 2,
        "mode": "Sharp",
        "prompt_2": "=1+1\t ",
        "true_cfg_scale": 4.5,
    }
    assert by_prompt["b"]["pipeline_parameters"] == {"clip_skip": 1, "mode": "plain"}
    draw(by_prompt["a"]["id"])
    client("DELETE", f"/v1/jobs/{by_prompt['b']['id']}")
    report = client("GET", f"/v1/batches/{batch['id']}/results.csv").get_data()
    first, _ = csv.DictReader(io.StringIO(report.decode("utf-8-sig")))
    assert (first["clip_skip"], first["mode"], first["prompt_2"], first["zero_init"]) == (
        "2", "Sharp", "'=1+1\t ", "",
    )  # fmt: skip
    again = upload(client, report).get_json()
    assert (again["rows"]["already_succeeded"], again["rows"]["retried"], again["rows"]["new"]) == (1, 1, 0)
    edited = upload(client, report.replace(b"Sharp", b"plain", 1)).get_json()
    assert (edited["rows"]["new"], edited["warnings"][0]["code"]) == (1, "rows_edited")


@pytest.mark.usefixtures("declared")
def test_a_wrong_cell_is_named_by_line_and_column_and_nothing_is_created(client: Client) -> None:
    body = assert_problem(upload(client, b"prompt,clip_skip\na,9\nb,two\n"), 422, "invalid_csv")
    assert [(error["line"], error["field"], error["detail"]) for error in body["errors"]] == [
        (2, "clip_skip", "is above 4"),
        (3, "clip_skip", "should be a whole number"),
    ]


@pytest.mark.usefixtures("declared")
def test_the_page_asks_for_them_and_a_jobs_page_shows_them(client: Client) -> None:
    client.http.post("/session", data={"api_key": client.key})
    page = client.http.get("/").get_data(as_text=True)
    assert 'name="pipeline_parameters/clip_skip"' in page
    assert "0 to 4; 1 if empty" in page
    token = re.search(r'name="token" value="([^"]+)"', page)
    assert token
    sent = {"prompt": "a", "token": token[1], "pipeline_parameters/clip_skip": "9"}
    refused = client.http.post("/", data=sent)
    assert refused.status_code == 422
    assert 'id="pipeline_parameters/clip_skip-error">is above 4' in refused.get_data(as_text=True)
    drawn = client.http.post("/", data={**sent, "pipeline_parameters/clip_skip": "3"})
    assert drawn.status_code == 303
    (job,) = client("GET", "/v1/jobs").get_json()["jobs"]
    assert job["pipeline_parameters"] == {"clip_skip": 3, "mode": "plain"}
    shown = client.http.get(f"/jobs/{job['id']}").get_data(as_text=True)
    assert '<th scope="row"><code>clip_skip</code></th><td>3</td>' in shown
    assert "&#34;clip_skip&#34;: 3" in shown  # in the command that draws it again
    filled = client.http.get(f"/?from={job['id']}").get_data(as_text=True)
    assert 'value="3" aria-describedby="pipeline_parameters/clip_skip-hint"' in filled


@pytest.mark.usefixtures("declared")
def test_a_finished_job_keeps_them_and_no_row_holds_anything_but_an_object(
    client: Client, database: Database, draw: Draw
) -> None:
    job = client.submit(pipeline_parameters=OWN).get_json()
    change = text("UPDATE jobs SET pipeline_parameters = CAST(:value AS jsonb) WHERE id = :id")
    with pytest.raises(IntegrityError, match="check"), database.transaction() as connection:
        connection.execute(change, {"value": "[1]", "id": job["id"]})
    draw(job["id"])
    with pytest.raises(IntegrityError, match="final"), database.transaction() as connection:
        connection.execute(change, {"value": "{}", "id": job["id"]})
