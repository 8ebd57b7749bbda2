"""S12: behind a proxy that serves us under a prefix every link leads back under it."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from settings import ROOT, Settings
from tests.integration.web.conftest import Client, Draw
from web.app import create_app
from web.pages.page import JOBS_A_PAGE

PREFIX = "/images/of-ours"
PUBLIC_URL = f"https://localhost{PREFIX}"
ADDRESSES = ("href", "src", "action", "formaction", "data-live", "data-document", "data-src", "poster")


class Links(HTMLParser):
    """Every address in a page, by its attribute."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: set[tuple[str, str]] = set()
        self.feed(html)

    def handle_starttag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            # Also of attributes that nobody thought of: a path from the root is a link wherever it stands.
            # The value of a field is none: `next` names a page, which the server puts behind the prefix.
            if name == "content" and "url=" in (value or ""):
                self.found.add(("refresh", str(value).partition("url=")[2]))
            if name in ADDRESSES or (name != "value" and (value or "").startswith("/")):
                self.found.add((name, value or ""))


@pytest.fixture(scope="module")
def prefixed(settings: Settings) -> Flask:
    return create_app(settings.model_copy(update={"public_url": PUBLIC_URL}))


class Browser:
    """A browser whose proxy strips the prefix, or leaves it; it asks for nothing outside of it.

    Its cookie goes to the addresses that the browser knows, which a client inside the proxy would not see.
    """

    def __init__(self, app: Flask, *, strips: bool) -> None:
        self._client = app.test_client(use_cookies=False)
        self._strips = strips
        self._cookie = ""

    def get(self, path: str, **options: Any) -> TestResponse:
        return self._open(path, "GET", **options)

    def post(self, path: str, **options: Any) -> TestResponse:
        return self._open(path, "POST", **options)

    def _open(self, path: str, method: str, **options: Any) -> TestResponse:
        assert path == PREFIX or path.startswith(PREFIX + "/"), f"{path} is not under the prefix"
        headers = {"Cookie": self._cookie, **options.pop("headers", {})}
        asked = path.removeprefix(PREFIX) if self._strips else path
        answer = self._client.open(asked, method=method, headers=headers, buffered=True, **options)
        if given := answer.headers.get("Set-Cookie"):
            assert f"Path={PREFIX}" in given.split("; ")
            self._cookie = given.partition(";")[0]
        return answer


@pytest.fixture(params=["stripped", "left"])
def proxied(prefixed: Flask, request: pytest.FixtureRequest) -> Browser:
    return Browser(prefixed, strips=request.param == "stripped")


def text(answer: TestResponse) -> str:
    return answer.get_data(as_text=True)


def under_prefix(address: str, page: str) -> str | None:
    """The path that a browser asks for, as it must be; nothing for what leads to no page of ours."""
    place = urlsplit(urljoin(f"https://localhost{page}", address))
    if place.hostname != "localhost" or not place.path:
        return None
    assert place.path == PREFIX or place.path.startswith(PREFIX + "/"), f"{address!r} on {page} leads astray"
    return place.path + (f"?{place.query}" if place.query else "")


def crawl(browser: Browser, *starts: str) -> dict[str, int]:
    """Every page that can be reached from there, with its status; fails at a link that leads astray."""
    seen: dict[str, int] = {}
    waiting = [PREFIX + start for start in starts]
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        answer = browser.get(page, headers={"Accept": "text/html"})
        seen[page] = answer.status_code
        if answer.status_code in (301, 302, 303):
            found = {("Location", answer.headers["Location"])}
        elif answer.mimetype == "text/html":
            found = Links(text(answer)).found
            assert found
        elif answer.mimetype == "text/css":
            found = {("url", address) for address in re.findall(r"url\([\"']?([^\"')]+)", text(answer))}
        else:
            continue
        for name, address in found:
            path = under_prefix(address, page)
            if path is not None and not (name == "action" or path.endswith("/session/end")):
                waiting.append(path)
    return seen


def sign_in(browser: Browser, api_key: str) -> None:
    answer = browser.post(PREFIX + "/session", data={"api_key": api_key})
    assert (answer.status_code, answer.headers["Location"]) == (303, PREFIX + "/")


def test_S12_every_link_of_every_page_leads_back_under_the_prefix(
    proxied: Browser, client: Client, api_key: str, draw: Draw
) -> None:
    made = [client.submit(seed=seed).get_json()["id"] for seed in range(JOBS_A_PAGE + 1)]
    draw(made[0])
    draw(made[-1])
    canceled = client("DELETE", f"/v1/jobs/{made[1]}").get_json()["id"]
    client("POST", f"/v1/jobs/{canceled}/retry")
    signed_out = crawl(proxied, "/", "/jobs", "/docs", f"/jobs/{made[0]}")
    assert signed_out[PREFIX + "/jobs"] == 401
    sign_in(proxied, api_key)
    seen = crawl(proxied, "/", f"/?from={made[0]}", "/nothing", f"/?drawn={made[-1]}")
    assert {path for path, status in seen.items() if status >= 400} == {PREFIX + "/nothing"}
    kinds = {
        re.sub(r"job_\w{26}", "ID", path.removeprefix(PREFIX)).partition("?")[0] for path in signed_out | seen
    }
    assert {
        "/", "/jobs", "/jobs/ID", "/v1/jobs/ID/images/0", "/docs", "/openapi.json", "/readyz",
        "/static/page.css", "/static/page.js", "/static/icon.svg", "/docs/css/swagger-ui.css",
    } <= kinds  # fmt: skip
    assert any("cursor=" in path for path in seen)


def test_S12_the_page_of_an_installation_without_its_database_stays_under_the_prefix(
    settings: Settings,
) -> None:
    nowhere = type(settings.database_url)("postgresql://nobody@127.0.0.1:1/none")
    app = create_app(settings.model_copy(update={"public_url": PUBLIC_URL, "database_url": nowhere}))
    away = Browser(app, strips=True)
    assert away.get(PREFIX + "/").status_code == 503
    assert crawl(away, "/")[PREFIX + "/static/page.js"] == 200


def test_S12_forms_and_redirects_stay_under_the_prefix(
    proxied: Browser, client: Client, api_key: str
) -> None:
    sign_in(proxied, api_key)
    html = text(proxied.get(PREFIX + "/"))
    actions = {address for name, address in Links(html).found if name == "action"}
    assert actions == {PREFIX + "/", PREFIX + "/session/end"}
    token = re.search(r'name="token" value="(\w+)"', html)
    assert token
    sent = {"token": token[1], "prompt": "a red heart"}
    stays = proxied.post(PREFIX + "/", data={**sent, "next": "/"}).headers["Location"]
    assert re.fullmatch(rf"{PREFIX}/\?drawn=(job_\w+)#\1", stays)
    found = re.fullmatch(
        rf"{PREFIX}/jobs/(job_\w+)#job", proxied.post(PREFIX + "/", data=sent).headers["Location"]
    )
    assert found
    job_id = found[1]
    canceled = proxied.post(f"{PREFIX}/jobs/{job_id}/cancel", data=sent)
    assert canceled.headers["Location"] == f"{PREFIX}/jobs/{job_id}#job"
    assert client("GET", f"/v1/jobs/{job_id}").get_json()["state"] == "canceled"
    retried = proxied.post(f"{PREFIX}/jobs/{job_id}/retry", data=sent)
    assert retried.headers["Location"].startswith(f"{PREFIX}/jobs/job_")
    assert proxied.get(PREFIX + "/session").headers["Location"] == PREFIX + "/"
    ended = proxied.post(PREFIX + "/session/end")
    assert ended.headers["Location"] == PREFIX + "/"
    assert proxied.get(PREFIX + "/jobs").status_code == 401


@pytest.mark.parametrize(
    "wish",
    [
        "//elsewhere.example", "https://elsewhere.example/jobs", "/\\elsewhere.example", "/jobs/..//x",
        PREFIX + "//elsewhere.example", "/v1/jobs", "jobs", "/jobs?x=//y", "/jobs/\n",
    ],
)  # fmt: skip
def test_S12_a_key_leads_to_no_other_site_under_a_prefix_either(
    proxied: Browser, api_key: str, wish: str
) -> None:
    answer = proxied.post(PREFIX + "/session", data={"api_key": api_key, "next": wish})
    assert answer.headers["Location"] == PREFIX + "/"


def test_S12_a_key_leads_back_to_the_page_that_asked_for_it(proxied: Browser, api_key: str) -> None:
    asked = text(proxied.get(PREFIX + "/jobs"))
    wish = re.search(r'name="next" value="([^"]+)"', asked)
    assert wish
    answer = proxied.post(PREFIX + "/session", data={"api_key": api_key, "next": wish[1]})
    assert answer.headers["Location"] == PREFIX + "/jobs"


def test_S12_the_api_and_its_document_name_the_public_address(proxied: Browser, api_key: str) -> None:
    document = proxied.get(PREFIX + "/openapi.json").get_json()
    assert document["servers"] == [{"url": PUBLIC_URL}]
    headers = {"Authorization": f"Bearer {api_key}"}
    made = proxied.post(PREFIX + "/v1/jobs", json={"prompt": "a red heart"}, headers=headers)
    job = made.get_json()
    here = f"{PUBLIC_URL}/v1/jobs/{job['id']}"
    assert (made.headers["Location"], job["links"]["self"]) == (here, here)
    assert proxied.get(urlsplit(here).path, headers=headers).get_json()["id"] == job["id"]
    assert proxied.get(PREFIX + "/v1/tiers", headers=headers).status_code == 200


def test_S12_without_a_public_url_the_document_names_the_address_that_was_asked(client: Client) -> None:
    document = client("GET", "/openapi.json", base_url="http://127.0.0.1:8123").get_json()
    assert document["servers"] == [{"url": "http://127.0.0.1:8123"}]


@pytest.mark.parametrize("path", sorted((ROOT / "web" / "static").glob("*.js")), ids=lambda path: path.name)
def test_S12_no_script_has_a_path_from_the_root(path: Path) -> None:
    """Scripts take their addresses from the page, which knows the prefix."""
    script = re.sub(r"(?m)^\s*//.*$", "", path.read_text(encoding="utf-8"))
    literals = re.findall(r"""["'`](/[\w$/{.-]*)["'`?#]""", script)
    # The pages' own name for the front page in a form, which the server puts behind the prefix.
    assert [literal for literal in literals if literal != "/"] == []
    assert script.count('"/"') == (1 if path.name == "page.js" else 0)


def test_S12_a_prefix_that_begins_like_a_route_of_ours_is_stripped_by_the_proxy_alone(
    settings: Settings, api_key: str
) -> None:
    app = create_app(settings.model_copy(update={"public_url": "https://localhost/jobs"}))
    browser = app.test_client(use_cookies=False)
    cookie = browser.post("/session", data={"api_key": api_key}).headers["Set-Cookie"].partition(";")[0]
    answer = browser.get("/jobs", headers={"Cookie": cookie})
    assert "<h1>Jobs</h1>" in text(answer)
    assert 'href="/jobs/jobs"' in text(answer)


def test_S12_the_prefix_itself_is_the_front_page(proxied: Browser) -> None:
    for path in (PREFIX, PREFIX + "/"):
        assert "What runs here" in text(proxied.get(path))


def test_S12_no_header_of_a_request_changes_the_prefix(prefixed: Flask) -> None:
    headers = {"X-Forwarded-Prefix": "//elsewhere.example", "X-Script-Name": "/x", "X-Forwarded-Host": "x"}
    html = text(prefixed.test_client().get("/", headers=headers))
    assert {link for _, link in Links(html).found if "elsewhere" in link or link.startswith("/x")} == set()


@pytest.mark.parametrize("path", ["/images", "/images/of-oursX", "/images/of-ours.x/jobs"])
def test_S12_what_only_begins_like_the_prefix_is_nothing_of_ours(prefixed: Flask, path: str) -> None:
    assert prefixed.test_client().get(path).status_code == 404
