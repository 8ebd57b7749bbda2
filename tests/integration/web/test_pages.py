"""The pages: a session reads, forms say what is wrong, nothing needs scripts."""

import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from settings import Settings
from storage.database import Database
from storage.workers import Worker, heartbeat, say_goodbye
from tests.integration.web.conftest import Client, Draw, assert_problem
from web.app import create_app
from web.pages.page import JOBS_A_PAGE
from web.session import COOKIE, SESSION_SECONDS

NASTY = "<script>alert('x')</script> & \"quotes\""


@pytest.fixture
def browser(app: Flask) -> FlaskClient:
    """A browser without scripts: keeps cookies, follows nothing by itself."""
    return app.test_client()


@pytest.fixture
def signed_in(browser: FlaskClient, api_key: str) -> FlaskClient:
    browser.post("/session", data={"api_key": api_key})
    return browser


def text(answer: TestResponse) -> str:
    return answer.get_data(as_text=True)


class Controls(HTMLParser):
    """Which controls a page has, which of them are labelled, and what could not run under its policy."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.labels: set[str] = set()
        self.controls: list[dict[str, str | None]] = []
        self.inline: list[str] = []
        self._script = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if tag == "label":
            self.labels.add(str(found["for"]))
        hidden = found.get("type") == "hidden" or found.get("aria-hidden") == "true"
        if tag in ("input", "select", "textarea") and not hidden:
            self.controls.append(found)
        self.inline += [f"{tag} {name}" for name in found if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in found):
            self.inline.append(tag)
        if str(found.get("href") or found.get("src") or "").lower().startswith(("javascript:", "data:")):
            self.inline.append(f"{tag} address")


def assert_sound(answer: TestResponse) -> str:
    """A page that its own policy lets work, and that names every control."""
    html = text(answer)
    assert answer.content_type == "text/html; charset=utf-8"
    page = Controls(html)
    assert page.inline == []
    assert len(page.ids) == len(set(page.ids))
    assert {str(control.get("id")) for control in page.controls} <= page.labels
    for names in re.findall(r'aria-(?:describedby|labelledby)="([^"]*)"', html):
        assert set(names.split()) <= set(page.ids), names
    assert '<html lang="en">' in html
    assert "<title>" in html
    assert "'unsafe" not in answer.headers["Content-Security-Policy"]
    return html


def test_without_a_session_the_page_shows_only_what_runs_here(browser: FlaskClient, client: Client) -> None:
    client.submit(prompt="somebody's prompt")
    html = assert_sound(browser.get("/"))
    assert "What runs here" in html
    assert 'action="/session"' in html
    assert "somebody" not in html
    assert 'name="prompt"' not in html


def test_a_tier_without_a_worker_says_so(browser: FlaskClient, database: Database) -> None:
    worker = Worker("wrk_p", "boot-page", "host", 1, "cpu:0", ("sd",), 12, 8, "exact")
    heartbeat(database, worker, [], lease_seconds=30)
    try:
        html = text(browser.get("/"))
    finally:
        say_goodbye(database, worker.boot_id)
    assert html.count("none: jobs wait until one starts") == 1


def test_a_key_becomes_a_cookie_that_scripts_and_other_sites_never_see(
    browser: FlaskClient, api_key: str
) -> None:
    answer = browser.post("/session", data={"api_key": f" {api_key}\n"})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    parts = {part.strip() for part in cookie.split(";")}
    assert {"HttpOnly", "SameSite=Strict", "Path=/", f"Max-Age={SESSION_SECONDS}"} <= parts
    assert "Secure" not in parts
    assert api_key not in cookie
    assert api_key.split("_")[2] not in cookie


def test_over_https_the_cookie_is_secure(settings: Settings, api_key: str) -> None:
    app = create_app(settings.model_copy(update={"public_url": "https://images.example"}))
    answer = app.test_client().post("/session", data={"api_key": api_key})
    assert "; Secure" in answer.headers["Set-Cookie"]


def test_a_wrong_key_is_told_and_never_shown_or_logged(
    browser: FlaskClient, capsys: pytest.CaptureFixture[str]
) -> None:
    for data in ({"api_key": "calo_abcdefgh_wrongsecret"}, {"api_key": "no key at all"}, {}):
        answer = browser.post("/session", data=data)
        assert answer.status_code == 401
        html = assert_sound(answer)
        assert "is unknown or was revoked" in html
        assert 'aria-invalid="true"' in html
        assert "Set-Cookie" not in answer.headers
        assert "wrongsecret" not in html
    assert "wrongsecret" not in "".join(capsys.readouterr())


def test_a_good_key_is_never_shown_or_logged(
    signed_in: FlaskClient, api_key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = api_key.split("_")[2]
    answers = [
        signed_in.post("/", data={"api_key": api_key, "prompt": ""}),
        signed_in.post("/", data={"api_key": api_key, "prompt": "a red heart"}, follow_redirects=True),
        signed_in.get("/"),
    ]
    assert [answer.status_code for answer in answers] == [422, 200, 200]
    assert all(secret not in text(answer) for answer in answers)
    assert secret not in "".join(capsys.readouterr())


def test_a_session_reads_what_the_key_reads(signed_in: FlaskClient, client: Client, draw: Draw) -> None:
    job_id = client.submit().get_json()["id"]
    draw(job_id)
    assert signed_in.get("/v1/jobs").get_json()["jobs"][0]["id"] == job_id
    assert signed_in.get(f"/v1/jobs/{job_id}").get_json()["state"] == "succeeded"
    assert signed_in.get(f"/v1/jobs/{job_id}/images/0").status_code == 302
    assert signed_in.get("/v1/tiers").status_code == 200


def test_a_session_never_writes_through_the_api(app: Flask, signed_in: FlaskClient, client: Client) -> None:
    job_id = client.submit().get_json()["id"]
    writing = [
        (method, rule.rule.replace("<job_id>", job_id).replace("<batch_id>", "bat_" + "0" * 26))
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith("/v1/")
        for method in (rule.methods or set()) - {"GET", "HEAD", "OPTIONS"}
    ]
    assert len(writing) >= 5
    for method, path in writing:
        assert_problem(signed_in.open(path, method=method, json={"prompt": "a"}), 401, "unauthenticated")
    assert client("GET", f"/v1/jobs/{job_id}").get_json()["state"] == "queued"
    assert len(client("GET", "/v1/jobs").get_json()["jobs"]) == 1


def test_a_session_does_not_see_the_webhook_secret(signed_in: FlaskClient, client: Client) -> None:
    assert client("GET", "/v1/webhook-secret").status_code == 200
    refused = signed_in.get("/v1/webhook-secret")
    assert refused.status_code == 401
    assert b"whsec_" not in refused.data


def test_a_wrong_key_is_not_mended_by_a_session(signed_in: FlaskClient) -> None:
    answer = signed_in.get("/v1/jobs", headers={"Authorization": "Bearer calo_abcdefgh_wrong"})
    assert_problem(answer, 401, "unauthenticated")


@pytest.mark.parametrize("path", ["/", "/session", "/session/end"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
    ],
)
def test_a_form_that_another_site_sends_does_nothing(
    signed_in: FlaskClient, client: Client, api_key: str, path: str, headers: dict[str, str]
) -> None:
    answer = signed_in.post(path, data={"api_key": api_key, "prompt": "a red heart"}, headers=headers)
    assert answer.status_code == 403
    assert "Set-Cookie" not in answer.headers
    assert_sound(answer)
    assert client("GET", "/v1/jobs").get_json()["jobs"] == []


@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {"Origin": "http://localhost"}, {}],
)
def test_a_form_of_our_own_is_taken(browser: FlaskClient, api_key: str, headers: dict[str, str]) -> None:
    assert browser.post("/session", data={"api_key": api_key}, headers=headers).status_code == 303


def test_behind_a_proxy_our_origin_is_the_public_one(settings: Settings, api_key: str) -> None:
    app = create_app(settings.model_copy(update={"public_url": "https://images.example"}))
    for origin, status in (("https://images.example", 303), ("https://other.example", 403)):
        answer = app.test_client().post("/session", data={"api_key": api_key}, headers={"Origin": origin})
        assert answer.status_code == status


def test_the_form_draws_and_begins_a_session(browser: FlaskClient, api_key: str, client: Client) -> None:
    typed = {
        "api_key": api_key, "prompt": "a blue star\r\non yellow", "negative_prompt": "text", "tier": "hd",
        "num_inference_steps": "4", "guidance_scale": "2.5", "seed": "7", "num_images": "2",
        "scheduler": "euler", "output_format": "webp", "width": "", "height": "", "guidance_cutoff": "0.5",
        "step_cache": "2",
    }  # fmt: skip
    answer = browser.post("/", data=typed)
    assert answer.status_code == 303
    path = answer.headers["Location"]
    job = client("GET", f"/v1{path}").get_json()
    expected = {
        "prompt": "a blue star\non yellow", "negative_prompt": "text", "tier": "hd", "width": 192,
        "height": 192, "num_inference_steps": 4, "guidance_scale": 2.5, "seed": 7, "num_images": 2,
        "scheduler": "euler", "output_format": "webp", "guidance_cutoff": 0.5, "step_cache": 2,
        "state": "queued",
    }  # fmt: skip
    assert {name: job[name] for name in expected} == expected
    assert "a blue star" in assert_sound(browser.get(path))


def test_an_almost_empty_form_is_enough(browser: FlaskClient, api_key: str, client: Client) -> None:
    path = browser.post("/", data={"api_key": api_key, "prompt": "a red heart"}).headers["Location"]
    job = client("GET", f"/v1{path}").get_json()
    assert (job["tier"], job["num_inference_steps"], job["num_images"]) == ("sd", 20, 1)


def test_a_form_sent_twice_draws_once_and_an_edited_one_again(
    signed_in: FlaskClient, api_key: str, client: Client
) -> None:
    once = re.search(r'name="once" value="(\w+)"', text(signed_in.get("/")))
    assert once
    typed = {"api_key": api_key, "prompt": "a red heart", "once": once[1]}
    places = [signed_in.post("/", data=typed).headers["Location"] for _ in range(2)]
    assert places[0] == places[1]
    assert signed_in.post("/", data={**typed, "prompt": "a blue heart"}).headers["Location"] != places[0]
    assert len(client("GET", "/v1/jobs").get_json()["jobs"]) == 2


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("prompt", "  ", "is blank"),
        ("prompt", "a" * 2001, "the limit is 2000"),
        ("num_inference_steps", "151", "is above 150"),
        ("num_inference_steps", "many", "should be a whole number"),
        ("guidance_scale", "31", "is above 30"),
        ("guidance_scale", "1.5.5", "should be a number"),
        ("guidance_cutoff", "2", "less than or equal to 1"),
        ("step_cache", "9", "is above 8"),
        ("seed", "-1", "greater than or equal to 0"),
        ("num_images", "5", "less than or equal to 4"),
        ("width", "100", "a multiple of 8"),
        ("height", "9999", "from 64 to 256"),
        ("tier", "8k", "the tiers are: sd, hd"),
        ("scheduler", "magic", "ddim, euler"),
    ],
)
def test_what_is_wrong_stands_beside_its_field_and_what_was_typed_stays(
    browser: FlaskClient, api_key: str, field: str, value: str, said: str
) -> None:
    typed = {"api_key": api_key, "prompt": "a prompt to keep", "negative_prompt": NASTY, field: value}
    answer = browser.post("/", data=typed)
    assert answer.status_code == 422
    html = assert_sound(answer)
    error = re.search(rf'id="{field}-error">([^<]*)<', html)
    assert error, html
    assert said in error[1]
    if field != "prompt":
        assert "a prompt to keep</textarea>" in html
    if field in ("num_inference_steps", "guidance_scale", "seed", "width", "height", "num_images"):
        assert f'value="{value}"' in html
    assert NASTY not in html


def test_S10_every_wrong_field_of_the_form_is_named_at_once(browser: FlaskClient, api_key: str) -> None:
    """What cannot be read, what no job may be, and what this model does not take."""
    typed = {"api_key": api_key, "prompt": "a", "seed": "x", "num_images": "9", "num_inference_steps": "999"}
    html = text(browser.post("/", data=typed))
    for field in ("seed", "num_images", "num_inference_steps"):
        assert f'id="{field}-error"' in html


def test_a_form_that_is_too_large_is_refused_as_a_page(browser: FlaskClient, api_key: str) -> None:
    answer = browser.post("/", data={"api_key": api_key, "prompt": "a" * 70_000})
    assert answer.status_code == 413
    assert_sound(answer)


def test_markup_in_a_prompt_is_text(signed_in: FlaskClient, client: Client, draw: Draw) -> None:
    job_id = client.submit(prompt=NASTY, negative_prompt=NASTY).get_json()["id"]
    draw(job_id)
    for path in ("/", "/jobs", f"/jobs/{job_id}", f"/?from={job_id}"):
        html = assert_sound(signed_in.get(path))
        assert "alert(" in html
        assert "<script>alert" not in html


def test_a_job_shows_its_images_and_how_to_draw_it_again(
    signed_in: FlaskClient, client: Client, draw: Draw
) -> None:
    job_id = client.submit(prompt="it's a heart", seed=41).get_json()["id"]
    waiting = assert_sound(signed_in.get(f"/jobs/{job_id}"))
    refresh = f'<meta http-equiv="refresh" content="2; url=/jobs/{job_id}">'
    assert f"<noscript>{refresh}</noscript>" in waiting
    assert f'data-live="/jobs/{job_id}"' in waiting
    draw(job_id)
    html = assert_sound(signed_in.get(f"/jobs/{job_id}"))
    assert "refresh" not in html
    assert "data-live" not in html
    assert (
        f'<img src="/v1/jobs/{job_id}/images/0" width="128" height="128" alt="Image 1: it&#39;s a heart"'
        in html
    )
    assert "&#34;seed&#34;: 41" in html
    again = text(signed_in.get(f"/?from={job_id}"))
    assert 'name="seed" type="number" inputmode="decimal" min="0" step="1" value="41"' in again
    assert signed_in.get(f"/?from=job_{'0' * 26}").status_code == 404


def test_a_page_with_a_form_never_loads_itself_again(signed_in: FlaskClient, client: Client) -> None:
    client.submit()
    assert 'http-equiv="refresh"' not in text(signed_in.get("/"))
    assert 'http-equiv="refresh"' in text(signed_in.get("/jobs"))


def test_jobs_are_shown_a_page_at_a_time(signed_in: FlaskClient, client: Client) -> None:
    made = [client.submit(seed=seed).get_json()["id"] for seed in range(JOBS_A_PAGE + 2)]
    found: list[str] = []
    path: str | None = "/jobs"
    while path:
        html = assert_sound(signed_in.get(path))
        found += re.findall(r'<li class="card" id="(\w+)"', html)
        older = re.search(r'href="(/jobs\?cursor=[^"]+)" rel="next"', html)
        path = older[1] if older else None
    assert found == made[::-1]
    assert signed_in.get("/jobs?cursor=nonsense").status_code == 422


def test_another_accounts_jobs_look_like_nothing(
    signed_in: FlaskClient, stranger: Client, draw: Draw
) -> None:
    job_id = stranger.submit(prompt="a stranger's prompt").get_json()["id"]
    draw(job_id)
    for path in ("/", "/jobs"):
        assert "stranger" not in text(signed_in.get(path))
    for path in (f"/jobs/{job_id}", f"/?from={job_id}", "/jobs/nonsense", "/jobs/job_%00"):
        answer = signed_in.get(path)
        assert answer.status_code == 404
        assert "stranger" not in assert_sound(answer)
    assert_problem(signed_in.get(f"/v1/jobs/{job_id}/images/0"), 404, "not_found")


def test_a_page_that_needs_a_key_asks_for_it_and_leads_back(
    browser: FlaskClient, client: Client, api_key: str
) -> None:
    path = f"/jobs/{client.submit().get_json()['id']}"
    asked = browser.get(path)
    assert asked.status_code == 401
    assert f'name="next" value="{path}"' in assert_sound(asked)
    assert browser.post("/session", data={"api_key": api_key, "next": path}).headers["Location"] == path


@pytest.mark.parametrize(
    "place",
    ["https://elsewhere.example/", "//elsewhere.example", "/\\elsewhere.example", "/v1/jobs", "/jobs/\n"],
)
def test_a_key_leads_to_no_other_site(browser: FlaskClient, api_key: str, place: str) -> None:
    answer = browser.post("/session", data={"api_key": api_key, "next": place})
    assert answer.headers["Location"] == "/"


def test_what_a_page_shows_of_an_account_is_kept_nowhere(signed_in: FlaskClient, client: Client) -> None:
    path = f"/jobs/{client.submit().get_json()['id']}"
    for page in ("/", "/jobs", path):
        headers = signed_in.get(page).headers
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "same-origin"


def test_a_page_shows_images_of_our_store_and_of_nobody_else(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"s3_public_endpoint": "https://s3.example:8443/path"}))
    policy = app.test_client().get("/").headers["Content-Security-Policy"]
    assert "img-src 'self' https://s3.example:8443;" in policy


@pytest.fixture
def without_database(settings: Settings) -> FlaskClient:
    url = type(settings.database_url)("postgresql://nobody@127.0.0.1:1/none")
    return create_app(settings.model_copy(update={"database_url": url})).test_client()


def test_without_a_database_the_pages_say_so(without_database: FlaskClient) -> None:
    asks: list[Callable[[], TestResponse]] = [
        lambda: without_database.get("/"),
        lambda: without_database.get("/jobs"),
        lambda: without_database.post("/session", data={"api_key": "calo_abcdefgh_" + "x" * 34}),
        lambda: without_database.post("/", data={"api_key": "calo_abcdefgh_" + "x" * 34, "prompt": "a"}),
    ]
    for ask in asks:
        answer = ask()
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "2"
        assert_sound(answer)
    assert "database does not answer" in text(without_database.get("/"))


def test_a_mistyped_address_is_a_page_for_a_browser_and_a_problem_for_a_program(browser: FlaskClient) -> None:
    wish = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
    for path, status, code in (
        ("/jobs/", 404, "not_found"),
        ("/nothing", 404, "not_found"),
        ("/session/end", 405, "method_not_allowed"),
    ):
        page = browser.get(path, headers=wish)
        assert (page.status_code, page.mimetype) == (status, "text/html")
        assert 'href="/"' in text(page)
        assert "style-src 'self'" in page.headers["Content-Security-Policy"]
        assert page.headers["Cache-Control"] == "no-store"
        assert_problem(browser.get(path, headers={"Accept": "*/*"}), status, code)
    assert_problem(browser.get("/v1/nothing", headers=wish), 404, "not_found")
