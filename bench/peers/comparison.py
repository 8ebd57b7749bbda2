"""What a comparison has found so far: its runs, the settings that were chosen, and what was left out and why.

It also says how much of each part is measured. It starts nothing and makes no figures.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench.latency import Solo
from bench.peers.load import Load, Run, joined
from bench.peers.peer import PEERS, Peer, Settings, our_service, started, why_absent
from bench.peers.service import Service

SIDE = 128
LOADS = (0.5, 0.7, 0.85)
"""Shares of the best peer's capacity."""
JUDGED_LOAD = 0.7


@dataclass(frozen=True)
class Amounts:
    """Requests of each part. All arms get the same number.

    `num_saturated` is eight batches of 32; two rounds of it are eight for each of two workers. The first of
    `seeds` is used at every load, the others at the judged one; `num_peers` of the peers are tuned.
    """

    num_sizing: int = 64
    num_saturated: int = 256
    num_tuning: int = 60
    num_due: int = 150
    num_kill: int = 40
    num_warming: int = 12
    num_peers: int = 2
    seeds: Sequence[int] = (1, 2)
    loads: Sequence[float] = LOADS
    sizes: Sequence[int] = (1, 4, 8, 16, 32)
    solo_repeats: int = 3
    sweeps_waits: bool = True

    def sizes_of(self, peer: Peer) -> Sequence[int]:
        """The batch sizes that are tried, the largest first; the peer's first one if it has none of ours."""
        return sorted((size for size in peer.sizes if size in self.sizes), reverse=True) or peer.sizes[:1]


WHOLE = Amounts()
SHORT = Amounts(
    num_sizing=6,
    num_saturated=8,
    num_tuning=6,
    num_due=10,
    num_kill=8,
    num_warming=2,
    seeds=(1,),
    loads=(JUDGED_LOAD,),
    sizes=(8,),
    solo_repeats=1,
    sweeps_waits=False,
)


@dataclass
class Comparison:
    """All runs so far, and the reasons of what failed: `dropped` settings by peer, and peers `left_out`."""

    load: Load
    solo: Solo
    amounts: Amounts
    packages: Path
    folder: Path
    say: Callable[[str], None] = field(default=partial(print, flush=True))
    start: Callable[[Peer, Settings, Path, Path], AbstractContextManager[Service]] = started
    start_ours: Callable[[Path], AbstractContextManager[Service]] = our_service
    runs: list[Run] = field(default_factory=list)
    chosen: dict[str, dict[str, Settings]] = field(default_factory=dict)
    dropped: dict[str, dict[str, str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    _num_started: int = 0

    def peers(self) -> list[Peer]:
        """Those that are installed and have not failed."""
        for peer in PEERS:
            if reason := why_absent(peer, self.packages):
                self.leave_out(peer.name, reason)
        return [peer for peer in PEERS if peer.name not in self.left_out]

    def leave_out(self, name: str, reason: str) -> None:
        """Go on without a peer. Without one of `PEERS`, the best of the others is judged against no bar."""
        if name not in self.left_out:
            self.left_out[name] = reason
            self.say(f"  {name} is left out: {reason}")

    def drop(self, peer: Peer, settings: Settings, reason: str) -> None:
        """Go on without these settings of a peer."""
        self.dropped.setdefault(peer.name, {})[str(settings)] = reason
        self.say(f"  {peer.name} ({settings}) is dropped: {reason}")

    def leave_out_as_dropped(self, peer: Peer) -> None:
        """Go on without a peer of which no settings work."""
        for settings, reason in self.dropped[peer.name].items():
            self.leave_out(peer.name, f"{settings}: {reason}")

    def record(self, run: Run) -> Run:
        """Keep a run, and say what it found."""
        self.runs.append(run)
        parts = [f"{run.throughput:.2f} images/s" if run.rate is None else f"{run.rate:.2f}/s due"]
        parts += [
            f"p95 {run.p95_seconds:.2f} s, in time {run.in_time(self.solo):.2f}",
            f"{run.num_lost} lost",
        ]
        self.say(f"    {run.phase}: {run.arm} ({listed(run.settings)}): {', '.join(parts)}")
        return run

    def choose(self, peer: Peer, what: str, settings: Settings) -> None:
        """Note the settings that are best for a figure."""
        self.chosen.setdefault(peer.name, {})[what] = settings

    def new_folder(self) -> Path:
        """A folder for a service; short, since Ray puts sockets into it."""
        self._num_started += 1
        return self.folder / str(self._num_started)

    def of(self, phase: str, arm: str) -> list[Run]:
        """The runs of an arm in a phase."""
        return [run for run in self.runs if run.phase == phase and run.arm == arm]

    def pooled(self, arm: str, share: float) -> list[Run]:
        """The runs of all seeds of an arm at a load, as one run for each of its settings."""
        by_settings: dict[str, list[Run]] = {}
        for run in self.of(phase_of(share), arm):
            by_settings.setdefault(listed(run.settings), []).append(run)
        return [joined(runs) for runs in by_settings.values()]


def listed(settings: Mapping[str, Any]) -> str:
    """Settings in one line."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def phase_of(share: float) -> str:
    """The name of the phase at this share of the best peer's capacity."""
    return f"{100 * share:.0f} %"
