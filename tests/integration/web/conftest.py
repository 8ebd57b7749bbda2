"""The real application over the real services, and a client that speaks for a fresh account."""

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from settings import Settings
from storage import accounts, jobs
from storage.blobs import Blobs
from storage.database import Database
from storage.job_views import StoredImage
from web.app import create_app

Draw = Callable[[str], None]
PNG = b"\x89PNG\r\n\x1a\n not looked into here"


class Client:
    """An account's HTTP client: the key in every request, JSON in and out."""

    def __init__(self, client: FlaskClient, key: str) -> None:
        self.http = client
        self.key = key

    def __call__(self, method: str, path: str, **options: Any) -> TestResponse:
        headers = {"Authorization": f"Bearer {self.key}", **options.pop("headers", {})}
        return self.http.open(path, method=method, headers=headers, buffered=True, **options)

    def submit(self, **fields: Any) -> TestResponse:
        headers = fields.pop("headers", {})
        return self("POST", "/v1/jobs", json={"prompt": "a red heart", **fields}, headers=headers)


@pytest.fixture(scope="session")
def app(settings: Settings) -> Flask:
    return create_app(settings)


@pytest.fixture
def client(app: Flask, api_key: str) -> Client:
    return Client(app.test_client(), api_key)


@pytest.fixture
def stranger(app: Flask, database: Database) -> Client:
    """Another account."""
    account = accounts.create_account(database, "stranger")
    return Client(app.test_client(), accounts.create_key(database, account, "test").plaintext)


@pytest.fixture
def draw(database: Database, blobs: Blobs) -> Draw:
    """Does to a job what a worker does, without an engine: claim, upload, finish."""

    def finish(job_id: str) -> None:
        claim = jobs.claim(
            database,
            job_id,
            tiers=["sd", "hd"],
            worker=jobs.WorkerName("boot", "cpu:0@test"),
            lease_seconds=30,
        )
        assert claim is not None
        key = f"test/{job_id}/0.png"
        stored = blobs.put(key, PNG, content_type="image/png", budget_seconds=10)
        image = StoredImage(0, claim.job.parameters.seed, key, stored.sha256, stored.num_bytes, 128, 128)
        assert jobs.finish(database, claim.lease, stored=[image], warnings=[], timings={"denoise": 1.5})

    return finish


def assert_problem(response: TestResponse, status: int, code: str) -> dict[str, Any]:
    """The body of an RFC 9457 answer, checked."""
    assert response.status_code == status, response.get_data(as_text=True)
    assert response.content_type == "application/problem+json"
    body: dict[str, Any] = response.get_json(force=True)
    assert body["status"] == status
    assert body["code"] == code
    assert body["request_id"] == response.headers["X-Request-ID"]
    assert body["detail"]
    return body
