"""The policy: which generations share the next step batch, chosen afresh at every denoising step.

Owns the order of generations (lane, turns, due time), the row caps, and the reason why a step batch was not
fuller. It is pure Python with an injected clock, so that engine, estimates and benchmarks drive the same
policy; it does not know tensors, threads or errors.

The rules, in order of precedence (the reasons are in docs/adr/0008-due-times-and-turns.md and
0029-what-bulk-may-cost.md):

1. An isolated generation goes first in its lane and, once begun, runs alone to its end; then others get the
   device for as long as it had it.
2. Interactive work goes before bulk work: a bulk generation not chosen is paused and keeps its latents. It
   may fill step batches, and take the device between them, only as far as `BulkLimits` says.
3. Bulk work that has waited `bulk_patience_seconds` gets `AGED_SHARE` of the steps' seconds at least.
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
from engine.policy.bulk_limits import BULK_SLOWDOWN, BulkLimits
from engine.policy.candidate import BatchKey, Candidate
from engine.policy.due_times import DueTimes
from engine.policy.turns import AgedShare, Turns

__all__ = ["BatchKey", "Candidate", "Policy", "Reason"]

BULK_PATIENCE_SECONDS = 60.0
MAX_ADMISSIONS_PER_TICK = 8
RECOVERY_STEPS = 256  # step batches after which a lowered cap is tried four rows higher

Reason = Literal["isolated", "alone", "strict", "due", "lane", "cap", "memory"]
"""Why a step batch was not fuller. An isolated generation ran alone; no other generation of the key was
there; it was pinned to `PINNED_ROWS`; with more rows a member, or a generation left out, would have missed a
deadline; bulk work was left out that would have slowed interactive work; or it was as full as the model's cap
or the device's memory allows."""


C = TypeVar("C", bound=Candidate)


class Policy:
    """Chooses admissions and step batches; owns the turns of keys and accounts, and the due times.

    `max_rows` gives the cap of a key. `step_seconds(key, rows)` reads a profile, and returns None for what it
    does not hold. `bucket_rows(key, rows)` gives the row count that a batch is padded to.
    """

    def __init__(
        self,
        max_rows: Callable[[BatchKey], int],
        bulk_patience_seconds: float = BULK_PATIENCE_SECONDS,
        step_seconds: Callable[[BatchKey, int], float | None] | None = None,
        bucket_rows: Callable[[BatchKey, int], int] = lambda _, num_rows: MULTIPLES_OF_FOUR.rows(num_rows),
        bulk_slowdown: float = BULK_SLOWDOWN,
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
        self._bulk_limits = BulkLimits(self._due_times, bulk_slowdown)
        self._aged_share = AgedShare(bulk_patience_seconds)
        self._is_any_aged = False
        self._is_bulk_limited = False
        self._is_oldest_served = True  # by the step batch that was chosen last, of the aged ones

    def admit(self, waiting: Sequence[C], running: Sequence[C], now: float) -> list[C]:
        """The generations of `waiting` to encode before the next step: few of each lane."""
        if not waiting or any(member.is_isolated and member.has_begun for member in running):
            return []
        ordered = self.order(waiting, now)
        interactive = [member for member in ordered if member.lane == "interactive"]
        bulk = ordered[len(interactive) :]
        return [*interactive[:MAX_ADMISSIONS_PER_TICK], *bulk[:MAX_ADMISSIONS_PER_TICK]]

    def choose(self, running: Sequence[C], now: float) -> list[C]:
        """The members of the next step batch: one key, the most urgent first, within the key's cap."""
        chosen, self.reason_not_fuller = self._choose(running, now)
        for member in chosen:
            if member.lane == "interactive" and not member.has_begun:
                self._bulk_limits.begin(member)
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
        bulk_rows = (
            sum(rows for lane, _, rows in self._chosen if lane == "bulk") if self._is_oldest_served else 0
        )
        self._aged_share.charge(seconds, seconds * bulk_rows / num_rows, is_any_aged=self._is_any_aged)
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
        urgent, others, oldest = self._by_urgency(running, now)
        ordered = self._in_turn(urgent, now)
        leader = next((member for member in ordered if member.is_isolated), ordered[0])
        if leader.is_isolated:
            self._owed_seconds = 0.0
            return [leader], "isolated"
        sharing = [member for member in ordered if _can_share(member, leader) and not member.is_isolated]
        fillers = [member for member in others if _can_share(member, leader) and not member.is_isolated]
        batch = self._fill(sharing, self.order(fillers, now), now)
        # Aged work that another key or account keeps waiting gets no less for what others of its lane get.
        self._is_oldest_served = leader.lane == "bulk" or oldest is None or oldest in batch
        return batch, self._reason(leader.key, batch, [*sharing, *fillers])

    def _by_urgency(self, running: Sequence[C], now: float) -> tuple[Sequence[C], Sequence[C], C | None]:
        """The members of the lane that goes first in this turn, all others, and the oldest of the aged."""
        interactive = [member for member in running if member.lane == "interactive"]
        bulk = [member for member in running if member.lane != "interactive"]
        aged = [member for member in bulk if now - member.submitted_at >= self._bulk_patience_seconds]
        oldest = min(aged, key=lambda member: member.submitted_at, default=None)
        self._is_any_aged = oldest is not None
        if interactive:
            self._bulk_limits.see(now)
        if interactive and aged and self._aged_share.is_owed:
            taken = set(map(id, aged))
            return aged, [member for member in running if id(member) not in taken], oldest
        return (interactive, bulk, oldest) if interactive else (bulk, interactive, oldest)

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

    def _accounts_ahead(self, lane: str, members: Sequence[C]) -> set[str]:
        accounts = {member.account for member in members}
        if len(accounts) < 2:
            return set()
        return self._account_turns[lane].ahead(
            accounts, self._due_times.quantum_seconds({m.key for m in members})
        )

    def _fill(self, urgent: Sequence[C], fillers: Sequence[C], now: float) -> list[C]:
        """The first of `urgent`, whatever its row count, and all that fit beside it within the limits.

        Interactive work fills what aged bulk work leaves; bulk work fills no more than it may. Rows that
        would be padding go to generations that were left out, since they slow the step batch no further.
        """
        key, cap = urgent[0].key, self.max_rows(urgent[0].key)
        is_led_by_bulk = urgent[0].lane == "bulk"
        max_rows = self._bulk_limits.rows_apart(key, cap, now) if is_led_by_bulk else cap
        batch = self._in_time([], urgent, max_rows, now)
        if not batch:  # none of `urgent` can be in time any more: their step seconds are a guess
            batch = _filled_up([], urgent, max_rows)
        if is_led_by_bulk:
            batch = self._in_time(batch, [one for one in fillers if one.lane == "interactive"], cap, now)
        elif fillers:
            max_rows = self._bulk_limits.rows_beside(key, _num_rows(batch), cap)
            batch = self._in_time(batch, fillers, max_rows, now)
        self._is_bulk_limited = max_rows < cap
        free_rows = min(cap, self._bucket_rows(key, _num_rows(batch)))
        return _filled_up(batch, (*urgent, *fillers), free_rows)

    def _in_time(self, batch: Sequence[C], members: Iterable[C], max_rows: int, now: float) -> list[C]:
        """`batch` and the first of `members` that fit within `max_rows` without making any late."""
        filled, num_rows = list(batch), _num_rows(batch)
        for member in batch:
            max_rows = min(max_rows, self._due_times.max_rows_in_time(member, now))
        for member in members:
            if filled and num_rows >= max_rows:
                break
            in_time_rows = self._due_times.max_rows_in_time(member, now)
            leads = not filled and in_time_rows > 0
            if leads or num_rows + member.num_rows <= min(max_rows, in_time_rows):
                filled.append(member)
                num_rows += member.num_rows
                max_rows = min(max_rows, in_time_rows)
        return filled

    def _reason(self, key: BatchKey, batch: Sequence[C], members: Sequence[C]) -> Reason:
        taken = set(map(id, batch))
        left_out = [member for member in members if id(member) not in taken]
        if not left_out:
            return "alone"
        num_free = self.max_rows(key) - _num_rows(batch)
        fitting = [member for member in left_out if member.num_rows <= num_free]
        if fitting:
            is_bulk = all(member.lane == "bulk" for member in fitting)
            return "lane" if self._is_bulk_limited and is_bulk else "due"
        if key.is_pinned or key.is_alone:
            return "strict"
        return "memory" if key in self._lowered else "cap"


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
