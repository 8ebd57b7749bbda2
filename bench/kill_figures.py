"""Evaluates a run of `bench.kills`: how long reaped jobs waited, what was lost, and the table.

It measures nothing: it turns events and images into lines and JSON.

    python -m bench.kill_figures bench-output/kills.json      (prints the table)
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.figures import quantile

MAX_REAP_TO_CLAIM_SECONDS = 45.0
QUARANTINED = ("it was on the device when its process died", "its lease ran out")
"""The detail in `job_events` of a reaped job that is quarantined; see `storage.jobs`."""


@dataclass(frozen=True)
class Event:
    """One row of `job_events`; the time is in seconds of the database's clock."""

    job_id: str
    transition: str
    state: str
    detail: str | None
    at: float


@dataclass(frozen=True)
class Outcome:
    """A job of the disturbed run and the same request undisturbed: states and SHA-256 of the images."""

    state: str
    images: tuple[str, ...]
    undisturbed_images: tuple[str, ...]


@dataclass(frozen=True)
class Kills:
    """The figures of a run; lists are in seconds."""

    num_jobs: int
    num_kills: int
    num_lost: int
    num_doubled: int
    num_differing: int
    num_reaped: int
    num_quarantined: int
    reap_to_claim_seconds: list[float]
    quarantined_reap_to_claim_seconds: list[float]
    start_to_claim_seconds: list[float]
    """The time from the start of a worker's process to its first claim, for each start after a kill."""


def kills_of(
    outcomes: Sequence[Outcome],
    events: Sequence[Event],
    *,
    num_kills: int,
    start_to_claim_seconds: Iterable[float],
) -> Kills:
    """Compute the figures; `events` must be in order."""
    reaped = [event for event in events if event.transition == "reap"]
    waits = list(_reap_to_claim(events))
    return Kills(
        num_jobs=len(outcomes),
        num_kills=num_kills,
        num_lost=sum(outcome.state != "succeeded" for outcome in outcomes),
        num_doubled=_num_doubled(events),
        num_differing=sum(
            outcome.state == "succeeded" and outcome.images != outcome.undisturbed_images
            for outcome in outcomes
        ),
        num_reaped=len(reaped),
        num_quarantined=sum(event.detail in QUARANTINED for event in reaped),
        reap_to_claim_seconds=sorted(seconds for _, seconds in waits),
        quarantined_reap_to_claim_seconds=sorted(
            seconds for detail, seconds in waits if detail in QUARANTINED
        ),
        start_to_claim_seconds=sorted(start_to_claim_seconds),
    )


def failures(kills: Kills) -> Iterator[str]:
    """Return a sentence for every bar that is missed."""
    for name in ("num_lost", "num_doubled", "num_differing"):
        if number := getattr(kills, name):
            yield f"{name.removeprefix('num_')}: {number}"
    if not kills.num_reaped:
        yield "no job was held by a worker that was killed: nothing is shown"
    elif (seconds := quantile(kills.reap_to_claim_seconds, 0.99)) > MAX_REAP_TO_CLAIM_SECONDS:
        yield f"reap to claim p99 {seconds:.1f} s, bar {MAX_REAP_TO_CLAIM_SECONDS:g} s"


def table(kills: Kills) -> Iterator[str]:
    """Markdown: a line a figure."""
    yield "| figure | value |"
    yield "|---|---|"
    for name, value in _rows(kills).items():
        yield f"| {name} | {value} |"


def _rows(kills: Kills) -> Mapping[str, str]:
    waits, starts = kills.reap_to_claim_seconds, kills.start_to_claim_seconds
    shares = (0.5, 0.9, 0.99)
    quarantined = kills.quarantined_reap_to_claim_seconds
    return {
        "jobs": str(kills.num_jobs),
        "kills": str(kills.num_kills),
        "lost": str(kills.num_lost),
        "doubled": str(kills.num_doubled),
        "differing": str(kills.num_differing),
        "taken back from dead workers": str(kills.num_reaped),
        "of them quarantined": str(kills.num_quarantined),
        "reap to claim, p50 / p90 / p99": " / ".join(_seconds(waits, share) for share in shares),
        "of quarantined jobs, p50 / p90 / p99": " / ".join(_seconds(quarantined, share) for share in shares),
        "worker start to first claim, p50 / max": " / ".join(_seconds(starts, share) for share in (0.5, 1.0)),
    }


def _seconds(ordered: Sequence[float], share: float) -> str:
    return f"{quantile(ordered, share):.1f} s" if ordered else "none"


def _reap_to_claim(events: Iterable[Event]) -> Iterator[tuple[str | None, float]]:
    """Yield the detail of each reaped job, and the seconds until its next claim."""
    reaped: dict[str, Event] = {}
    for event in events:
        if event.transition == "reap" and event.state == "queued":
            reaped[event.job_id] = event
        elif event.transition == "claim" and event.job_id in reaped:
            reap = reaped.pop(event.job_id)
            yield reap.detail, event.at - reap.at


def _num_doubled(events: Iterable[Event]) -> int:
    num_ends: dict[str, int] = defaultdict(int)
    for event in events:
        num_ends[event.job_id] += event.state in ("succeeded", "failed")
    return sum(number > 1 for number in num_ends.values())


def write(kills: Kills, path: Path) -> None:
    """The figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(kills), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    print("\n".join(table(Kills(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))))
