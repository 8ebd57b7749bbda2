"""When the watchdog calls a consumer stalled, and when it must not, on a clock that is set by hand."""

import threading

import pytest
import structlog

from tasks.consumer_watchdog import RECONNECT_SECONDS, ConsumerWatchdog


class Scene:
    """A worker whose broker and consumer do as told, one ping every second."""

    def __init__(self) -> None:
        self.now, self.is_taken, self.hears, self.is_connected = 1000.0, True, True, True
        self.watchdog = ConsumerWatchdog(
            self._ping,
            lambda: self.is_connected,
            watchdog_seconds=4,
            on_stalled=lambda: None,
            clock=lambda: self.now,
        )

    def _ping(self) -> bool:
        if self.is_taken and self.hears:
            self.watchdog.received()
        return self.is_taken

    def turn(self, seconds: int) -> bool:
        """Whether it is called stalled within that time."""
        for _ in range(seconds):
            self.now += 1
            if self.watchdog.turn():
                return True
        return False


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    assert not scene.turn(20)
    return scene


def test_S39_pings_that_are_taken_and_not_heard_make_it_stalled(scene: Scene) -> None:
    scene.hears = False
    assert not scene.turn(5)
    assert scene.turn(1)


def test_S39_one_ping_that_is_heard_sets_the_clock_back(scene: Scene) -> None:
    for _ in range(3):
        scene.hears = False
        assert not scene.turn(4)
        scene.hears = True
        assert not scene.turn(1)


def test_S39_the_clock_stands_still_while_the_broker_takes_no_ping(scene: Scene) -> None:
    scene.hears = scene.is_taken = False
    assert not scene.turn(100)
    scene.is_taken = True
    assert not scene.turn(5), "and begins anew once it does"
    assert scene.turn(1)


def test_S39_a_consumer_has_the_time_to_connect_again(scene: Scene) -> None:
    scene.hears = scene.is_connected = False
    assert not scene.turn(int(RECONNECT_SECONDS))
    scene.is_connected = True
    assert not scene.turn(5), "and to hear what came meanwhile"
    assert scene.turn(1)


def test_S39_a_consumer_that_never_connects_again_is_stalled(scene: Scene) -> None:
    scene.hears = scene.is_connected = False
    assert scene.turn(int(RECONNECT_SECONDS) + 10)


def test_S39_a_broker_that_is_slow_to_take_a_ping_is_no_stalled_consumer(scene: Scene) -> None:
    """What sending takes is not the consumer's."""

    def ping_slowly() -> bool:
        scene.now += 10
        return True

    scene.watchdog = ConsumerWatchdog(
        ping_slowly, lambda: True, watchdog_seconds=4, on_stalled=lambda: None, clock=lambda: scene.now
    )
    assert not scene.watchdog.turn()
    scene.now += 1
    assert not scene.watchdog.turn()


def test_S39_a_ping_that_fails_in_an_unforeseen_way_does_not_end_the_watchdog() -> None:
    num_pings, is_stalled = 0, threading.Event()

    def ping() -> bool:
        nonlocal num_pings
        num_pings += 1
        if num_pings == 1:
            raise ZeroDivisionError
        return True

    watchdog = ConsumerWatchdog(ping, lambda: True, watchdog_seconds=0.01, on_stalled=is_stalled.set)
    with structlog.testing.capture_logs() as said:
        watchdog.start()
        assert is_stalled.wait(30)
    assert [line["event"] for line in said] == ["ping_failed", "consumer_stalled"]
