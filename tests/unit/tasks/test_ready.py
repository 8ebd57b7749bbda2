"""A worker's log says how the seconds of its start were spent."""

from tasks.ready import StartTimes


def test_S38_a_start_is_told_by_its_parts() -> None:
    instants = iter([3.0, 8.0, 8.5])
    times = StartTimes(lambda: next(instants))
    times.took("import")
    times.took("load", of_which=("self_test", 4.0))
    times.took("connect")
    assert times.seconds == {"import": 3.0, "self_test": 4.0, "load": 1.0, "connect": 0.5, "total": 8.5}


def test_S38_a_start_begins_with_its_process() -> None:
    times = StartTimes()
    times.took("import")
    assert 0 < times.seconds["total"] < 3600
