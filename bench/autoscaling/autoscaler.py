"""Decides how many workers a tier should have, as KEDA and the Horizontal Pod Autoscaler do.

KEDA starts the first worker and removes the last ones; between one and the maximum the Horizontal Pod
Autoscaler (HPA) decides. Sources: KEDA, "ScaledObject specification" and "Scaling Deployments"; Kubernetes,
"Horizontal Pod Autoscaling", sections "Algorithm details" and "Configurable scaling behavior". Time is given,
never read. It does not know what a worker does.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping

from bench.autoscaling.rules import Direction, Rules, Trigger

Values = Mapping[str, float | None]
"""By trigger, what Prometheus answers; None while it does not."""


class Autoscaler:
    """Applies rules to what the triggers measure. Call `decide` at each instant of `next_at`."""

    def __init__(self, rules: Rules, *, at: float = 0.0) -> None:
        self.rules = rules
        self._next_poll_at = self._next_sync_at = at
        self._active_at: float | None = None
        self._num_failures = {trigger.name: 0 for trigger in rules.triggers}
        self._wishes: deque[tuple[float, int]] = deque()  # the HPA's recommendations, oldest first
        self._changes: deque[tuple[float, int]] = deque()  # workers added, or removed if negative

    @property
    def next_at(self) -> float:
        """The instant at which KEDA polls or the HPA decides next."""
        return min(self._next_poll_at, self._next_sync_at)

    def decide(self, read: Callable[[], Values], num_workers: int, at: float) -> int:
        """Return the number of workers from the instant `at` on; `num_workers` includes those that start.

        `read` is called if a poll or a decision is due.
        """
        wanted = num_workers
        if at >= self._next_poll_at:
            self._next_poll_at = at + self.rules.polling_seconds
            wanted = self._poll(read(), wanted, at)
        if at >= self._next_sync_at:
            self._next_sync_at = at + self.rules.sync_seconds
            if wanted and num_workers:  # the HPA is switched off while there is no worker
                wanted = self._sync(read(), wanted, at)
        return wanted

    def _poll(self, values: Values, num_workers: int, at: float) -> int:
        """Start the first worker, or remove all once no trigger has been active for the cooldown."""
        for trigger in self.rules.triggers:
            is_missing = values[trigger.name] is None
            self._num_failures[trigger.name] = (self._num_failures[trigger.name] + 1) * is_missing
        known = [(trigger, self._value(trigger, values, num_workers)) for trigger in self.rules.triggers]
        if any(value is not None and value > trigger.activation for trigger, value in known):
            self._active_at = at
            return num_workers or max(1, self.rules.min_workers)
        if self.rules.min_workers or any(value is None for _, value in known):
            return max(num_workers, self.rules.min_workers)
        if self._active_at is None or at - self._active_at > self.rules.cooldown_seconds:
            self._wishes.clear()
            self._changes.clear()
            return 0
        return num_workers

    def _sync(self, values: Values, num_workers: int, at: float) -> int:
        """One decision of the HPA: the most that any trigger wants, stabilized, within the limits."""
        wishes = [self._wish(trigger, values, num_workers) for trigger in self.rules.triggers]
        known = [wish for wish in wishes if wish is not None]
        wish = max(known, default=num_workers)
        if len(known) < len(wishes):
            wish = max(wish, num_workers)  # nothing is removed while a metric is missing
        wish = self._within_limits(self._stabilized(wish, num_workers, at), num_workers, at)
        self._remember(wish - num_workers, at)
        return wish

    def _wish(self, trigger: Trigger, values: Values, num_workers: int) -> int | None:
        """ceil(value ÷ threshold), unless the workers have the threshold each, within the tolerance."""
        value = self._value(trigger, values, num_workers)
        if value is None:
            return None
        ratio = value / (trigger.threshold * num_workers)
        tolerance = (self.rules.up if ratio > 1 else self.rules.down).tolerance
        return num_workers if abs(ratio - 1) <= tolerance else math.ceil(value / trigger.threshold)

    def _value(self, trigger: Trigger, values: Values, num_workers: int) -> float | None:
        """What was measured, or else what KEDA's fallback reports after enough failures."""
        value, rules = values[trigger.name], self.rules
        if value is not None or rules.max_failures is None:
            return value
        if self._num_failures[trigger.name] <= rules.max_failures:
            return None
        workers = {
            "static": rules.fallback_workers,
            "currentReplicas": num_workers,
            "currentReplicasIfHigher": max(num_workers, rules.fallback_workers),
            "currentReplicasIfLower": min(num_workers, rules.fallback_workers),
        }[rules.fallback]
        return trigger.threshold * workers

    def _stabilized(self, wish: int, num_workers: int, at: float) -> int:
        """Grow to the least, and shrink to the greatest, of what was wanted in the direction's window."""
        self._wishes.append((at, wish))
        up, down = self.rules.up.stabilization_seconds, self.rules.down.stabilization_seconds
        while at - self._wishes[0][0] > max(up, down):
            self._wishes.popleft()
        least = min(one for asked_at, one in self._wishes if at - asked_at <= up)
        greatest = max(one for asked_at, one in self._wishes if at - asked_at <= down)
        return min(max(num_workers, least), greatest)

    def _within_limits(self, wish: int, num_workers: int, at: float) -> int:
        """Change by no more than the limits of the direction still allow, and stay between the bounds."""
        rules, grows = self.rules, wish > num_workers
        direction = rules.up if grows else rules.down
        allowed = (
            [num_workers]
            if direction.select == "Disabled"
            else self._allowed(direction, num_workers, at, grows=grows)
        )
        bound = max(allowed) if grows == (direction.select == "Max") else min(allowed)
        wish = min(wish, max(bound, num_workers)) if grows else max(wish, min(bound, num_workers))
        return min(max(wish, rules.min_workers, 1), rules.max_workers)

    def _allowed(self, direction: Direction, num_workers: int, at: float, *, grows: bool) -> list[int]:
        """For each limit, how many workers there may be, counted from the start of its period."""
        allowed = []
        for limit in direction.limits:
            changes = [
                change for changed_at, change in self._changes if at - changed_at < limit.period_seconds
            ]
            begun_with = num_workers - sum(changes)
            most = limit.of(begun_with)
            allowed.append(math.ceil(begun_with + most) if grows else int(begun_with - most))
        return allowed

    def _remember(self, change: int, at: float) -> None:
        limits = (*self.rules.up.limits, *self.rules.down.limits)
        longest = max(limit.period_seconds for limit in limits)
        while self._changes and at - self._changes[0][0] >= longest:
            self._changes.popleft()
        if change:
            self._changes.append((at, change))
