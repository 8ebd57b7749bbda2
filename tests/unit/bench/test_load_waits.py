"""A service that lets few requests wait: who waits next, and when a job ended that nobody waited for."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.load.connection import Answer, Connection, Place
from bench.load.jobs import WAIT_SECONDS, JobRoute
from bench.load.outcomes import Outcome
from bench.load.send import Timeline
from bench.load.trace import Arrival
from bench.load.waits import Line

NEVER = 1000.0
PICTURE = b"the bytes of an image"


def counting_down(*left: float) -> Callable[[], float]:
    """What is left at each question; the last value stays."""
    values = iter(left)
    last = [0.0]

    def ask() -> float:
        last[0] = next(values, last[0])
        return last[0]

    return ask


class Standing(threading.Thread):
    """Stands in a line; `is_in_line` once it does."""

    def __init__(self, line: Line, due_seconds: float, gone: list[float]) -> None:
        super().__init__(daemon=True)
        self._line, self._due_seconds, self._gone = line, due_seconds, gone
        self._num_asked = 0
        self.is_in_line = threading.Event()
        self.start()

    def run(self) -> None:
        if self._line.stand(self._due_seconds, self._left):
            self._gone.append(self._due_seconds)

    def _left(self) -> float:
        self._num_asked += 1
        if self._num_asked == 2:  # the first question is before it takes its place
            self.is_in_line.set()
        return NEVER


def test_everybody_passes_while_the_service_lets_all_wait() -> None:
    line = Line()
    assert line.stand(1.0, lambda: 5.0)
    assert not line.stand(1.0, lambda: 0.0), "the run is over"
    assert not line.is_closed


def test_after_a_refusal_the_request_that_was_due_first_goes_when_a_wait_has_ended() -> None:
    line, gone = Line(probe_seconds=NEVER), list[float]()
    line.refused()
    standing = {due: Standing(line, due, gone) for due in (3.0, 1.0, 2.0)}
    for one in standing.values():
        assert one.is_in_line.wait(30)
    assert gone == []
    for due in (1.0, 2.0, 3.0):
        assert line.is_closed
        line.waited()
        standing[due].join(30)
        assert gone[-1] == due, "one place is free for one request"
    assert gone == [1.0, 2.0, 3.0]
    assert not line.is_closed, "nobody stands in line"


def test_one_more_goes_now_and_then_in_case_there_is_more_room() -> None:
    line, gone = Line(probe_seconds=0.0), list[float]()
    line.refused()
    for one in [Standing(line, due, gone) for due in (1.0, 2.0, 3.0)]:
        one.join(30)
    assert sorted(gone) == [1.0, 2.0, 3.0], "though no wait has ended"


def test_a_request_whose_run_is_over_leaves_the_line() -> None:
    line = Line(probe_seconds=NEVER)
    line.refused()
    gone: list[float] = []
    prober = Standing(line, 1.0, gone)
    assert prober.is_in_line.wait(30)
    assert not line.stand(0.5, counting_down(5.0, 0.0))
    line.waited()
    prober.join(30)
    assert gone == [1.0], "the place is not given to the one that has left"


class Answers(Connection):
    """Gives these answers, each with the time at which it comes and the seconds that it was held back."""

    def __init__(self, answers: list[tuple[float, float, dict[str, Any]]]) -> None:
        super().__init__(Place("http://127.0.0.1:9"), None)
        self._answers: Iterator[tuple[float, float, dict[str, Any]]] = iter(answers)
        self.now = 0.0
        self.prefer: list[str | None] = []

    def ask(self, method: str, path: str, *_: Any, **others: Any) -> Answer:  # noqa: ARG002 - as its base
        self.prefer.append((others.get("headers") or {}).get("Prefer"))
        self.now, held_back, job = next(self._answers)
        headers = {"preference-applied": f"wait={held_back:g}"} if held_back else {}
        return Answer(200, headers, json.dumps(job).encode())

    def fetch(self, url: str) -> Answer:  # noqa: ARG002 - as its base
        return Answer(200, {}, PICTURE)

    def outcome(self) -> Outcome:
        arrival = Arrival(0.5, ({"prompt": "a red star"},))
        (found,) = JobRoute()(arrival, self, Timeline(NEVER, clock=lambda: self.now, sleep=lambda _: None))
        return found


QUEUED = {"id": "job_1", "state": "queued"}


def ended(ran_seconds: int) -> dict[str, Any]:
    image = {"url": "/images/1", "width": 64, "height": 64, "sha256": hashlib.sha256(PICTURE).hexdigest()}
    created, finished = (f"2026-01-01T00:00:{second:02}+00:00" for second in (0, ran_seconds))
    return {
        "id": "job_1",
        "state": "succeeded",
        "images": [image],
        "created_at": created,
        "finished_at": finished,
    }


@pytest.mark.parametrize(
    ("answers", "latency", "is_waited"),
    [
        ([(2.5, 2.0, ended(2))], 2.0, True),
        ([(10.0, 9.0, QUEUED), (14.0, 4.0, ended(13))], 13.5, True),
        ([(1.0, 0.0, QUEUED), (8.0, 0.0, ended(3))], 3.5, False),
        ([(5.0, 4.0, QUEUED), (20.0, 0.0, ended(6))], 6.5, False),
        ([(1.0, 0.0, QUEUED), (3.0, 0.0, ended(9))], 2.5, False),
    ],
    ids=["held back", "asked again", "not let wait", "let wait once", "clocks that differ"],
)
def test_a_job_that_nobody_could_wait_for_ended_when_the_service_says(
    answers: list[tuple[float, float, dict[str, Any]]], latency: float, is_waited: bool
) -> None:
    """Else its latency would be how long the load generator stood in line; it ended before that was known."""
    found = Answers(answers).outcome()
    assert found.kind == "succeeded"
    assert found.is_waited is is_waited
    assert found.latency_seconds == pytest.approx(latency)


def test_a_request_asks_the_service_to_wait_for_its_job() -> None:
    connection = Answers([(2.5, 2.0, ended(2))])
    connection.outcome()
    assert connection.prefer == [f"wait={WAIT_SECONDS:.2f}"]
