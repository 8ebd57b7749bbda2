"""Resumes suspended calls always from one place of the C stack, so that a backtrace can be taken inside them.

A greenlet keeps the part of the C stack that is its own; what lies above is the caller's. Torch takes a
backtrace for every error that it raises, also for one that is caught at once. Where the caller is not where
it was when the greenlet began, the backtrace runs into bytes that are no frames, and the process dies of a
segmentation fault. So a base, whose frames never change, does all switching; what drives the calls is a
greenlet beside them, and asks it. This module knows greenlets alone.
"""

import contextvars
import functools
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import greenlet

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")
_thread = threading.local()


def on_steady_stack(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """Let `function` begin and resume calls from a base of its own, or from the one that it is called on.

    A call must be resumed on the base where it began.
    """

    @functools.wraps(function)
    def on_base(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        if _drives():
            return function(*args, **kwargs)
        outer = getattr(_thread, "driver", None)
        _thread.driver = greenlet.greenlet(functools.partial(function, *args, **kwargs))
        _thread.driver.gr_context = contextvars.copy_context()
        try:
            returned: Returned = _serve(_thread.driver)
            return returned
        finally:
            _thread.driver = outer

    return on_base


def switch(call: greenlet.greenlet, value: Any) -> None:
    """Let `call` go on with `value` until it gives way or ends; from the base, if there is one."""
    if _drives():
        call.parent = greenlet.getcurrent().parent
        call.parent.switch((call, value))
    else:
        call.parent = greenlet.getcurrent()
        call.switch(value)


def _drives() -> bool:
    return getattr(_thread, "driver", None) is greenlet.getcurrent()


def _serve(driver: greenlet.greenlet) -> Any:
    """Run `driver` to its end, and each call that it names; returns what `driver` returns."""
    target: greenlet.greenlet = driver
    values: tuple[Any, ...] = ()
    while True:
        answer = target.switch(*values)  # the one place that switches
        if driver.dead:
            return answer
        target, values = (answer[0], answer[1:]) if target is driver else (driver, (answer,))
