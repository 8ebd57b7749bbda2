"""S34: beyond so many connections one is cut: who has kept us waiting longest, and never one being served."""

from typing import Any, cast

from web.front.connection import Connection, Connections


class Line:
    """Stands in for a connection."""

    def __init__(self) -> None:
        self.was_cut = False

    def cut(self) -> None:
        self.was_cut = True


def opened(connections: Connections, *, is_waiting: bool = True) -> Any:
    line = cast("Connection", Line())
    connections.note(line, is_waiting=is_waiting)
    connections.add(line)
    return line


def test_S34_the_one_that_has_waited_longest_makes_room() -> None:
    connections = Connections(max_connections=3)
    first, second, served = (opened(connections) for _ in range(3))
    connections.note(served, is_waiting=False)
    connections.note(first, is_waiting=False)
    connections.note(first, is_waiting=True)  # it was served a moment ago, after the second had come
    newest = opened(connections)
    assert [line.was_cut for line in (first, second, served, newest)] == [False, True, False, False]


def test_S34_where_all_are_being_served_the_newest_makes_room() -> None:
    connections = Connections(max_connections=1)
    served = opened(connections, is_waiting=False)
    newest = opened(connections, is_waiting=False)
    assert [served.was_cut, newest.was_cut] == [False, True]
    connections.remove(newest)
    assert len(connections) == 1
