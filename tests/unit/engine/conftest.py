"""An engine with a fake model and a clock set by hand, and requests for it."""

from collections.abc import Callable
from typing import Any

import pytest

from engine.engine import Engine
from engine.request import GenerationRequest
from tests.unit.engine.fakes import FakeModel, SetClock


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def engine(model: FakeModel, clock: SetClock) -> Engine:
    """Not started; tests call `tick`."""
    return Engine({"fake": model}, {"fake": {64 * 64: 8, 128 * 128: 4}}, determinism="exact", clock=clock)


@pytest.fixture
def ask() -> Callable[..., GenerationRequest]:
    """Makes a complete request."""

    def ask(prompt: str = "fine", **changes: Any) -> GenerationRequest:
        plain = {"width": 64, "height": 64, "num_inference_steps": 4, "guidance_scale": 1.0, "seed": 1}
        return GenerationRequest(model="fake", prompt=prompt, **{**plain, **changes})

    return ask
