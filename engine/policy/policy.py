"""The policy: which generations share the next step batch, chosen afresh at every denoising step.

Owns the order of generations (lane, turns, due time), the row caps, and the reason why a step batch was not
fuller. It is pure Python with an injected clock, so that engine, estimates and benchmarks drive the same
policy; it does not know tensors, threads or errors.

The rules, in order of precedence (docs/adr/0008-due-times-and-turns.md has the reasons):

1. An isolated generation goes first in its lane and, once begun, runs alone to its end; then others get the
   device for as long as it had it.
2. Interactive work goes before bulk work: a bulk generation not chosen is paused and keeps its latents.
3. Every `AGING_TURN`-th step batch goes to bulk work that has waited `bulk_patience_seconds`.
4. In a lane, batch keys take turns, and so do accounts: one that is more than a quantum ahead goes last.
5. Then the earliest due time goes first; generations that can no longer meet their deadline go last.
6. A generation does not join a step batch if a member could then no longer meet its deadline, or if it would
   miss its own there: more rows make slower steps.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeVar

from catalogue.determinism import PINNED_ROWS
from engine.policy.buckets import BUCKET_STEP, MULTIPLES_OF_FOUR
from engine.policy.candidate import BatchKey, Candidate
from engine.policy.due_times import DueTimes
from engine.policy.turns import AgingTurns, Turns

__all__ = ["BatchKey", "Candidate", "Policy", "Reason"]

MAX_ADMISSIONS_PER_TICK = 8
RECOVERY_STEPS = 256  # step batches after which a lowered cap is tried four rows higher

Reason = Literal["isolated", "alone", "strict", "due", "cap", "memory"]
"""Why a step batch was not fuller. An isolated generation ran alone; no other generation of the key was
there; it was pinned to `PINNED_ROWS`; with more rows a member, or a generation left out, would have missed a
deadline; or it was as full as the model's cap or the device's memory allows."""


C = TypeVar("C", bound=Candidate)


class Policy:
    """Chooses admissions and step batches; owns the turns of keys and accounts, and the due times.

    `max_rows` gives the cap of a key. `step_seconds(key, rows)` reads a profile, and returns None for what it
    does not hold. `bucket_rows(key, rows)` gives the row count that a batch is padded to.
    """

    def __init__(
        self,
        max_rows: Callable[[BatchKey], int],
        bulk_patience_seconds: float = 60.0,
        step_seconds: Callable[[BatchKey, int], float | None] | None = None,
        bucket_rows: Callable[[BatchKey, int], int] = lambda _, num_rows: MULTIPLES_OF_FOUR.rows(num_rows),
    ) -> None:
        self.reason_not_fuller: Reason | None = None  # of the step batch that was chosen last
        self._max_rows = max_rows
        self._bulk_patience_seconds = bulk_patience_seconds
        self._bucket_rows = bucket_rows
        self._due_times = DueTimes(self.max_rows, bulk_patience_seconds, step_seconds, bucket_rows)
        self._lowered: dict[BatchKey, int] = {}
        self._num_steps_lowered: dict[BatchKey, int] = {}  # since the cap was lowered or raised last
        self._key_turns: dict[str, Turns[BatchKey]] = defaultdict(Turns)  # by lane
        self._account_turns: dict[str, Turns[str]] = defaultdict(Turns)  # by lane
        self._owed_seconds = 0.0  # device time that the last isolated generation owes to others
        self._chosen: list[tuple[str, str, int]] = []  # lane, account, rows of each member chosen last
        self._step_turns, self._admission_turns, self._decoding_turns = (AgingTurns() for _ in range(3))

    def admit(self, waiting: Sequence[C], running: Sequence[C], now: float) -> list[C]:
        """The generations of `waiting` to encode before the next step: few, so that it is not delayed."""
        if not waiting or any(member.is_isolated and member.has_begun for member in running):
            return []
        ordered = self.order(waiting, now)
        aged = [member for member in waiting if self._is_aged(member, now)]
        # The engine may have time for one text a tick: without its turn, bulk work would never join.
        return self._admission_turns.order(ordered, aged)[:MAX_ADMISSIONS_PER_TICK]

    def choose(self, running: Sequence[C], now: float) -> list[C]:
        """The members of the next step batch: one key, the most urgent first, within the key's cap."""
        chosen, self.reason_not_fuller = self._choose(running, now)
        self._chosen = [(member.lane, member.account, member.num_rows) for member in chosen]
        return chosen

    def order(self, members: Iterable[C], now: float) -> list[C]:
        """Sort by lane (interactive first), accounts ahead, deadlines that will be missed, and due time."""
        lanes: dict[str, list[C]] = {}
        for member in members:
            lanes.setdefault(member.lane, []).append(member)
        ordered = []
        for lane in sorted(lanes, key=lambda lane: lane != "interactive"):
            ahead = self._accounts_ahead(lane, lanes[lane])
            ordered += sorted(
                lanes[lane],
                key=lambda member: (member.account in ahead, *self._due_times.urgency(member, now)),
            )
        return ordered

    def order_to_decode(self, denoised: Sequence[C], now: float) -> list[C]:
        """Sort likewise, with aging turns for bulk work, which would wait behind new interactive work."""
        aged = [member for member in denoised if self._is_aged(member, now)]
        return self._decoding_turns.order(self.order(denoised, now), aged)

    def max_rows(self, key: BatchKey) -> int:
        """The most rows that one forward pass of this key may have."""
        if key.is_alone:
            return 1  # the first member of a step batch runs even if it has more rows
        if key.is_pinned:
            return PINNED_ROWS
        max_rows = self._max_rows(key)
        return min(max_rows, self._lowered.get(key, max_rows))

    def stepped(self, key: BatchKey, seconds: float, *, is_full: bool = True, is_whole: bool = True) -> None:
        """Record that the step batch chosen last, of `key`, took `seconds`, charged by the members' rows.

        `is_full` says that no row was cached, `is_whole` that it did not run in parts after an error.
        """
        num_rows = sum(rows for _, _, rows in self._chosen)
        if not num_rows:
            return
        self._owed_seconds += seconds if self.reason_not_fuller == "isolated" else -seconds
        if is_whole:
            self._due_times.see(key, num_rows, seconds, is_full=is_full)
        self._key_turns[self._chosen[0][0]].charge(key, seconds)
        for lane, account, rows in self._chosen:
            self._account_turns[lane].charge(account, seconds * rows / num_rows)
        if key in self._lowered:
            self._recover(key)

    def lower(self, key: BatchKey, num_rows: int) -> None:
        """Record that `num_rows` rows of `key` did not fit into memory: half of them is the cap for a while.

        Other users of the memory may leave; finding out costs one split step batch.
        """
        self._lowered[key] = max(1, min(self.max_rows(key), num_rows) // 2)
        self._num_steps_lowered[key] = 0
        self._due_times.forget_caps()

    def _recover(self, key: BatchKey) -> None:
        self._num_steps_lowered[key] += 1
        if self._num_steps_lowered[key] < RECOVERY_STEPS:
            return
        self._num_steps_lowered[key] = 0
        self._lowered[key] = self._bucket_rows(key, self._lowered[key] + BUCKET_STEP)
        if self._lowered[key] >= self._max_rows(key):
            del self._lowered[key], self._num_steps_lowered[key]
        self._due_times.forget_caps()

    def _choose(self, running: Sequence[C], now: float) -> tuple[list[C], Reason | None]:
        if not running:
            return [], None
        alone = next((member for member in running if member.is_isolated and member.has_begun), None)
        if alone is not None:
            return [alone], "isolated"
        if self._owed_seconds > 0:
            running = [member for member in running if not member.is_isolated] or running
        urgent = self._urgent(running, now)
        ordered = self._in_turn(urgent, now)
        leader = next((member for member in ordered if member.is_isolated), ordered[0])
        if leader.is_isolated:
            self._owed_seconds = 0.0
            return [leader], "isolated"
        sharing = [member for member in ordered if _can_share(member, leader) and not member.is_isolated]
        fillers = self._fillers(running, sharing, now) if len(urgent) < len(running) else []
        batch = self._fill(sharing, fillers, now)
        left_out = [member for member in (*sharing, *fillers) if member not in batch]
        return batch, self._reason(leader.key, batch, left_out)

    def _urgent(self, running: Sequence[C], now: float) -> list[C]:
        """The members of the lane that goes first in this turn."""
        interactive = [member for member in running if member.lane == "interactive"]
        aged = [member for member in running if self._is_aged(member, now)]
        if interactive and aged:
            return aged if self._step_turns.is_next_aged() else interactive
        return interactive or list(running)

    def _in_turn(self, members: Sequence[C], now: float) -> list[C]:
        """Sort `members` of one lane: keys ahead last, then accounts ahead last, then by due time."""
        lane = members[0].lane
        keys = {member.key for member in members}
        keys_ahead = (
            self._key_turns[lane].ahead(keys, self._due_times.quantum_seconds(keys)) if len(keys) > 1 else ()
        )
        accounts_ahead = self._accounts_ahead(lane, members)
        return sorted(
            members,
            key=lambda member: (
                member.key in keys_ahead,
                member.account in accounts_ahead,
                *self._due_times.urgency(member, now),
            ),
        )

    def _fillers(self, running: Sequence[C], urgent: Sequence[C], now: float) -> list[C]:
        """The key's other generations, interactive ones first, for rows that the urgent ones leave free."""
        taken = set(map(id, urgent))
        others = [member for member in running if _can_share(member, urgent[0]) and id(member) not in taken]
        return [member for member in self.order(others, now) if not member.is_isolated]

    def _accounts_ahead(self, lane: str, members: Sequence[C]) -> set[str]:
        accounts = {member.account for member in members}
        if len(accounts) < 2:
            return set()
        return self._account_turns[lane].ahead(
            accounts, self._due_times.quantum_seconds({m.key for m in members})
        )

    def _fill(self, urgent: Sequence[C], fillers: Sequence[C], now: float) -> list[C]:
        """The first of `urgent`, whatever its row count, and all that fit beside it without making any late.

        If none of `urgent` can be in time any more, as many as fit: their step seconds are a guess. Rows that
        would be padding go to generations that were left out, since they slow the step batch down no further.
        """
        cap = max_rows = self.max_rows(urgent[0].key)
        batch: list[C] = []
        num_rows = 0
        for member in (*urgent, *fillers) if self._any_in_time(urgent, now) else ():
            in_time_rows = self._due_times.max_rows_in_time(member, now)
            leads = not batch and in_time_rows > 0
            if leads or num_rows + member.num_rows <= min(max_rows, in_time_rows):
                batch.append(member)
                num_rows += member.num_rows
                max_rows = min(max_rows, in_time_rows)
            if num_rows >= max_rows:
                break
        if batch:
            cap = min(cap, self._bucket_rows(urgent[0].key, num_rows))
        return _filled_up(batch, (*urgent, *fillers), cap)

    def _any_in_time(self, members: Sequence[C], now: float) -> bool:
        return any(self._due_times.max_rows_in_time(member, now) for member in members)

    def _reason(self, key: BatchKey, batch: Sequence[C], left_out: Sequence[C]) -> Reason:
        if not left_out:
            return "alone"
        if min(member.num_rows for member in left_out) + _num_rows(batch) <= self.max_rows(key):
            return "due"
        if key.is_pinned or key.is_alone:
            return "strict"
        return "memory" if key in self._lowered else "cap"

    def _is_aged(self, member: Candidate, now: float) -> bool:
        return member.lane == "bulk" and now - member.submitted_at >= self._bulk_patience_seconds


def _can_share(one: Candidate, other: Candidate) -> bool:
    return one.key == other.key and one.signature == other.signature


def _filled_up(batch: Sequence[C], members: Iterable[C], max_rows: int) -> list[C]:
    """`batch` and all of `members` that fit beside it; an empty batch gets the first one in any case."""
    filled, taken, num_rows = list(batch), set(map(id, batch)), _num_rows(batch)
    for member in members:
        if filled and num_rows >= max_rows:
            break
        if id(member) not in taken and (not filled or num_rows + member.num_rows <= max_rows):
            filled.append(member)
            num_rows += member.num_rows
    return filled


def _num_rows(members: Iterable[Candidate]) -> int:
    return sum(member.num_rows for member in members)
