"""The promises of case S35 for the whole system: whoever shows nothing is refused at every door there is."""

import json
import re
from pathlib import Path

import httpx2
import pytest
import redis
from flower.urls import handlers
from tornado.routing import URLSpec

from local.state import State
from tests.e2e.conftest import METRICS_HOST, System
from tests.knocks import assert_data_services_refuse, children_of, listeners_of

PROMPT = "a green triangle that nobody else should see"
OPEN_PAGES = {
    "/healthz": "says that the process answers",
    "/readyz": "says which parts answer, and no address, key or prompt",
    "/openapi.json": "describes the API, the same for everybody",
    "/docs": "a page to try the API on, the same for everybody",
    "/": "leads to the page where a key is asked for",
    "/sign-in": "the page where a key is asked for",
}
OPEN_IN_FLOWER = {
    r"/healthcheck": "says that the process answers",
    r"/static/(.*)": "Flower's own scripts and styles, the same for everybody",
    r"/login/?": "leads to the password, and shows nothing",
    r"/logout": "forgets who asks",
}


@pytest.fixture(scope="module")
def job_id(system: System) -> str:
    """A job whose prompt and id must not be seen."""
    job = system.api.submit({"prompt": PROMPT, "num_inference_steps": 1, "width": 64, "height": 64})
    return str(system.finish([str(job["id"])])[0]["id"])


def test_S35_every_listener_is_known_and_refuses(system: System, job_id: str) -> None:
    folder = Path(system.ready["data_dir"])
    state = State.read(folder)
    rest = assert_data_services_refuse(state, listeners_of(children_of(folder)))
    assert job_id
    metrics = [name for name in state.ports if name.startswith("metrics")]
    assert rest == {
        *(("127.0.0.1", state.ports[name]) for name in ("web", "flower")),
        *((METRICS_HOST, state.ports[name]) for name in metrics),
    }


def test_S35_the_api_answers_nobody_without_a_key_but_about_itself(system: System, job_id: str) -> None:
    with httpx2.Client(base_url=system.ready["url"], timeout=30, trust_env=False) as client:
        described = client.get("/openapi.json").json()["paths"]
        asked = 0
        for path, methods in described.items():
            for method in methods.keys() & {"get", "post", "put", "patch", "delete"}:
                answer = client.request(method, re.sub(r"\{\w+\}", job_id, path.replace("{index}", "0")))
                if path.startswith("/v1/"):
                    asked += 1
                    assert answer.status_code == 401, (method, path)
                else:
                    assert path in OPEN_PAGES, (method, path)
        assert asked > 10
        for path in OPEN_PAGES:
            text = client.get(path).text
            assert PROMPT not in text, path
            assert job_id not in text, path


def test_S35_the_metrics_hold_numbers_and_nobodys_words(system: System, job_id: str) -> None:
    processes = system.ready["services"] + system.ready["workers"]
    urls = [process["metrics_url"] for process in processes if "metrics_url" in process]
    assert len(urls) == 5
    text = "".join(httpx2.get(url, timeout=30, trust_env=False).text for url in urls)
    assert "calotype_" in text
    for word in (PROMPT, job_id, system.ready["api_key"], system.ready["s3_secret_key"]):
        assert word not in text


def test_S35_flower_asks_for_its_password_wherever_it_shows_or_does_something(system: System) -> None:
    with httpx2.Client(base_url=system.ready["flower_url"], timeout=30, trust_env=False) as client:
        rules = [rule.regex.pattern if isinstance(rule, URLSpec) else rule[0] for rule in handlers]
        patterns = {pattern.removesuffix("$") for pattern in rules}
        assert OPEN_IN_FLOWER.keys() <= patterns
        for pattern in sorted(patterns - OPEN_IN_FLOWER.keys() - {".*"}):
            path = re.sub(r"\(\.[*+]\)", "x", pattern)
            for method in ("GET", "POST"):
                status = client.request(method, path).status_code
                # 405: not with this method; 403: a form without its token; neither does anything.
                assert status in (401, 403, 405), (method, path)
                assert status != 405 or client.get(path).status_code in (401, 405), path
        auth = tuple(system.ready["flower_auth"].split(":"))
        assert client.get("/metrics", auth=auth).status_code == 200


def test_S35_no_role_needs_more_of_the_broker_than_it_may(system: System, job_id: str) -> None:
    """The system has run, drawn and rung by now: the broker's log of refusals holds none of ours."""
    assert job_id
    owner = redis.Redis.from_url(system.ready["broker_url"], decode_responses=True)
    try:
        refused = [entry for entry in owner.acl_log() if entry["reason"] != "auth"]
        users = {client["user"] for client in owner.client_list()} - {"owner"}
    finally:
        owner.close()
    assert refused == [], json.dumps(refused, default=str)
    assert users == {"api", "worker", "sender", "sweeper", "flower"}
