"""Runs `pipeline.__call__` of diffusers in a greenlet that is suspended ("parked") at every forward pass.

Owns the call's copy of the pipeline, in which stand-ins replace the modules that all calls share. It does not
know which calls share a forward pass, nor how a request becomes arguments.
"""

import copy
import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import greenlet
import torch
from diffusers import DiffusionPipeline
from diffusers.configuration_utils import ConfigMixin
from torch.nn import Module

from engine.adapters.adapter import Applied
from engine.errors import places_of
from engine.pipelines.components import is_denoiser
from engine.pipelines.encoded_prompts import METHOD, OwnMethod
from engine.pipelines.parked_call import ParkedCall, SharedTensors, doubled
from engine.pipelines.steady_stack import switch

logger = logging.getLogger(__name__)
PARKED_METHODS = ("encode", "decode")
"""Methods of autoencoders that are forward passes too, so that a call parks at them."""
FORMER_PART = "text_model"
"""An attribute of CLIP's text encoder that transformers 5 removed: the encoder itself takes its place.
Pipelines still read it if `clip_skip` is given."""

DEVICE, ORIGINAL = "_execution_device", "_copied_from"
"""A property of diffusers' pipelines, and where a call's copy keeps the pipeline whose device it tells."""

Pad = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
"""Returns the arguments of the named module with their texts padded."""


class PipelineCall:
    """A call of `pipeline` with its own state; `go_on` starts it and runs it to its next forward pass.

    The call shares weights with the pipeline and nothing else: what it sets on the pipeline, its scheduler or
    its guider stays in the call. `scheduler` replaces the copy of the pipeline's scheduler, and the result of
    `own_method` replaces `encode_prompt`. `pad` changes the arguments of each forward pass.
    `has_float_numbers` and, for denoisers, `has_one_layout` are passed to `ParkedCall`. `guided_share` is the
    share of steps with guidance. `adapters` apply to its rows in every module; the exchange applies them.
    """

    def __init__(
        self,
        pipeline: Any,
        arguments: Mapping[str, Any],
        scheduler: Any = None,
        *,
        own_method: OwnMethod | None = None,
        pad: Pad | None = None,
        has_float_numbers: bool = False,
        has_one_layout: bool = False,
        guided_share: float = 1.0,
        adapters: Applied = (),
        on_end: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self.adapters = adapters
        self.parked: ParkedCall | None = None
        self.result: Any = None
        self.error: Exception | None = None
        self.num_steps_done = 0
        self._arguments = arguments
        self._own_method = own_method
        self._pad = pad
        self._has_float_numbers = has_float_numbers
        self._has_one_layout = has_one_layout
        self._guided_share = guided_share
        self._on_end = on_end
        self._copies: list[Any] = []  # of the pipeline and of the stateful objects in it
        self._shared_tensors = SharedTensors()
        self._global_generators = _global_generators()
        self._noise = _first_noise(self._global_generators, arguments.get("generator"))
        self._pipeline = self._own(pipeline, scheduler)
        self._greenlet = greenlet.greenlet(self._run)

    @property
    def num_steps(self) -> int | None:
        """The number of denoising steps; None until the call has set up its scheduler."""
        own = vars(self._pipeline)
        scheduler = own.get("scheduler")
        if own.get("_num_timesteps") is not None:  # fewer than the scheduler's if it starts from an image
            return int(own["_num_timesteps"])
        if getattr(scheduler, "num_inference_steps", None) is None:
            return None
        return len(scheduler.timesteps)

    def go_on(self, output: Any = None) -> None:
        """Resume the call with the output of its forward pass; returns when it parks again or has ended."""
        self.parked = None
        with self._own_noise():
            switch(self._greenlet, output)
        if self._greenlet.dead:
            self._release()

    def park(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Suspend the call until the forward pass of the module `name` is done; returns the output."""
        if self._pad is not None:
            arguments = self._pad(name, arguments)
        denoises = is_denoiser(name)
        parked = ParkedCall(
            name,
            arguments,
            self._shared_tensors,
            has_float_numbers=self._has_float_numbers,
            has_one_layout=self._has_one_layout and denoises,
        )
        is_cut = parked.num_rows == 2 and denoises and self._is_past_guidance()
        self.parked = parked.last_row(self._shared_tensors) if is_cut else parked
        output = self._greenlet.parent.switch()
        if output is Ended:
            raise Ended
        return doubled(output, is_listed="list" in parked.kinds) if is_cut else output

    def _is_past_guidance(self) -> bool:
        """Whether the next step is unguided: only its last row, with the prompt, runs, and is used for both.

        The guided sum `u + scale * (c - u)` is then `c` bit for bit, as without guidance.
        """
        if self._guided_share >= 1:
            return False
        return self.num_steps_done >= self._guided_share * (self.num_steps or 0)

    def is_running(self) -> bool:
        """Whether the current code runs inside this call."""
        return greenlet.getcurrent() is self._greenlet

    def end(self) -> None:
        """End a parked call; its tensors are freed before this returns."""
        if not self._greenlet.dead:
            switch(self._greenlet, Ended)
        self._release()

    @contextmanager
    def _own_noise(self) -> Iterator[None]:
        """Give this call its own state of torch's global generators: some pipelines draw from them."""
        outside = _states(self._global_generators)
        _set_states(self._global_generators, self._noise)
        try:
            yield
        finally:
            self._noise = _states(self._global_generators)
            _set_states(self._global_generators, outside)

    def _run(self, _: Any) -> None:
        try:
            self.result = self._pipeline(**self._arguments)
        except Ended:
            pass
        except Exception as error:  # the pipeline's code may raise anything; the runner reports it
            self.error = error

    def _release(self) -> None:
        # Pipeline, stand-ins, scheduler and call form reference cycles, and an error refers to its frames.
        # Without this, their memory is freed only by a garbage collection.
        self.parked = None
        for own in self._copies:
            vars(own).clear()
        if self.error is not None:
            # Without the message, which may quote a prompt.
            logger.warning("a pipeline call failed: %s\n%s", type(self.error).__name__, places_of(self.error))
            self.error = self.error.with_traceback(None)
            self.error.__context__ = self.error.__cause__ = None
        self._arguments = {}
        self.adapters = ()
        self._pad = None  # it holds padded tensors
        self._shared_tensors = SharedTensors()
        self._on_end(self.result is not None)

    def _own(self, pipeline: Any, scheduler: Any) -> Any:
        parts: dict[int, Any] = {
            id(value): StandIn(value, name, self)
            for name, value in vars(pipeline).items()
            if isinstance(value, Module)
        }
        if scheduler is not None:
            parts[id(pipeline.scheduler)] = scheduler
            self._copies.append(scheduler)
        own = self._copied(pipeline, parts, "")
        own_scheduler = vars(own).get("scheduler")
        if own_scheduler is not None:  # compared with None, since a scheduler that has a length may be falsy
            own_scheduler.num_inference_steps = None
            self._count_steps(own_scheduler)
        return own

    def _copied(self, pipeline: Any, parts: dict[int, Any], place: str) -> Any:
        """A shallow copy of a pipeline in which `parts`, by id of the original, replace its components.

        A combined pipeline holds the same components again in nested pipelines; `place` is the path to one.
        """
        own = copy.copy(pipeline)
        if hasattr(type(pipeline), DEVICE):
            own.__class__ = _located(type(pipeline))  # type: ignore[arg-type]  # a class is hashable
            vars(own)[ORIGINAL] = pipeline
        self._copies.append(own)
        for name, value in vars(pipeline).items():
            if id(value) in parts:
                vars(own)[name] = parts[id(value)]
            elif isinstance(value, DiffusionPipeline):
                vars(own)[name] = self._copied(value, parts, f"{place}.{name}")
            elif isinstance(value, ConfigMixin):  # stateful: schedulers, guiders, image processors
                vars(own)[name] = parts[id(value)] = copy.deepcopy(value)
                self._copies.append(vars(own)[name])
        vars(own).pop("_num_timesteps", None)  # left by an earlier call of the pipeline
        own.set_progress_bar_config(disable=True)
        if self._own_method is not None and callable(getattr(own, METHOD, None)):
            vars(own)[METHOD] = self._own_method(own, place)
        return own

    def _count_steps(self, scheduler: Any) -> None:
        step = scheduler.step

        @functools.wraps(step)  # pipelines inspect the signature of `step`
        def counted(*args: Any, **kwargs: Any) -> Any:
            stepped = step(*args, **kwargs)
            self.num_steps_done += 1
            return stepped

        scheduler.step = counted


@functools.cache
def _located(kind: Any) -> Any:
    """The pipeline's class with a device that is known.

    diffusers' property looks for hooks in every module of every component, which takes milliseconds.
    """
    known = property(lambda pipeline: _device_of(vars(pipeline)[ORIGINAL]))
    return type(kind.__name__, (kind,), {DEVICE: known, "__module__": kind.__module__})


_devices: "WeakKeyDictionary[Any, Any]" = WeakKeyDictionary()


def _device_of(pipeline: Any) -> Any:
    """Where the pipeline runs; read once, since a loaded pipeline does not move."""
    if pipeline not in _devices:
        _devices[pipeline] = getattr(pipeline, DEVICE)
    return _devices[pipeline]


def _global_generators() -> list[torch.Generator]:
    """torch's global generators that pipelines can draw from: those of the CPU and of a GPU in use."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return [torch.default_generator]
    return [torch.default_generator, torch.cuda.default_generators[torch.cuda.current_device()]]


def _first_noise(global_generators: Sequence[torch.Generator], generator: Any) -> list[torch.Tensor]:
    """The states of torch's global generators when seeded like the request's generator."""
    first = generator[0] if isinstance(generator, list) and generator else generator
    if not isinstance(first, torch.Generator):
        return _states(global_generators)
    seed = first.initial_seed()
    return [torch.Generator(one.device).manual_seed(seed).get_state() for one in global_generators]


def _states(generators: Sequence[torch.Generator]) -> list[torch.Tensor]:
    return [one.get_state() for one in generators]


def _set_states(generators: Sequence[torch.Generator], states: Sequence[torch.Tensor]) -> None:
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


class Ended(BaseException):
    """Ends a parked call. It is not an `Exception`, since a pipeline might catch that."""


class StandIn:
    """Replaces a module in a call's copy of the pipeline: calling it parks the call.

    Every other attribute comes from the module: its configuration, dtype, hooks and class.
    """

    def __init__(self, module: Module, name: str, call: PipelineCall) -> None:
        vars(self).update(_module=module, _name=name, _call=call)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Park the call; returns the output when the forward pass is done."""
        return self._parked(self._name, self._module, _plain(self._module).forward, args, kwargs)

    def _parked(
        self, name: str, run: Callable[..., Any], signed: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        names = _argument_names(signed)
        if not self._call.is_running() or len(args) > len(names):
            return run(*args, **kwargs)
        return self._call.park(name, dict(zip(names, args, strict=False)) | kwargs)

    def to(self, *_: Any, **__: Any) -> "StandIn":
        """Do nothing: other calls use the module, so no call may change its dtype or device.

        SDXL's calls with an input image would leave its VAE in the denoiser's dtype.
        """
        return self

    def __getattr__(self, name: str) -> Any:
        if name == FORMER_PART and not hasattr(self._module, name):
            return self._module
        value = getattr(self._module, name)
        if name not in PARKED_METHODS or not callable(value):
            return value

        def parked(*args: Any, **kwargs: Any) -> Any:
            return self._parked(f"{self._name}.{name}", value, value, args, kwargs)

        return parked

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._module, name, value)

    @property  # type: ignore[misc]  # read by `isinstance`; mypy expects an attribute
    def __class__(self) -> type:
        return type(self._module)


def _plain(module: Any) -> Any:
    """The module inside a wrapper of `torch.compile`, or the module itself."""
    return getattr(module, "_orig_mod", module)


_names_by_function: dict[Any, list[str]] = {}


def _argument_names(function: Any) -> list[str]:
    """The positional parameters of a bound method; each signature is read once."""
    key = getattr(function, "__func__", function)
    if key not in _names_by_function:
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(function).parameters.values()
        _names_by_function[key] = [one.name for one in parameters if one.kind in positional]
    return _names_by_function[key]
