"""One real image when a model is loaded: a model that can draw none does not start.

The self-test compares bits and takes two images that are not numbers for equal; this looks at an image as a
request gets it, through the engine, and says which component is at fault. It keeps nothing.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from engine.engine import Engine
from engine.errors import (
    EngineError,
    GenerationFailed,
    GenerationImpossible,
    LoadError,
    NumericError,
    OutOfMemory,
)
from engine.families.family import Conditions, Encoding, Family
from engine.request import GenerationRequest, SchedulerSpec
from engine.runner import translate

NUM_STEPS = 2
GUIDANCE_SCALE = 4.0
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
DENOISERS = ("unet", "transformer")
DECODERS = ("vae",)
REMEDY = "the components do not fit together, take those that were published together"


def check_first_image(
    family: Family,
    row_limits: Mapping[int, int],
    components: Mapping[str, Any],
    *,
    scheduler: SchedulerSpec,
    size: tuple[int, int],
    default_steps: int = NUM_STEPS,
) -> None:
    """Raise `LoadError` unless an image of the model, at `(width, height)`, comes out finite.

    A few steps are enough for most; an image that is no number after these is drawn again with as many as a
    request has by default, since few steps leave latents that an autoencoder was not made for.
    """
    _check_channels(components)
    named = _Named(family, components)
    for num_steps in sorted({min(NUM_STEPS, default_steps), default_steps}):
        error = _error_of(named, row_limits, scheduler, size, num_steps)
        if not isinstance(error, NumericError):
            break
    if isinstance(error, NumericError):
        raise LoadError(_no_number(named)) from error
    if isinstance(error, OutOfMemory | LoadError):
        raise error
    if error is not None:
        is_told = isinstance(error, _Misfit) or not isinstance(error, GenerationFailed | GenerationImpossible)
        why = str(error) if is_told or not named.names else _misfit(named, str(error))
        raise LoadError(f"it draws no image: {why}") from error


def _check_channels(components: Mapping[str, Any]) -> None:
    """Raise `LoadError` where a UNet takes or gives other channels than the autoencoder's latents have."""
    unet, vae = components.get("unet"), components.get("vae")
    expected = getattr(getattr(vae, "config", None), "latent_channels", None)
    if unet is None or expected is None:
        return
    for entry in ("in_channels", "out_channels"):
        there = getattr(unet.config, entry, expected)
        if there != expected:
            raise LoadError(
                f"its unet ({type(unet).__name__}) has {there} {entry}"
                f" and its vae ({type(vae).__name__}) {expected} channels: {REMEDY}"
            )


def _misfit(named: "_Named", said: str) -> str:
    return f"its {named} fails ({said}): {REMEDY}"


class _Misfit(GenerationFailed):
    """A failure whose message names the component."""


def _error_of(
    named: "_Named",
    row_limits: Mapping[int, int],
    scheduler: SchedulerSpec,
    size: tuple[int, int],
    num_steps: int,
) -> BaseException | None:
    # Its clock stands still: nothing here is late.
    engine = Engine({"first": named}, {"first": row_limits}, clock=lambda: 0.0)
    request = GenerationRequest(
        "first", "a first image", *size, num_steps, GUIDANCE_SCALE, seed=1, scheduler=scheduler
    )
    try:
        handle = engine.submit(request)
        while not engine.is_idle:
            engine.tick()
        return handle.future.exception(timeout=0)
    except EngineError as error:
        return error
    finally:
        engine.stop()


def _no_number(named: "_Named") -> str:
    dtype = next((str(one.dtype).removeprefix("torch.") for one in named.asked_last()), "float32")
    remedy = "its weights are damaged, or those of another model"
    if dtype != "float32":
        remedy = "set dtype = 'float32', or 'bfloat16' where the device has that"
        if named.names == DECODERS:
            remedy += ", or have the configuration of the vae say force_upcast"
    return f"it draws no image: what its {named} computes in {dtype} is not finite; {remedy}"


class _Named:
    """A family that knows which of its components was asked last, by name, and says so in their errors."""

    def __init__(self, family: Family, components: Mapping[str, Any]) -> None:
        self.names: tuple[str, ...] = ()
        self._family = family
        self._components = components

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def __str__(self) -> str:
        there = [name for name in self.names if self._components.get(name) is not None]
        return " or ".join(f"{name} ({type(self._components[name]).__name__})" for name in there)

    def asked_last(self) -> list[Any]:
        """The components that `names` stands for, as far as there are such."""
        found = (self._components.get(name) for name in self.names)
        return [one for one in found if one is not None]

    def encode(self, text: str, *, is_negative: bool = False) -> Encoding:
        """`Family`'s."""
        with self._asking(TEXT_ENCODERS):
            return self._family.encode(text, is_negative=is_negative)

    def predict(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """`Family`'s."""
        with self._asking(DENOISERS):
            return self._family.predict(latents, timesteps, conditions)

    def decode(self, latents: Tensor) -> Tensor:
        """`Family`'s."""
        with self._asking(DECODERS):
            return self._family.decode(latents)

    @contextmanager
    def _asking(self, names: tuple[str, ...]) -> Iterator[None]:
        self.names = names
        try:
            yield
        except (EngineError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if isinstance(translate(error), OutOfMemory):
                raise
            said = " ".join(str(error).split())
            raise _Misfit(_misfit(self, f"{type(error).__name__}: {said}")) from error


def square(family: Any, max_pixels: int) -> tuple[int, int]:
    """The largest square of a class of pixels that the family, or the pipeline, can draw."""
    multiple = family.pixels_per_latent * family.latents_per_patch
    side = max(multiple, math.isqrt(max_pixels) // multiple * multiple)
    return side, side
