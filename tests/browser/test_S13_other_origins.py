"""S13: a page of another origin uses the API in a real browser, and one that is not listed cannot."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Browser

from local.endpoints import Embedded
from tests.served import Served, served

ASK = """async ([url, options, size]) => {
    if (size) options.body = " ".repeat(size);
    try {
        const answer = await fetch(url, options);
        const names = ["location", "preference-applied", "x-request-id", "www-authenticate", "date"];
        const body = await answer.json();
        return [answer.status, body, Object.fromEntries(names.map(name => [name, answer.headers.get(name)]))];
    } catch (error) {
        return [0, String(error), {}];
    }
}"""


class Blank(BaseHTTPRequestHandler):
    """Whatever is asked for, a page with nothing on it."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>elsewhere</title>")

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def elsewhere() -> Iterator[str]:
    """Another origin."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Blank) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def listed() -> Iterator[str]:
    with elsewhere() as origin:
        yield origin


@pytest.fixture(scope="module")
def api(migrated: Embedded, listed: str, chromium: str) -> Iterator[Served]:
    assert chromium
    with served(migrated.environment_of("api") | {"CALOTYPE_CORS_ORIGINS": listed}) as server:
        yield server


def ask(
    browser: Browser, origin: str, url: str, size: int = 0, **options: Any
) -> tuple[int, Any, dict[str, str]]:
    """What a page of that origin reads of an answer, or status 0 and why it may not."""
    page = browser.new_page()
    page.goto(origin)
    status, body, headers = page.evaluate(ASK, [url, options, size])
    page.close()
    return status, body, headers


def test_S13_a_listed_page_draws_and_reads_what_it_is_told(
    browser: Browser, listed: str, api: Served, api_key: str
) -> None:
    headers = {
        "Authorization": f"Bearer {api_key}",
        "Content-Type": "application/json",
        "Idempotency-Key": "from a page",
        "Prefer": "wait=0.2",
        "X-Other": "1",
    }
    status, job, told = ask(
        browser, listed, f"{api.url}/v1/jobs", method="POST", headers=headers, body='{"prompt": "a heart"}'
    )
    assert (status, told["preference-applied"]) == (202, "wait=0.2")
    assert told["location"].endswith(job["id"])
    assert told["x-request-id"]
    key = {"Authorization": f"Bearer {api_key}"}
    status, shown, _ = ask(browser, listed, told["location"], headers=key)
    assert (status, shown["id"]) == (200, job["id"])
    status, _, _ = ask(browser, listed, told["location"], method="DELETE", headers=key)
    assert status == 200


def test_S13_a_listed_page_reads_why_it_is_refused(
    browser: Browser, listed: str, api: Served, api_key: str
) -> None:
    status, problem, told = ask(browser, listed, f"{api.url}/v1/jobs")
    assert (status, problem["code"], told["www-authenticate"]) == (
        401,
        "unauthenticated",
        'Bearer realm="calotype"',
    )
    headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
    for size in (100_000, 3_000_000):
        status, problem, _ = ask(browser, listed, f"{api.url}/v1/jobs", size, method="POST", headers=headers)
        assert (status, problem["code"]) == (413, "body_too_large")
    status, problem, _ = ask(browser, listed, f"{api.url}/v1/nothing", headers=headers)
    assert (status, problem["code"]) == (404, "not_found")


def test_S13_a_page_that_is_not_listed_reads_nothing_and_sends_no_key(
    browser: Browser, listed: str, api: Served, api_key: str
) -> None:
    headers = {"Authorization": f"Bearer {api_key}"}
    with elsewhere() as other:
        assert ask(browser, other, f"{api.url}/v1/jobs", headers=headers)[0] == 0
        assert ask(browser, other, f"{api.url}/healthz")[0] == 0
    # Nor does a listed one read our pages, or anything with a browser's cookie.
    assert ask(browser, listed, f"{api.url}/openapi.json")[0] == 200
    assert ask(browser, listed, f"{api.url}/jobs")[0] == 0
    assert ask(browser, listed, f"{api.url}/openapi.json", credentials="include")[0] == 0
