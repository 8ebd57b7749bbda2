"""Turns into a supervised child: changes the user, sets the parent-death signal, pins cores, then calls exec.

It is a separate script between fork and exec, because code in a forked copy of a threaded process
(`preexec_fn`) may wait forever for a lock that another thread held. It uses the standard library alone and
runs isolated from the environment (`python -I -S`).

    launch.py SUPERVISOR_PID SIGNAL UID GID CORES COMMAND…      (UID -1: keep; CORES "-": all)
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Replace this process by the command; never returns."""
    supervisor, signal_number, uid, gid = map(int, arguments[:4])
    cores, command = arguments[4], arguments[5:]
    if cores != "-":
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        # After the change of user, because that clears it.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
        if os.getppid() != supervisor:
            sys.exit("the supervisor ended before its child began")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
