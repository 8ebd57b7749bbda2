"""The promises of `local.holder`: a signal reaches the `calotype up` of a folder, and nobody else."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.holder import find_holder
from local.state import LOCK_FILE
from settings import ROOT

HOLD = """
import sys, time
from pathlib import Path
from local.state import State
with State.open(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def up(tmp_path: Path) -> "Iterator[subprocess.Popen[str]]":
    """A process that holds the folder as `calotype up` does."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture
def stranger() -> "Iterator[subprocess.Popen[bytes]]":
    """A process that has nothing to do with the folder."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def test_who_holds_the_folder_is_found_told_and_waited_for(
    up: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    with find_holder(tmp_path) as holder:
        assert holder is not None
        assert holder.pid == up.pid
        assert not holder.has_ended()
        holder.tell(signal.SIGTERM)
        assert holder.has_ended(60)
        holder.tell(signal.SIGTERM)  # it is gone: nothing happens
    with find_holder(tmp_path) as holder:
        assert holder is None, "although nobody has looked at how it ended"
    assert up.wait(60) == -signal.SIGTERM
    with find_holder(tmp_path) as holder:
        assert holder is None


def test_a_process_that_was_given_an_old_number_is_not_taken_for_it(
    stranger: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    (tmp_path / LOCK_FILE).write_text(str(stranger.pid))
    with find_holder(tmp_path) as holder:
        assert holder is None
    assert stranger.poll() is None


@pytest.mark.parametrize("text", ["", "0", "1", "-1", "someone", "99999999999999999999"])
def test_a_lock_file_without_a_number_of_a_process_names_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK_FILE).write_text(text)
    with find_holder(tmp_path) as holder:
        assert holder is None


def test_a_folder_in_which_nothing_ever_ran_is_held_by_nobody(tmp_path: Path) -> None:
    with find_holder(tmp_path / "never") as holder:
        assert holder is None
