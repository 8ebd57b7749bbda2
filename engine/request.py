"""What a caller may ask of the engine and what it gets back: frozen nouns, checked when they are built.

Owns the fields and the checks that need no model. It does not know which models are loaded, nor torch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from catalogue.parameters import FILES, MAX_STEP_CACHE, MAY_BE_NONE, PARAMETERS, Lora, Parameters, Value
from engine.errors import PromptInvalid, RequestInvalid

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

Lane = Literal["interactive", "bulk"]
WarningCode = Literal[
    "prompt_cut", "notation_unread", "negative_prompt_unused", "not_batched", "lora_partial"
]
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


_BY_PLACE = (
    "prompt", "width", "height", "num_inference_steps", "guidance_scale", "seed", "negative_prompt",
)  # fmt: skip


@dataclass(frozen=True, init=False)
class GenerationRequest:
    """One image, wholly described: equal requests give equal bytes on one kind of device.

    `spec` is the scheduler where the catalogue has no name for it. A parameter may also be given by its own
    name, here and to `dataclasses.replace`, and the first ones by place; `scheduler` then is a
    `SchedulerSpec`.
    """

    model: str
    parameters: Parameters
    if TYPE_CHECKING:
        # Parameters that can be read, and given, by their own names; a new one is read from `parameters`.
        prompt: str
        negative_prompt: str
        width: int
        height: int
        num_inference_steps: int
        guidance_scale: float
        guidance_cutoff: float  # share of the steps that are guided; the rest cost one row, not two
        step_cache: int  # every how many steps the whole model runs: 1 is every one, without a cache
        scheduler: SchedulerSpec
        seed: int
        strict: bool  # the bytes of its solo run, whatever the promise: fewer mates or none, so slower
        pipeline_parameters: Mapping[str, Value]  # arguments of the pipeline's call, in its own names
        loras: tuple[Lora, ...]
        strength: float | None  # of the input image; None is the pipeline's own
    spec: SchedulerSpec | None = None
    seconds_left: float | None = None  # until the deadline, counted from `submit`
    lane: Lane = "interactive"
    job_id: str = ""  # an opaque label for logs
    account: str = ""  # an opaque label of whose it is: none sees what another cached, all take turns
    isolated: bool = False  # suspected of a crash: nothing else runs between its first and its last step
    # The files that its parameters name, by these, each uint8: RGB `(H, W, 3)`, a mask `(H, W)`. The ids name
    # their content, so that equal requests have equal ones.
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

    if not TYPE_CHECKING:

        @property
        def scheduler(self):
            """diffusers' noise scheduler."""
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
            _require(num_named == num_given, name, f"{num_named} files are named and {num_given} given")
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
    not_fuller: "Mapping[str, int]"  # how many of its steps ran for which of `engine.policy.policy.Reason`
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
