"""Without a key nothing of `/v1` answers; with one, nothing of another account exists."""

import io
import re

import pytest
from flask import Flask

from tests.integration.web.conftest import Client, Draw, assert_problem

UNKNOWN = {"job": "job_" + "0" * 26, "batch": "bat_" + "0" * 26}


def routes(app: Flask) -> list[tuple[str, str]]:
    found = []
    for rule in app.url_map.iter_rules():
        methods = (rule.methods or set()) - {"HEAD", "OPTIONS"}
        found += [(method, rule.rule) for method in sorted(methods)]
    return found


def filled(rule: str, job_id: str, batch_id: str) -> str:
    path = rule.replace("<job_id>", job_id).replace("<batch_id>", batch_id)
    return re.sub(r"<[^>]*>", "0", path)


def test_every_route_of_v1_asks_for_a_key(app: Flask) -> None:
    guarded = [(method, rule) for method, rule in routes(app) if rule.startswith("/v1/")]
    assert len(guarded) >= 14
    http = app.test_client()
    for method, rule in guarded:
        for header in (None, "Bearer", "Bearer wrong", "Bearer calo_abcdefgh_" + "x" * 34, "Basic YTpi"):
            headers = {"Authorization": header} if header else {}
            path = filled(rule, UNKNOWN["job"], UNKNOWN["batch"])
            answer = http.open(path, method=method, headers=headers)
            assert_problem(answer, 401, "unauthenticated")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_what_another_account_has_looks_like_nothing(
    app: Flask, client: Client, stranger: Client, draw: Draw
) -> None:
    job_id = client.submit().get_json()["id"]
    draw(job_id)
    file = (io.BytesIO(b"prompt\na\n"), "a.csv")
    batch_id = client("POST", "/v1/batches", data={"file": file}).get_json()["id"]
    with_id = [(method, rule) for method, rule in routes(app) if "_id>" in rule and rule.startswith("/v1/")]
    assert len(with_id) >= 8
    for method, rule in with_id:
        answers = []
        for job, batch in ((job_id, batch_id), (UNKNOWN["job"], UNKNOWN["batch"])):
            answer = stranger(method, filled(rule, job, batch))
            body = assert_problem(answer, 404, "not_found")
            body.pop("request_id")
            headers = {name: value for name, value in answer.headers if name not in ("X-Request-ID",)}
            answers.append((str(body).replace(job, "ID").replace(batch, "ID"), headers))
        assert answers[0] == answers[1], rule
    assert client("GET", f"/v1/jobs/{job_id}").get_json()["state"] == "succeeded"
    assert client("GET", f"/v1/batches/{batch_id}").get_json()["state"] == "running"
    assert stranger("GET", "/v1/jobs").get_json()["jobs"] == []
    assert stranger("GET", f"/v1/jobs?batch_id={batch_id}").get_json()["jobs"] == []
    assert stranger("GET", "/v1/batches").get_json()["batches"] == []


def test_a_cursor_of_another_account_shows_nothing_of_it(client: Client, stranger: Client) -> None:
    for _ in range(2):
        client.submit()
    cursor = client("GET", "/v1/jobs?limit=1").get_json()["next_cursor"]
    assert stranger("GET", f"/v1/jobs?cursor={cursor}").get_json() == {"jobs": [], "next_cursor": None}


@pytest.mark.parametrize("name", ["%00", "job_%00", "..%2f", "%ff", "'--", "JOB_" + "0" * 26, "a" * 5000])
def test_what_cannot_be_an_id_is_not_found(client: Client, name: str) -> None:
    for path in (f"/v1/jobs/{name}", f"/v1/batches/{name}"):
        assert client("GET", path).status_code == 404
