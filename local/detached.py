"""`calotype up` without a terminal: started in the background, and stopped from outside.

It waits until the system is ready, and until it has ended. `local.up` starts, drains and stops the services.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from local.errors import LocalError, StartFailed
from local.holder import find_holder
from local.log_lines import LogFile
from local.state import make_folder
from local.status import read_ready
from local.tree import PROGRAM, with_tree

_POLL_SECONDS = 0.1
_SPEAK_SECONDS, _INSIST_SECONDS = 10.0, 1.0


def start(
    data_dir: Path,
    *,
    say: Callable[[str], None],
    host: str | None = None,
    port: int | None = None,
    ready_file: Path | None = None,
) -> dict[str, Any]:
    """Start everything in the background, wait until it is ready, and return the content of its ready file.

    A system that already runs is left alone. `say` receives every line of output. Raises `StartFailed`.
    """
    folder = make_folder(data_dir)
    with find_holder(folder) as holder:
        if holder is not None:
            return _of_running(folder, holder.pid, host, port)
    log = folder / "logs" / "up.log"
    log.parent.mkdir(mode=0o700, exist_ok=True)
    # In the current folder of the caller, so that a relative path means what it means there.
    command = [*PROGRAM, "up", "--data-dir", str(folder)]
    command += ["--host", host] if host else []
    command += ["--port", str(port)] if port else []
    command += ["--ready-file", str(ready_file.absolute())] if ready_file else []
    lines = LogFile(log, num_lines=0)
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as output:
        child = subprocess.Popen(
            command,
            env=with_tree(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that neither Ctrl-C nor closing the terminal reaches it
        )
    try:
        while True:
            has_ended = child.poll() is not None  # checked before the last lines of its log are read
            ready = read_ready(folder)
            if ready and ready["pid"] == child.pid:
                return ready
            for line in lines.new_lines():
                say(line)
            if has_ended:
                raise StartFailed(f"it did not start; its output is in {log}")
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        child.send_signal(signal.SIGTERM)
        child.wait()
        raise


def stop(data_dir: Path, *, say: Callable[[str], None], at_once: bool = False) -> bool:
    """Drain and stop the system in `data_dir`; return whether one ran. `at_once` kills what is left."""
    with find_holder(data_dir.absolute()) as holder:
        if holder is None:
            return False
        say(f"stopping process {holder.pid} …")
        holder.tell(signal.SIGTERM)
        began_at = time.monotonic()
        while not holder.has_ended(_INSIST_SECONDS if at_once else _SPEAK_SECONDS):
            if at_once:
                # `up` kills its children on an interrupt that follows a first signal. Send one at a time: two
                # pending signals are seen in the order of their numbers.
                holder.tell(signal.SIGINT)
            else:
                say(f"waiting for running jobs, {time.monotonic() - began_at:.0f} s so far …")
    return True


def _of_running(folder: Path, pid: int, host: str | None, port: int | None) -> dict[str, Any]:
    ready = read_ready(folder)
    if ready is None or ready["pid"] != pid:
        raise LocalError(f"process {pid} is starting or stopping in {folder}: see `calotype status`")
    there = urlsplit(str(ready["url"]))
    if (host or there.hostname, port or there.port) != (there.hostname, there.port):
        raise LocalError(f"process {pid} runs in {folder} already, at {ready['url']}: `calotype down` first")
    return ready
