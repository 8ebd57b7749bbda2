"""A job as the state machine says it is: the model of a row, its events, images and deliveries.

Each method is what one kind of write does to a row that its guard lets through. It knows no database.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from storage.jobs import Claim, Lease
from storage.transition_values import MAX_CRASHES, MAX_UNQUARANTINED_ATTEMPTS

FINAL = {"succeeded", "failed", "canceled", "expired"}


@dataclass
class Expected:
    """What a row has to be."""

    account: str
    tier: str
    lane: str
    has_webhook: bool
    state: str = "queued"
    attempt: int = 0
    token: str | None = None
    boot_id: str | None = None
    is_lease_over: bool = False
    is_past: bool = False
    is_canceled: bool = False
    quarantined: bool = False
    isolated: bool = False
    num_failures: int = 0
    num_crashes: int = 0
    error_code: str | None = None
    progress: float = 0.0
    events: list[str] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)  # all that it ever had, the newest last
    possible_crashes: set[str] = field(default_factory=set)  # by boot id
    heard_of: set[str] = field(default_factory=set)  # those of them whose process was heard of since

    @property
    def is_final(self) -> bool:
        """Whether nothing may change any more."""
        return self.state in FINAL

    def holds(self, lease: Lease) -> bool:
        """Whether a write under this lease is one of its holder."""
        return self.state == "running" and (self.attempt, self.token) == (lease.attempt, lease.token)

    def may_be_claimed(self, tiers: Sequence[str], *, takes_quarantined: bool) -> bool:
        """Whether a worker of these tiers gets it."""
        is_taken = takes_quarantined or not self.quarantined
        return (
            self.state == "queued"
            and self.tier in tiers
            and is_taken
            and not (self.is_canceled or self.is_past)
        )

    def claimed(self, claim: Claim, boot_id: str) -> None:
        """It runs under a new lease."""
        assert claim.lease.attempt == self.attempt + 1, "each claim is one attempt"
        self.attempt += 1
        self.token, self.boot_id = claim.lease.token, boot_id
        self.leases.append(claim.lease)
        self.is_lease_over = self.isolated = False
        self.progress = 0.0
        self._goes("claim", "running")

    def ends(self, transition: str, state: str, error_code: str | None = None) -> None:
        """It reaches a final state, and has no lease."""
        self.token = self.boot_id = None
        self.error_code = error_code
        self._goes(transition, state)

    def stops(self, transition: str, *, failed_with: str | None) -> None:
        """It stops running: canceled if that was asked for, else failed, else queued again."""
        if self.is_canceled:
            self.ends(transition, "canceled")
        elif failed_with is not None:
            self.ends(transition, "failed", failed_with)
        else:
            self.ends(transition, "queued")
        if transition != "fail":
            self.progress = 0.0

    def loses_its_lease(self) -> None:
        """Its lease ran out: nobody knows whether its process died."""
        boot_id, was_isolated = self.boot_id, self.isolated
        self._is_taken_back(is_suspect=True)
        if was_isolated and self.state == "queued" and boot_id is not None:
            self.possible_crashes.add(boot_id)
            self.heard_of.discard(boot_id)

    def loses_its_process(self, *, is_suspect: bool, is_only_one: bool = False) -> None:
        """Its process died."""
        if is_suspect and (self.isolated or (self.quarantined and is_only_one)):
            self.num_crashes += 1
        self._is_taken_back(is_suspect=is_suspect)

    def is_settled(self, boot_id: str, *, is_suspect: bool = True) -> None:
        """A process under which it ran alone is dead, or counts as dead."""
        if boot_id in self.possible_crashes:
            self.possible_crashes.remove(boot_id)
            self.num_crashes += is_suspect and boot_id not in self.heard_of and not self.is_final

    def _is_taken_back(self, *, is_suspect: bool) -> None:
        is_lost = self.num_crashes >= MAX_CRASHES
        self.quarantined |= is_suspect or self.attempt >= MAX_UNQUARANTINED_ATTEMPTS
        self.isolated = False
        self.stops("reap", failed_with="worker_lost" if is_lost else None)

    def _goes(self, transition: str, state: str) -> None:
        self.state = state
        self.events.append(f"{transition} {state} {self.attempt}")

    def as_row(self) -> dict[str, object]:
        """The values that are compared."""
        is_told = self.has_webhook and self.is_final
        return {
            "state": self.state,
            "attempt": self.attempt,
            "token": self.token,
            "lease_boot_id": self.boot_id,
            "quarantined": self.quarantined,
            "isolated": self.isolated,
            "num_failures": self.num_failures,
            "num_crashes": self.num_crashes,
            "error_code": self.error_code,
            "is_canceled": self.is_canceled,
            "is_ended": self.is_final,
            "progress": self.progress,
            "events": self.events,
            "images": self.images,
            "deliveries": [f"job.{self.state}"] if is_told else [],
            "possible_crashes": sorted(self.possible_crashes),
        }
