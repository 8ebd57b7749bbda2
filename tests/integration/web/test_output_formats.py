"""A file format, from the request to the bytes behind its link: real API and task, a painting engine."""

import csv
import io
import secrets
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from storage.blobs import Blobs
from storage.database import Database
from storage.jobs import WorkerName
from tasks.generate import Generate, GeneratePlan
from tasks.in_flight import InFlightJobs
from tasks.isolation import Isolations
from tests.integration.tasks.conftest import FakeEngine
from tests.integration.web.conftest import Client, assert_problem


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def generate(database: Database, blobs: Blobs, engine: FakeEngine) -> Generate:
    return Generate(
        db=database,
        blobs=blobs,
        submit=engine.submit,
        in_flight=InFlightJobs(),
        isolations=Isolations(database),
        worker=WorkerName(secrets.token_hex(4), "cpu:0@test"),
        tiers=["sd", "hd"],
        plan=GeneratePlan(),
    )


def image_of(client: Client, job_id: str) -> tuple[httpx2.Response, Image.Image]:
    job = client("GET", f"/v1/jobs/{job_id}").get_json()
    assert job["state"] == "succeeded", job
    answer = httpx2.get(job["images"][0]["url"], trust_env=False)
    redirect = client("GET", f"/v1/jobs/{job_id}/images/0").headers["Location"]
    again = httpx2.get(redirect, trust_env=False)
    assert (again.content, again.headers["content-type"]) == (answer.content, answer.headers["content-type"])
    return answer, Image.open(io.BytesIO(answer.content))


@pytest.mark.parametrize(
    ("asked", "is_lossless"),
    [
        ({}, True),
        ({"output_format": "png"}, True),
        ({"output_format": "webp"}, True),
        ({"output_format": "webp", "output_quality": 80}, False),
        ({"output_format": "jpeg"}, False),
        ({"output_format": "jpeg", "output_quality": 30}, False),
    ],
)
def test_the_file_is_what_was_asked_for(
    client: Client, generate: Generate, engine: FakeEngine, asked: dict[str, Any], is_lossless: bool
) -> None:
    job = client.submit(**asked).get_json()
    expected = asked.get("output_format", "png")
    assert (job["output_format"], job["output_quality"]) == (expected, asked.get("output_quality"))
    generate(job["id"])
    answer, picture = image_of(client, job["id"])
    assert answer.headers["content-type"] == f"image/{expected}"
    assert f'filename="{job["id"]}-0.{expected}"' in answer.headers["content-disposition"]
    assert (picture.format, picture.size) == (expected.upper(), (128, 128))
    painted = engine.handles[0].future.result().pixels
    assert np.array_equal(np.asarray(picture.convert("RGB")), painted) == is_lossless


def test_a_retry_has_the_format_of_the_first(client: Client) -> None:
    job = client.submit(output_format="jpeg", output_quality=55).get_json()
    client("DELETE", f"/v1/jobs/{job['id']}")
    again = client("POST", f"/v1/jobs/{job['id']}/retry").get_json()
    assert (again["output_format"], again["output_quality"]) == ("jpeg", 55)


@pytest.mark.parametrize(
    ("fields", "pointer", "words"),
    [
        ({"output_format": "gif"}, "#/output_format", "'png', 'webp' or 'jpeg'"),
        ({"output_format": "jpeg", "output_quality": 101}, "#/output_quality", "100"),
        ({"output_quality": 90}, "#/output_quality", "png"),
    ],
)
def test_what_cannot_be_is_refused_with_the_field_and_what_may_be(
    client: Client, fields: dict[str, Any], pointer: str, words: str
) -> None:
    problem = assert_problem(client.submit(**fields), 422, "invalid_request")
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert words in problem["errors"][0]["detail"]


def test_a_csv_has_the_columns_and_its_results_say_the_format(client: Client, generate: Generate) -> None:
    data = b"prompt,output_format,output_quality\na red heart,webp,\na star,jpeg,70\na ring,,\n"
    batch = client("POST", "/v1/batches", data={"file": (io.BytesIO(data), "prompts.csv")}).get_json()
    jobs = client("GET", batch["links"]["jobs"]).get_json()["jobs"]
    for job in jobs:
        generate(job["id"])
    results = client("GET", batch["links"]["results"]).get_data().decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(results)))
    assert [row["output_format"] for row in rows] == ["webp", "jpeg", "png"]
    for row in rows:
        assert image_of(client, row["job_id"])[1].format == row["output_format"].upper()


def test_a_csv_with_a_wrong_format_is_reported_by_line(client: Client) -> None:
    data = b"prompt,output_format,output_quality\na,webp,\nb,gif,\nc,png,90\n"
    answer = client("POST", "/v1/batches", data={"file": (io.BytesIO(data), "prompts.csv")})
    problem = assert_problem(answer, 422, "invalid_csv")
    found = [(error["line"], error["field"]) for error in problem["errors"]]
    assert found == [(3, "output_format"), (4, "output_quality")]
