"""The states of a job. `storage.transitions` says which state may follow which."""

from enum import StrEnum


class State(StrEnum):
    """Where a job is between its creation and its end."""

    QUEUED = "queued"  # accepted; waits for its dispatch, a worker and a slot
    RUNNING = "running"  # claimed by one worker under a lease
    SUCCEEDED = "succeeded"  # final: every image is stored
    FAILED = "failed"  # final: `error` says why
    CANCELED = "canceled"  # final: its owner asked for it
    EXPIRED = "expired"  # final: its deadline passed before a worker was free


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELED, State.EXPIRED})
WITHOUT_IMAGE = TERMINAL - {State.SUCCEEDED}
