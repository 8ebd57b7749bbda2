"""The promises about calls into libraries that know no deadline."""

import math
import socket
import threading

import pytest

from storage.deadlines import BoundedCalls, SocketDeadlines, SocketHandle


def test_a_read_that_blocks_ends_when_its_deadline_is_over() -> None:
    deadlines, (ours, theirs) = SocketDeadlines(), socket.socketpair()
    with ours, theirs:
        deadline = deadlines.arm(0.05)
        deadlines.bind(deadline, SocketHandle(ours.fileno()))
        ours.settimeout(30)
        assert ours.recv(1) == b""
        assert deadline.is_over


def test_a_socket_is_left_alone_once_its_work_has_ended() -> None:
    deadlines, (ours, theirs) = SocketDeadlines(), socket.socketpair()
    with ours, theirs:
        ended, other = deadlines.arm(0.05), deadlines.arm(0.1)
        deadlines.bind(ended, SocketHandle(ours.fileno()))
        deadlines.disarm(ended)
        witness, _peer = socket.socketpair()
        with witness, _peer:
            deadlines.bind(other, SocketHandle(witness.fileno()))
            witness.settimeout(30)
            assert witness.recv(1) == b"", "later deadlines have passed by now"
        theirs.sendall(b"x")
        assert ours.recv(1) == b"x"
        assert not ended.is_over


def test_a_socket_that_comes_too_late_is_shut_at_once() -> None:
    deadlines, (ours, theirs) = SocketDeadlines(), socket.socketpair()
    with ours, theirs:
        deadline, other = deadlines.arm(0.01), deadlines.arm(0.02)
        witness, _peer = socket.socketpair()
        with witness, _peer:
            deadlines.bind(other, SocketHandle(witness.fileno()))
            witness.settimeout(30)
            assert witness.recv(1) == b""
        deadlines.bind(deadline, SocketHandle(ours.fileno()))
        ours.settimeout(30)
        assert ours.recv(1) == b""


def test_a_deadline_that_is_earlier_than_the_others_is_kept_too() -> None:
    deadlines = SocketDeadlines()
    later = deadlines.arm(60)
    first, peer = socket.socketpair()
    with first, peer:
        first.settimeout(30)
        # The thread sleeps until the later one by now, or will: both orders must end well.
        threading.Event().wait(0.05)
        deadlines.bind(deadlines.arm(0.01), SocketHandle(first.fileno()))
        assert first.recv(1) == b""
    deadlines.disarm(later)


def test_the_result_and_the_error_of_a_call_in_time_are_the_calls_own() -> None:
    calls = BoundedCalls(1, "test")
    assert calls.call(lambda: 7, 30) == 7
    with pytest.raises(ZeroDivisionError):
        calls.call(lambda: 1 / 0, 30)


def test_a_late_call_is_given_up_and_its_result_is_handed_on() -> None:
    calls, go_on, late = BoundedCalls(1, "test"), threading.Event(), []
    arrived = threading.Event()

    def answer() -> int:
        assert go_on.wait(30)
        return 7

    def keep(result: int) -> None:
        late.append(result)
        arrived.set()

    with pytest.raises(TimeoutError):
        calls.call(answer, 0.05, on_late=keep)
    with pytest.raises(TimeoutError, match="all threads"):
        calls.call(lambda: 8, 0.05)
    go_on.set()
    assert arrived.wait(30)
    assert late == [7]
    assert calls.call(lambda: 9, 30) == 9


def test_one_thread_serves_calls_that_follow_each_other() -> None:
    calls = BoundedCalls(2, "test", idle_seconds=30)
    threads = {calls.call(threading.get_ident, 30) for _ in range(100)}
    # A call may begin before the thread of the call before it is idle again.
    assert len(threads) < 50


def test_a_thread_that_is_idle_for_long_ends_and_the_next_call_gets_another() -> None:
    calls = BoundedCalls(1, "test", idle_seconds=0)
    first = calls.call(threading.current_thread, 30)
    first.join(30)
    assert not first.is_alive()
    assert calls.call(lambda: 7, 30) == 7


def test_a_handle_that_was_closed_shuts_nobody_elses_socket() -> None:
    ours, theirs = socket.socketpair()
    handle = SocketHandle(ours.fileno())
    handle.close()
    other, peer = socket.socketpair()  # may take the number that the handle had
    with ours, theirs, other, peer:
        handle.shut()
        peer.sendall(b"x")
        theirs.sendall(b"y")
        assert (other.recv(1), ours.recv(1)) == (b"x", b"y")


def test_work_that_takes_long_is_reminded_of_until_it_ends() -> None:
    deadlines, reminded = SocketDeadlines(remind_seconds=0.01), threading.Semaphore(0)
    deadline = deadlines.arm(60, remind=reminded.release)
    assert reminded.acquire(timeout=30)
    assert reminded.acquire(timeout=30)
    deadlines.disarm(deadline)
    assert not deadline.is_over
    quick = deadlines.arm(60)
    assert quick.remind_at == math.inf
    deadlines.disarm(quick)
