"""The promises of `local.log_rotation`: logs are bounded while written, and next to nothing is lost."""

import itertools
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from local.log_lines import LogFile, log_names, read_logs
from local.log_rotation import kept_log, rotate_logs

WRITER = (
    "import sys, time\n"
    "for number in range(int(sys.argv[1])):\n"
    "    print(f'line {number:07}', flush=True)\n"
    "    if number % 50 == 0: time.sleep(0.001)\n"
)
LINE_BYTES = len("line 0000000\n")


def append(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


def test_S42_a_log_is_kept_in_parts_and_the_oldest_goes(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    for number in range(5):
        append(log, f"{number}" * 20 + "\n")
        rotate_logs(tmp_path, max_bytes=15, num_kept=3)
    assert log.read_text() == ""
    assert [kept_log(log, number).read_text()[0] for number in (1, 2, 3)] == ["4", "3", "2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "web.1.log", "web.2.log", "web.3.log", "web.log"
    ]  # fmt: skip
    assert {path.stat().st_mode & 0o077 for path in tmp_path.glob("web.?.log")} == {0}
    assert log_names(tmp_path) == ["web"]


def test_S42_a_log_of_its_size_is_left_alone(tmp_path: Path) -> None:
    append(tmp_path / "web.log", "a\n")
    rotate_logs(tmp_path, max_bytes=2)
    assert [path.name for path in tmp_path.iterdir()] == ["web.log"]


def test_S42_a_log_that_cannot_be_copied_is_bounded_all_the_same(tmp_path: Path) -> None:
    append(tmp_path / "web.log", "a line\n")
    (tmp_path / ".web.log.tmp").mkdir()  # as a full disk, nothing can be written there
    append(tmp_path / "xyz.log", "a line\n")
    rotate_logs(tmp_path, max_bytes=2)
    assert (tmp_path / "web.log").read_text() == ""
    assert (tmp_path / "xyz.1.log").read_text() == "a line\n"


def test_S42_a_writer_goes_on_through_rotations_and_loses_lines_at_their_moments_alone(
    tmp_path: Path,
) -> None:
    num_lines, log = 20_000, tmp_path / "web.log"
    max_bytes = 2_000 * LINE_BYTES
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    command = [sys.executable, "-c", WRITER, str(num_lines)]
    followed: list[str] = []
    follower = LogFile(log, num_lines=0)
    with subprocess.Popen(command, stdout=descriptor) as writer:
        while writer.poll() is None:
            rotate_logs(tmp_path, max_bytes=max_bytes, num_kept=100)
            followed += follower.new_lines()
            time.sleep(0.001)
    os.close(descriptor)
    followed += follower.new_lines()
    follower.close()
    num_rotations = len(list(tmp_path.glob("web.*.log")))
    files = [kept_log(log, number) for number in range(num_rotations, 0, -1)] + [log]
    lines = [line for file in files for line in file.read_text().splitlines()]
    numbers = whole_lines(lines)
    assert len(lines) - len(numbers) <= 2 * num_rotations  # torn: the last of one file, the first of the next
    assert numbers == sorted(set(numbers))  # none is doubled or out of order
    assert numbers[-1] == num_lines - 1
    assert num_rotations >= 3
    gaps = sum(later - earlier > 1 for earlier, later in itertools.pairwise(numbers))
    assert gaps <= num_rotations
    assert num_lines - len(numbers) <= 50 * num_rotations
    # Who follows has seen every line that is kept, once, and perhaps some of those that are not.
    seen = whole_lines(followed)
    assert len(set(numbers) - set(seen)) <= num_rotations
    assert seen == sorted(set(seen))


def whole_lines(lines: list[str]) -> list[int]:
    """Their numbers."""
    return [int(found[1]) for line in lines if (found := re.fullmatch(r"line (\d{7})", line))]


def test_S42_following_goes_on_over_a_rotation(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    append(log, "1\n")

    def rotate() -> None:
        append(log, "2\nhal")
        rotate_logs(tmp_path, max_bytes=1)
        append(log, "f\n3\n")

    events = [rotate, lambda: append(log, "4\n"), rotate]

    def go_on() -> bool:
        if events:
            events.pop(0)()
            return True
        return False

    seen = [line for _, line in read_logs(tmp_path, ["web"], 5, go_on)]
    assert seen == ["1", "2", "half", "3", "4", "2", "half", "3"]


def test_S42_the_last_lines_reach_back_over_a_rotation(tmp_path: Path) -> None:
    append(tmp_path / "web.log", "1\n2\n")
    rotate_logs(tmp_path, max_bytes=1)
    append(tmp_path / "web.log", "3\n")
    assert [line for _, line in read_logs(tmp_path, [], 2)] == ["2", "3"]


def test_S42_who_looks_between_copy_and_emptying_sees_no_line_twice(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    append(log, "1\n2\n")
    follower = LogFile(log, num_lines=5)
    assert follower.new_lines() == ["1", "2"]
    append(log, "3\n")
    kept_log(log).write_text(log.read_text())
    assert follower.new_lines() == ["3"]
    log.write_text("")
    append(log, "4\n")
    assert follower.new_lines() == ["4"]
    follower.close()
