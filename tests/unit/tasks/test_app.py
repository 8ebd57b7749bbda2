"""A worker tries a broker that is away again soon, however long it has been away."""

import socket

import pytest

from tasks.app import RECONNECT_SECONDS, make_celery


class EnoughSeen(Exception):
    """Ends the tries."""


def test_S2_pauses_between_tries_to_reach_the_broker_do_not_grow() -> None:
    pauses: list[float] = []

    def note(_: Exception, pause_seconds: float) -> None:
        pauses.append(pause_seconds)
        if len(pauses) == 2:
            raise EnoughSeen

    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        celery = make_celery(f"redis://127.0.0.1:{nobody.getsockname()[1]}/0", "test:", ["sd"])
        # As Celery's consumer calls it.
        with celery.connection_for_read() as connection, pytest.raises(EnoughSeen):
            connection.ensure_connection(note, callback=lambda: None)
    assert pauses == [RECONNECT_SECONDS, RECONNECT_SECONDS]
