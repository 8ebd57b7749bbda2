"""A sign-out and a revocation end everything at once, in every web process; nobody pretends otherwise."""

from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from settings import Settings
from storage import accounts, sessions
from storage.database import Database
from tests.integration.web.conftest import Client
from web.app import create_app
from web.session import COOKIE, SESSION_SECONDS


@pytest.fixture(scope="module")
def other_app(settings: Settings) -> Flask:
    """Another web process, as far as memory goes."""
    return create_app(settings)


def sign_in(app: Flask, api_key: str) -> tuple[FlaskClient, str]:
    browser = app.test_client()
    assert browser.post("/session", data={"api_key": api_key}).status_code == 303
    return browser, cookie_of(browser)


def cookie_of(browser: FlaskClient) -> str:
    cookie = browser.get_cookie(COOKIE)
    assert cookie is not None
    return cookie.value


def reads(app: Flask, cookie: str, path: str = "/v1/jobs") -> bool:
    """Whether a copy of the cookie reads, anywhere."""
    thief = app.test_client()
    thief.set_cookie(COOKIE, cookie)
    status = thief.get(path).status_code
    assert status in (200, 401)
    return status == 200


def test_S40_a_copy_of_the_cookie_reads_nothing_after_the_sign_out(
    app: Flask, other_app: Flask, api_key: str
) -> None:
    browser, cookie = sign_in(app, api_key)
    assert reads(app, cookie)
    assert reads(other_app, cookie)
    answer = browser.post("/session/end")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    assert browser.get_cookie(COOKIE) is None
    for each in (app, other_app):
        assert not any(reads(each, cookie, path) for path in ("/v1/jobs", "/jobs"))
    assert browser.get("/jobs").status_code == 401
    assert browser.post("/session/end").status_code == 303, "signing out twice is no error"


def test_S40_a_sign_out_ends_no_other_browser(app: Flask, api_key: str) -> None:
    browser, _ = sign_in(app, api_key)
    _, elsewhere = sign_in(app, api_key)
    browser.post("/session/end")
    assert reads(app, elsewhere)


def test_S40_a_revoked_key_and_its_sessions_end_at_once_everywhere(
    app: Flask, other_app: Flask, database: Database, account: str
) -> None:
    key = accounts.create_key(database, account, "to be revoked")
    _, cookie = sign_in(app, key.plaintext)
    clients = [Client(each.test_client(), key.plaintext) for each in (app, other_app)]
    assert [client("GET", "/v1/jobs").status_code for client in clients] == [200, 200]
    accounts.revoke_key(database, key.id)
    assert [client("GET", "/v1/jobs").status_code for client in clients] == [401, 401]
    assert [client.submit().status_code for client in clients] == [401, 401]
    assert not reads(app, cookie)
    assert not reads(other_app, cookie)


def test_S40_a_rotated_key_ends_with_its_sessions_and_its_successor_opens(
    app: Flask, other_app: Flask, database: Database, account: str
) -> None:
    old = accounts.create_key(database, account, "to be rotated")
    _, cookie = sign_in(app, old.plaintext)
    assert Client(other_app.test_client(), old.plaintext)("GET", "/v1/jobs").status_code == 200
    new = accounts.rotate_key(database, old.id)
    assert Client(other_app.test_client(), old.plaintext)("GET", "/v1/jobs").status_code == 401
    assert not reads(other_app, cookie)
    assert Client(other_app.test_client(), new.plaintext)("GET", "/v1/jobs").status_code == 200


def test_S40_every_sign_in_makes_a_new_session_and_ends_the_browsers_last(app: Flask, api_key: str) -> None:
    browser = app.test_client()
    browser.set_cookie(COOKIE, "chosen-by-somebody-else")
    cookies = ["chosen-by-somebody-else"]
    for path in ("/session", "/session", "/"):
        browser.post(path, data={"api_key": api_key, "prompt": "a red heart"})
        cookies.append(cookie_of(browser))
    assert len(set(cookies)) == 4
    assert [reads(app, cookie) for cookie in cookies] == [False, False, False, True]


def test_S40_the_database_holds_no_cookie_and_a_guess_opens_nothing(
    app: Flask, api_key: str, database: Database
) -> None:
    _, cookie = sign_in(app, api_key)
    assert len(cookie) >= 43, "256 random bits"
    with database.transaction() as connection:
        rows = str(connection.execute(text("SELECT * FROM sessions")).all())
        digests = connection.execute(text("SELECT digest FROM sessions")).scalars().all()
    assert cookie not in rows
    for guess in ("", "x", cookie[:-1], cookie + "A", "é", "\0", digests[0], "A" * 10_000):
        assert sessions.principal_of(database, guess) is None, guess


def test_S40_a_session_ends_by_itself_and_is_removed_a_few_at_a_time(
    database: Database, api_key: str
) -> None:
    principal = accounts.authenticate(database, api_key)
    assert principal is not None
    living = sessions.begin(database, principal.key_id, seconds=SESSION_SECONDS)
    expired = [sessions.begin(database, principal.key_id, seconds=-1) for _ in range(5)]
    assert sessions.principal_of(database, living) == principal
    assert [sessions.principal_of(database, each) for each in expired] == [None] * 5
    removed = [sessions.remove_expired(database, limit=3) for _ in range(3)]
    assert removed == [3, 2, 0]
    assert sessions.principal_of(database, living) == principal


def test_S40_a_sign_out_that_could_not_be_done_says_so_and_can_be_done_again(
    app: Flask, api_key: str, settings: Settings, tmp_path: Path
) -> None:
    _, cookie = sign_in(app, api_key)
    nowhere = f"postgresql://u:p@localhost/none?host={tmp_path}"
    away = create_app(settings.model_copy(update={"database_url": type(settings.database_url)(nowhere)}))
    browser = away.test_client()
    browser.set_cookie(COOKIE, cookie)
    answer = browser.post("/session/end")
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert "Set-Cookie" not in answer.headers
    assert reads(app, cookie), "it still lives, as the answer said"
    again = app.test_client()
    again.set_cookie(COOKIE, cookie)
    assert again.post("/session/end").status_code == 303
    assert not reads(app, cookie)


def test_S40_a_key_in_constant_use_is_noted_once_a_minute_and_waits_for_nobody(
    database: Database, account: str
) -> None:
    key = accounts.create_key(database, account, "busy")
    held = text("SELECT FROM api_keys WHERE id = :id FOR UPDATE")
    with database.transaction() as connection:
        connection.execute(held, {"id": key.id})
        assert accounts.authenticate(database, key.plaintext) == accounts.Principal(account, key.id)
    used = []
    for _ in range(3):
        accounts.authenticate(database, key.plaintext)
        used += [each.last_used_at for each in accounts.list_keys(database, account) if each.id == key.id]
    assert used[0] is not None
    assert len(set(used)) == 1
