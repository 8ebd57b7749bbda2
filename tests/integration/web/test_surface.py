"""What is not a job: errors of every kind, health, metrics, pages, headers."""

import re
import socket
from collections.abc import Iterator
from urllib.request import urlopen

import pytest
from flask import Flask

from settings import Settings
from storage.database import Database
from storage.workers import Worker, heartbeat, say_goodbye
from tests.integration.web.conftest import Client, assert_problem
from web.app import create_app


@pytest.fixture
def workers(database: Database) -> Iterator[list[Worker]]:
    """Two live workers that share one tier."""
    alive = [
        Worker("wrk_a", "boot-web-a", "host", 1, "cpu:0", ("sd",), 12, 8, "exact"),
        Worker("wrk_b", "boot-web-b", "host", 2, "cpu:1", ("sd", "hd"), 12, 8, "exact within a bucket"),
    ]
    for worker in alive:
        heartbeat(database, worker, [], lease_seconds=30)
    yield alive
    for worker in alive:
        say_goodbye(database, worker.boot_id)


def test_an_unknown_address_is_a_problem(client: Client) -> None:
    assert_problem(client("GET", "/v1/nothing"), 404, "not_found")
    assert_problem(client("GET", "/docs/../app.py"), 404, "not_found")


def test_a_wrong_method_is_told_which_ones_there_are(client: Client) -> None:
    answer = client("PUT", "/v1/jobs")
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == "GET, HEAD, OPTIONS, POST"


def test_a_fault_of_ours_is_told_in_one_sentence(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    app = create_app(settings)

    def broken() -> str:
        raise RuntimeError("a secret detail")

    app.add_url_rule("/broken", view_func=broken)
    answer = app.test_client().get("/broken")
    problem = assert_problem(answer, 500, "internal_error")
    assert "secret" not in str(problem)
    logged = capsys.readouterr().err
    assert "a secret detail" in logged
    assert problem["request_id"] in logged


def test_a_good_request_id_is_kept_and_a_bad_one_replaced(client: Client) -> None:
    assert client("GET", "/healthz", headers={"X-Request-ID": "abc-1"}).headers["X-Request-ID"] == "abc-1"
    for bad in ("a b", "x" * 65, "<script>"):
        given = client("GET", "/healthz", headers={"X-Request-ID": bad}).headers["X-Request-ID"]
        assert re.fullmatch(r"req_[0-9a-z]{26}", given)


def test_the_log_has_neither_prompts_nor_keys(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    client.submit(prompt="confidential words")
    client.submit(prompt="confidential words", seed=-1)
    client("GET", "/v1/jobs?cursor=confidential")
    logged = capsys.readouterr().err
    assert '"route": "/v1/jobs"' in logged
    assert "confidential" not in logged
    assert client.key not in logged


def test_a_tier_says_who_serves_it_and_what_they_promise(client: Client, workers: list[Worker]) -> None:
    tiers = {tier["name"]: tier for tier in client("GET", "/v1/tiers").get_json()["tiers"]}
    assert tiers["sd"]["num_live_workers"] == len(workers)
    assert tiers["sd"]["determinism"] == "exact within a bucket"
    assert (tiers["hd"]["num_live_workers"], tiers["hd"]["can_serve"]) == (1, True)
    assert tiers["hd"]["eta_seconds"] is None


def test_a_tier_says_how_many_jobs_wait(client: Client) -> None:
    def depth() -> int:
        tiers = client("GET", "/v1/tiers").get_json()["tiers"]
        return int(tiers[1]["queue_depth"]["bulk"])

    before = depth()
    client.submit(width=192, height=192, lane="bulk")
    assert depth() == before + 1


def test_a_model_says_its_limits(client: Client) -> None:
    (model,) = client("GET", "/v1/models").get_json()["models"]
    assert (model["name"], model["default"], model["tiers"]) == ("tiny", True, ["sd", "hd"])
    assert (model["max_pixels"], model["schedulers"][:2]) == (36864, ["ddim", "euler"])
    assert model["max_step_cache"] == 8
    assert [preset["name"] for preset in model["presets"]] == ["fast", "thrifty"]
    assert model["presets"][0] == {
        "name": "fast", "num_inference_steps": 4, "guidance_scale": None, "guidance_cutoff": None,
        "step_cache": None, "scheduler": None, "strength": None, "loras": None, "pipeline_parameters": None,
    }  # fmt: skip


def test_readiness_names_a_tier_that_nobody_serves(client: Client, database: Database) -> None:
    worker = Worker("wrk_c", "boot-web-c", "host", 1, "cpu:0", ("sd",), 12, 8, "exact")
    heartbeat(database, worker, [], lease_seconds=30)
    try:
        answer = client("GET", "/readyz")
    finally:
        say_goodbye(database, worker.boot_id)
    assert answer.status_code == 200
    body = answer.get_json()
    assert body["state"] == "degraded"
    assert body["checks"]["workers"] == {"ok": False, "detail": "no live worker serves: hd"}
    assert all(body["checks"][name]["ok"] for name in ("postgres", "broker", "s3"))


@pytest.mark.usefixtures("outbox")
def test_all_is_well_when_every_tier_is_served(client: Client, workers: list[Worker]) -> None:
    assert workers
    assert client("GET", "/readyz").get_json()["state"] == "ready"


def test_metrics_are_served_on_loopback(settings: Settings, api_key: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    client = Client(create_app(settings.model_copy(update={"metrics_port": port})).test_client(), api_key)
    client.submit()
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    for line in (
        'calotype_requests_total{method="POST",route="/v1/jobs",status="202"} 1.0',
        'calotype_jobs_accepted_total{lane="interactive",tier="sd"} 1.0',
        "calotype_dispatches_total 1.0",
        "calotype_dispatches_failed_total 0.0",
        "calotype_waiters_threads 0.0",
        'calotype_queue_jobs{lane="interactive",tier="sd"}',
        "calotype_webhooks_late_seconds ",
        "calotype_webhooks_pending ",
        'calotype_request_seconds_bucket{le="0.1",method="POST",route="/v1/jobs"}',
    ):
        assert line in text
    assert client("GET", "/metrics").status_code == 404


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_loads_nothing_from_elsewhere(client: Client, path: str) -> None:
    html = client("GET", path).get_data(as_text=True)
    links = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert links
    for link in links:
        if link.startswith("#"):
            assert f'id="{link[1:]}"' in html
            continue
        assert link.startswith("/")
        assert client("GET", link).status_code == 200, link
    assert "<script>" not in html


def test_the_old_address_of_swagger_ui_leads_to_the_new_one(client: Client) -> None:
    answer = client("GET", "/docs/try")
    assert (answer.status_code, answer.headers["Location"]) == (301, "/docs")


def test_every_answer_has_its_security_headers(app: Flask) -> None:
    for path in ("/", "/docs", "/docs/try", "/healthz", "/v1/jobs", "/nothing"):
        headers = app.test_client().get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "'unsafe" not in app.test_client().get("/").headers["Content-Security-Policy"]
    assert "script-src 'self';" in app.test_client().get("/docs").headers["Content-Security-Policy"]
    assert app.test_client().get("/v1/jobs").headers["Cache-Control"] == "no-store"
