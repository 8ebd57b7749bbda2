"""The record of a device: what it says of a process that was killed, and when nobody may believe it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from settings import ROOT
from tasks.device_record import DeadProcess, DeviceRecord, dead_processes, read_record, record_path

RECORDER = """
import sys
from pathlib import Path
from tasks.device_record import DeviceRecord

record = DeviceRecord(Path(sys.argv[1]), sys.argv[2])
for line in sys.stdin:
    record.note(line.split())
    print("noted", flush=True)
"""


class Recorder:
    """A process that notes what it is told."""

    def __init__(self, folder: Path, boot_id: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", RECORDER, str(folder), boot_id],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def note(self, *job_ids: str) -> None:
        assert self._process.stdin
        assert self._process.stdout
        print(*job_ids, file=self._process.stdin, flush=True)
        assert self._process.stdout.readline() == "noted\n"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    process = Recorder(tmp_path, "killed")
    yield process
    process.kill()


def test_S38_what_was_on_the_device_is_known_after_a_kill(tmp_path: Path, recorder: Recorder) -> None:
    recorder.note("job_a", "job_b")
    recorder.note()
    recorder.note("job_c", "job_d", "job_d")
    recorder.kill()
    assert read_record(record_path(tmp_path, "killed")) == frozenset({"job_c", "job_d"})


def test_S38_only_the_dead_are_told_of_and_once(tmp_path: Path, recorder: Recorder) -> None:
    recorder.note("job_a")
    other = DeviceRecord(tmp_path, "alive")
    with dead_processes(tmp_path) as dead:
        assert dead == []
    recorder.kill()
    with dead_processes(tmp_path) as dead:
        assert dead == [DeadProcess("killed", frozenset({"job_a"}))]
        with dead_processes(tmp_path) as meanwhile:
            assert meanwhile == [], "two that start at once share them"
    with dead_processes(tmp_path) as dead:
        assert dead == []
    other.close()
    with dead_processes(tmp_path) as dead:
        assert dead == [DeadProcess("alive", frozenset())]


def test_S38_a_record_is_kept_until_its_jobs_have_been_taken_back(tmp_path: Path) -> None:
    DeviceRecord(tmp_path, "dead").close()
    with pytest.raises(ConnectionError), dead_processes(tmp_path):
        raise ConnectionError("no database")
    with dead_processes(tmp_path) as dead:
        assert [process.boot_id for process in dead] == ["dead"]


@pytest.mark.parametrize("position", [0, 5, 12, 60])
def test_S38_a_record_that_was_being_written_is_not_believed(tmp_path: Path, position: int) -> None:
    record = DeviceRecord(tmp_path, "torn")
    record.note(["job_a", "job_b"])
    record.close()
    data = bytearray(record.path.read_bytes())
    data[position] ^= 1
    record.path.write_bytes(data)
    is_part_of_it = position < 8 + 36 + len("\njob_a\njob_b")
    assert read_record(record.path) == (None if is_part_of_it else frozenset({"job_a", "job_b"}))


def test_S38_a_record_of_before_the_machine_started_is_not_believed(tmp_path: Path) -> None:
    """After a power cut the file may be any that it has been."""
    record = DeviceRecord(tmp_path, "before")
    record._machine = "another boot"
    record.note(["job_a"])
    record.close()
    with dead_processes(tmp_path) as dead:
        assert dead == [DeadProcess("before", None)]


def test_S38_no_record_says_that_nobody_knows(tmp_path: Path) -> None:
    assert read_record(tmp_path / "none.device") is None
    (tmp_path / "empty.device").touch()
    assert read_record(tmp_path / "empty.device") is None


def test_S38_more_jobs_than_a_record_holds_are_not_cut_down_to_some(tmp_path: Path) -> None:
    record = DeviceRecord(tmp_path, "many")
    record.note([f"job_{number:032x}" for number in range(1000)])
    record.close()
    assert read_record(record.path) is None


def test_S38_a_fault_outside_the_device_leaves_no_record(tmp_path: Path) -> None:
    """So that the reaper quarantines them all."""
    busy, idle = DeviceRecord(tmp_path, "busy"), DeviceRecord(tmp_path, "idle")
    busy.note(["job_a"])
    for record in (busy, idle):
        record.withdraw_if_empty()
        record.close()
    assert os.listdir(tmp_path) == ["busy.device"]


def test_S38_a_record_names_what_becomes_a_file_beside_what_is_on_the_device(tmp_path: Path) -> None:
    record = DeviceRecord(tmp_path, "b")
    with record.encoding("file"):
        record.note(["device"])
        assert read_record(record.path) == frozenset({"device", "file"})
        record.note(())
        assert read_record(record.path) == frozenset({"file"})
        assert record.job_ids == ()
    assert read_record(record.path) == frozenset()
    record.close()
