"""One piece of work on the device: its outcome, or its failure as a value, so that others can go on.

Owns what must happen between a failure and the next try: the exception and its traceback, which hold
tensors, are let go before memory is freed. It does not know whose work it is.
"""

import logging
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from engine.errors import DeviceLost, EngineError, GenerationFailed, GenerationImpossible, OutOfMemory
from engine.traceback_places import places_of

logger = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


class Attempt:
    """`free` gives cached memory back; `after_each` is told whenever a piece of work came to an end."""

    def __init__(self, *, free: Callable[[], None], after_each: Callable[[], None]) -> None:
        self._free = free
        self._after_each = after_each

    def __call__(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | EngineError:
        """Do `work`; its failure is returned. Only `DeviceLost` is raised: nobody can go on after that."""
        try:
            return work(*args, **kwargs)
        except Exception as error:
            failure = translate(error)
            # No message: a library's may quote a prompt, and so may ours of a prompt that is invalid.
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
        """The same, and once more if memory ran out: what was cached has been given back by then."""
        outcome = self(work, *args, **kwargs)
        return self(work, *args, **kwargs) if isinstance(outcome, OutOfMemory) else outcome


def unless_out_of_memory(work: Callable[[], T], device: torch.device) -> T | OutOfMemory:
    """What `work` gives, or that it did not fit: by then its tensors are gone and the cache is freed.

    Whatever else fails is raised as it is.
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
"""Errors of Python code about what it was given: the same request would raise them again."""
ABOUT_ARGUMENTS = re.compile(
    r"(?i)\b(?:sizes? of tensor|shapes?|dimensions?|dtype|out of (?:range|bounds)|must match|expected"
    r"|not implemented)"
)
"""What a `RuntimeError` of torch says when it is about its arguments and not about the device."""
ABOUT_DEVICE = re.compile(r"(?i)CUDA|cudnn|cublas|STATUS_|HIP |miopen|triton|nccl|memory|driver|kernel")


def translate(error: Exception) -> EngineError:
    """The engine's word for an exception out of torch or a model; the only place that reads messages."""
    message = str(error)
    if isinstance(error, EngineError):
        return error
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in message:
        return OutOfMemory()
    if "STATUS_ALLOC_FAILED" in message:  # cuBLAS, cuDNN and cuSPARSE ask for memory of their own
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
