"""The promises of the client about answers: what is not calotype, what an error says, what is new."""

from datetime import UTC, date, datetime

import pytest

from client.calotype import (
    ApiError,
    CalotypeError,
    Client,
    ConfigurationError,
    ConflictError,
    Cost,
    InvalidRequestError,
    Job,
    NotFoundError,
    RateLimitError,
    ServerError,
    UnauthenticatedError,
    UnexpectedAnswerError,
)
from client.calotype.errors import api_error

from .conftest import Answer, Serve, json_answer


def client_of(url: str) -> Client:
    return Client(url=url, api_key="calo_a_b", max_retries=0)


@pytest.mark.parametrize("body", [b"<html>Welcome</html>", b"[]", b"null", b"", b"{}", b'{"id": "job_1"}'])
def test_what_answers_without_a_job_is_not_calotype(serve: Serve, body: bytes) -> None:
    with (
        client_of(serve(Answer(body=body)).url) as client,
        pytest.raises(UnexpectedAnswerError, match="is not calotype"),
    ):
        client.get("job_1")


def test_a_redirect_is_told_and_not_taken_for_an_answer(serve: Serve) -> None:
    server = serve(Answer(301, headers={"Location": "https://elsewhere.example/v1/jobs/job_1"}))
    with (
        client_of(server.url) as client,
        pytest.raises(UnexpectedAnswerError, match=r"301 .* to https://elsewhere.example"),
    ):
        client.get("job_1")
    assert len(server.asked) == 1, "the key follows no redirect"


def test_the_page_of_a_proxy_that_failed_is_one_line(serve: Serve) -> None:
    with client_of(serve(Answer(502, b"<html>\n<h1>Bad</h1>\n</html>")).url) as client:
        with pytest.raises(ServerError) as failed:
            client.get("job_1")
        assert str(failed.value) == "502 Bad Gateway"
        assert (failed.value.code, failed.value.retryable) == ("http_502", True)


def test_one_error_is_said_once_and_several_each() -> None:
    one = {"detail": "steps: is above 150", "errors": [{"pointer": "#/steps", "detail": "is above 150"}]}
    assert str(api_error(422, one)) == "422 steps: is above 150"
    cell = {"line": 3, "field": "width", "detail": "c"}
    two = {"detail": "2 faults", "errors": [{"pointer": "#/a", "detail": "b"}, cell]}
    assert str(api_error(422, two)) == "422 2 faults; a: b; line 3, width: c"


def test_an_error_has_its_code_its_request_id_and_its_faults_by_field() -> None:
    error = api_error(
        422,
        {
            "code": "invalid_request",
            "detail": "several",
            "request_id": "req_1",
            "num_errors": 120,
            "errors": [
                {"pointer": "#/width", "detail": "is above 256"},
                {"pointer": "#/width", "detail": "is no multiple of 8"},
                {"parameter": "Idempotency-Key", "detail": "is empty"},
                "a word",
            ],
        },
    )
    assert (error.code, error.request_id, error.retryable) == ("invalid_request", "req_1", False)
    assert error.errors_by_field == {
        "width": ["is above 256", "is no multiple of 8"],
        "Idempotency-Key": ["is empty"],
    }
    assert (len(error.errors), error.num_errors) == (3, 120)


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (400, InvalidRequestError, False),
        (401, UnauthenticatedError, False),
        (403, ApiError, False),
        (404, NotFoundError, False),
        (409, ConflictError, False),
        (413, InvalidRequestError, False),
        (415, InvalidRequestError, False),
        (422, InvalidRequestError, False),
        (429, RateLimitError, True),
        (500, ServerError, False),
        (503, ServerError, True),
    ],
)
def test_each_status_has_its_error(serve: Serve, status: int, kind: type[ApiError], retryable: bool) -> None:
    with (
        client_of(serve(json_answer({"code": "x", "detail": "why"}, status)).url) as client,
        pytest.raises(CalotypeError) as failed,
    ):
        client.get("job_1")
    assert type(failed.value) is kind
    assert (failed.value.code, failed.value.retryable) == ("x", retryable)


def test_what_a_later_server_adds_breaks_nothing_and_is_in_raw(serve: Serve) -> None:
    document = {
        "id": "job_1",
        "state": "succeeded",
        "hologram": {"depth": 3},
        "images": [{"index": 0, "sha256": "ab", "url": None, "spin": 1}],
        "error": None,
        "created_at": "2026-11-29T10:00:00Z",
        "warnings": [{"code": "prompt_cut", "field": "prompt", "detail": "long", "severity": 2}],
    }
    with client_of(serve(json_answer(document)).url) as client:
        job = client.get("job_1")
    assert job.raw == document
    assert job.images[0].sha256 == "ab"
    assert job.created_at == datetime(2026, 11, 29, 10, tzinfo=UTC)
    assert job.warnings[0].code == "prompt_cut"


def test_a_state_that_a_later_server_adds_has_ended_once_it_has_a_time_of_its_end() -> None:
    assert not Job("job_1", "dreaming").has_ended
    assert Job("job_1", "merged", finished_at=datetime.now(UTC)).has_ended


def test_a_job_can_be_put_into_a_set_and_compared() -> None:
    assert {Job("job_1", "queued", raw={"a": 1}), Job("job_1", "queued", raw={"b": 2})} == {
        Job("job_1", "queued")
    }


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("http://[::1", "a"),
        ("ftp://a", "a"),
        ("api.example.com", "a"),
        ("http://a?b=c", "a"),
        ("http://a", "ключ"),
        ("http://a", "a\nb"),
        ("", "a"),
        ("http://a", ""),
    ],
)
def test_an_address_or_a_key_that_cannot_be_sent_is_refused_at_once(
    url: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CALOTYPE_URL", "CALOTYPE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match=r"address|key"):
        Client(url=url, api_key=key)


def test_address_and_key_come_from_the_environment_and_a_prefix_stays(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(json_answer({"tiers": [{"name": "sd"}]}))
    monkeypatch.setenv("CALOTYPE_URL", f"{server.url}/draw/")
    monkeypatch.setenv("CALOTYPE_API_KEY", "calo_x_y")
    with Client() as client:
        assert [tier.name for tier in client.tiers()] == ["sd"]
    assert server.asked[0].path == "/draw/v1/tiers"
    assert server.headers("Authorization") == ["Bearer calo_x_y"]
    assert str(server.headers("User-Agent")[0]).startswith("calotype/")


def test_usage_has_the_rows_of_every_page_and_the_sum_of_the_server(serve: Serve) -> None:
    days = {"since": "2026-11-01", "until": "2026-12-01"}
    cost = {"amount": 0.25, "currency": "EUR"}
    first = {"day": "2026-11-30", "tag": None, "num_jobs": 2, "cost": cost}
    last = {"day": "2026-11-29", "tag": "a", "num_jobs": 1, "cost": None}
    pages = [
        {**days, "data": [row], "total": {"num_jobs": 3}, "next_cursor": cursor}
        for row, cursor in ((first, "next"), (last, None))
    ]
    server = serve(*map(json_answer, pages))
    with client_of(server.url) as client:
        found = client.usage(by=("day", "tag"), since=date(2026, 11, 1))
    assert [(row.day, row.tag, row.cost) for row in found.rows] == [
        (date(2026, 11, 30), None, Cost(0.25, "EUR")),
        (date(2026, 11, 29), "a", None),
    ]
    assert (found.since, found.total.num_jobs) == (date(2026, 11, 1), 3)
    assert "by=day&by=tag&since=2026-11-01" in server.asked[0].path
    assert "cursor=next" in server.asked[1].path


def test_every_page_of_usage_is_of_the_days_of_the_first_one(serve: Serve) -> None:
    rows = [{"day": "2026-11-30", "num_jobs": 1, "cost": None}]
    days = {"since": "2026-11-01", "until": "2026-12-01"}
    pages = [{**days, "data": rows, "total": {"num_jobs": 3}, "next_cursor": at} for at in ("a", "b", None)]
    server = serve(*map(json_answer, pages))
    with client_of(server.url) as client:
        assert len(client.usage().rows) == 3
    assert "since" not in server.asked[0].path, "the default of the server"
    for asked in server.asked[1:]:
        assert "since=2026-11-01&until=2026-12-01" in asked.path


def test_a_job_and_a_batch_have_their_cost(serve: Serve) -> None:
    cost = {"amount": 0.5, "currency": "USD"}
    job = {"id": "job_1", "state": "succeeded", "cost": cost, "tag": "a", "key_id": "key_1"}
    batch = {"id": "bat_1", "state": "running", "cost": None, "device_seconds": 2.0}
    with client_of(serve(json_answer(job), json_answer(batch)).url) as client:
        found = client.get("job_1")
        assert (found.cost, found.tag, found.key_id) == (Cost(0.5, "USD"), "a", "key_1")
        assert (client.get_batch("bat_1").cost, client.get_batch("bat_1").device_seconds) == (None, 2.0)


def test_an_id_that_is_a_path_stays_one_part_of_the_address(serve: Serve) -> None:
    server = serve(json_answer({"code": "not_found"}, 404))
    with client_of(server.url) as client, pytest.raises(NotFoundError):
        client.get("../batches/bat_1?wait=9")
    assert server.asked[0].path == "/v1/jobs/..%2Fbatches%2Fbat_1%3Fwait%3D9"
