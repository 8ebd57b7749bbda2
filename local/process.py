"""One child process: its own session, its log file, its user and its cores.

It starts the child, and ends it with everything that the child started. It does not know why the child runs
or when it is restarted.
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
    """A child from its start to its end. The thread that starts it must live as long as the child should."""

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
        """Seconds since 1970, for display only."""
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
        """Return the exit code once the child has ended, else None; also end the rest of its group."""
        if self._child.returncode is None and self._child.poll() is not None:
            self._kill_group()
        return self._child.returncode

    def interrupt(self, signal_number: int) -> None:
        """Send the stop signal to the child alone."""
        self._child.send_signal(signal_number)

    def kill(self) -> None:
        """Kill the whole process group, and wait for the child."""
        if self._child.returncode is None:
            self._kill_group()
            self._child.wait()

    def _kill_group(self) -> None:
        try:
            os.killpg(self._child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return  # the group has ended (macOS answers EPERM for a group of zombies)


def is_alive(pid: int) -> bool:
    """Whether a process with that id exists, of any user."""
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
    # Opened for appending, because the rotation empties the log while the child writes.
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb")
