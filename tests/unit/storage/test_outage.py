"""The promises about a database that is away: one looks for it, everybody else is told at once."""

import threading

import pytest

from storage.errors import Unavailable
from storage.outage import Outage


class FakeServer:
    """Answers once it is told to; counts who looks."""

    def __init__(self) -> None:
        self.is_back = threading.Event()
        self.num_looks = 0
        self.has_ended = threading.Event()

    def look(self) -> None:
        self.num_looks += 1
        if not self.is_back.wait(0.01):
            raise ConnectionRefusedError

    def end(self) -> None:
        self.has_ended.set()


def test_nobody_is_refused_while_all_is_well() -> None:
    server = FakeServer()
    Outage(server.look, server.end).refuse()
    assert server.num_looks == 0


def test_everybody_is_refused_at_once_until_a_look_succeeds() -> None:
    server = FakeServer()
    outage = Outage(server.look, server.end)
    for _ in range(10):
        outage.begin("no answer")
    with pytest.raises(Unavailable, match="no answer"):
        outage.refuse()
    server.is_back.set()
    assert server.has_ended.wait(30)
    for _ in range(1000):
        try:
            outage.refuse()
            break
        except Unavailable:
            threading.Event().wait(0.01)
    outage.refuse()
    assert server.num_looks == 1, "ten failures are one outage"


def test_a_closed_one_looks_no_more() -> None:
    server = FakeServer()
    outage = Outage(server.look, server.end)
    outage.close()
    outage.begin("no answer")
    outage.refuse()
    assert server.num_looks == 0


def test_an_outage_is_confirmed_by_the_first_look_that_fails() -> None:
    server, confirmed = FakeServer(), threading.Event()
    outage = Outage(server.look, server.end, on_confirmed=confirmed.set)
    outage.begin("no answer")
    assert confirmed.wait(30)
    server.is_back.set()
    assert server.has_ended.wait(30)


def test_a_database_that_only_looked_late_is_confirmed_to_be_well() -> None:
    server, confirmed = FakeServer(), threading.Event()
    server.is_back.set()
    outage = Outage(server.look, server.end, on_confirmed=confirmed.set)
    outage.begin("one late transaction")
    assert server.has_ended.wait(30)
    assert not confirmed.is_set(), "other transactions go on"


def test_work_that_takes_long_begins_an_outage_only_where_nothing_answers() -> None:
    server, confirmed = FakeServer(), threading.Event()
    outage = Outage(server.look, server.end, on_confirmed=confirmed.set, silent_seconds=0.001)
    outage.look_soon()
    assert confirmed.wait(30)
    with pytest.raises(Unavailable, match="no answer to a look"):
        outage.refuse()
    server.is_back.set()
    assert server.has_ended.wait(30)


@pytest.mark.parametrize("answers", [True, False])
def test_work_that_takes_long_at_a_server_that_answers_or_refuses_at_once_goes_on(answers: bool) -> None:
    server, looked, confirmed = FakeServer(), threading.Event(), threading.Event()
    if answers:
        server.is_back.set()

    def look() -> None:
        try:
            server.look()
        finally:
            looked.set()

    outage = Outage(look, server.end, on_confirmed=confirmed.set, silent_seconds=30)
    outage.look_soon()
    assert looked.wait(30)
    outage.refuse()
    assert not confirmed.wait(0.05)
    assert not server.has_ended.is_set(), "nobody's connections are thrown away"
