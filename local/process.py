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
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from local.standby import Standby

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
        standby: "Standby | None" = None,
    ) -> None:
        """`standby` is a process that has imported what the command imports; it then runs the command."""
        self.started_at = time.time()
        """Seconds since 1970, for display only."""
        self._child: subprocess.Popen[bytes] | AdoptedChild
        if standby is not None:
            self._child = standby.become(
                command, environment, log=log, cores=cores, orphan_signal=orphan_signal
            )
            return
        uid, gid = user or (-1, -1)
        cores_text = ",".join(map(str, sorted(cores))) if cores else "-"
        launch = [sys.executable, "-I", "-S", str(_LAUNCH), str(os.getpid()), str(int(orphan_signal))]
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


class AdoptedChild:
    """A child that another process forked; as much of `subprocess.Popen` as `Process` uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code once the child has ended, else None."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # its parent has not ended yet, or ended it
                return None if is_alive(self.pid) else self._ended(-signal.SIGKILL)
            if pid:
                self._ended(os.waitstatus_to_exitcode(status))
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end, at most `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None and (deadline is None or time.monotonic() < deadline):
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal; does nothing if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _ended(self, returncode: int) -> int:
        self.returncode = returncode
        return returncode


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
