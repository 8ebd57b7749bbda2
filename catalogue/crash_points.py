"""Named points of the code at which a test ends its process, to prove that nothing is lost there.

Nothing happens at a point unless a test has armed this process. It does not know what a test does there.
"""

from collections.abc import Callable
from typing import Literal, get_args

CrashPoint = Literal[
    "received",  # a worker has the message of a job, and has done nothing about it
    "claimed",  # a worker has claimed a job, and has not begun it
    "stored",  # all images of a job are stored, and its row does not say so
    "finished",  # the success of a job is committed, and nobody was told
    "admitted",  # a request is valid, and its job is not inserted
    "inserted",  # a job is committed, and not dispatched
    "dispatched",  # a job is dispatched, and its request not answered
]
CRASH_POINTS: tuple[CrashPoint, ...] = get_args(CrashPoint)

_armed: list[Callable[[CrashPoint], object]] = []


def reach(point: CrashPoint) -> None:
    """Say that this process is at a point."""
    for act in _armed:
        act(point)


def arm(act: Callable[[CrashPoint], object]) -> None:
    """Call `act` at each point that this process reaches from now on. For tests alone."""
    _armed.append(act)
