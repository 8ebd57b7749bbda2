"""When a process ends or stops itself: at the nth time that it reaches a point.

It knows points by name alone. The harness decides which process gets which crash.
"""

import os
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2

from catalogue.crash_points import arm
from storage import database

WORKER_POINTS = ("received", "claimed", "step", "stored", "finished", "commit lost")
"""`step` is before a step batch. At `commit lost` the process ends between the COMMIT and its answer."""
API_POINTS = ("admitted", "inserted", "dispatched")
PAUSE_POINTS = ("claimed", "step", "stored", "finished")
NTH = {"step": (30, 80)}
"""The first job of a process may be a quarantined one, which three crashes that name it alone would end."""


@dataclass(frozen=True)
class Crash:
    """What happens the nth time that a process is at `point`: SIGKILL, or SIGSTOP as a pause."""

    point: str
    nth: int
    is_pause: bool = False


def drawn(points: Sequence[str], number: int, rng: random.Random, *, is_pause: bool = False) -> Crash:
    """The crash with this number: the points in turn, after a few jobs or many."""
    point = points[number % len(points)]
    return Crash(point, rng.randint(*NTH.get(point, (4, 9))), is_pause)


class Crasher:
    """Counts the points that this process reaches, and carries out its crash, which `file` tells before."""

    def __init__(self, crash: Crash | None, file: Path) -> None:
        self._crash, self._file = crash, file
        self._num = 0

    def arm(self) -> None:
        """Watch the points of the code and the statements of this process."""
        arm(self.reach)
        database.WATCHERS.append(self._watch)

    def reach(self, point: str) -> None:
        """Be at a point."""
        if self._crash is not None and self._is_due(point):
            self._file.touch()
            os.kill(os.getpid(), signal.SIGSTOP if self._crash.is_pause else signal.SIGKILL)

    def _is_due(self, point: str) -> bool:
        if self._crash is None or point != self._crash.point:
            return False
        self._num += 1
        return self._num == self._crash.nth

    def _watch(self, driver: Any, query: str, parameters: Any, _account: str | None) -> None:
        if "INSERT INTO images" in query and self._is_due("commit lost"):
            with psycopg2.connect(driver.dsn, password=driver.info.password) as other:
                other.cursor().execute(query, parameters)
            self._file.touch()
            os.kill(os.getpid(), signal.SIGKILL)
