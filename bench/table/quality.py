"""Steps against quality: the share of held-out captions that images of the shipped model obey.

The judge of `tiny` decides. The knee is the fewest steps whose share is within two points of the best one. It
knows no service: quality depends on the request alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.less_work import captions, draw, requests, share_obeyed, shipped_model
from bench.table.arms import BASE_ARM, Arm
from engine.loading.load import LoadedModels
from engine.request import SCHEDULERS

STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 30, 50)
SAMPLERS = ("ddim", "dpmpp_2m")
POINTS_OF_KNEE = 2.0
NUM_CAPTIONS = 100
GUIDANCE_SCALE = 4.0


@dataclass(frozen=True)
class QualityCurve:
    """Percent of the captions that the images obey, by number of steps."""

    scheduler: str
    steps: tuple[int, ...]
    obeyed: tuple[float, ...]

    @property
    def knee(self) -> int:
        """The fewest steps that are within `POINTS_OF_KNEE` of the best."""
        best = max(self.obeyed)
        return next(
            steps
            for steps, share in zip(self.steps, self.obeyed, strict=True)
            if share >= best - POINTS_OF_KNEE
        )


def measure(
    num_captions: int = NUM_CAPTIONS, steps: Sequence[int] = STEPS, loaded: LoadedModels | None = None
) -> list[QualityCurve]:
    """A curve for each scheduler; all draw the same captions with the same seeds."""
    loaded = loaded or shipped_model()
    found = []
    for scheduler in SAMPLERS:
        shares = [
            obeyed(loaded, num_captions, {"num_inference_steps": number, "scheduler": SCHEDULERS[scheduler]})
            for number in steps
        ]
        found.append(QualityCurve(scheduler, tuple(steps), tuple(shares)))
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
            found[arm.key] = obeyed(loaded, num_captions, fields)
    return found


def obeyed(loaded: LoadedModels, num_captions: int, fields: Mapping[str, Any]) -> float:
    """Percent of held-out captions that images with these fields obey."""
    scenes = captions(num_captions)
    asked = requests(num_captions, 0, {"guidance_scale": GUIDANCE_SCALE, **fields}, scenes)
    return share_obeyed(draw(loaded, asked), scenes)
