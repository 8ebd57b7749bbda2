"""Generations as the policy sees them, and a loop that runs the policy with a simulated clock."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.policy.buckets import MULTIPLES_OF_FOUR
from engine.policy.candidate import BatchKey
from engine.policy.policy import Policy

SMALL, LARGE, OTHER = BatchKey("m", 16, 16), BatchKey("m", 24, 24), BatchKey("m", 16, 24)
STEP_SECONDS = 0.1


@dataclass(eq=False)
class Member:
    """A generation as the policy sees it."""

    name: str
    key: BatchKey = SMALL
    lane: str = "interactive"
    account: str = ""
    num_steps: int = 20
    num_steps_left: int = 0  # all steps, unless given
    submitted_at: float = 0.0
    deadline_at: float | None = None
    num_rows: int = 2
    is_isolated: bool = False
    has_begun: bool = False
    signature: int = 0
    step_cache: int = 1
    num_steps_done: int = 0
    ended_at: float = 0.0

    def __post_init__(self) -> None:
        self.num_steps_left = self.num_steps_left or self.num_steps

    @property
    def num_full_steps_left(self) -> int:
        """All remaining steps, or those that are not cached."""
        return -(-self.num_steps_left // self.step_cache)

    @property
    def row_steps(self) -> int:
        """The device seconds that it has used."""
        return self.num_steps_done * self.num_rows


def flat(_key: BatchKey, _num_rows: int) -> float:
    """Step seconds of a device on which more rows cost nothing: always `STEP_SECONDS`."""
    return STEP_SECONDS


def rising(_key: BatchKey, num_rows: int) -> float:
    """Step seconds of a device on which eight rows take twice as long as four."""
    return STEP_SECONDS * num_rows / 4


def run(
    policy: Policy,
    members: Sequence[Member],
    num_ticks: int,
    now: float = 0.0,
    step_seconds: Callable[[BatchKey, int], float] = flat,
) -> list[list[Member]]:
    """Run the policy for `num_ticks` over the members that have arrived and are not done."""
    batches = []
    for _ in range(num_ticks):
        running = [member for member in members if member.num_steps_left and member.submitted_at <= now]
        batch = policy.choose(running, now)
        seconds = STEP_SECONDS
        if batch:
            num_rows = MULTIPLES_OF_FOUR.rows(sum(member.num_rows for member in batch))
            seconds = step_seconds(batch[0].key, num_rows)
            policy.stepped(batch[0].key, seconds)
        now += seconds
        for member in batch:
            member.has_begun = True
            member.num_steps_left -= 1
            member.num_steps_done += 1
            member.ended_at = now
        batches.append(batch)
    return batches


def bulk(count: int, key: BatchKey = SMALL) -> list[Member]:
    """`count` bulk generations of 50 steps."""
    return [Member(f"bulk-{i}", key=key, lane="bulk", num_steps=50) for i in range(count)]
