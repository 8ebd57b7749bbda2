"""S5: `HEAD` says what `GET` would, `OPTIONS` needs no key, and a wrong method is told the right ones."""

import io
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from flask import Flask

from local.endpoints import Embedded
from tests.integration.web.conftest import PNG, Client, Draw
from tests.served import Served, served

OF_ITS_OWN = {"date", "x-request-id", "location", "set-cookie"}
"""Headers that differ between two answers to the same request, or between two methods."""


@pytest.fixture(scope="module")
def server(migrated: Embedded) -> Iterator[Served]:
    with served(migrated.environment_of("api")) as found:
        yield found


@pytest.fixture
def http(server: Served, api_key: str) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {api_key}"}
    with httpx2.Client(base_url=server.url, headers=headers, trust_env=False, timeout=60) as found:
        yield found


def test_S5_the_head_of_an_image_is_there_when_redirects_are_followed(
    http: httpx2.Client, draw: Draw
) -> None:
    job_id = http.post("/v1/jobs", json={"prompt": "a red heart"}).json()["id"]
    draw(job_id)
    for method, length in (("HEAD", 0), ("GET", len(PNG)), ("HEAD", 0)):
        first = http.request(method, f"/v1/jobs/{job_id}/images/0")
        assert first.status_code == 302
        found = httpx2.request(method, first.headers["Location"], trust_env=False)
        assert (found.status_code, len(found.content)) == (200, length)
        assert found.headers["Content-Type"] == "image/png"
        assert found.headers["Content-Length"] == str(len(PNG))
        assert found.headers["Content-Disposition"] == f'inline; filename="{job_id}-0.png"'


def test_S5_every_address_that_can_be_got_has_a_head_that_says_the_same(
    app: Flask, http: httpx2.Client, client: Client, draw: Draw
) -> None:
    data = {"file": (io.BytesIO(b"prompt\na red heart\n"), "prompts.csv")}
    batch_id = client("POST", "/v1/batches", data=data).get_json()["id"]
    job_id = client.submit().get_json()["id"]
    draw(job_id)
    paths = sorted(
        filled(rule.rule, job_id, batch_id)
        for rule in app.url_map.iter_rules()
        if "GET" in (rule.methods or ())
    )
    assert {"/v1/jobs", f"/v1/batches/{batch_id}/results.csv", "/readyz", "/openapi.json", "/"} <= set(paths)
    for path in paths:
        got, asked = (http.request(method, path) for method in ("GET", "HEAD"))
        assert asked.content == b"", path
        assert (asked.status_code, shown(asked)) == (got.status_code, shown(got)), path
    assert http.get("/healthz").status_code == 200, "the connection goes on"


def test_S5_options_are_told_to_anybody_and_are_what_a_wrong_method_is_told(
    app: Flask, server: Served
) -> None:
    with httpx2.Client(base_url=server.url, trust_env=False) as anybody:
        for rule in {rule.rule for rule in app.url_map.iter_rules()}:
            path = filled(rule, "job_" + "0" * 26, "bat_" + "0" * 26)
            told = anybody.options(path)
            assert (told.status_code, told.content) == (204, b""), path
            allowed = told.headers["Allow"].split(", ")
            assert "OPTIONS" in allowed
            assert allowed == sorted(set(allowed))
            assert ("HEAD" in allowed) == ("GET" in allowed)
            wrong = anybody.request("PATCH", path)
            assert (wrong.status_code, wrong.headers["Allow"]) == (405, told.headers["Allow"]), path
        assert anybody.options("/v1/nothing").status_code == 404
        assert anybody.options("/v1/jobs").headers["Allow"] == "GET, HEAD, OPTIONS, POST"


def filled(rule: str, job_id: str, batch_id: str) -> str:
    path = rule.replace("<job_id>", job_id).replace("<batch_id>", batch_id)
    return re.sub(r"<[^>]*>", "0", path)


def shown(answer: httpx2.Response) -> dict[str, Any]:
    return {name: value for name, value in answer.headers.items() if name not in OF_ITS_OWN}
