"""The steady stack: errors inside suspended calls, and what passes through the base."""

import contextvars
import subprocess
import sys

import greenlet
import pytest

from engine.pipelines.steady_stack import on_steady_stack, switch
from settings import ROOT

ERRORS_AT_MANY_DEPTHS = """
import functools, greenlet, torch
from engine.pipelines.steady_stack import on_steady_stack, switch

def call(_):
    while True:
        try:
            torch.zeros(2) * "x"  # torch raises, takes a backtrace, and Python catches
        except TypeError:
            pass
        greenlet.getcurrent().parent.switch()

@on_steady_stack
def drive():
    suspended = greenlet.greenlet(call)
    def resume(*_):
        switch(suspended, None)
    list(map(lambda _: sorted([1], key=lambda _: switch(suspended, None)), [1]))  # it begins deep down
    resume()
    functools.partial(resume, 1)()
    list(map(resume, [1]))
    resume(*[1, 2])

drive()
"""


def test_torch_may_raise_in_a_call_that_is_resumed_at_another_depth_of_the_stack() -> None:
    done = subprocess.run([sys.executable, "-c", ERRORS_AT_MANY_DEPTHS], cwd=ROOT, check=False, timeout=120)
    assert done.returncode == 0


def test_a_call_gets_each_value_and_gives_way_at_each_switch() -> None:
    got = []

    def call(value: int) -> None:
        while value:
            got.append(value)
            value = greenlet.getcurrent().parent.switch()

    @on_steady_stack
    def drive() -> int:
        suspended = greenlet.greenlet(call)
        for value in (1, 2, 3, 0):
            switch(suspended, value)
            got.append(-value)
        assert suspended.dead
        return len(got)

    assert drive() == 7
    assert got == [1, -1, 2, -2, 3, -3, 0]


def test_what_the_driver_raises_reaches_its_caller_and_the_next_one_begins_anew() -> None:
    @on_steady_stack
    def fail() -> None:
        raise KeyError("model")

    for _ in range(2):
        with pytest.raises(KeyError, match="model"):
            fail()


def test_a_function_on_a_base_calls_another_on_the_same() -> None:
    @on_steady_stack
    def inner() -> greenlet.greenlet:
        return greenlet.getcurrent()

    @on_steady_stack
    def outer() -> bool:
        return inner() is greenlet.getcurrent()

    assert outer()


def test_the_driver_sees_the_context_variables_of_its_caller() -> None:
    job = contextvars.ContextVar("job", default="none")
    job.set("of the caller")
    assert on_steady_stack(job.get)() == "of the caller"
