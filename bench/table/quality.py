"""Steps against quality: the share of held-out captions that images of the shipped model obey.

The judge of `tiny` decides. The knee is the fewest steps whose share is within two points of the best one.
All numbers of steps draw the same captions with the same seeds, so that differences are paired. It knows no
service: quality depends on the request alone.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.less_work import captions, draw, requests, shipped_model, which_obey
from bench.table.arms import BASE_ARM, Arm
from engine.loading.load import LoadedModels
from engine.request import SCHEDULERS

STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 30, 50)
SAMPLERS = ("ddim", "dpmpp_2m")
POINTS_OF_KNEE = 2.0
NUM_CAPTIONS = 100
GUIDANCE_SCALE = 4.0
NUM_RESAMPLES = 2000
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class QualityCurve:
    """Which captions the images obey: a row for each number of steps, with an entry for each caption."""

    scheduler: str
    steps: tuple[int, ...]
    obeys: tuple[tuple[bool, ...], ...] = field(repr=False)

    @property
    def obeyed(self) -> list[float]:
        """Percent of the captions, by number of steps."""
        return [100 * statistics.fmean(row) for row in self.obeys]

    @property
    def knee(self) -> int:
        """The fewest steps that are within `POINTS_OF_KNEE` of the best."""
        best = max(self.obeyed)
        return next(
            steps
            for steps, share in zip(self.steps, self.obeyed, strict=True)
            if share >= best - POINTS_OF_KNEE
        )

    def interval(self, steps: int) -> tuple[float, float]:
        """The 95 % interval of the percentage, by resampling captions (bootstrap percentiles)."""
        low, high = np.quantile(100 * self._resampled(self._row(steps)), INTERVAL)
        return float(low), float(high)

    def below_best(self, steps: int) -> tuple[float, float]:
        """The 95 % interval of the points by which the share is below the best one, captions paired."""
        best = self.obeys[int(np.argmax(self.obeyed))]
        differences = np.subtract(best, self._row(steps), dtype=np.float64)
        low, high = np.quantile(100 * self._resampled(differences), INTERVAL)
        return float(low), float(high)

    def _row(self, steps: int) -> "np.ndarray":
        return np.array(self.obeys[self.steps.index(steps)], dtype=np.float64)

    @staticmethod
    def _resampled(values: "np.ndarray") -> "np.ndarray":
        chosen = np.random.default_rng(1).integers(len(values), size=(NUM_RESAMPLES, len(values)))
        return np.asarray(values[chosen].mean(axis=1))


def measure(
    num_captions: int = NUM_CAPTIONS, steps: Sequence[int] = STEPS, loaded: LoadedModels | None = None
) -> list[QualityCurve]:
    """A curve for each scheduler; all draw the same captions with the same seeds."""
    loaded = loaded or shipped_model()
    found = []
    for scheduler in SAMPLERS:
        rows = [
            obeys(loaded, num_captions, {"num_inference_steps": number, "scheduler": SCHEDULERS[scheduler]})
            for number in steps
        ]
        found.append(QualityCurve(scheduler, tuple(steps), tuple(map(tuple, rows))))
    return found


def of_arms(
    arms: Sequence[Arm], num_captions: int = NUM_CAPTIONS, loaded: LoadedModels | None = None
) -> dict[str, float]:
    """Percent of the captions that images of each arm's request obey, by the arm's key.

    Only arms that change the request and keep its size: workers and batch caps change no image, and the
    judge is used at one size.
    """
    loaded = loaded or shipped_model()
    found = {}
    for arm in arms:
        if arm.service is BASE_ARM.service and "width" not in arm.changes:
            fields = {**arm.request, "scheduler": SCHEDULERS[arm.request["scheduler"]]}
            found[arm.key] = 100 * statistics.fmean(obeys(loaded, num_captions, fields))
    return found


def obeys(loaded: LoadedModels, num_captions: int, fields: Mapping[str, Any]) -> list[bool]:
    """For each held-out caption, whether an image with these fields obeys it."""
    scenes = captions(num_captions)
    asked = requests(num_captions, 0, {"guidance_scale": GUIDANCE_SCALE, **fields}, scenes)
    return which_obey(draw(loaded, asked), scenes)
