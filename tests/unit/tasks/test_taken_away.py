"""S23: what no worker ended is told once, in whatever order its events become visible."""

import pytest

from storage.errors import Unavailable
from tasks.event_cursor import LATE_SECONDS, MAX_FOUND, EventCursor
from tasks.job_observers import TakenAway


class Events:
    """A table of events, and the jobs that were looked up."""

    def __init__(self) -> None:
        self.jobs: dict[int, str] = {}
        self.looked_up: list[str] = []
        self.now = 0.0
        self.is_away = False
        self.num_others = 0  # the newest event of another kind
        self.asked_after: list[int] = []
        cursor = EventCursor(
            lambda: max(self.jobs, default=0),
            lambda: max(self.num_others, *self.jobs),
            self.find,
            clock=lambda: self.now,
        )
        self.taken_away = TakenAway(cursor, self.look_up, look_seconds=1)

    def find(self, after: int, limit: int) -> list[tuple[int, str]]:
        self.asked_after.append(after)
        return sorted((number, job) for number, job in self.jobs.items() if number > after)[:limit]

    def look_up(self, job_id: str) -> None:
        if self.is_away:
            raise Unavailable("the database is away")
        self.looked_up.append(job_id)

    def turn(self, seconds: float = 1) -> None:
        self.now += seconds
        self.taken_away.turn()


@pytest.fixture
def events() -> Events:
    """With an event from before the worker's start."""
    events = Events()
    events.jobs[1] = "old"
    events.turn()
    return events


def test_S23_each_event_from_the_start_on_is_told_once(events: Events) -> None:
    events.jobs |= {2: "a", 3: "b"}
    for _ in range(20):
        events.turn()
    events.jobs[4] = "c"
    for _ in range(20):
        events.turn()
    assert events.looked_up == ["a", "b", "c"]


def test_S23_an_event_whose_transaction_ended_late_is_told_too(events: Events) -> None:
    events.jobs[3] = "b"
    events.turn()
    events.jobs[2] = "late"
    events.turn(LATE_SECONDS - 2)
    assert events.looked_up == ["b", "late"]


def test_S23_many_at_once_are_told_to_the_last(events: Events) -> None:
    events.jobs |= {number: f"job_{number}" for number in range(2, 3 * MAX_FOUND)}
    for _ in range(5):
        events.turn()
    assert events.looked_up == [f"job_{number}" for number in range(2, 3 * MAX_FOUND)]


def test_S23_what_could_not_be_looked_up_is_looked_up_again(events: Events) -> None:
    events.jobs[2] = "a"
    events.is_away = True
    with pytest.raises(Unavailable):
        events.turn()
    events.is_away = False
    events.turn()
    events.turn()
    assert events.looked_up == ["a"]


def test_S23_events_of_other_kinds_are_left_behind_too(events: Events) -> None:
    for number in range(100, 2000, 100):
        events.num_others = number
        events.turn()
        assert number - events.asked_after[-1] <= 100 * (LATE_SECONDS + 2)
    events.jobs[2000] = "a"
    events.turn()
    events.jobs[1999] = "late"
    events.turn()
    assert events.looked_up == ["a", "late"]


def test_S23_once_the_newest_event_is_known_none_is_read(events: Events) -> None:
    events.jobs[2] = "a"
    for _ in range(int(LATE_SECONDS) + 2):
        events.turn()
    num_asked = len(events.asked_after)
    for _ in range(5):
        events.turn()
    assert len(events.asked_after) == num_asked
