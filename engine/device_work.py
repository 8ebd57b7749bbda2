"""Runs one piece of work on the device and returns its failure as a value, so that the engine can continue.

Owns the cleanup between a failure and the next try: it drops the exception and its traceback, which hold
tensors, before memory is freed. It does not know which generation the work is for.
"""

import logging
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from engine.errors import (
    DeviceLost,
    EngineError,
    GenerationFailed,
    GenerationImpossible,
    OutOfMemory,
    places_of,
)

logger = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


class DeviceWork:
    """Calls `free` to release cached memory if memory ran out, and `after_each` after every piece of work."""

    def __init__(self, *, free: Callable[[], None], after_each: Callable[[], None]) -> None:
        self._free = free
        self._after_each = after_each

    def __call__(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | EngineError:
        """Return what `work` returns, or its failure. Only `DeviceLost` is raised: no work can follow it."""
        try:
            return work(*args, **kwargs)
        except Exception as error:
            failure = translate(error)
            # Without the message: it may quote a prompt, and so may our own message for an invalid prompt.
            where = "" if isinstance(error, EngineError) else f"\n{places_of(error)}"
            logger.warning("%s: %s%s", failure.code, type(error).__name__, where)
        finally:
            self._after_each()
        failure.__traceback__ = failure.__context__ = None
        if isinstance(failure, DeviceLost):
            raise failure
        if isinstance(failure, OutOfMemory):
            self._free()
        return failure

    def twice(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | EngineError:
        """Like `__call__`, but runs `work` once more if memory ran out, after cached memory was released."""
        outcome = self(work, *args, **kwargs)
        return self(work, *args, **kwargs) if isinstance(outcome, OutOfMemory) else outcome


def unless_out_of_memory(work: Callable[[], T], device: torch.device) -> T | OutOfMemory:
    """Return what `work` returns, or `OutOfMemory`, after its tensors and torch's cache have been freed.

    Any other exception is raised unchanged.
    """
    try:
        return work()
    except Exception as error:
        failure = translate(error)
        if not isinstance(failure, OutOfMemory):
            raise
    failure.__traceback__ = failure.__context__ = None
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return failure


IMPOSSIBLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)
"""Errors that Python code raises about its arguments: the same request would raise them again."""
ABOUT_ARGUMENTS = re.compile(
    r"(?i)\b(?:sizes? of tensor|shapes?|dimensions?|dtype|out of (?:range|bounds)|must match|expected"
    r"|not implemented)"
)
"""Words in a `RuntimeError` of torch that is about the arguments and not about the device."""
ABOUT_DEVICE = re.compile(r"(?i)CUDA|cudnn|cublas|STATUS_|HIP |miopen|triton|nccl|memory|driver|kernel")


def translate(error: Exception) -> EngineError:
    """Translate an exception from torch or a model into an `EngineError`.

    This is the only place that reads messages of exceptions.
    """
    message = str(error)
    if isinstance(error, EngineError):
        return error
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in message:
        return OutOfMemory()
    if "STATUS_ALLOC_FAILED" in message:  # cuBLAS, cuDNN and cuSPARSE allocate their own memory
        return OutOfMemory()
    if isinstance(error, torch.AcceleratorError) or "CUDA error" in message:
        return OutOfMemory() if "out of memory" in message else DeviceLost(message.partition("\n")[0])
    is_final = isinstance(error, IMPOSSIBLE) or (
        isinstance(error, RuntimeError)
        and ABOUT_ARGUMENTS.search(message)
        and not ABOUT_DEVICE.search(message)
    )
    failed = GenerationImpossible if is_final else GenerationFailed
    return failed(f"{type(error).__name__}: {message.partition(chr(10))[0]}")
