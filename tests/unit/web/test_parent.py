"""The channel between the parent and a child of an API in several processes."""

import socket
import threading
from collections.abc import Iterator

import pytest

from web.front.parent import ALIVE, METRICS, Parent
from web.front.processes import Processes

SOON = 60.0


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Parent]]:
    """The parent's end of a channel, and the child's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(SOON)
        yield ours, Parent(0, theirs)


def test_a_child_learns_of_a_parent_that_ended_without_reading(ends: tuple[socket.socket, Parent]) -> None:
    """A killed parent that has left something unread resets the connection instead of ending it."""
    ours, parent = ends
    has_ended = threading.Event()
    parent.say(ALIVE)
    parent.follow(lambda: b"{}", has_ended.set)
    ours.close()
    assert has_ended.wait(SOON)


def test_metrics_that_cannot_be_written_leave_the_next_question_an_answer(
    ends: tuple[socket.socket, Parent],
) -> None:
    ours, parent = ends
    answers: Iterator[Exception | bytes] = iter([ValueError("a collector is broken"), b"{}"])

    def metrics() -> bytes:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    has_ended = threading.Event()
    parent.follow(metrics, has_ended.set)
    ours.sendall(METRICS + b" 1\n" + METRICS + b" 2\n")
    assert ours.recv(16) == b"2 {}\n"
    assert not has_ended.is_set()
    ours.shutdown(socket.SHUT_WR)
    assert has_ended.wait(SOON)


def test_a_child_never_waits_to_say_that_it_is_alive(ends: tuple[socket.socket, Parent]) -> None:
    ours, parent = ends
    with parent._sending:  # as while an answer is sent to a parent that reads nothing
        parent.say(ALIVE)
    ours.settimeout(0)
    with pytest.raises(BlockingIOError):
        ours.recv(16)


def test_an_answer_that_came_too_late_is_not_taken_for_that_to_the_next_question() -> None:
    processes = Processes([], {}, [], num_processes=1, drain_seconds=0)
    (child,) = processes._children
    ours, theirs = socket.socketpair()
    with ours, theirs, theirs.makefile("rb") as questions:
        child.channel, child.is_ready = ours, True

        def answer() -> None:
            for line in questions:
                number = line.split()[1]
                processes._hear(child, b"0 [late]")
                processes._hear(child, number + b" [%s]" % number)

        threading.Thread(target=answer, daemon=True).start()
        found = [processes.metrics() for _ in range(2)]
        ours.shutdown(socket.SHUT_WR)
    assert found == [[(0, b"[1]")], [(0, b"[2]")]]
