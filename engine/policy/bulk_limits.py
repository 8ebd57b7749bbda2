"""How far bulk work may slow interactive work: by rows in its step batches, and by step batches of its own.

Owns the recent interactive work, and the row limits that follow from it and from the seconds of steps. It
does not know which generations wait, nor when bulk work has waited too long.
"""

from engine.policy.candidate import BatchKey, Candidate
from engine.policy.due_times import SMOOTHING, DueTimes

BULK_SLOWDOWN = 0.1
"""Bulk work may slow interactive work by this share."""
EXPECTED_SECONDS = 60.0
"""Interactive work is expected for this long after some was last there."""
MIN_RATE_SHARE = 0.8
"""Of the most rows a second of any step batch: bulk work's own are not made so small that they have fewer."""


class BulkLimits:
    """The most rows of step batches with bulk work."""

    def __init__(self, due_times: DueTimes, slowdown: float) -> None:
        self._due_times = due_times
        self._slowdown = slowdown
        self._seen_at: float | None = None  # when interactive work was last there
        self._interactive_seconds = 0.0  # of the steps of an interactive generation alone: a smoothed mean

    def see(self, now: float) -> None:
        """Record that an interactive generation is there."""
        self._seen_at = now

    def begin(self, member: Candidate) -> None:
        """Record that an interactive generation takes its first step."""
        seconds = member.num_full_steps_left * self._due_times.step_seconds(member.key, member.num_rows)
        known = self._interactive_seconds or seconds
        self._interactive_seconds = known + SMOOTHING * (seconds - known)

    def rows_beside(self, key: BatchKey, num_rows: int, max_rows: int) -> int:
        """The rows to which bulk work may fill a step batch that has `num_rows` interactive ones.

        The step may take longer by the allowed share. Padding is free, and all that is given until the step
        seconds without bulk work are known.
        """
        most, *larger = self._row_counts(key, num_rows, max_rows)
        if not self._due_times.knows(key, num_rows):
            return most
        max_seconds = (1 + self._slowdown) * self._due_times.step_seconds(key, num_rows)
        for rows in larger:
            if self._due_times.step_seconds(key, rows) > max_seconds:
                break
            most = rows
        return most

    def rows_apart(self, key: BatchKey, max_rows: int, now: float) -> int:
        """The most rows of a step batch of bulk work alone, for which an interactive arrival must wait.

        While interactive work is expected, the step takes at most the allowed share of an interactive
        generation's seconds, unless its rows a second would then fall below `MIN_RATE_SHARE` of the best.
        """
        if self._seen_at is None or now - self._seen_at > EXPECTED_SECONDS:
            return max_rows
        rows_up = self._row_counts(key, 1, max_rows)
        seconds = {rows: self._due_times.step_seconds(key, rows) for rows in rows_up}
        if not all(seconds.values()):
            return max_rows
        min_rate = MIN_RATE_SHARE * max(rows / taken for rows, taken in seconds.items())
        enough = next(rows for rows, taken in seconds.items() if rows / taken >= min_rate)
        max_seconds = max(self._slowdown * self._interactive_seconds, seconds[enough])
        return max(rows for rows, taken in seconds.items() if taken <= max_seconds)

    def _row_counts(self, key: BatchKey, num_rows: int, max_rows: int) -> list[int]:
        """The buckets from that of `num_rows` on, and `max_rows` in place of the one that holds it."""
        found = [min(self._due_times.bucket_rows(key, num_rows), max_rows)]
        while found[-1] < max_rows:
            found.append(min(self._due_times.bucket_rows(key, found[-1] + 1), max_rows))
        return found
