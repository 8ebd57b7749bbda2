"""Always resumes suspended calls from the same place on the C stack, so that torch can take backtraces.

A greenlet saves its own part of the C stack; the frames above it belong to the caller. Torch takes a
backtrace for every error that it raises, even one that is caught at once. If the caller's frames are not
where they were when the greenlet began, the backtrace reads bytes that are not frames, and the process dies
with a segmentation fault. So one base function, whose frames never change, does all switching. The code that
drives the calls runs in a greenlet of its own and asks the base to switch. This module knows only greenlets.
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
    """Run `function` on a base, so that it can begin and resume calls; a nested use shares the outer base.

    A call must be resumed on the base on which it began.
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
    """Resume `call` with `value` until it suspends itself or ends; from the base, if there is one."""
    if _drives():
        call.parent = greenlet.getcurrent().parent
        call.parent.switch((call, value))
    else:
        call.parent = greenlet.getcurrent()
        call.switch(value)


def _drives() -> bool:
    return getattr(_thread, "driver", None) is greenlet.getcurrent()


def _serve(driver: greenlet.greenlet) -> Any:
    """Run `driver` to its end, and the calls that it asks for; returns what `driver` returns."""
    target: greenlet.greenlet = driver
    values: tuple[Any, ...] = ()
    while True:
        answer = target.switch(*values)  # the one place that switches
        if driver.dead:
            return answer
        target, values = (answer[0], answer[1:]) if target is driver else (driver, (answer,))
