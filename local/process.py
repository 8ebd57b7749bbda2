"""One child process: its own session, its log file, its user and its cores.

Owns starting it and ending it with everything that it started. Does not know why it runs or when it is
started again.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

_LAUNCH = Path(__file__).with_name("launch.py")


class Process:
    """A child from its start to its end. Start it from a thread that lives as long as it should."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        cwd: Path,
        log: Path,
        user: tuple[int, int] | None = None,
        cores: frozenset[int] | None = None,
        orphan_signal: int = signal.SIGKILL,
        inherit: Sequence[int] = (),
    ) -> None:
        uid, gid = user or (-1, -1)
        cores_text = ",".join(map(str, sorted(cores))) if cores else "-"
        launch = [sys.executable, "-I", "-S", str(_LAUNCH), str(os.getpid()), str(int(orphan_signal))]
        self.started_at = time.time()
        """In seconds since 1970, for people: nothing is decided by it."""
        with _open_log(log) as output:
            self._child = subprocess.Popen(
                [*launch, str(uid), str(gid), cores_text, *command],
                env=dict(environment),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=tuple(inherit),
            )

    @property
    def pid(self) -> int:
        """The child's process id, which is also the id of its group."""
        return self._child.pid

    def poll(self) -> int | None:
        """The return code once the child has ended; what it left behind in its group is ended too."""
        if self._child.returncode is None and self._child.poll() is not None:
            self._kill_group()
        return self._child.returncode

    def interrupt(self, signal_number: int) -> None:
        """Ask the child, and it alone, to end."""
        self._child.send_signal(signal_number)

    def kill(self) -> None:
        """End the whole group now, and wait for the child."""
        if self._child.returncode is None:
            self._kill_group()
            self._child.wait()

    def _kill_group(self) -> None:
        try:
            os.killpg(self._child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return  # nothing of it is left (macOS answers EPERM for a group of zombies)


def is_alive(pid: int) -> bool:
    """Whether there is such a process, whoever's it is."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def tail(log: Path, num_lines: int = 15) -> str:
    """The last lines of a log, for an error message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16_384))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-num_lines:])


def _open_log(path: Path) -> BinaryIO:
    # For appending: whoever bounds the log empties it while the child goes on.
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb")
