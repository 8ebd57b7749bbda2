"""The accuracy of estimates, predicted divided by actual: `python -m bench.eta`.

Runs a mixed load of jobs on the shipped model and a real engine, takes a snapshot of the workload several
times a second, as Postgres would show it, and compares the estimate of every open job with the time that the
job then took. Time is CPU seconds of this process, so that other programs do not count. Runs can be kept in
files, on which another version of the estimates can be compared. It does not know HTTP or Postgres.
"""

import argparse
import itertools
import json
import math
import random
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.clock import WorkClock
from bench.workload import GUIDANCE_SCALES, SHARES, STEPS
from catalogue.catalogue import Model, Tier
from catalogue.profile import Profile
from engine.engine import Engine
from engine.generation import Handle
from engine.loading.load import LoadedModels
from engine.request import GenerationRequest
from settings import Settings
from storage.workloads import KnownJob, LiveDevice, Workload
from tasks.loading import load_configured
from tasks.profiles import ProfileFolder, measure_tier, worker_profiles
from web.estimates.eta import seconds_until_drawn

NUM_JOBS = 150
LOADS = {"arrivals": 0.8, "burst": math.inf}
"""By the name of a run: jobs arrive at this share of what the device can do, or all of them at once. In a
burst nothing arrives later, so that the estimate alone is to blame for what it misses."""
SLOTS = {"interactive": 12, "bulk": 8}
HEARTBEAT_SECONDS = 5.0
PROGRESS_SECONDS = 0.5  # as a worker writes the progress of its jobs
SNAPSHOT_SECONDS = 0.3
MIN_SECONDS = 0.5  # jobs that end sooner are not compared: their ratio says little
NUM_ACCOUNTS = 3


@dataclass
class LoadJob:
    """A job of the load and its state; instants are seconds from the start."""

    facts: KnownJob
    account: str
    guidance_scale: float
    due_at: float
    handles: list[Handle] = field(default_factory=list)
    started_at: float = 0.0
    progress: float = 0.0  # as it was written last
    written_at: float = 0.0
    ended_at: float | None = None

    @property
    def is_done(self) -> bool:
        """Whether all its images have been drawn."""
        return bool(self.handles) and all(handle.future.done() for handle in self.handles)

    def seen(self, now: float, *, is_running: bool) -> dict[str, Any]:
        """The job as a query would show it."""
        shown = asdict(self.facts)
        if is_running:
            shown |= {"boot_id": "boot", "progress": self.progress, "seconds_running": now - self.started_at}
            shown["seconds_since_progress"] = now - max(self.written_at, self.started_at)
        return shown


class Recorder:
    """One worker that runs the load, and takes the snapshots."""

    def __init__(self, engine: Engine, load: Sequence[LoadJob], clock: WorkClock, model: str) -> None:
        self._engine, self._clock, self._model = engine, clock, model
        self._upcoming = deque(load)
        self._queues: dict[str, deque[LoadJob]] = {lane: deque() for lane in SLOTS}
        self._running: list[LoadJob] = []
        self._beat_at = -HEARTBEAT_SECONDS
        self._progress_at = 0.0

    def run(self) -> Iterator[dict[str, Any]]:
        """Let the engine draw everything; yields the snapshots."""
        next_at = 0.0
        with self._clock.turn():
            while self._upcoming or self._running or any(self._queues.values()):
                now = self._clock()
                while self._upcoming and self._upcoming[0].due_at <= now:
                    job = self._upcoming.popleft()
                    self._queues[job.facts.lane].append(job)
                self._end_jobs(now)
                self._claim(now)
                self._write_progress(now)
                if now >= next_at and (self._running or any(self._queues.values())):
                    next_at = now + SNAPSHOT_SECONDS
                    yield self._snapshot(now)
                if not self._engine.is_idle:
                    self._engine.tick()
                elif self._upcoming:
                    self._clock.skip_to(self._upcoming[0].due_at)

    def _end_jobs(self, now: float) -> None:
        for job in [one for one in self._running if one.is_done]:
            for handle in job.handles:
                handle.future.result()
            job.ended_at = now
            self._running.remove(job)

    def _claim(self, now: float) -> None:
        for lane, queue in self._queues.items():
            while queue and sum(one.facts.lane == lane for one in self._running) < SLOTS[lane]:
                job = queue.popleft()
                job.started_at = now
                self._running.append(job)
                job.handles = [self._submit(job, seed) for seed in range(job.facts.num_images)]

    def _submit(self, job: LoadJob, seed: int) -> Handle:
        facts = job.facts
        request = GenerationRequest(
            model=self._model,
            prompt="a red circle",
            width=facts.width,
            height=facts.height,
            num_inference_steps=facts.num_steps,
            guidance_scale=job.guidance_scale,
            guidance_cutoff=facts.guidance_cutoff,
            step_cache=facts.step_cache,
            seed=seed,
            lane=facts.lane,  # type: ignore[arg-type]
            account=job.account,
        )
        return self._engine.submit(request)

    def _write_progress(self, now: float) -> None:
        if now >= self._beat_at + HEARTBEAT_SECONDS:
            self._beat_at = now
        if now < self._progress_at + PROGRESS_SECONDS:
            return
        self._progress_at = now
        for job in self._running:
            job.progress = sum(handle.progress for handle in job.handles) / len(job.handles)
            job.written_at = now

    def _snapshot(self, now: float) -> dict[str, Any]:
        queued = sorted((one for queue in self._queues.values() for one in queue), key=lambda one: one.due_at)
        return {
            "now": now,
            "seconds_since_seen": now - self._beat_at,
            "running": [one.seen(now, is_running=True) for one in self._running],
            "queued": [one.seen(now, is_running=False) for one in queued],
        }


def record(seed: int, load_share: float) -> dict[str, Any]:
    """Run the load; its snapshots, the instants at which jobs were drawn, and the profiles of the device."""
    settings = Settings()
    model = settings.catalogue.models[0]
    torch.set_num_threads(1)
    loaded = load_configured(
        settings.catalogue.models,
        config=settings.config,
        device="cpu:0",
        self_test_seconds=settings.self_test_seconds,
        num_threads=1,
    )
    folder = ProfileFolder(Path("bench-output/eta-profiles"))
    for tier in model.tiers:
        folder.write(tier.name, _measured(tier, loaded))
    profiles = worker_profiles(folder, model.tiers, loaded)
    clock = WorkClock()
    engine = Engine(
        loaded.models,
        profiles.engine.capped(loaded.row_limits),
        determinism=loaded.determinism,
        clock=clock,
        step_seconds=profiles.engine.step_seconds,
    )
    load = mixed_load(seed, load_share, model, profiles.found)
    snapshots = list(Recorder(engine, load, clock, model.name).run())
    return {
        "determinism": loaded.determinism,
        "profiles": {tier: profile.to_dict() for tier, profile in profiles.found.items()},
        "snapshots": snapshots,
        "ended_at": {job.facts.id: job.ended_at for job in load},
    }


def _measured(tier: Tier, loaded: LoadedModels) -> Profile:
    return measure_tier(tier, loaded, scheduler="ddim", seconds=1, clock=time.process_time)


def mixed_load(seed: int, load_share: float, model: Model, profiles: Mapping[str, Profile]) -> list[LoadJob]:
    """Jobs of both lanes and tiers, with and without guidance, cutoff, step cache and several images."""
    rng, now, load = random.Random(seed), 0.0, []
    for number in range(NUM_JOBS):
        tier = rng.choices(model.tiers, [0.8, 0.2])[0]
        guidance_scale = rng.choice(GUIDANCE_SCALES)
        facts = KnownJob(
            id=str(number),
            tier=tier.name,
            lane=rng.choices(["interactive", "bulk"], [0.75, 0.25])[0],
            num_images=rng.choices([1, 2, 4], [0.7, 0.2, 0.1])[0],
            num_steps=rng.choices(STEPS, SHARES)[0],
            width=tier.default_width,
            height=tier.default_height,
            is_guided=guidance_scale > 1,
            guidance_cutoff=rng.choices([1.0, 0.5], [0.8, 0.2])[0],
            step_cache=rng.choices([1, 3], [0.8, 0.2])[0],
        )
        profile = profiles[tier.name]
        row_seconds = profile.step_seconds(profile.max_rows) / profile.max_rows
        seconds = facts.num_images * facts.num_steps * (1 + facts.is_guided) * row_seconds
        now += rng.expovariate(1.0) * seconds / load_share
        load.append(LoadJob(facts, f"account-{rng.randrange(NUM_ACCOUNTS)}", guidance_scale, now))
    return load


def ratios(run: Mapping[str, Any], profiles: Mapping[str, Any]) -> dict[str, list[float]]:
    """Predicted divided by actual seconds, of every open job of every snapshot, by the job's state."""
    found: dict[str, list[float]] = {"running": [], "queued": []}
    limits = {tier.name: tier.max_step_batch_rows for tier in Settings().catalogue.tiers}
    for one in run["snapshots"]:
        device = LiveDevice(
            boot_id="boot",
            tiers=tuple(profiles),
            interactive_slots=SLOTS["interactive"],
            bulk_slots=SLOTS["bulk"],
            determinism=run["determinism"],
            seconds_since_seen=one["seconds_since_seen"],
            profiles=profiles,
        )
        running, queued = (tuple(map(_known_job, one[state])) for state in ("running", "queued"))
        work = Workload((device,), running, queued)
        etas = seconds_until_drawn(work, [job.id for job in (*running, *queued)], limits, {})
        for job in (*running, *queued):
            took = run["ended_at"][job.id] - one["now"]
            if took >= MIN_SECONDS:
                found["running" if job.boot_id else "queued"].append(etas[job.id] / took)
    return found


def _known_job(shown: Mapping[str, Any]) -> KnownJob:
    return KnownJob(**{name: shown[name] for name in KnownJob.__dataclass_fields__ if name in shown})


def quantiles(values: Sequence[float]) -> str:
    """p5, p50 and p95 of the ratios, and the share within a quarter, in words."""
    ordered = sorted(values)
    marks = [ordered[int(share * (len(ordered) - 1))] for share in (0.05, 0.5, 0.95)]
    within = sum(0.8 <= one <= 1.25 for one in ordered) / len(ordered)
    return (
        f"p5 {marks[0]:.2f}, p50 {marks[1]:.2f}, p95 {marks[2]:.2f}, {within:.0%} within a quarter"
        f" ({len(ordered)} estimates)"
    )


def _profiles_of(run: Mapping[str, Any]) -> dict[str, Profile]:
    return {tier: Profile.from_dict(document) for tier, document in run["profiles"].items()}


def main() -> None:
    """Record runs, or read them, and print predicted by actual."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--keep", type=Path, help="a folder in which to write the runs")
    parser.add_argument("--runs", type=Path, nargs="*", help="files of runs to compare instead of new ones")
    arguments = parser.parse_args()
    if arguments.runs:
        runs = {path.stem: json.loads(path.read_text()) for path in arguments.runs}
    else:
        runs = {}
        for seed, (name, share) in itertools.product(arguments.seeds, LOADS.items()):
            runs[f"{name}-{seed}"] = record(seed, share)
            if arguments.keep:
                (arguments.keep / f"{name}-{seed}.json").write_text(json.dumps(runs[f"{name}-{seed}"]))
    for name, run in runs.items():
        started_at = time.process_time()
        found = ratios(run, _profiles_of(run))
        spent = (time.process_time() - started_at) / len(run["snapshots"])
        for state, values in found.items():
            if values:
                print(f"{name}, {state:8} {quantiles(values)}")
        print(f"{name}, {1000 * spent:.1f} ms an estimate of all jobs")


if __name__ == "__main__":
    main()
