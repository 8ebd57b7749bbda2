"""How long encoding and decoding may delay the next step batch: pure Python with an injected clock.

Owns the two time slices of a tick, as shares of a measured step. It does not know texts or pixels: engine and
simulation ask which of their ordered members still fit.

Both run on the engine thread, between step batches. On a CPU a second thread would take its time from the
cores that run the steps. On CUDA a side stream could overlap them; that is not done, since it has not been
measured on a GPU yet, and kernels on one device contend for it in any case.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

ENCODING_SHARE = 0.5
"""A share of a step's seconds: texts left over join one step later; others wait at most half a step."""

DECODING_SHARE = 1.0
"""A share of a step's seconds: finishing an image now may delay all others by one step, and no more."""

SMOOTHING = 0.2

T = TypeVar("T")


class SideWork:
    """Divides the time between step batches; at least one member of each kind is always processed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._step_seconds: float | None = None

    def stepped(self, seconds: float) -> None:
        """Record that a step batch took `seconds`."""
        known = seconds if self._step_seconds is None else self._step_seconds
        self._step_seconds = known + SMOOTHING * (seconds - known)

    def to_encode(self, members: Sequence[T]) -> Iterator[T]:
        """The members to encode before the next step, in the order given; before the first step, all of them.

        The step is delayed by at most half of its own time and the encoding that began last.
        """
        return self._within(members, ENCODING_SHARE)

    def to_decode(
        self, members: Sequence[T], num_running: int, has_arrivals: Callable[[], bool] = lambda: False
    ) -> Iterator[T]:
        """The members to decode before the next step, in the order given.

        The step is delayed by at most its own time and the decoding that began last. But while more images
        wait than generations run, decoding goes on, so that no image starves; if nothing runs at all, it goes
        on until a generation arrives.
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
