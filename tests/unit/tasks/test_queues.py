"""The promise about queues: a worker's own queue is looked at first, and its tiers take turns."""

import pytest

from tasks.queues import PingsFirst, queues_of

QUEUES = set(queues_of(["sd", "hd", "xl"]))


def test_bulk_jobs_have_no_queue() -> None:
    assert {"sd.interactive", "hd.interactive", "xl.interactive"} == QUEUES


def test_S39_a_workers_own_queue_comes_before_all_work() -> None:
    assert PingsFirst({*QUEUES, "cpu:0@1234"}).consume(5)[0] == "cpu:0@1234"


def test_tiers_take_turns() -> None:
    cycle = PingsFirst()
    cycle.update(QUEUES)
    first = cycle.consume(4)[0]
    cycle.rotate(first)
    assert cycle.consume(4)[0] != first
    cycle.update(set(QUEUES))
    assert cycle.consume(4)[0] != first
    assert cycle.consume(4)[-1] == first


def test_a_queue_that_is_not_active_is_not_polled() -> None:
    cycle = PingsFirst(QUEUES)
    cycle.update(QUEUES - {"xl.interactive"})
    assert cycle.consume(2) == ["hd.interactive", "sd.interactive"]


def test_a_poll_includes_the_queues_that_the_process_chooses_when_it_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = {"cpu:0@1234"}

    def choose(queues: list[str]) -> list[str]:
        return [queue for queue in queues if queue in chosen]

    monkeypatch.setattr(PingsFirst, "choose", choose)
    cycle = PingsFirst({*QUEUES, "cpu:0@1234"})
    assert cycle.consume(4) == ["cpu:0@1234"]
    chosen.clear()
    assert cycle.consume(4) == []
    chosen.update(QUEUES)
    assert set(cycle.consume(4)) == QUEUES
