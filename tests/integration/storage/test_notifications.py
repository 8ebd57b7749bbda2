"""What is announced through Postgres is heard at once, again after every outage, and nothing hangs."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from urllib.parse import urlsplit

import pytest
from sqlalchemy import Connection, text

from bench.faulty_proxy import Fault, proxied
from local.endpoints import Embedded
from settings import ROOT
from storage.database import Database
from storage.notifications import JOBS_ENDED, WEBHOOKS_DUE, Listener
from storage.notifications import announce as announce_after_commit
from storage.roles import ROLES

SOON = 60.0


class Ears:
    """A listener on `JOBS_ENDED`, what it heard, and how often it may have missed something."""

    def __init__(self, url: str, **limits: float) -> None:
        self.heard: SimpleQueue[str] = SimpleQueue()
        self.caught_up: SimpleQueue[None] = SimpleQueue()
        self.listener = Listener(url, **limits)  # type: ignore[arg-type]
        self.listener.subscribe(JOBS_ENDED, self.heard.put, catch_up=lambda: self.caught_up.put(None))


@contextmanager
def listening(url: str, **limits: float) -> Iterator[Ears]:
    ears = Ears(url, **limits)
    ears.listener.start()
    try:
        yield ears
    finally:
        ears.listener.stop()


def announce(database: Database, payload: str, channel: str = JOBS_ENDED) -> None:
    with database.transaction() as connection:
        connection.execute(text("SELECT pg_notify(:channel, :payload)"), named(channel, payload))


def named(channel: str, payload: str) -> dict[str, str]:
    return {"channel": channel, "payload": payload}


def num_listeners(database: Database) -> int:
    query = text(
        """SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'calotype-listener'"""
    )
    with database.transaction() as connection:
        return int(connection.execute(query).scalar_one())


def end_listeners(database: Database) -> None:
    query = text(
        """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'calotype-listener'"""
    )
    with database.transaction() as connection:
        connection.execute(query)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def notify_and_raise(connection: Connection) -> None:
    """So that what was notified is rolled back."""
    connection.execute(text("SELECT pg_notify(:channel, :payload)"), named(JOBS_ENDED, "job_undone"))
    raise LookupError


def test_every_role_hears_what_is_committed_and_nothing_else(database: Database, migrated: Embedded) -> None:
    for role in ROLES:
        with listening(migrated.database_urls[role]) as ears:
            ears.caught_up.get(timeout=SOON)
            assert ears.listener.is_listening
            with pytest.raises(LookupError):
                database.run(notify_and_raise)
            announce(database, "", WEBHOOKS_DUE)
            announce(database, f"job_a {role}")
            assert ears.heard.get(timeout=SOON) == f"job_a {role}"
            assert ears.heard.empty()


def test_after_a_lost_connection_it_says_that_anything_may_have_changed_and_hears_again(
    database: Database, migrated: Embedded
) -> None:
    with listening(migrated.database_url) as ears:
        ears.caught_up.get(timeout=SOON)
        end_listeners(database)
        ears.caught_up.get(timeout=SOON)
        announce(database, "job_a")
        assert ears.heard.get(timeout=SOON) == "job_a"


def test_a_server_that_is_away_at_the_start_is_tried_until_it_answers(
    database: Database, migrated: Embedded
) -> None:
    place = urlsplit(migrated.database_url)
    with proxied({"postgres": place.port or 0}) as proxies:
        proxies.suffer("postgres", Fault.DEAD)
        url = migrated.database_url.replace(f":{place.port}/", f":{proxies.ports['postgres']}/")
        with listening(url) as ears:
            threading.Event().wait(0.5)  # a few tries
            assert not ears.listener.is_listening
            proxies.suffer("postgres", Fault.NONE)
            ears.caught_up.get(timeout=SOON)
            announce(database, "job_a")
            assert ears.heard.get(timeout=SOON) == "job_a"


def test_a_connection_on_which_nothing_answers_any_more_is_replaced(
    database: Database, migrated: Embedded
) -> None:
    place = urlsplit(migrated.database_url)
    with proxied({"postgres": place.port or 0}) as proxies:
        url = migrated.database_url.replace(f":{place.port}/", f":{proxies.ports['postgres']}/")
        with listening(url, check_seconds=0.1, answer_seconds=0.5) as ears:
            ears.caught_up.get(timeout=SOON)
            proxies.suffer("postgres", Fault.HALF_OPEN)
            until(lambda: not ears.listener.is_listening)
            proxies.suffer("postgres", Fault.NONE)
            ears.caught_up.get(timeout=SOON)
            announce(database, "job_a")
            assert ears.heard.get(timeout=SOON) == "job_a"


def test_a_silent_connection_is_asked_and_kept(database: Database, migrated: Embedded) -> None:
    with listening(migrated.database_url, check_seconds=0.01) as ears:
        ears.caught_up.get(timeout=SOON)
        threading.Event().wait(0.3)  # some thirty questions
        announce(database, "job_a")
        assert ears.heard.get(timeout=SOON) == "job_a"
        assert ears.caught_up.empty()


def test_it_stops_at_once_and_leaves_no_connection(database: Database, migrated: Embedded) -> None:
    with listening(migrated.database_url) as ears:
        ears.caught_up.get(timeout=SOON)
    assert not ears.listener.is_listening
    until(lambda: num_listeners(database) == 0)
    ears.listener.start()
    assert num_listeners(database) == 0, "what was stopped does not begin again"


def test_it_stops_while_the_server_does_not_answer(migrated: Embedded) -> None:
    place = urlsplit(migrated.database_url)
    with proxied({"postgres": place.port or 0}) as proxies:
        proxies.suffer("postgres", Fault.HUNG)
        url = migrated.database_url.replace(f":{place.port}/", f":{proxies.ports['postgres']}/")
        with listening(url) as ears:
            thread = ears.listener._thread
            assert thread is not None
        assert not thread.is_alive()


def test_a_subscriber_that_fails_ends_nothing(database: Database, migrated: Embedded) -> None:
    listener, heard, there = Listener(migrated.database_url), SimpleQueue[str](), threading.Event()

    def fail(payload: str) -> None:
        heard.put(payload)
        raise RuntimeError("a bug")

    listener.subscribe(JOBS_ENDED, fail, catch_up=there.set)
    listener.start()
    assert there.wait(SOON)
    for payload in ("job_a", "job_b"):
        announce(database, payload)
        assert heard.get(timeout=SOON) == payload
    listener.stop()


def test_a_forked_child_hears_over_a_connection_of_its_own(database: Database, migrated: Embedded) -> None:
    """In a program of its own: a fork of this process would copy its threads' locks."""
    program = """
import os, sys, threading
from storage.notifications import JOBS_ENDED, Listener
heard, there = threading.Event(), threading.Event()
listener = Listener(sys.argv[1])
listener.subscribe(JOBS_ENDED, lambda _: heard.set(), catch_up=there.set)
listener.start()
assert there.wait(20)
there.clear()
child = os.fork()
if child == 0:
    assert not listener.is_listening
    listener.start()
    assert there.wait(20)
print("listening", flush=True)
os._exit(0 if heard.wait(20) else 1) if child == 0 else None
assert heard.wait(20)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    command = [sys.executable, "-c", program, migrated.database_url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline().strip() for _ in range(2)] == ["listening"] * 2
        announce(database, "job_a")
        assert process.wait(SOON * 2) == 0


def test_what_cannot_be_announced_is_no_failure() -> None:
    away = Database("postgresql://nobody:x@127.0.0.1:9/none", 1)
    announce_after_commit(away, [(JOBS_ENDED, "job_a")])
    away.close()
