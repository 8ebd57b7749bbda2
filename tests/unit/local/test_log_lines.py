"""The promises of `local.log_lines`: no line is lost or told twice, whatever happens to the file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from local.errors import LocalError
from local.log_lines import log_names, read_logs


def happening(*events: Callable[[], object]) -> Callable[[], bool]:
    """What happens between two looks, one event each time; after the last one there is no further look."""
    left = list(events)

    def go_on() -> bool:
        if not left:
            return False
        left.pop(0)()
        return True

    return go_on


def appending(path: Path, text: str) -> Callable[[], None]:
    def append() -> None:
        with path.open("a") as file:
            file.write(text)

    return append


def test_the_last_lines_of_each_log_come_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "web.log").write_text("1\n2\n3\n")
    (tmp_path / "sweep.log").write_text("a\n")
    assert list(read_logs(tmp_path, [], 2)) == [("sweep", "a"), ("web", "2"), ("web", "3")]
    assert list(read_logs(tmp_path, ["web"], 1)) == [("web", "3")]
    assert list(read_logs(tmp_path, ["web"], 0)) == []


def test_what_is_written_later_follows_and_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    log.write_text("old\n")
    events = happening(appending(log, "new\nha"), appending(log, "lf\n"))
    assert [line for _, line in read_logs(tmp_path, ["web"], 1, events)] == ["old", "new", "half"]


def test_a_log_that_is_rotated_loses_no_line(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    log.write_text("1\n")

    def rotate() -> None:
        appending(log, "2\n")()
        log.replace(tmp_path / "web.1.log")
        log.write_text("3\n")

    assert [line for _, line in read_logs(tmp_path, ["web"], 5, happening(rotate))] == ["1", "2", "3"]
    assert log_names(tmp_path) == ["web"]


def test_a_log_that_is_written_anew_is_read_from_its_start(tmp_path: Path) -> None:
    log = tmp_path / "migrate.log"
    log.write_text("a long line of the last time\n")
    events = happening(lambda: log.write_text("new\n"))
    assert [line for _, line in read_logs(tmp_path, [], 0, events)] == ["new"]


def test_a_service_that_starts_later_joins_in(tmp_path: Path) -> None:
    (tmp_path / "web.log").write_text("1\n")
    events = happening(lambda: (tmp_path / "flower.log").write_text("2\n"))
    assert list(read_logs(tmp_path, [], 5, events)) == [("web", "1"), ("flower", "2")]


def test_a_service_without_a_log_is_named_with_those_that_have_one(tmp_path: Path) -> None:
    (tmp_path / "web.log").write_text("1\n")
    with pytest.raises(LocalError, match=r"'wbe' has no log in .*there is: web"):
        list(read_logs(tmp_path, ["wbe"], 5))
