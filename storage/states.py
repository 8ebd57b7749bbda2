"""The state machine of a job, as data: its states and the transitions between them.

`storage.jobs` performs them and nothing else may; ARCHITECTURE.md draws the same arrows, and a
test compares the drawing with this table.
"""

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"  # accepted; waits for a bell, a worker and a slot
    RUNNING = "running"  # claimed by one worker under a lease
    SUCCEEDED = "succeeded"  # final: every image is stored
    FAILED = "failed"  # final: `error` says why
    CANCELED = "canceled"  # final: its owner asked for it
    EXPIRED = "expired"  # final: its deadline passed before a worker was free


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELED, State.EXPIRED})
WITHOUT_IMAGE = TERMINAL - {State.SUCCEEDED}


@dataclass(frozen=True)
class Transition:
    """One arrow. `sources` is part of the guard of the UPDATE that performs it."""

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
