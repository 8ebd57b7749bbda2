"""The schedulers of one model: which names requests may use, and a new instance for each request.

Owns how a scheduler of another class is made from the model's own, and which requests are refused. It knows
neither pipelines nor the calls that use the instances.
"""

import copy
import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache, partial, wraps
from typing import Any

import numpy as np
import torch

from engine.errors import LoadError, RequestInvalid
from engine.loading.scheduler_overrides import (
    AS_PUBLISHED,
    DETERMINISTIC,
    SchedulerOverrides,
    overridden,
    own_entries,
    unclipped,
)
from engine.pipelines.scheduler_classes import (
    HANDED,
    NOISE_OF_ITS_OWN,
    OTHER_SIGMAS,
    SAMPLERS,
    Kind,
    entries_of,
    kind_of,
    taken_by,
)
from engine.request import SCHEDULERS, SchedulerSpec

FOR_PIXELS = {"clip_sample": False, "thresholding": False}
"""Unlike pixels, latents are not bounded, so schedulers of other classes than the model's own never clip."""
NEEDED = ("rescale_betas_zero_snr", "use_dynamic_shifting", "invert_sigmas", "shift_terminal")
"""Entries that a model depends on: a class without such an entry cannot draw with that model."""
MAX_CHECKED = 256


class Schedulers:
    """The schedulers of one model, all of the same kind as `own`, the scheduler of its pipeline.

    `own` is never changed. `handed` lists the arguments of `HANDED` that the model's pipeline passes to
    `set_timesteps`; a class that does not accept them cannot be used. Raises `LoadError` by field for
    overrides that do not fit, and for a scheduler whose entries contradict each other.
    """

    def __init__(
        self, own: Any, overrides: SchedulerOverrides = AS_PUBLISHED, handed: Collection[str] = ()
    ) -> None:
        self._own = unclipped(overridden(own, overrides))
        self._class_name = type(self._own).__name__
        self._config: Mapping[str, Any] = self._own.config
        self._handed = frozenset(handed)
        self.kind: Kind = kind_of(self._own)
        self._is_shifted = bool(self._config.get("use_dynamic_shifting"))
        check_consistent(self._own)
        self._check = lru_cache(MAX_CHECKED)(self._tried)

    def names(self) -> list[str]:
        """The scheduler names that requests may use with this model, `default` first."""
        found = []
        for name, spec in SCHEDULERS.items():
            with suppress(RequestInvalid):
                self.make(spec, 2)
                found.append(name)
        return found

    def make(
        self,
        spec: SchedulerSpec,
        num_inference_steps: int,
        image_seq_len: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """A new scheduler for one request; raises `RequestInvalid` by field if the model cannot use it.

        The first of equal requests is tried out on a small tensor, so that a bad one is refused before it
        costs device time. `image_seq_len` is the image's number of patches; it decides the shift if the
        model's scheduler has `use_dynamic_shifting`. Steps draw noise from `generator` if the pipeline passes
        them none, as flow-matching pipelines do. After a call of the pipeline, the scheduler's `handed` names
        the arguments that the pipeline passed to `set_timesteps`.
        """
        self._check(spec, num_inference_steps, image_seq_len if self._is_shifted else None)
        scheduler = self._made(spec)
        scheduler.noise_generator = generator
        return scheduler

    def check_offer(self, name: str, spec: SchedulerSpec, default_steps: int, max_steps: int) -> None:
        """Raise `LoadError` unless requests can use this scheduler, whose public name is `name`.

        It is tried out with one step, the default number and the largest. If a number of steps between can
        fail, which is cheap to check, each is checked.
        """
        with offering(name, self._own):
            self._check_spec(spec, 1)
            scheduler = self._made(spec)
            if _looks_up(scheduler) and self.kind != "unknown":
                for num_steps in range(1, min(max_steps, self.max_steps(spec)) + 1):
                    with refusing(f"num_inference_steps: {num_steps} is not possible with this scheduler"):
                        set_whole(scheduler, num_steps)
            for num_steps in sorted({1, default_steps, max_steps}):
                self.make(spec, num_steps)

    def num_forward_passes(self, spec: SchedulerSpec, num_inference_steps: int) -> int:
        """How often a request calls the denoiser: some schedulers need two calls a step, others one extra.

        Raises `RequestInvalid` like `make`.
        """
        return self._check(spec, num_inference_steps, None)

    def takes(self, spec: SchedulerSpec) -> frozenset[str]:
        """The arguments of `HANDED` that `set_timesteps` of this scheduler accepts."""
        return taken_by(self._class_of(spec))

    def _class_of(self, spec: SchedulerSpec) -> Any:
        return type(self._own) if spec.name == "default" else SAMPLERS[self.kind][spec.name].scheduler_class

    def _tried(self, spec: SchedulerSpec, num_inference_steps: int, image_seq_len: int | None) -> int:
        """Try the scheduler out; returns the number of forward passes, or raises `RequestInvalid`."""
        self._check_spec(spec, num_inference_steps)
        with refusing(f"scheduler: {spec.name} cannot be set up for this model"):
            scheduler = self._made(spec)
        if self.kind == "unknown":
            return num_inference_steps  # only the model's pipeline knows how to use it
        with refusing(f"num_inference_steps: {num_inference_steps} is not possible with this scheduler"):
            with np.errstate(invalid="raise"):  # 0 / 0, as with `shift_terminal` at one step
                self._set_timesteps(scheduler, num_inference_steps, image_seq_len)
            is_finite = steps_are_finite(scheduler, spec.eta)
        if not is_finite:  # for example eta 1 with zero terminal SNR
            raise RequestInvalid(
                f"scheduler: {spec.name}, eta {spec.eta}, has no finite steps on this model"
                f" at {num_inference_steps} steps"
            )
        return len(scheduler.timesteps)

    def _check_spec(self, spec: SchedulerSpec, num_inference_steps: int) -> None:
        name, is_flow = spec.name, self.kind == "flow"
        if name == "default":
            if self._class_name in NOISE_OF_ITS_OWN:
                raise RequestInvalid(
                    f"scheduler: a {self._class_name} draws its noise from torchsde and not from the seed"
                )
        elif name not in SAMPLERS[self.kind] or self._draws_otherwise():
            raise RequestInvalid(
                f"scheduler: {name} is not for this kind of model, which came with a {self._class_name}"
            )
        if name == "euler_ancestral" and self._config.get("prediction_type") == "sample":
            raise RequestInvalid("scheduler: euler_ancestral is not for a model that predicts the sample")
        limit = self.max_steps(spec)
        if num_inference_steps > limit:
            raise RequestInvalid(f"num_inference_steps: {num_inference_steps} is above {limit}")
        if is_flow and (spec.karras or spec.spacing):
            raise RequestInvalid("scheduler: a flow-matching model has no Karras sigmas and no spacing")
        if spec.shift is not None and not is_flow:
            raise RequestInvalid("shift: this model is not trained by flow matching")
        if spec.shift is not None and self._is_shifted:
            raise RequestInvalid("shift: this model's shift follows from the resolution")
        for entry in NEEDED:
            if self._config.get(entry) and entry not in entries_of(self._class_of(spec)):
                raise RequestInvalid(f"scheduler: {name} has no {entry}, which this model needs")
        handed = self._handed | ({"mu"} if self._is_shifted else set())
        if self.kind != "unknown" and (untaken := handed - self.takes(spec)):
            raise RequestInvalid(
                f"scheduler: {name} does not take the {min(untaken)} that this model's pipeline gives it"
            )

    def _draws_otherwise(self) -> bool:
        """Whether the model draws pixels or predicts a variance, which only its own scheduler supports."""
        variance_type = self._config.get("variance_type") or ""
        return bool(self._config.get("thresholding")) or variance_type.startswith("learned")

    def max_steps(self, spec: SchedulerSpec) -> int:
        """The largest number of steps for this scheduler."""
        limit: int = self._config.get("num_train_timesteps", 1000)
        if "original_inference_steps" not in entries_of(self._class_of(spec)):
            return limit
        distilled: int = self._config.get("original_inference_steps", 50)
        return min(limit, distilled)

    def _set_timesteps(self, scheduler: Any, num_inference_steps: int, image_seq_len: int | None) -> None:
        """Set timesteps like diffusers' `retrieve_timesteps`, passing what this model's pipeline passes."""
        given: dict[str, Any] = {}
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        if "sigmas" in self._handed:
            given["sigmas"] = sigmas
        if "timesteps" in self._handed:
            last = self._config.get("num_train_timesteps", 1000) - 1
            whole = np.linspace(last, 0, num_inference_steps).round().astype(np.int64)
            given["timesteps"] = (last + 1) * sigmas if self.kind == "flow" else whole
        if not given and _looks_up(scheduler):
            set_whole(scheduler, num_inference_steps)
            return
        if not given:
            given["num_inference_steps"] = num_inference_steps
        if self._is_shifted or "mu" in self._handed:
            given["mu"] = shift_of(self._config, image_seq_len)
        scheduler.set_timesteps(**given)

    def _made(self, spec: SchedulerSpec) -> Any:
        if spec.name == "default":
            return prepared(copy.deepcopy(self._own))
        sampler = SAMPLERS[self.kind][spec.name]
        entries = {**own_entries(self._own), **FOR_PIXELS, **sampler.entries}
        if self.kind == "flow":
            # The request's shift, or the model's own, whose name depends on the scheduler's class.
            own_shift = self._config.get("shift", self._config.get("flow_shift", 1.0))
            shift = own_shift if spec.shift is None else spec.shift
            entries |= {"shift": shift, "flow_shift": shift}
        if spec.spacing:
            entries["timestep_spacing"] = spec.spacing
        if spec.karras:
            entries |= {**OTHER_SIGMAS, "use_karras_sigmas": True}
        known = entries_of(sampler.scheduler_class)
        made = sampler.scheduler_class(**{name: value for name, value in entries.items() if name in known})
        # Pipelines read entries of the model's own scheduler, such as how the shift depends on the size.
        made.register_to_config(**{name: value for name, value in entries.items() if name not in known})
        return prepared(made)


def check_consistent(scheduler: Any) -> None:
    """Raise `LoadError` for a scheduler whose entries contradict each other."""
    name, config = type(scheduler).__name__, scheduler.config
    if config.get("rescale_betas_zero_snr") and config.get("prediction_type") == "epsilon":
        raise LoadError(
            f"its {name} has rescale_betas_zero_snr with prediction_type 'epsilon': the first timestep is"
            " pure noise, from which predicted noise gives no image (a division by zero), so one of the two"
            " entries is wrong"
        )


def shift_of(config: Mapping[str, Any], image_seq_len: int | None) -> float:
    """`mu` for an image with this many patches, as `calculate_shift` in diffusers' pipelines."""
    first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    slope = (config.get("max_shift", 1.15) - config.get("base_shift", 0.5)) / (last - first)
    intercept = config.get("base_shift", 0.5) - slope * first
    mu: float = (first if image_seq_len is None else image_seq_len) * slope + intercept
    return mu


@contextmanager
def refusing(complaint: str) -> Iterator[None]:
    """Raise errors of diffusers' schedulers as `RequestInvalid`; `complaint` begins with the field."""
    try:
        yield
    except RequestInvalid:
        raise
    except DETERMINISTIC as error:
        said = " ".join(str(error).split())
        raise RequestInvalid(f"{complaint} ({said})") from error


@contextmanager
def offering(name: str, own: Any) -> Iterator[None]:
    """Turn the refusal of a scheduler that is offered as `name` into a `LoadError` that says what to do."""
    try:
        yield
    except RequestInvalid as error:
        raise LoadError(
            f"schedulers: {name!r} cannot be offered ({error}; its own is a {type(own).__name__}):"
            " remove it from the list, or lower max_num_inference_steps if that is the cause"
        ) from error


@torch.inference_mode()
def steps_are_finite(scheduler: Any, eta: float = 0.0) -> bool:
    """Step a scheduler through all its timesteps on a small tensor; returns whether the result is finite."""
    generator = torch.Generator("cpu").manual_seed(0)
    optional = {"generator": generator, "eta": eta}
    parameters = inspect.signature(scheduler.step).parameters
    more = {name: value for name, value in optional.items() if name in parameters}
    is_learned = (scheduler.config.get("variance_type") or "").startswith("learned")
    latents = torch.randn(1, 4, 2, 2, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    for timestep in scheduler.timesteps:
        scale = getattr(scheduler, "scale_model_input", lambda sample, _: sample)
        output = torch.sin(scale(latents, timestep))
        output = torch.cat([output, output], dim=1) if is_learned else output
        latents = scheduler.step(output, timestep, latents, **more).prev_sample
    return bool(torch.isfinite(latents).all())


def set_whole(scheduler: Any, num_inference_steps: int) -> None:
    """Set timesteps that are indices of `alphas_cumprod`; raises `ValueError` if one is out of range.

    diffusers adds `steps_offset` to them and does not check the range.
    """
    scheduler.set_timesteps(num_inference_steps)
    first, last = int(scheduler.timesteps.max()), scheduler.config.num_train_timesteps - 1
    if first > last:
        raise ValueError(
            f"its first timestep would be {first}, but the model's last is {last}:"
            f" spacing {scheduler.config.timestep_spacing!r}, steps_offset {scheduler.config.steps_offset}"
        )


def _looks_up(scheduler: Any) -> bool:
    """Whether its timesteps are indices of `alphas_cumprod`; other classes interpolate sigmas."""
    return hasattr(scheduler, "alphas_cumprod") and not hasattr(scheduler, "sigmas")


def prepared(scheduler: Any) -> Any:
    """Prepare a scheduler for one pipeline call; returns the same object.

    `handed` records which arguments its `set_timesteps` gets. Steps draw noise from `noise_generator` if the
    pipeline passes them no generator; if that is None too, from torch's global one. If the first two
    timesteps are equal, the begin index is set: diffusers would look the first one up and find the second,
    and many Karras sigmas, rounded to integer timesteps, would end in an IndexError at the last step.
    Solvers get `scale_noise`, which flow-matching pipelines call to start from an image.
    """
    set_timesteps, step = scheduler.set_timesteps, scheduler.step
    has_noise = "generator" in inspect.signature(step).parameters
    scheduler.handed, scheduler.noise_generator = frozenset(), None

    # Wrapped methods, not a subclass: BriaPipeline compares the scheduler's class with diffusers'.
    @wraps(set_timesteps)  # pipelines inspect its signature
    def noting(*args: Any, **kwargs: Any) -> None:
        scheduler.handed = frozenset(name for name in HANDED if kwargs.get(name) is not None)
        set_timesteps(*args, **kwargs)
        timesteps = scheduler.timesteps
        if hasattr(scheduler, "set_begin_index") and len(timesteps) > 1 and timesteps[0] == timesteps[1]:
            scheduler.set_begin_index(0)

    @wraps(step)
    def drawing(*args: Any, **kwargs: Any) -> Any:
        if has_noise and kwargs.get("generator") is None:
            kwargs["generator"] = scheduler.noise_generator
        stepped = step(*args, **kwargs)
        # With a single step, `PixArtAlphaPipeline` reads the second output, the denoised sample. Solvers do
        # not return it, but after a single step it equals their first output.
        is_lone = isinstance(stepped, tuple) and len(stepped) == len(scheduler.timesteps) == 1
        return stepped * 2 if is_lone else stepped

    scheduler.set_timesteps, scheduler.step = noting, drawing
    if hasattr(scheduler, "add_noise") and not hasattr(scheduler, "scale_noise"):
        scheduler.scale_noise = partial(_scale_noise, scheduler)
    return scheduler


def _scale_noise(
    scheduler: Any, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """`scale_noise` of flow-matching schedulers; `add_noise` of a solver computes the same sum."""
    noisy: torch.Tensor = scheduler.add_noise(sample, noise, timestep)
    return noisy
