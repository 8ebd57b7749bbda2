"""How long encoding and decoding may hold up the next step batch: pure Python on a given clock.

Owns the two slices of a tick, as shares of a measured step, and the end of each. It knows neither texts
nor pixels, and no torch: the engine asks which of its ordered members still fit, the simulator can too.

Both run on the engine thread, between step batches. On a CPU a second thread would take its seconds from
the very cores that step. On CUDA a side stream could overlap them; that is not done, since no GPU has
been seen yet to measure it on, and kernels that share a device contend for it all the same.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

ENCODING_SHARE = 0.5
"""Of a step's seconds: who is left over joins one step later, and the others wait half a step at most."""

DECODING_SHARE = 1.0
"""Of a step's seconds: a finished image is worth more now than one step of all others, and no more."""

SMOOTHING = 0.2

T = TypeVar("T")


class SideWork:
    """Deals out the time between step batches. The first of each kind always gets its turn."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._step_seconds: float | None = None

    def stepped(self, seconds: float) -> None:
        """Take note that a step batch took `seconds`."""
        known = seconds if self._step_seconds is None else self._step_seconds
        self._step_seconds = known + SMOOTHING * (seconds - known)

    def to_encode(self, members: Sequence[T]) -> Iterator[T]:
        """Those to encode before the next step, in the order given; all of them before the first step.

        The step waits for half of its own time, and for the one that began last, at most.
        """
        return self._within(members, ENCODING_SHARE)

    def to_decode(
        self, members: Sequence[T], num_running: int, has_arrivals: Callable[[], bool] = lambda: False
    ) -> Iterator[T]:
        """Those to decode before the next step, in the order given.

        The step waits for as long as it takes itself, and for the one that began last, at most; but while
        more images wait for this than generations run, nothing else matters, so none of them starves. Where
        nothing runs at all, that holds until somebody arrives.
        """

        def is_free(index: int) -> bool:
            return index < len(members) - num_running and bool(num_running or not has_arrivals())

        return self._within(members, DECODING_SHARE, is_free)

    def _within(
        self, members: Sequence[T], share: float, is_free: Callable[[int], bool] = lambda _: False
    ) -> Iterator[T]:
        seconds = float("inf") if self._step_seconds is None else share * self._step_seconds
        ends_at = self._clock() + seconds
        for index, member in enumerate(members):
            if index and not is_free(index) and self._clock() >= ends_at:
                return
            yield member
