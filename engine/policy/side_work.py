"""How long encoding and decoding may delay the next step batch: pure Python with an injected clock.

Owns the two time slices of a tick, as shares of a measured step, and what bulk work may take beside
interactive work. It does not know texts or pixels: engine and simulation ask which of their ordered members
may go now.

Both run on the engine thread, between step batches. On a CPU a second thread would take its time from the
cores that run the steps. On CUDA a side stream could overlap them; that is not done, since it has not been
measured on a GPU yet, and kernels on one device contend for it in any case.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from engine.policy.bulk_limits import BULK_SLOWDOWN

ENCODING_SHARE = 0.5
"""A share of a step's seconds: texts left over join one step later; others wait at most half a step."""

DECODING_SHARE = 1.0
"""A share of a step's seconds: finishing an image now may delay all others by one step, and no more."""

SMOOTHING = 0.2


class Member(Protocol):
    """A generation whose texts or image wait."""

    @property
    def lane(self) -> str:
        """`interactive` or `bulk`."""


M = TypeVar("M", bound=Member)


class SideWork:
    """Divides the time between step batches.

    Of interactive members, and of bulk members while no interactive one is there, at least one of each kind
    goes at every tick. Beside interactive ones a bulk member goes when the one before it has been paid for:
    `bulk_slowdown` of the seconds of interactive steps since then is at least what it took.
    """

    def __init__(self, clock: Callable[[], float], bulk_slowdown: float = BULK_SLOWDOWN) -> None:
        self._clock = clock
        self._bulk_slowdown = bulk_slowdown
        self._step_seconds: float | None = None
        self._bulk_debt_seconds = 0.0
        self._has_stepped = True  # since `to_decode` was called last

    def stepped(self, seconds: float, *, is_interactive: bool = True) -> None:
        """Record that a step batch, with an interactive member or without, took `seconds`."""
        self._has_stepped = True
        known = seconds if self._step_seconds is None else self._step_seconds
        self._step_seconds = known + SMOOTHING * (seconds - known)
        if is_interactive:
            self._bulk_debt_seconds = max(0.0, self._bulk_debt_seconds - self._bulk_slowdown * seconds)

    def to_encode(
        self,
        members: Sequence[M],
        running: Sequence[Member],
        has_arrivals: Callable[[], bool] = lambda: False,
    ) -> Iterator[M]:
        """The members to encode before the next step, in the order given; before the first step, all of them.

        The step is delayed by at most half of its own time and the encoding that began last. `has_arrivals`
        says whether an interactive generation has arrived since: then bulk members wait.
        """
        return self._by_lane(members, running, has_arrivals, ENCODING_SHARE)

    def to_decode(
        self,
        members: Sequence[M],
        running: Sequence[Member],
        has_arrivals: Callable[[], bool] = lambda: False,
    ) -> Iterator[M]:
        """The members to decode before the next step, in the order given.

        The step is delayed by at most its own time and the decoding that began last. But while more images
        of a lane wait than generations of it run, decoding goes on, so that no image starves; if none of the
        lane runs at all, it goes on until an interactive generation arrives, and no step comes before it.
        If there was no step since the last call, a bulk member goes in any case: the step may wait for it.
        """
        is_blocked, self._has_stepped = not self._has_stepped, False
        return self._by_lane(
            members, running, has_arrivals, DECODING_SHARE, is_decoding=True, is_blocked=is_blocked
        )

    def _by_lane(
        self,
        members: Sequence[M],
        running: Sequence[Member],
        has_arrivals: Callable[[], bool],
        share: float,
        *,
        is_decoding: bool = False,
        is_blocked: bool = False,
    ) -> Iterator[M]:
        interactive = [member for member in members if member.lane == "interactive"]
        bulk = [member for member in members if member.lane != "interactive"]
        num_interactive = sum(one.lane == "interactive" for one in running)

        def is_free(num_left: int, num_running: int) -> bool:
            return is_decoding and num_left > num_running and bool(num_running or not has_arrivals())

        yield from self._within(interactive, share, lambda left: is_free(left, num_interactive))
        if interactive or num_interactive:
            yield from self._beside_interactive(bulk, is_blocked)
        elif bulk:
            num_bulk = len(running)
            for member in self._within(bulk, share, lambda left: is_free(left, num_bulk)):
                yield member
                if has_arrivals():
                    return

    def _within(self, members: Sequence[M], share: float, is_free: Callable[[int], bool]) -> Iterator[M]:
        """The members for whom there is time, and more while `is_free` says so of the number left."""
        seconds = float("inf") if self._step_seconds is None else share * self._step_seconds
        ends_at = self._clock() + seconds
        for index, member in enumerate(members):
            if index and not is_free(len(members) - index) and self._clock() >= ends_at:
                return
            yield member

    def _beside_interactive(self, bulk: Sequence[M], is_blocked: bool) -> Iterator[M]:
        for index, member in enumerate(bulk):
            if self._bulk_debt_seconds and (index or not is_blocked):
                return
            begun_at = self._clock()
            yield member
            self._bulk_debt_seconds += self._clock() - begun_at
