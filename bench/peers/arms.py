"""The services of a comparison: all are up, and all but the one that works are stopped (`SIGSTOP`).

It starts them, warms each before a run, and leaves out a peer whose service fails. It knows neither phases
nor figures.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPException

import psutil

from bench.peers.comparison import SIDE, Comparison
from bench.peers.load import Run, balanced_requests
from bench.peers.peer import OURS, Peer, Settings
from bench.peers.service import Service, awake, warm
from engine.request import GenerationRequest

WARMING_SEED = 102
FAILURES = (RuntimeError, OSError, HTTPException, psutil.Error)
"""What a service that does not start, ends or draws something else raises."""
Use = Callable[[Service], Run]


@dataclass
class Arm:
    """A service that is up, and whose it is; ours has no settings."""

    name: str
    settings: Settings | None
    service: Service


class Arms:
    """All services that are up. The stack ends them."""

    def __init__(self, comparison: Comparison, stack: ExitStack) -> None:
        self._comparison = comparison
        self._stack = stack
        self._arms: list[Arm] = []
        self._warming = warming(comparison)

    @property
    def up(self) -> list[Arm]:
        """Those that have not failed."""
        return [arm for arm in self._arms if arm.name not in self._comparison.left_out]

    def add_ours(self) -> None:
        """Start our service. An error in it ends the comparison."""
        service = self._stack.enter_context(self._comparison.start_ours(self._comparison.new_folder()))
        self._add(Arm(OURS, None, service))

    def add(self, peer: Peer, settings: Settings) -> None:
        """Start a peer, unless it is up with these settings; without it if it does not start."""
        if any((arm.name, arm.settings) == (peer.name, settings) for arm in self._arms):
            return
        comparison = self._comparison
        try:
            service = self._stack.enter_context(
                comparison.start(peer, settings, comparison.packages, comparison.new_folder())
            )
        except FAILURES as error:
            comparison.drop(peer, settings, str(error))
        else:
            self._add(Arm(peer.name, settings, service))

    def run(self, arm: Arm, use: Use) -> Run | None:
        """Let an arm work alone, warm; a peer that fails is left out from here on."""
        try:
            with awake(arm.service, self._warming):
                run = use(arm.service)
        except FAILURES as error:
            if arm.settings is None:
                raise
            self._comparison.leave_out(arm.name, f"{arm.settings}, while it ran: {error}")
            return None
        return self._comparison.record(run)

    def _add(self, arm: Arm) -> None:
        self._stack.callback(arm.service.resume)  # so that it can end
        arm.service.suspend()
        self._arms.append(arm)


def attempted(comparison: Comparison, peer: Peer, settings: Settings, use: Use) -> Run | None:
    """Start a peer, warm it and use it once; None if it fails with these settings, which are then dropped."""
    try:
        with comparison.start(peer, settings, comparison.packages, comparison.new_folder()) as service:
            warm(service, warming(comparison))
            return comparison.record(use(service))
    except FAILURES as error:
        comparison.drop(peer, settings, str(error))
        return None


def warming(comparison: Comparison) -> list[GenerationRequest]:
    """The requests that a service draws before each run: some of each class, for batches of every kind."""
    return balanced_requests(comparison.amounts.num_warming, SIDE, WARMING_SEED)
