"""One row of the report: programs and clients run, a fault is inflicted, and everything is checked.

It does not know what the fault is.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from storage.errors import Unavailable
from tests.chaos.checker import check, num_open
from tests.chaos.clients import Clients
from tests.chaos.report import Row
from tests.chaos.system import START_SECONDS, Kept, System, kept, wait_until

MAX_OPEN = 40
"""Jobs: clients pause while more are open, so that a row ends soon after its last fault."""
SETTLE_SECONDS = 60.0


@dataclass(frozen=True)
class Inflicted:
    """How often the fault was inflicted, and the seconds from each to the instant when work went on.

    `kept_shares` are the throughput after faults ÷ that before the same fault, where it was measured.
    """

    number: int
    recovery_seconds: Sequence[float] = ()
    details: dict[str, Any] = field(default_factory=dict)
    kept_shares: Sequence[float] = ()


@dataclass(frozen=True)
class Load:
    """What a fault finds: the system, the programs beside it, and clients that submit."""

    system: System
    programs: Sequence[Kept]
    clients: Clients
    begun: float
    """When it began, by the database's clock."""

    def wait_until(self, is_so: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until it is so, or until a program cannot be kept running. Raises `TimeoutError`."""
        wait_until(lambda: self.has_failed or is_so(), seconds, what)

    @property
    def has_failed(self) -> bool:
        """Whether a program cannot be kept running, or a client got an answer that nobody may get."""
        return self.clients.failure is not None or any(one.failure for one in self.programs)


def under_load(
    fault: str,
    system: System,
    seed: int,
    wanted: int,
    programs: Sequence[Kept],
    inflict: Callable[[Load], Inflicted],
    *,
    url: str | None = None,
    min_jobs: int = 0,
    next_prompt: Callable[[], str] = lambda: "a picture",
    expected: Mapping[str, str] = MappingProxyType({}),
    may_charge: bool = True,
    settle_seconds: float = SETTLE_SECONDS,
) -> Row:
    """Inflict a fault while clients submit, go on until `min_jobs` are acknowledged, and check everything.

    Raises what ended a client, or what keeping a program running raised.
    """
    begun_at, begun = time.monotonic(), system.now()
    clients = Clients(url or system.url, system.accounts, seed, lambda: _has_room(system), next_prompt)
    load = Load(system, programs, clients, begun)
    with ExitStack() as stack:
        stack.enter_context(kept(programs))
        clients.start()
        stack.callback(clients.stop, give_up=True)
        inflicted = inflict(load)
        seconds = START_SECONDS + min_jobs
        load.wait_until(lambda: clients.num_acknowledged >= min_jobs, seconds, f"{min_jobs} jobs")
        clients.stop(give_up=load.has_failed)
        findings = check(
            system,
            clients.submissions,
            since=begun,
            settle_seconds=settle_seconds,
            expected=expected,
            may_charge=may_charge,
        )
    tries = sum(one.num_tries for one in clients.submissions)
    return Row(
        fault,
        seed,
        inflicted.number,
        wanted,
        findings,
        inflicted.recovery_seconds,
        {**inflicted.details, "client tries": tries},
        time.monotonic() - begun_at,
        inflicted.kept_shares,
    )


def _has_room(system: System) -> bool:
    try:
        return num_open(system) < MAX_OPEN
    except Unavailable:
        return True  # clients go on while Postgres fails
