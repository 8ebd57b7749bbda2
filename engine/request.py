"""What a caller may ask of the engine and what it gets back: frozen nouns, checked when they are built.

Owns the fields and the checks that need no model. It does not know which models are loaded, nor torch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from engine.errors import PromptInvalid, RequestInvalid

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

Lane = Literal["interactive", "bulk"]
WarningCode = Literal["prompt_cut", "notation_unread", "negative_prompt_unused", "not_batched"]
SchedulerName = Literal[
    "default",  # the model's own, of whatever class
    "ddim",
    "ddpm",
    "euler",
    "euler_ancestral",
    "heun",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "unipc",
    "deis",
    "pndm",
    "lcm",
    "tcd",
    "flow_match_euler",
    "flow_match_heun",
    "flow_match_lcm",
    "edm_euler",
    "edm_dpmpp_2m",
]
Spacing = Literal["leading", "trailing", "linspace"]

MAX_SEED = 2**63 - 1
WITH_KARRAS: tuple[SchedulerName, ...] = ("euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "deis")
WITH_ETA = ("ddim", "tcd")
WITH_SHIFT = ("flow_match_euler", "flow_match_heun", "flow_match_lcm", "dpmpp_2m", "unipc")
WITH_SPACING = (
    "ddim",
    "ddpm",
    "euler",
    "euler_ancestral",
    "heun",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "unipc",
    "deis",
    "pndm",
)
"""Which schedulers have these fields of a `SchedulerSpec`."""
MAX_STEP_CACHE = 8


@dataclass(frozen=True)
class SchedulerSpec:
    """diffusers' noise scheduler, as a request names it; what is `None` is the model's own."""

    name: SchedulerName = "ddim"
    karras: bool = False  # sigmas of Karras et al. 2022
    eta: float = 0.0  # share of fresh noise per step
    spacing: Spacing | None = None
    shift: float | None = None  # of the noise towards the start; models trained by flow matching only

    def __post_init__(self) -> None:
        names = get_args(SchedulerName)
        _require(self.name in names, "scheduler", f"{self.name!r} is not one of {', '.join(names)}")
        has_karras = self.name in WITH_KARRAS
        _require(not self.karras or has_karras, "karras", f"{self.name} has no Karras sigmas")
        _require(0 <= self.eta <= 1, "eta", f"{self.eta} is not in 0..1")
        _require(not self.eta or self.name in WITH_ETA, "eta", f"{self.name} has no eta")
        spacings = (None, *get_args(Spacing))
        _require(
            self.spacing in spacings, "spacing", f"{self.spacing!r} is not leading, trailing or linspace"
        )
        has_spacing = self.name in WITH_SPACING
        _require(has_spacing or self.spacing is None, "spacing", f"{self.name} has no spacing")
        _require(self.shift is None or self.name in WITH_SHIFT, "shift", f"{self.name} has no shift")
        _require(self.shift is None or 0 < self.shift <= 100, "shift", f"{self.shift} is not in 0..100")


@dataclass(frozen=True)
class GenerationRequest:
    """One image, wholly described: equal requests give equal bytes on one kind of device."""

    model: str
    prompt: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    seed: int
    negative_prompt: str = ""
    guidance_cutoff: float = 1.0  # share of the steps that are guided; the rest cost one row, not two
    step_cache: int = 1  # every how many steps the whole model runs: 1 is every one, without a cache
    scheduler: SchedulerSpec = field(default_factory=SchedulerSpec)
    seconds_left: float | None = None  # until the deadline, counted from `submit`
    lane: Lane = "interactive"
    strict: bool = False  # the bytes of its solo run, whatever the promise: fewer mates or none, so slower
    job_id: str = ""  # an opaque label for logs
    account: str = ""  # an opaque label of whose it is: none sees what another cached, all take turns
    solo: bool = False  # suspected of a crash: nothing else runs between its first and its last step

    def __post_init__(self) -> None:
        _check_text("prompt", self.prompt)
        _check_text("negative_prompt", self.negative_prompt)
        for name in ("width", "height", "num_inference_steps"):
            value = getattr(self, name)
            _require(type(value) is int and value > 0, name, f"{value!r} is not a positive whole number")
        _require(
            type(self.seed) is int and 0 <= self.seed <= MAX_SEED,
            "seed",
            f"{self.seed!r} is not in 0..2^63-1",
        )
        scale, cutoff = self.guidance_scale, self.guidance_cutoff
        _require(
            math.isfinite(scale) and scale >= 0, "guidance_scale", f"{scale} is not a finite number from 0"
        )
        _require(0 <= cutoff <= 1, "guidance_cutoff", f"{cutoff} is not in 0..1")
        interval = self.step_cache
        _require(
            type(interval) is int and 1 <= interval <= MAX_STEP_CACHE,
            "step_cache",
            f"{interval!r} is not in 1..{MAX_STEP_CACHE}",
        )
        _require(self.lane in get_args(Lane), "lane", f"{self.lane!r} is not interactive or bulk")
        left = self.seconds_left
        _require(left is None or math.isfinite(left), "seconds_left", f"{left} is not finite")


@dataclass(frozen=True)
class RequestWarning:
    """What was drawn is not all that was asked for; `field` is the request's, `code` stays the same."""

    code: WarningCode
    field: str
    detail: str


@dataclass(frozen=True)
class Timings:
    """Where the seconds of one generation went, and how many step batches it let pass."""

    waiting_seconds: float  # from submit to the start of its first step; holds the encoding
    encoding_seconds: float
    denoising_seconds: float  # from the start of its first step to the end of its last, pauses included
    decoding_seconds: float  # from the end of its last step to pixels, the wait for its turn included
    num_ticks_waited: int  # step batches begun since submit, its own first included: 1 is the very next
    device_seconds: (
        float  # its share, by rows, of the step batches it was in, and its own encoding and decoding
    )


@dataclass(frozen=True)
class GeneratedImage:
    """The image of one `GenerationRequest`, and how it came about."""

    pixels: "np.ndarray"  # uint8 (H, W, 3)
    warnings: tuple[RequestWarning, ...]
    timings: Timings
    mean_step_batch: float  # generations per step batch, averaged over its steps
    not_fuller: "Mapping[str, int]"  # how many of its steps ran for which of `engine.policy.Reason`
    num_steps: int


def _check_text(name: str, text: str) -> None:
    try:
        sound = "\0" not in text and text.encode("utf-8") is not None
    except (UnicodeEncodeError, AttributeError, TypeError):
        sound = False
    if not sound:
        raise PromptInvalid(f"{name}: not a string of Unicode text without NUL and lone surrogates")


def _require(holds: bool, field: str, complaint: str) -> None:
    if not holds:
        raise RequestInvalid(f"{field}: {complaint}")


SCHEDULERS: Mapping[str, SchedulerSpec] = {
    **{name: SchedulerSpec(name) for name in get_args(SchedulerName)},
    **{f"{name}_karras": SchedulerSpec(name, karras=True) for name in WITH_KARRAS},
}
"""By the names that users know: those of the schedulers, and of the ways to ask for one."""


def scheduler_named(name: str) -> SchedulerSpec:
    """The scheduler that users call so; raises `RequestInvalid`."""
    _require(name in SCHEDULERS, "scheduler", f"{name!r} is not one of {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name]
