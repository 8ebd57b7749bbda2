"""One piece of work on the device: its outcome, or its failure as a value, so that others can go on.

Owns what must happen between a failure and the next try: the exception and its traceback, which hold
tensors, are let go before memory is freed. It does not know whose work it is.
"""

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from engine.errors import DeviceLost, EngineError, OutOfMemory
from engine.runner import translate
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
