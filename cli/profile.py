"""The `calotype profile` command: measures step times, and says for which tiers batching is worth it.

Each device is measured in its own process, with the CPU affinity of its worker, because torch reads the
number of threads on import.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catalogue.catalogue import Tier
from cli.terminal import (
    DEFAULT_DATA_DIR,
    EXIT_REFUSED,
    EXIT_USAGE,
    AsJson,
    DataDir,
    fail,
    note,
    print_json,
    print_table,
    say,
)
from settings import Settings, load_settings

if TYPE_CHECKING:
    from engine.loading.load import LoadedModels
    from tasks.profiles import ProfileFolder

profiling = typer.Typer()


@profiling.command()
def profile(
    tier: Annotated[list[str] | None, typer.Option(help="Only this tier; may be repeated.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Only cpu:N or cuda:N; default: one of each kind in calotype.toml.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="Seconds for each tier on each device.")] = 10,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Measure the seconds of a step by its rows, for every tier and device, for the workers to use."""
    settings = load_settings(data_dir=data_dir)
    wanted = [_tier(settings, name) for name in tier or []]
    if device is not None:
        found = _measure_here(settings, device, wanted or list(_tiers_of(settings, device)), seconds)
    else:
        found = _measure_all(settings, wanted, seconds)
    if as_json:
        print_json(found)
    else:
        show(found)


def _tier(settings: Settings, name: str) -> Tier:
    found = settings.catalogue.tier(name)
    if found is None:
        known = ", ".join(one.name for one in settings.catalogue.tiers)
        fail(f"--tier: there is no tier {name!r}; there is: {known}", code=EXIT_USAGE)
    return found


def _tiers_of(settings: Settings, device: str) -> Sequence[Tier]:
    """The tiers of the device in `calotype.toml`."""
    plans = settings.catalogue.workers
    plan = next((plan for plan in plans if plan.device == device), None) or plans[0]
    return [_tier(settings, name) for name in plan.tiers]


def _measure_all(settings: Settings, wanted: Sequence[Tier], seconds: float) -> list[dict[str, Any]]:
    """One device of each kind, in turn; CPU devices with equal numbers of threads are one kind."""
    from local.plan import worker_posts
    from local.tree import PROGRAM, with_tree

    found, seen = [], set()
    for post in worker_posts(settings.catalogue, Path()):
        tiers = [name for name in post.tiers if not wanted or name in [one.name for one in wanted]]
        kind = post.device.num_threads if post.device.name.startswith("cpu") else post.device.name
        tiers = [name for name in tiers if (kind, name) not in seen]
        seen |= {(kind, name) for name in tiers}
        if not tiers:
            continue
        command = [
            *PROGRAM,
            "profile",
            "--device",
            post.device.name,
            "--json",
        ]
        command += ["--seconds", str(seconds), *(part for name in tiers for part in ("--tier", name))]
        command += ["--data-dir", str(settings.data_dir)]
        answer = subprocess.run(command, env=with_tree(), stdout=subprocess.PIPE, text=True, check=False)
        if answer.returncode:
            fail(f"{post.device.name} could not be measured", code=answer.returncode)
        found += json.loads(answer.stdout)
    if not found:
        fail("--tier: no worker of calotype.toml serves it", code=EXIT_USAGE)
    return found


def _measure_here(
    settings: Settings, device: str, tiers: Sequence[Tier], seconds: float
) -> list[dict[str, Any]]:
    from local.devices import pin_this_process

    pin_this_process(device)
    # Imported after the environment is set, because torch reads it on import.
    from engine.errors import EngineError
    from tasks.loading import load_configured
    from tasks.profiles import ProfileFolder
    from tasks.self_test_results import SelfTestFolder, machine_facts

    names = {tier.model for tier in tiers}
    models = [model for model in settings.catalogue.models if model.name in names]
    num_threads = int(os.environ["OMP_NUM_THREADS"])
    try:
        loaded = load_configured(
            models,
            config=settings.config,
            device=device,
            self_test_seconds=settings.self_test_seconds,
            num_threads=num_threads,
            # The buckets that are measured are those that a worker has: of a kept self-test, if there is one.
            results=SelfTestFolder(settings.profiles_dir / "self-tests", machine_facts()),
        )
        return measure_tiers(
            tiers,
            loaded,
            ProfileFolder(settings.profiles_dir),
            device=device,
            schedulers={model.name: model.schedulers[0] for model in models},
            seconds=seconds,
        )
    except EngineError as error:
        fail(f"{device}: {error}", code=EXIT_REFUSED)


def measure_tiers(
    tiers: Sequence[Tier],
    loaded: "LoadedModels",
    folder: "ProfileFolder",
    *,
    device: str,
    schedulers: Mapping[str, str],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """Measure these tiers of loaded models, and save the profiles in `folder`; returns them as JSON types."""
    from tasks.profiles import measure_tier

    found = []
    for tier in tiers:
        note(f"measuring tier {tier.name} on {device} for {seconds:g} s or more")
        scheduler = schedulers[tier.model]
        measured = measure_tier(tier, loaded, scheduler=scheduler, seconds=seconds, clock=clock)
        file = folder.write(tier.name, measured)
        found.append({"tier": tier.name, "device": device, "file": str(file), **measured.to_dict()})
    return found


def show(found: Sequence[dict[str, Any]]) -> None:
    """Print the tables and a verdict for each tier."""
    print_table(
        ("tier", "device", "rows", "seconds/step", "rows/s", "gain", "peak memory", ""),
        [line for one in found for line in _lines(one)],
    )
    say("")
    for one in found:
        say(_verdict(one))


def _lines(one: dict[str, Any]) -> list[tuple[object, ...]]:
    steps, marks = one["steps"], {one["found"]["knee_rows"]: "knee"}
    if one["found"]["max_rows"] < steps[-1]["num_rows"]:
        marks[one["found"]["max_rows"]] = f"{marks.get(one['found']['max_rows'], '')} cap".strip()
    return [
        (
            *(one["tier"], one["device"], step["num_rows"], f"{step['seconds']:.4g}"),
            *(f"{_rate(step):.4g}", f"{_rate(step) / _rate(steps[0]):.2f}"),
            _gigabytes(step["peak_memory_bytes"]),
            marks.get(step["num_rows"], ""),
        )
        for step in steps
    ]


def _verdict(one: dict[str, Any]) -> str:
    steps, found = one["steps"], one["found"]
    least, best = steps[0], max(steps, key=_rate)
    gain = _rate(best) / _rate(least)
    place = f"{one['tier']} on {one['device']}"
    ends = f"encoding {one['encode_seconds']:.3g} s, decoding {one['decode_seconds']:.3g} s"
    if one["cached_share"] < 1:
        ends += f", a cached step {one['cached_share']:.2f} of a full one"
    ends += f"; {one['file']}"
    if not found["is_worth_batching"]:
        said = f"batching is not worth it: {gain:.2f} times the rows a second at best"
        return f"{place}: {said}, so step batches are kept to {found['max_rows']} rows; {ends}"
    said = f"batching is worth it: {gain:.2f} times the rows a second of {least['num_rows']} rows"
    kept = f"the knee is at {found['knee_rows']} rows, step batches are kept to {found['max_rows']}"
    return f"{place}: {said}; {kept}; {ends}"


def _gigabytes(peak_bytes: int | None) -> str:
    return "not measured" if peak_bytes is None else f"{peak_bytes / 1e9:.2f} GB"


def _rate(step: dict[str, Any]) -> float:
    rate: float = step["num_rows"] / step["seconds"]
    return rate
