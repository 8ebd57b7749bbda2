"""An exchange that measures its seconds in forward passes, in the pipelines' own code, and in itself.

It owns these three sums. It does not know the calls, nor the rest of an engine's tick.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from engine.exchange import Exchange
from engine.pipelines.pipeline_call import PipelineCall
from engine.pipelines.pipeline_model import PipelineModel

Clock = Callable[[], float]


@dataclass(frozen=True)
class Spent:
    """The seconds of an exchange: in modules, in the pipelines between two modules, and in total."""

    forward: float = 0.0
    pipeline: float = 0.0
    total: float = 0.0

    @property
    def exchange(self) -> float:
        """The seconds of parking, signatures, gathering, scattering and switching."""
        return self.total - self.forward - self.pipeline

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.forward + other.forward, self.pipeline + other.pipeline, self.total + other.total)

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(self.forward - other.forward, self.pipeline - other.pipeline, self.total - other.total)


class TimedExchange(Exchange):
    """The exchange of the same pipeline as `untimed`; `spent` is read between two of its passes."""

    def __init__(self, untimed: Exchange, clock: Clock) -> None:
        vars(self).update(vars(untimed))  # its settings and its caches
        self.spent = Spent()
        self._clock = clock

    def begin(self, *args: Any, **kwargs: Any) -> PipelineCall:
        """Like `Exchange.begin`: runs the pipeline's own code up to its first forward pass."""
        started_at = self._clock()
        call = super().begin(*args, **kwargs)
        seconds = self._clock() - started_at
        self.spent += Spent(pipeline=seconds, total=seconds)
        return call

    def run(self, *args: Any, **kwargs: Any) -> list[PipelineCall]:
        """Like `Exchange.run`."""
        started_at = self._clock()
        not_finite = super().run(*args, **kwargs)
        self.spent += Spent(total=self._clock() - started_at)
        return not_finite

    def forward(self, name: str, arguments: dict[str, Any]) -> Any:
        """Like `Exchange.forward`."""
        started_at = self._clock()
        output = super().forward(name, arguments)
        self.spent += Spent(forward=self._clock() - started_at)
        return output

    def _go_on(self, call: PipelineCall, output: Any) -> None:
        started_at = self._clock()
        super()._go_on(call, output)
        self.spent += Spent(pipeline=self._clock() - started_at)


@contextmanager
def timed(model: PipelineModel, clock: Clock) -> Iterator[TimedExchange]:
    """Give `model` a timed exchange for as long as this lasts."""
    untimed = model.exchange
    timed_exchange = model.exchange = TimedExchange(untimed, clock)
    try:
        yield timed_exchange
    finally:
        model.exchange = untimed
