"""The promise about queues: interactive work is looked at first, and tiers of a lane take turns."""

from tasks.queues import InteractiveFirst

QUEUES = {"sd.interactive", "hd.interactive", "sd.bulk", "hd.bulk"}


def test_interactive_queues_come_before_bulk_queues_whatever_their_names() -> None:
    order = InteractiveFirst(QUEUES).consume(4)
    assert [queue.rpartition(".")[2] for queue in order] == ["interactive"] * 2 + ["bulk"] * 2


def test_S39_a_workers_own_queue_comes_before_all_work() -> None:
    assert InteractiveFirst({*QUEUES, "cpu:0@1234"}).consume(5)[0] == "cpu:0@1234"


def test_the_tiers_of_a_lane_take_turns() -> None:
    cycle = InteractiveFirst()
    cycle.update(QUEUES)
    first = cycle.consume(4)[0]
    cycle.rotate(first)
    assert cycle.consume(4)[0] != first
    cycle.update(set(QUEUES))
    assert cycle.consume(4)[0] != first


def test_a_paused_queue_is_not_looked_at() -> None:
    cycle = InteractiveFirst(QUEUES)
    cycle.update(QUEUES - {"sd.bulk", "hd.bulk"})
    assert cycle.consume(2) == ["hd.interactive", "sd.interactive"]
