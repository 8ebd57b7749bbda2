"""The thread that takes quarantined jobs up survives any error of one look."""

import threading

import structlog

from tasks.isolation import Quarantine


def test_S39_an_unexpected_error_of_a_look_is_logged_and_the_next_one_takes_a_quarantined_job_up() -> None:
    taken, num_looks = threading.Event(), 0

    def next_quarantined() -> str | None:
        nonlocal num_looks
        num_looks += 1
        if num_looks == 1:
            raise ZeroDivisionError
        return "job_1"

    quarantine = Quarantine(next_quarantined, lambda _: taken.set(), look_seconds=0.001)
    with structlog.testing.capture_logs() as said:
        quarantine.start()
        assert taken.wait(30)
        quarantine.stop()
    assert [line["log_level"] for line in said] == ["error"]
