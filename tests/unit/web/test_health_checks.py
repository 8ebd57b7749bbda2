"""S1: `/readyz` answers from the last health check, whatever hangs."""

import threading
import time

from web.api.health import Finding, HealthCheck

WELL = Finding(True, "answers")


class HangingService:
    """A dependency that answers only while `answers` is set."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.answers.set()
        self.num_looks = 0
        self.error: Exception | None = None

    def look(self) -> Finding:
        self.num_looks += 1
        assert self.answers.wait(30)
        if self.error:
            raise self.error
        return WELL


def asked(look: HealthCheck) -> Finding:
    look.begin()
    return look.finding(time.monotonic() + 0.2)


def test_S1_a_quick_look_is_waited_for() -> None:
    service = HangingService()
    look = HealthCheck("service", service.look)
    assert asked(look) == WELL
    service.error = OSError("refused")
    assert asked(look) == Finding(False, "does not answer (OSError)")


def test_S1_a_hung_service_is_looked_at_once_however_many_ask() -> None:
    service, now = HangingService(), [0.0]
    look = HealthCheck("service", service.look, clock=lambda: now[0])
    look.begin()
    while look.finding(0.0) != WELL:
        time.sleep(0.01)
    service.answers.clear()
    look.begin()
    assert look.finding(0.0) == WELL, "from the last look"
    now[0] = 10.0
    began_at = time.monotonic()
    for _ in range(1000):
        look.begin()
        assert look.finding(now[0] + 30) == Finding(False, "has not answered for 10 s")
    assert time.monotonic() - began_at < 5, "nobody waits for a look that is late"
    assert service.num_looks == 2


def test_S1_a_service_that_was_late_is_said_to_be_and_is_well_again_after_a_quick_look() -> None:
    service, now = HangingService(), [0.0]
    look = HealthCheck("service", service.look, clock=lambda: now[0])
    service.answers.clear()
    look.begin()
    assert look.finding(0.0) == Finding(False, "has not answered yet")
    now[0] = 4.0
    service.answers.set()
    while look.finding(0.0) != Finding(False, "answers, but takes 4.0 s"):
        time.sleep(0.01)
    look.begin()
    while look.finding(0.0) != WELL:
        time.sleep(0.01)
