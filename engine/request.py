"""Requests to the engine and their results: frozen dataclasses that are validated when they are built.

Owns the fields and the checks that need no model. It knows neither torch nor which models are loaded.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from catalogue.lanes import LANES, Lane
from catalogue.parameters import FILES, MAY_BE_NONE, PARAMETERS, Parameters
from catalogue.schedulers import WITH_KARRAS, SchedulerName
from catalogue.step_cache import MAX_STEP_CACHE
from catalogue.warnings import RequestWarning
from engine.errors import PromptInvalid, RequestInvalid

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

Spacing = Literal["leading", "trailing", "linspace"]

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
"""The schedulers for which a `SchedulerSpec` may set `karras`, `eta`, `shift` and `spacing`."""


@dataclass(frozen=True)
class SchedulerSpec:
    """The noise scheduler of diffusers that a request asks for; None means the model's own setting."""

    name: SchedulerName = "ddim"
    karras: bool = False  # sigmas of Karras et al. 2022
    eta: float = 0.0  # fraction of fresh noise per step
    spacing: Spacing | None = None
    shift: float | None = None  # moves noise towards the first steps; only for flow-matching models

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


_BY_PLACE = (
    "prompt", "width", "height", "num_inference_steps", "guidance_scale", "seed", "negative_prompt",
)  # fmt: skip


@dataclass(frozen=True, init=False)
class GenerationRequest:
    """A request for one image: equal requests give equal bytes on devices of one kind.

    `spec` is the scheduler if the catalogue has no name for it. Each parameter may also be passed as a
    keyword, here and to `dataclasses.replace`, and the first seven by position; `scheduler` is then a
    `SchedulerSpec`.
    """

    model: str
    parameters: Parameters
    if TYPE_CHECKING:
        # Parameters that are declared for type checkers; `__getattr__` reads all of them.
        prompt: str
        negative_prompt: str
        width: int
        height: int
        num_inference_steps: int
        guidance_scale: float
        guidance_cutoff: float  # share of the steps that are guided; the others need one row instead of two
        step_cache: int  # the whole model runs once in this many steps; 1 means no cache
        scheduler: SchedulerSpec
        seed: int
    spec: SchedulerSpec | None = None
    seconds_left: float | None = None  # until the deadline, counted from `submit`
    lane: Lane = "interactive"
    job_id: str = ""  # an opaque label for logs
    account: str = ""  # an opaque label: accounts share no cached prompts, and take turns
    isolated: bool = False  # it may crash the device: nothing else runs between its first and last step
    # The input images by parameter name, uint8: RGB `(H, W, 3)`, a mask `(H, W)`. They are not compared: the
    # file ids in `parameters` are digests of their content.
    inputs: "Mapping[str, tuple[np.ndarray, ...]]" = field(default_factory=dict, compare=False, repr=False)

    def __init__(
        self,
        model: str,
        *by_place: Any,
        parameters: Parameters | None = None,
        spec: SchedulerSpec | None = None,
        seconds_left: float | None = None,
        lane: Lane = "interactive",
        job_id: str = "",
        account: str = "",
        isolated: bool = False,
        inputs: "Mapping[str, tuple[np.ndarray, ...]] | None" = None,
        **by_name: Any,
    ) -> None:
        changes = {**dict(zip(_BY_PLACE[: len(by_place)], by_place, strict=True)), **by_name}
        if scheduler := changes.get("scheduler"):
            name = next((name for name, known in SCHEDULERS.items() if known == scheduler), None)
            changes["scheduler"] = name or scheduler.name
            spec = None if name else scheduler
        if parameters is None:
            parameters = Parameters(**{"scheduler": SchedulerSpec().name, **changes})
        else:
            parameters = replace(parameters, **changes)
        given = (model, parameters, spec, seconds_left, lane, job_id, account, isolated, inputs or {})
        for entry, value in zip(fields(self), given, strict=True):
            object.__setattr__(self, entry.name, value)
        self._check()

    @property
    def is_strict(self) -> bool:
        """Whether its image must have the bytes of a run alone, so that it shares fewer step batches."""
        return self.parameters.strict

    def as_strict(self) -> "GenerationRequest":
        """The same request, with an image that must have the bytes of a run alone."""
        return self.changed(strict=True)

    def changed(self, **parameters: Any) -> "GenerationRequest":
        """The same request with other values of these parameters, or of its own fields."""
        return replace(self, **parameters)

    if not TYPE_CHECKING:

        @property
        def scheduler(self):
            """The scheduler that the parameters name, or `spec`."""
            return self.spec or scheduler_named(self.parameters.scheduler)

        def __getattr__(self, name):
            if name not in PARAMETERS:
                raise AttributeError(f"a request has no {name!r}")
            return getattr(self.parameters, name)

    def _check(self) -> None:
        interval = self.step_cache
        _require(
            type(interval) is int and 1 <= interval <= MAX_STEP_CACHE,
            "step_cache",
            f"{interval!r} is not in 1..{MAX_STEP_CACHE}",
        )
        for name, parameter in PARAMETERS.items():
            value = getattr(self.parameters, name)
            if parameter.type == "text":
                _check_text(name, value)
            elif value is not None or name not in MAY_BE_NONE:
                fault = parameter.fault_of(value)
                _require(fault is None, name, f"{value!r} {fault}")
        for name in FILES:
            ids = getattr(self.parameters, name)
            num_named = len(ids) if isinstance(ids, tuple) else int(ids is not None)
            num_given = len(self.inputs.get(name, ()))
            _require(num_named == num_given, name, f"{num_named} files are named but {num_given} are given")
        _require(self.lane in LANES, "lane", f"{self.lane!r} is not interactive or bulk")
        left = self.seconds_left
        _require(left is None or math.isfinite(left), "seconds_left", f"{left} is not finite")


@dataclass(frozen=True)
class Timings:
    """How long each phase of one generation took, in seconds."""

    waiting_seconds: float  # from submit to the start of its first step, encoding included
    encoding_seconds: float
    denoising_seconds: float  # from the start of its first step to the end of its last, pauses included
    decoding_seconds: float  # from the end of its last step to the pixels, the wait included
    num_ticks_waited: int  # step batches from submit to its first one, itself included: 1 means no wait
    device_seconds: float  # its share by rows of its step batches, plus its own encoding and decoding


@dataclass(frozen=True)
class GeneratedImage:
    """The image of one `GenerationRequest`, with timings, warnings and batch statistics."""

    pixels: "np.ndarray"  # uint8 (H, W, 3)
    warnings: tuple[RequestWarning, ...]
    timings: Timings
    mean_step_batch: float  # mean number of generations in its step batches
    not_fuller: "Mapping[str, int]"  # `engine.policy.policy.Reason` -> number of its step batches
    num_steps: int


def _check_text(name: str, text: str) -> None:
    try:
        sound = "\0" not in text and text.encode("utf-8") is not None
    except (UnicodeEncodeError, AttributeError, TypeError):
        sound = False
    if not sound:
        raise PromptInvalid(f"{name}: not a Unicode string, or it contains NUL or a lone surrogate")


def _require(holds: bool, field: str, complaint: str) -> None:
    if not holds:
        raise RequestInvalid(f"{field}: {complaint}")


SCHEDULERS: Mapping[str, SchedulerSpec] = {
    **{name: SchedulerSpec(name) for name in get_args(SchedulerName)},
    **{f"{name}_karras": SchedulerSpec(name, karras=True) for name in WITH_KARRAS},
}
"""Every scheduler by its public name; `NAME_karras` is the scheduler NAME with Karras sigmas."""


def scheduler_named(name: str) -> SchedulerSpec:
    """The scheduler with this public name; raises `RequestInvalid` for an unknown one."""
    _require(name in SCHEDULERS, "scheduler", f"{name!r} is not one of {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name]
