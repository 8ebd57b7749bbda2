"""S25: a session draws for as long as it lasts, and only by a form of its own."""

import re

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from storage import accounts, jobs
from storage.database import Database
from tests.integration.web.conftest import Client, Draw, assert_problem
from web.session import COOKIE

TYPED = {"prompt": "a red heart to keep", "seed": "41", "num_inference_steps": "7", "tier": "hd"}


@pytest.fixture
def browser(app: Flask, api_key: str) -> FlaskClient:
    """A browser without scripts, signed in."""
    return signed_in(app, api_key)


def signed_in(app: Flask, api_key: str) -> FlaskClient:
    browser = app.test_client()
    assert browser.post("/session", data={"api_key": api_key}).status_code == 303
    return browser


def text(answer: TestResponse) -> str:
    return answer.get_data(as_text=True)


def token_in(html: str) -> str:
    found = set(re.findall(r'name="token" value="([0-9a-f]{64})"', html))
    assert len(found) == 1, html
    return str(found.pop())


def token_of(browser: FlaskClient) -> str:
    return token_in(text(browser.get("/")))


def draw(browser: FlaskClient, **fields: str) -> TestResponse:
    return browser.post("/", data={**TYPED, **fields})


def num_jobs(client: Client) -> int:
    return len(client("GET", "/v1/jobs").get_json()["jobs"])


def assert_kept(html: str) -> None:
    """Nothing that was typed is lost."""
    assert "a red heart to keep</textarea>" in html
    assert 'value="41"' in html
    assert 'value="7"' in html
    assert re.search(r'<option value="hd" selected>', html)


def test_S25_a_session_draws_without_the_key_as_often_as_it_likes(
    browser: FlaskClient, client: Client
) -> None:
    cookie = browser.get_cookie(COOKIE)
    html = text(browser.get("/"))
    assert 'name="api_key"' not in html
    for seed in ("1", "2", "3"):
        answer = draw(browser, token=token_of(browser), seed=seed)
        assert answer.status_code == 303
        assert text(browser.get(answer.headers["Location"])).count("a red heart to keep") > 1
    assert num_jobs(client) == 3
    assert browser.get_cookie(COOKIE) == cookie, "the session is the same one"
    assert draw(browser, token=token_in(html)).status_code == 303, "and so is its token"


def test_S25_a_form_without_a_session_takes_the_key_and_begins_one(
    app: Flask, api_key: str, client: Client
) -> None:
    browser = app.test_client()
    assert draw(browser, api_key=api_key).status_code == 303
    assert draw(browser, token=token_of(browser), seed="5").status_code == 303
    assert num_jobs(client) == 2


def test_S25_a_form_that_was_refused_with_its_key_can_be_sent_again_by_the_session_that_it_began(
    app: Flask, api_key: str, client: Client
) -> None:
    browser = app.test_client()
    refused = draw(browser, api_key=api_key, num_inference_steps="999")
    assert refused.status_code == 422
    assert 'name="api_key"' not in text(refused)
    assert draw(browser, token=token_in(text(refused))).status_code == 303
    assert num_jobs(client) == 1


@pytest.mark.parametrize("token", [None, "", "0" * 64, "é", "\udcff", "x" * 10_000])
def test_S25_a_form_without_the_sessions_token_does_nothing_and_loses_nothing(
    browser: FlaskClient, client: Client, token: str | None
) -> None:
    sent = {} if token is None else {"token": token}
    answer = browser.post("/", data={**TYPED, **{k: v.encode("utf-8", "replace") for k, v in sent.items()}})
    assert answer.status_code == 403
    html = text(answer)
    assert "this form belongs to an earlier session" in html
    assert_kept(html)
    assert num_jobs(client) == 0
    assert draw(browser, token=token_in(html)).status_code == 303, "the form that came back can be sent"
    assert num_jobs(client) == 1


def test_S25_the_token_of_another_session_is_refused_also_of_the_same_account(
    app: Flask, browser: FlaskClient, api_key: str, client: Client
) -> None:
    elsewhere = token_of(signed_in(app, api_key))
    assert elsewhere != token_of(browser)
    assert draw(browser, token=elsewhere).status_code == 403
    assert num_jobs(client) == 0


def test_S25_after_a_sign_in_in_another_tab_a_stale_form_says_so_and_keeps_what_was_typed(
    browser: FlaskClient, client: Client, stranger: Client
) -> None:
    stale = token_of(browser)
    browser.post("/session", data={"api_key": stranger.key})
    answer = draw(browser, token=stale)
    assert answer.status_code == 403
    assert "you have signed in again since" in text(answer)
    assert_kept(text(answer))
    assert draw(browser, token=token_in(text(answer))).status_code == 303
    assert (num_jobs(client), num_jobs(stranger)) == (0, 1), "it is drawn for who is signed in now"


def test_S25_after_a_sign_out_in_another_tab_the_form_asks_for_the_key_and_keeps_what_was_typed(
    app: Flask, browser: FlaskClient, api_key: str, client: Client
) -> None:
    token = token_of(browser)
    cookie = browser.get_cookie(COOKIE)
    assert cookie is not None
    browser.post("/session/end")
    answer = draw(browser, token=token)
    assert answer.status_code == 401
    assert "an API key is required; what you typed is kept" in text(answer)
    assert_kept(text(answer))
    thief = app.test_client()
    thief.set_cookie(COOKIE, cookie.value)
    assert draw(thief, token=token).status_code == 401, "a copy of the cookie draws nothing either"
    assert num_jobs(client) == 0
    assert draw(browser, api_key=api_key).status_code == 303


def test_S25_a_revoked_key_ends_the_drawing_at_once(
    app: Flask, database: Database, account: str, client: Client
) -> None:
    key = accounts.create_key(database, account, "to be revoked")
    browser = signed_in(app, key.plaintext)
    token = token_of(browser)
    assert draw(browser, token=token).status_code == 303
    accounts.revoke_key(database, key.id)
    answer = draw(browser, token=token, seed="2")
    assert answer.status_code == 401
    assert "the session has ended" in text(answer)
    assert_kept(text(answer).replace('value="2"', 'value="41"'))
    assert num_jobs(client) == 1


def test_S25_a_wrong_key_in_the_form_is_not_mended_by_the_session(
    browser: FlaskClient, client: Client
) -> None:
    assert draw(browser, token=token_of(browser), api_key="calo_abcdefgh_wrong").status_code == 401
    assert num_jobs(client) == 0


@pytest.mark.parametrize(
    "headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://elsewhere.example"}]
)
def test_S25_another_sites_form_is_refused_even_with_the_token(
    browser: FlaskClient, client: Client, headers: dict[str, str]
) -> None:
    job_id = client.submit().get_json()["id"]
    token = token_of(browser)
    for path in ("/", f"/jobs/{job_id}/cancel", f"/jobs/{job_id}/retry"):
        assert browser.post(path, data={**TYPED, "token": token}, headers=headers).status_code == 403
    assert num_jobs(client) == 1
    assert client("GET", f"/v1/jobs/{job_id}").get_json()["state"] == "queued"


def test_S25_the_token_opens_nothing_of_the_api(browser: FlaskClient, client: Client) -> None:
    token = token_of(browser)
    for options in ({"json": {"prompt": "a", "token": token}}, {"data": {"prompt": "a", "token": token}}):
        headers = {"X-CSRF-Token": token}
        answer = browser.post("/v1/jobs", headers=headers, **options)
        assert_problem(answer, 401, "unauthenticated")
    assert num_jobs(client) == 0


def test_S25_the_token_is_not_the_cookie_and_is_neither_logged_nor_kept(
    browser: FlaskClient, capsys: pytest.CaptureFixture[str]
) -> None:
    cookie = browser.get_cookie(COOKIE)
    assert cookie is not None
    token = token_of(browser)
    draw(browser, token=token)
    logged = "".join(capsys.readouterr())
    assert token not in logged
    assert cookie.value not in logged + text(browser.get("/"))


def test_S25_sent_twice_it_is_drawn_once(browser: FlaskClient, client: Client) -> None:
    once = re.search(r'name="once" value="(\w+)"', text(browser.get("/")))
    assert once
    places = {draw(browser, token=token_of(browser), once=once[1]).headers["Location"] for _ in range(2)}
    assert (len(places), num_jobs(client)) == (1, 1)


def act(browser: FlaskClient, job_id: str, verb: str, **fields: str) -> TestResponse:
    return browser.post(f"/jobs/{job_id}/{verb}", data=fields)


def test_S25_a_job_is_canceled_from_its_page(browser: FlaskClient, client: Client) -> None:
    job_id = client.submit().get_json()["id"]
    html = text(browser.get(f"/jobs/{job_id}"))
    assert f'action="/jobs/{job_id}/cancel"' in html
    answer = act(browser, job_id, "cancel", token=token_in(html))
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/jobs/{job_id}#job")
    assert client("GET", f"/v1/jobs/{job_id}").get_json()["state"] == "canceled"
    html = text(browser.get(f"/jobs/{job_id}"))
    assert "/cancel" not in html
    assert act(browser, job_id, "cancel", token=token_in(html)).status_code == 303, "it has ended: no error"


def test_S25_a_running_job_says_that_it_is_being_canceled(
    browser: FlaskClient, client: Client, database: Database
) -> None:
    job_id = client.submit().get_json()["id"]
    worker = jobs.WorkerName("boot", "cpu:0@test")
    assert jobs.claim(database, job_id, tiers=["sd", "hd"], worker=worker, lease_seconds=30)
    act(browser, job_id, "cancel", token=token_of(browser))
    html = text(browser.get(f"/jobs/{job_id}"))
    assert "Being canceled" in html
    assert "/cancel" not in html


def test_S25_a_job_that_came_to_nothing_is_tried_again_once(browser: FlaskClient, client: Client) -> None:
    job_id = client.submit(prompt="again", seed=5).get_json()["id"]
    assert f'action="/jobs/{job_id}/retry"' not in text(browser.get(f"/jobs/{job_id}"))
    act(browser, job_id, "cancel", token=token_of(browser))
    html = text(browser.get(f"/jobs/{job_id}"))
    once = re.search(r'name="once" value="(\w+)"', html)
    assert once
    places = {
        act(browser, job_id, "retry", token=token_in(html), once=once[1]).headers["Location"]
        for _ in range(2)
    }
    assert len(places) == 1
    new = client("GET", f"/v1{places.pop().removesuffix('#job')}").get_json()
    assert (new["retry_of"], new["prompt"], new["seed"]) == (job_id, "again", 5)
    assert num_jobs(client) == 2


def test_S25_a_mark_that_is_none_of_ours_is_replaced(browser: FlaskClient, client: Client) -> None:
    job_id = client.submit(prompt="again").get_json()["id"]
    act(browser, job_id, "cancel", token=token_of(browser))
    answer = act(browser, job_id, "retry", token=token_of(browser), once="\0")
    assert (answer.status_code, num_jobs(client)) == (303, 2)


def test_S25_a_job_that_succeeded_or_runs_is_not_tried_again(
    browser: FlaskClient, client: Client, draw: Draw
) -> None:
    job_id = client.submit().get_json()["id"]
    answer = act(browser, job_id, "retry", token=token_of(browser))
    assert answer.headers["Location"] == f"/jobs/{job_id}#job"
    assert num_jobs(client) == 1
    draw(job_id)
    assert "/retry" not in text(browser.get(f"/jobs/{job_id}"))


@pytest.mark.parametrize("verb", ["cancel", "retry"])
def test_S25_a_job_is_changed_by_nobody_else(
    app: Flask, browser: FlaskClient, client: Client, stranger: Client, verb: str
) -> None:
    job_id = client.submit().get_json()["id"]
    token = token_of(browser)
    stale = act(browser, job_id, verb, token="0" * 64)
    assert (stale.status_code, "belongs to an earlier session" in text(stale)) == (403, True)
    assert act(app.test_client(), job_id, verb, token=token).status_code == 401
    other = signed_in(app, stranger.key)
    assert act(other, job_id, verb, token=token_of(other)).status_code == 404
    assert act(other, "nonsense", verb, token=token_of(other)).status_code == 404
    assert client("GET", f"/v1/jobs/{job_id}").get_json()["state"] == "queued"
    assert num_jobs(client) == 1


def test_S26_the_answer_to_a_form_begins_at_the_new_job(browser: FlaskClient) -> None:
    token = token_of(browser)
    place = draw(browser, token=token).headers["Location"]
    assert re.fullmatch(r"/jobs/job_\w{26}#job", place)
    assert 'id="job" tabindex="-1"' in text(browser.get(place))
    stays = draw(browser, token=token, next="/", seed="2").headers["Location"]
    found = re.fullmatch(r"/\?drawn=(job_\w{26})#(job_\w{26})", stays)
    assert found
    assert found[1] == found[2]
    html = text(browser.get(stays))
    assert f'<li class="card new" id="{found[1]}" tabindex="-1"' in html
    assert html.count("card new") == 1
    assert f'data-live="/jobs?drawn={found[1]}"' in html, "it stays marked as the list is renewed"
    for strange in ("job_x", "%3Cscript%3E", f"job_{'0' * 26}"):
        assert "card new" not in text(browser.get(f"/?drawn={strange}"))
