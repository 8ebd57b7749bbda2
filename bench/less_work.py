"""Measures what less work for an image gains in speed and costs in quality, on the shipped model.

    python -m bench.less_work [--seeds 3] [--captions 200]

Speed: an engine on one thread that always has more work than it can batch; every option runs the same
requests, and the full run and the options take turns. The end, in which padding replaces a dropped row, is
left out. Quality: held-out captions; each option's image is compared with the full run's, by pixels and by
the judge. `bench.engine` uses `CUTOFF` and `CACHE`.
"""

import argparse
import math
import random
import statistics
import tomllib
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.bare import BarePrices
from bench.clock import Part, WorkClock, in_turns
from bench.workload import num_texts
from engine.engine import Engine
from engine.loading.load import LoadedModels, ModelSpec, load_models
from engine.loading.optimization import NO_OPTIMIZATION, Optimization
from engine.partial_forwards.step_cache import StepCache
from engine.pipelines.steady_stack import on_steady_stack
from engine.request import GenerationRequest
from tiny.judge import obeys
from tiny.scenes import Scene
from tiny.train.evaluate import held_out_scenes, is_obeyed

ROOT = Path(__file__).resolve().parents[1]
SIDE = 128
MAX_ROWS = 16
STEPS = (4, 4, 12, 12, 20, 20, 20, 30, 30, 50)
"""The mix of the engine's benchmark: 20, 20, 30, 20 and 10 %."""
NUM_REQUESTS = 60
BACKLOG = 2 * MAX_ROWS
GUIDANCE_SCALE = 4.0
EQUAL_PSNR = 99.0  # decibels, for an image that an option does not change; far above any changed image

Figure = tuple[float, float, float, list[float]]
"""`(value, low, high, samples)`: the median, the extremes, and one sample a seed."""


@dataclass(frozen=True)
class Option:
    """One way to do less work, and the request that it is compared with."""

    name: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Quality:
    """An option's images against the full run's: decibels of the changed ones, percent that obey."""

    mean_psnr: float
    worst_psnr: float
    obeyed: float
    full_obeyed: float

    @property
    def points_lost(self) -> float:
        """Percentage points; below zero when more obey than in the full run."""
        return self.full_obeyed - self.obeyed


CUTOFF = Option("guidance cutoff 0.5", {"guidance_cutoff": 0.5})
CACHE = Option("step cache 3", {"step_cache": 3})
OPTIONS = (
    CUTOFF,
    Option("step cache 2", {"step_cache": 2}),
    CACHE,
    Option("step cache 5", {"step_cache": 5}),
    Option("cutoff 0.5, step cache 3", {**CUTOFF.changes, **CACHE.changes}),
)


def shipped_model(optimization: Optimization = NO_OPTIMIZATION) -> LoadedModels:
    """The shipped model at 128², on one thread."""
    spec = ModelSpec("tiny", str(ROOT / "models/tiny"), optimization=optimization)
    limits = {"tiny": {SIDE * SIDE: MAX_ROWS}}
    return load_models([spec], device="cpu:0", row_limits=limits, num_threads=1)


def gains(
    loaded: LoadedModels,
    options: Sequence[Option],
    seeds: Sequence[int],
    base: Mapping[str, Any] | None = None,
) -> dict[str, Figure]:
    """Return for each option images/s ÷ those of the full run of the same requests, one sample a seed.

    `base` changes the full run's requests too. Full run and options take turns.
    """
    ratios: dict[str, list[float]] = {option.name: [] for option in options}
    draw(loaded, requests(MAX_ROWS // 2, 0, base or {}))  # the first run is slow
    for seed in seeds:
        asked = requests(NUM_REQUESTS, seed, base or {})
        changed = [[replace(one, **option.changes) for one in asked] for option in options]
        full, *others = in_turns([seconds_per_image(loaded, one) for one in (asked, *changed)])
        for option, seconds in zip(options, others, strict=True):
            ratios[option.name].append(full / seconds)
    return {
        name: (statistics.median(samples), min(samples), max(samples), samples)
        for name, samples in ratios.items()
    }


def most_gain(option: Option, prices: BarePrices, cached_share: float) -> float:
    """Return the largest possible gain of the option, by the bare model's costs.

    `cached_share` is the cost of a row in a cached step ÷ its cost in a full one.
    """

    def seconds(asked: Sequence[GenerationRequest]) -> float:
        return prices.seconds(
            num_row_steps=sum(_num_full_row_steps(one, cached_share) for one in asked),
            num_texts=sum(map(num_texts, asked)),
            num_images=len(asked),
        )

    asked = requests(len(STEPS), 0, {})
    return seconds(asked) / seconds([replace(one, **option.changes) for one in asked])


def _num_full_row_steps(request: GenerationRequest, cached_share: float) -> float:
    """Return the rows of all its steps; those of cached steps count by their share."""
    cache = StepCache(request.step_cache, request.num_inference_steps)
    num_guided = request.guidance_cutoff * request.num_inference_steps
    return sum(
        (2 if step < num_guided else 1) * (1.0 if cache.is_full(step) else cached_share)
        for step in range(request.num_inference_steps)
    )


def qualities(
    loaded: LoadedModels,
    options: Sequence[Option],
    num_captions: int,
    base: Mapping[str, Any] | None = None,
) -> dict[str, Quality]:
    """Compare each option's images of held-out captions with the full run's."""
    scenes = captions(num_captions)
    asked = requests(num_captions, 0, base or {}, scenes)
    full = draw(loaded, asked)
    full_obeyed = share_obeyed(full, scenes)
    found = {}
    for option in options:
        images = draw(loaded, [replace(one, **option.changes) for one in asked])
        psnrs = [psnr(image, reference) for image, reference in zip(images, full, strict=True)]
        changed = [one for one in psnrs if one < EQUAL_PSNR] or [EQUAL_PSNR]
        found[option.name] = Quality(
            statistics.fmean(changed), min(changed), share_obeyed(images, scenes), full_obeyed
        )
    return found


def captions(count: int) -> list[Scene]:
    """Held-out scenes, of one thing and of two in turn."""
    halves = (held_out_scenes(count // 2, pairs=pairs) for pairs in (False, True))
    return [scene for both in zip(*halves, strict=True) for scene in both]


def requests(
    count: int, seed: int, base: Mapping[str, Any], scenes: Sequence[Scene] | None = None
) -> list[GenerationRequest]:
    """Return guided requests at the shares of `STEPS`, in an order that the seed determines."""
    rng = random.Random(seed)
    steps = [STEPS[index % len(STEPS)] for index in range(count)]
    rng.shuffle(steps)
    scenes = scenes or captions(count + count % 2)[:count]
    plain = {"width": SIDE, "height": SIDE, "guidance_scale": GUIDANCE_SCALE}
    return [
        GenerationRequest(
            model="tiny",
            prompt=scene.caption(),
            seed=seed * 1000 + index,
            **{**plain, "num_inference_steps": num_steps, **base},
        )
        for index, (scene, num_steps) in enumerate(zip(scenes, steps, strict=True))
    ]


def seconds_per_image(
    loaded: LoadedModels,
    asked: Sequence[GenerationRequest],
    note_rows: Callable[[int], None] = lambda _: None,
) -> Part[float]:
    """Return the seconds of an image while more requests wait than run; a started one counts by its steps.

    `note_rows` is told the rows of each step batch.
    """

    def serve(clock: WorkClock) -> Generator[None, None, float]:
        engine = Engine(
            loaded.models,
            loaded.row_limits,
            determinism=loaded.determinism,
            clock=clock,
            on_step=lambda _model, num_rows, _seconds, _reason: note_rows(num_rows),
        )
        upcoming = deque(asked)
        progress: dict[int, float] = {}

        def note(index: int, done: int, of: int) -> None:
            progress[index] = done / of

        while len(upcoming) + engine.num_generations >= BACKLOG:
            while engine.num_generations < BACKLOG:
                engine.submit(upcoming.popleft(), on_progress=partial(note, len(upcoming)))
            engine.tick()
            yield
        seconds = clock()
        engine.stop()
        return seconds / sum(progress.values())

    return serve


def draw(loaded: LoadedModels, asked: Sequence[GenerationRequest]) -> list[np.ndarray]:
    """Their pixels, all of them submitted at once."""
    engine = Engine(loaded.models, loaded.row_limits, determinism=loaded.determinism)
    handles = [engine.submit(one) for one in asked]
    while not engine.is_idle:
        engine.tick()
    return [handle.future.result().pixels for handle in handles]


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio in decibels of two uint8 images; `EQUAL_PSNR` where they are equal."""
    error = float(np.mean((image.astype(np.float64) - reference) ** 2))
    return EQUAL_PSNR if error == 0 else 10 * math.log10(255**2 / error)


def which_obey(images: Sequence[np.ndarray], scenes: Sequence[Scene]) -> list[bool]:
    """For each image, whether the judge finds in it what its caption asks for."""
    pairs = zip(images, scenes, strict=True)
    return [is_obeyed(obeys(Image.fromarray(one), scene), scene) for one, scene in pairs]


def share_obeyed(images: Sequence[np.ndarray], scenes: Sequence[Scene]) -> float:
    """Percent of the images in which the judge finds what their caption asks for."""
    return 100 * statistics.fmean(which_obey(images, scenes))


def presets() -> list[Option]:
    """Return the presets of the shipped model in `calotype.toml`."""
    document = tomllib.loads((ROOT / "calotype.toml").read_text(encoding="utf-8"))
    found = document["models"]["tiny"]["presets"]
    return [Option(f"preset `{name}`", changes) for name, changes in found.items()]


def rows(
    loaded: LoadedModels, options: Sequence[Option], seeds: int, num_captions: int, base: Mapping[str, Any]
) -> list[str]:
    """A line of the table for each option."""
    speed = gains(loaded, options, range(seeds), base)
    quality = qualities(loaded, options, num_captions, base)
    lines = []
    for option in options:
        value, low, high, _ = speed[option.name]
        one = quality[option.name]
        lines.append(
            f"| {option.name} | {value:.2f} ({low:.2f} to {high:.2f}) | {one.mean_psnr:.1f} "
            f"| {one.worst_psnr:.1f} | {one.full_obeyed:.1f} → {one.obeyed:.1f} % | {one.points_lost:+.1f} |"
        )
    return lines


@on_steady_stack
def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--captions", type=int, default=200)
    arguments = parser.parse_args()
    loaded = shipped_model()
    print("| option | images/s ÷ full run | mean PSNR, dB | worst | checker | points lost |")
    print("|---|---|---|---|---|---|")
    defaults = {"num_inference_steps": 20, "guidance_scale": 2.0}
    for options, base in ((list(OPTIONS), {}), (presets(), defaults)):
        for line in rows(loaded, options, arguments.seeds, arguments.captions, base):
            print(line, flush=True)


if __name__ == "__main__":
    main()
