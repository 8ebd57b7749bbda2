"""What a prediction for a running service is computed from: profiles, seconds beside the device, slowing.

All of it is measured in runs of its own, before and apart from those that are predicted: profiles of both
tiers, on one core and on two at once, since the cores share memory and power; jobs one at a time; and a burst
at saturation, in which service and engine share the cores. A burst also tells whether the machine's pace has
changed since. It does not know the configurations to come.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.configuration import ROOT, write_configuration
from bench.load.connection import Place
from bench.load.outcomes import Outcome
from bench.load.runs import Bench, Run
from bench.load.summary import Goal
from bench.load.trace import Arrival, Trace
from bench.plan.fleets import Fleet, Pool
from bench.plan.outcome import serve
from bench.plan.profiles import PlanProfile
from bench.plan.recommendation import configurations
from bench.plan.traffic import PlannedJob
from bench.plane.load import body_of
from bench.plane.system import PROFILES, Plane, plane_system, spent
from bench.workload import DueRequest, mixed_requests
from catalogue.profile import Profile, ProfileKey, StepCost
from engine.policy.fleet import Overheads
from engine.request import GenerationRequest

SIDE = 128
CAPS = {"sd": 16, "hd": 8}  # of the shipped calotype.toml
DRAIN_SECONDS = 300.0
STAGES = ("queued", "waiting", "encoding", "denoising", "decoding", "file", "upload")


@dataclass(frozen=True)
class Amounts:
    """Seconds of each profile, and jobs of each run."""

    profile_seconds: float = 10.0
    num_warming: int = 6
    num_lone: int = 20
    num_burst: int = 60  # for each worker


WHOLE, SHORT = Amounts(), Amounts(0.0, 2, 4, 10)


@dataclass(frozen=True)
class Calibration:
    """The facts for one number of workers."""

    profiles: Mapping[str, PlanProfile]  # by tier
    overheads: Overheads
    lone_slowing: float  # seconds of the device in a lone job, divided by those of the profile
    full_slowing: float  # seconds of a burst, divided by those that are simulated for it
    service_seconds: float  # CPU of everything but the workers, for an image of the burst

    def pool(self, num_workers: int, caps: Mapping[str, int]) -> Pool:
        """Such workers with these caps."""
        return Pool(self.profiles, dict(caps), num_workers)

    def at_pace(self, full_slowing: float) -> "Calibration":
        """The same on a machine whose pace has changed, by the slowing of another burst."""
        pace = full_slowing / self.full_slowing
        return replace(self, full_slowing=full_slowing, lone_slowing=pace * self.lone_slowing)

    def slowing(self, load: float) -> float:
        """By how much the device is slower than its profile at this share of its capacity."""
        return self.lone_slowing + (self.full_slowing - self.lone_slowing) * min(1.0, load)


def planned(request: GenerationRequest) -> PlannedJob:
    """The request as the simulation takes it."""
    return PlannedJob(
        tier="sd" if request.width * request.height <= SIDE * SIDE else "hd",
        lane=request.lane,
        width=request.width,
        height=request.height,
        num_images=1,
        num_steps=request.num_inference_steps,
        is_guided=request.guidance_scale > 1,
    )


def sent(plane: Plane, due: Sequence[DueRequest], *, num_warm_up: int = 0) -> Run:
    """Send these as `calotype bench` does; raises `RuntimeError` if a job does not succeed.

    The first ones do not count in the summary of the run.
    """
    arrivals = tuple(Arrival(one.seconds, (json.loads(body_of(one.request)),)) for one in due)
    # What the generator counts ends with the last request: a longer run would be an idle service at its end.
    trace = Trace(arrivals, max(due[-1].seconds, 1e-3), due[num_warm_up].seconds if num_warm_up else 0.0)
    place = Place(plane.url, plane.api_key)
    run = Bench(place, Goal(seconds=DRAIN_SECONDS), len(plane.workers), DRAIN_SECONDS).run(trace)
    failed = [one for one in run.outcomes if one.kind != "succeeded"]
    if failed:
        raise RuntimeError(f"{len(failed)} jobs did not succeed: {failed[0].kind} {failed[0].detail}")
    return run


def latency_seconds(outcome: Outcome) -> float:
    """Of a job that has succeeded, from when it was due."""
    seconds = outcome.latency_seconds
    assert seconds is not None
    return seconds


def configured(folder: Path, num_workers: int, caps: Mapping[str, int]) -> Path:
    """A `calotype.toml` of the shipped model with so many workers on CPUs and these caps."""
    shipped = write_configuration(folder, [])
    base = shipped.read_text(encoding="utf-8")
    # A configuration needs the names of the tiers, their caps and the kind of device alone.
    unknown = Profile(ProfileKey("", "", "", 1, "", 1, 1), (StepCost.of_median(1, 1.0),), 0.0, 0.0, 1)
    profiles = {tier: PlanProfile(tier, unknown, "") for tier in caps}
    fleet = Fleet((Pool(profiles, dict(caps), num_workers),))
    [text] = configurations(fleet, base).values()
    path = folder / "planned.toml"
    path.write_text(text, encoding="utf-8")
    return path


def measured_profiles(folder: Path, num_workers: int, seconds: float) -> dict[str, PlanProfile]:
    """Profiles of both tiers, measured on so many cores at once; of several the means of their steps.

    They have the buckets of the service's workers, whose self-tests are kept.
    """
    config = configured(folder / "profiles", num_workers, CAPS)
    processes = []
    for number in range(num_workers):
        data = folder / "profiles" / str(number)
        shutil.copytree(PROFILES / "self-tests", data / "profiles" / "self-tests", dirs_exist_ok=True)
        command = [*(sys.executable, "-m", "cli", "profile", "--device", f"cpu:{number}", "--json")]
        command += ["--seconds", str(seconds), "--data-dir", str(data)]
        environment = {
            **os.environ,
            "CALOTYPE_CONFIG": str(config),
            "CALOTYPE_PROFILES_DIR": str(data / "profiles"),
            "PYTHONPATH": str(ROOT),
        }
        processes.append(
            subprocess.Popen(
                command,
                env=environment,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
    documents = [json.loads(process.communicate()[0]) for process in processes]
    return {
        tiers[0]["tier"]: PlanProfile.of_measured(tiers[0]["tier"], _mean_profile(tiers))
        for tiers in zip(*documents, strict=True)
    }


def _mean_profile(found: Sequence[Mapping[str, object]]) -> Profile:
    documents = [json.loads(json.dumps(one)) for one in found]
    first = documents[0]
    for name in ("encode_seconds", "decode_seconds"):
        first[name] = statistics.mean(one[name] for one in documents)
    for number, step in enumerate(first["steps"]):
        step["seconds"] = statistics.mean(one["steps"][number]["seconds"] for one in documents)
    return Profile.from_dict(first)


def calibrate(folder: Path, num_workers: int, amounts: Amounts) -> Calibration:
    """Measure everything for so many workers; the service of the calibration is stopped again."""
    config = configured(folder, num_workers, CAPS)
    with plane_system(folder / "system", overrides={"CALOTYPE_CONFIG": str(config)}) as plane:
        sent(plane, [DueRequest(one, 0.0) for one in mixed_requests(amounts.num_warming, SIDE, seed=0)])
        lone = []
        for request in mixed_requests(amounts.num_lone, SIDE, seed=1):
            [outcome] = sent(plane, [DueRequest(request, 0.0)]).outcomes
            lone.append((request, outcome))
        before = plane.cpu()
        burst = Burst.sent(plane, amounts.num_burst)
        used = spent(before, plane.cpu())
    profiles = measured_profiles(folder, num_workers, amounts.profile_seconds)
    pool = Pool(profiles, dict(CAPS), num_workers)
    service = sum(seconds for name, seconds in used.items() if name not in plane.workers)
    overheads, lone_slowing = _lone(pool, lone)
    full_slowing = burst.slowing(pool, overheads)
    return Calibration(profiles, overheads, lone_slowing, full_slowing, service / len(burst.requests))


@dataclass(frozen=True)
class Burst:
    """Requests that were sent to a service all at once, and the mean of their latencies."""

    requests: Sequence[GenerationRequest]
    mean_seconds: float

    @classmethod
    def sent(cls, plane: Plane, num_each: int) -> "Burst":
        """Send so many for each worker, and wait for all."""
        requests = mixed_requests(num_each * len(plane.workers), SIDE, seed=2)
        outcomes = sent(plane, [DueRequest(one, 0.0) for one in requests]).outcomes
        # The mean and not the last end: at the end of a burst step batches are small whatever the slowing is.
        return cls(requests, statistics.mean(map(latency_seconds, outcomes)))

    def slowing(self, pool: Pool, overheads: Overheads) -> float:
        """By how much the devices were slower than their profiles."""
        arrivals = [(0.0, planned(one)) for one in self.requests]
        simulated = serve(Fleet((pool,)), arrivals, overheads=overheads, warm_up_share=0.0)
        return self.mean_seconds / simulated.mean_seconds


def _lone(pool: Pool, lone: Sequence[tuple[GenerationRequest, Outcome]]) -> tuple[Overheads, float]:
    """The seconds beside the device, and the slowing of the device, in jobs that had the service alone."""
    stages: dict[str, list[float]] = {stage: [] for stage in STAGES}
    rest, slowing = [], []
    for request, outcome in lone:
        timings = {stage: outcome.timings[f"{stage}_seconds"] for stage in STAGES}
        timings["waiting"] = max(0.0, timings["waiting"] - timings["encoding"])  # which it includes
        for stage, seconds in timings.items():
            stages[stage].append(seconds)
        rest.append(latency_seconds(outcome) - sum(timings.values()))
        on_device = timings["encoding"] + timings["denoising"] + timings["decoding"]
        slowing.append(on_device / pool.alone_seconds(planned(request)))
    median = {stage: statistics.median(seconds) for stage, seconds in stages.items()}
    overheads = Overheads(
        accept_seconds=median["queued"],
        claim_seconds=median["waiting"],
        image_seconds=median["file"] + median["upload"],
        answer_seconds=max(0.0, statistics.median(rest)),
        waits_for_polls=True,
    )
    return overheads, statistics.median(slowing)
