"""Who runs next: pure Python on a given clock, shared with the simulator, and it imports no torch.

Owns the order of generations (lane, deadline, age), the turns of the batch keys, and the row caps. It
does not know tensors, threads or errors: the engine asks at every step boundary and does as told.

The rules, in the order in which they bind:

1. A `solo` generation that has begun runs with nothing beside it until it ends.
2. Interactive work goes before bulk work: a bulk generation not chosen is paused, its latents stay.
3. Every `AGEING_TURN`-th step batch belongs to bulk work that has waited `bulk_patience_seconds`.
4. Batch keys with work of the same rank take turns by the device seconds that they have used.
5. In a lane, the earliest due goes first; what cannot meet its deadline any more goes last.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

SMALLEST_BUCKET = 4
AGEING_TURN = 4
MAX_ADMISSIONS_PER_TICK = 8
PATIENCE_SECONDS = 30.0
SMOOTHING = 0.2
RECOVERY_STEPS = 256  # after so many step batches a lowered cap is tried one bucket higher


def bucket_rows(num_rows: int) -> int:
    """The size at which a step batch of `num_rows` runs: the next multiple of 4.

    Below 4 rows the kernels of a 2-D `Linear` depend on the row count, so nothing runs there.
    """
    return -(-num_rows // SMALLEST_BUCKET) * SMALLEST_BUCKET


@dataclass(frozen=True)
class BatchKey:
    """What must match for two generations to share a forward pass; seeds, steps and scales need not."""

    model: str
    latent_height: int
    latent_width: int
    is_pinned: bool = False  # strict, where the promise is not exact: smallest bucket only
    is_alone: bool = False  # strict, where places and neighbours show too: one generation a step batch


class Candidate(Protocol):
    """All that the policy may know of a generation."""

    @property
    def key(self) -> BatchKey:
        """What it may share a forward pass with."""

    @property
    def lane(self) -> str:
        """`interactive` or `bulk`."""

    @property
    def is_solo(self) -> bool:
        """Whether it must run alone."""

    @property
    def has_begun(self) -> bool:
        """Whether it has been given its first step."""

    @property
    def num_rows(self) -> int:
        """Rows of its next step: two with guidance, else one."""

    @property
    def num_steps_left(self) -> int:
        """Steps still to run."""

    @property
    def submitted_at(self) -> float:
        """When it arrived, on the policy's clock."""

    @property
    def deadline_at(self) -> float | None:
        """When it is worth nothing any more, on the policy's clock."""


C = TypeVar("C", bound=Candidate)


class Policy:
    """Chooses admissions and step batches; owns the turns of the keys and their measured step seconds."""

    def __init__(self, max_rows: Callable[[BatchKey], int], bulk_patience_seconds: float = 60.0) -> None:
        self._max_rows = max_rows
        self._bulk_patience_seconds = bulk_patience_seconds
        self._lowered: dict[BatchKey, int] = {}
        self._num_steps_lowered: dict[BatchKey, int] = {}  # since the cap was lowered or raised last
        self._step_seconds: dict[BatchKey, float] = {}
        self._used_seconds: dict[BatchKey, float] = {}
        self._virtual_seconds = 0.0
        self._num_turns_since_ageing = 0

    def admit(self, waiting: Sequence[C], running: Sequence[C], now: float) -> list[C]:
        """Those of `waiting` to encode before the next step: few, so that encoding never stalls it."""
        if any(member.is_solo and member.has_begun for member in running):
            return []
        return self.order(waiting, now)[:MAX_ADMISSIONS_PER_TICK]

    def choose(self, running: Sequence[C], now: float) -> list[C]:
        """The members of the next step batch: one key, the most urgent first, within the key's cap."""
        alone = next((member for member in running if member.is_solo and member.has_begun), None)
        if alone is not None or not running:
            return [alone] if alone is not None else []
        urgent = self._urgent(running, now)
        key = self._next_key({member.key for member in running}, {member.key for member in urgent})
        preferred = set(map(id, urgent))
        ordered = [member for member in self.order(running, now) if member.key == key]
        ordered.sort(key=lambda member: id(member) not in preferred)
        return self._fill(ordered, self.max_rows(key))

    def order(self, members: Iterable[C], now: float) -> list[C]:
        """Interactive before bulk, then the hopeless last, then the earliest due."""
        return sorted(members, key=lambda member: self._rank(member, now))

    def max_rows(self, key: BatchKey) -> int:
        """The most rows that one forward pass of this key may have."""
        if key.is_alone:
            return 1  # who leads a step batch runs whatever the cap is
        if key.is_pinned:
            return SMALLEST_BUCKET
        return min(self._max_rows(key), self._lowered.get(key, SMALLEST_BUCKET * 1024))

    def stepped(self, key: BatchKey, seconds: float) -> None:
        """Take note that a step batch of `key` took `seconds`."""
        self._used_seconds[key] = self._used_seconds.get(key, self._virtual_seconds) + seconds
        known = self._step_seconds.get(key, seconds)
        self._step_seconds[key] = known + SMOOTHING * (seconds - known)
        if key in self._lowered:
            self._recover(key)

    def lower(self, key: BatchKey, num_rows: int) -> None:
        """Take note that `num_rows` rows of `key` did not fit into memory: half of them is the new cap.

        For a while: what took the memory may be gone, and finding out costs one split step batch.
        """
        self._lowered[key] = max(1, min(self.max_rows(key), num_rows) // 2)
        self._num_steps_lowered[key] = 0

    def _recover(self, key: BatchKey) -> None:
        self._num_steps_lowered[key] += 1
        if self._num_steps_lowered[key] < RECOVERY_STEPS:
            return
        self._num_steps_lowered[key] = 0
        self._lowered[key] = bucket_rows(self._lowered[key] + 1)
        if self._lowered[key] >= self._max_rows(key):
            del self._lowered[key], self._num_steps_lowered[key]

    def _urgent(self, running: Sequence[C], now: float) -> list[C]:
        """The members that go before all others in this turn; all of them when none does."""
        interactive = [member for member in running if member.lane == "interactive"]
        aged = [member for member in running if self._is_aged(member, now)]
        if not interactive or not aged:
            self._num_turns_since_ageing = 0
            return interactive or list(running)
        self._num_turns_since_ageing += 1
        if self._num_turns_since_ageing < AGEING_TURN:
            return interactive
        self._num_turns_since_ageing = 0
        return aged

    def _next_key(self, present: set[BatchKey], eligible: set[BatchKey]) -> BatchKey:
        """The eligible key that has used the least; one that was away or paused is owed nothing for it.

        Start-time fair queueing (Goyal et al. 1996), with measured device seconds as the service.
        """
        used = {}
        for key in present:
            used[key] = self._used_seconds.get(key, self._virtual_seconds)
            if key not in eligible:
                used[key] = max(used[key], self._virtual_seconds)
        self._used_seconds = used
        chosen = min(eligible, key=lambda key: (used[key], key.model, key.latent_height, key.latent_width))
        self._virtual_seconds = max(self._virtual_seconds, used[chosen])
        return chosen

    def _fill(self, ordered: Sequence[C], max_rows: int) -> list[C]:
        leader = ordered[0]
        batch, num_rows = [leader], leader.num_rows
        if leader.is_solo:
            return batch
        for member in ordered[1:]:
            if not member.is_solo and num_rows + member.num_rows <= max_rows:
                batch.append(member)
                num_rows += member.num_rows
        return batch

    def _rank(self, member: Candidate, now: float) -> tuple[bool, bool, float, float]:
        patience = PATIENCE_SECONDS if member.lane == "interactive" else self._bulk_patience_seconds
        due = member.submitted_at + patience
        if member.deadline_at is not None:
            due = min(due, member.deadline_at)
        return member.lane != "interactive", self._is_hopeless(member, now), due, member.submitted_at

    def _is_hopeless(self, member: Candidate, now: float) -> bool:
        if member.deadline_at is None:
            return False
        seconds = member.num_steps_left * self._step_seconds.get(member.key, 0.0)
        return now + seconds > member.deadline_at

    def _is_aged(self, member: Candidate, now: float) -> bool:
        return member.lane == "bulk" and now - member.submitted_at >= self._bulk_patience_seconds
