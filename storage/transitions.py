"""The state machine of a job, as data: which transition leads from which state to which.

Only `storage.jobs` performs transitions. ARCHITECTURE.md draws the same arrows, and a test compares the
drawing with this table.
"""

from dataclasses import dataclass

from catalogue.states import State


@dataclass(frozen=True)
class Transition:
    """One arrow of the state machine. `sources` is part of the guard of its UPDATE."""

    name: str
    sources: State
    targets: tuple[State, ...]


CLAIM = Transition("claim", State.QUEUED, (State.RUNNING,))
FINISH = Transition("finish", State.RUNNING, (State.SUCCEEDED,))
FAIL = Transition("fail", State.RUNNING, (State.FAILED, State.CANCELED))
RELEASE = Transition("release", State.RUNNING, (State.QUEUED, State.FAILED, State.CANCELED))
REAP = Transition("reap", State.RUNNING, (State.QUEUED, State.FAILED, State.CANCELED))
CANCEL = Transition("cancel", State.QUEUED, (State.CANCELED,))
EXPIRE = Transition("expire", State.QUEUED, (State.EXPIRED,))

TRANSITIONS = (CLAIM, FINISH, FAIL, RELEASE, REAP, CANCEL, EXPIRE)
