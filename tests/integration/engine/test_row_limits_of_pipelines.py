"""Row limits that the memory of a device does not allow, for the family `diffusers`."""

from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.exchange import Exchange
from engine.pipeline_model import PipelineModel
from engine.pipeline_self_test import find_promise
from engine.request import SchedulerSpec
from engine.time_budget import TimeBudget
from tests.integration.engine.tiny_families import build


class SmallDevice(Exchange):
    """Has memory for `room` rows of the denoiser."""

    def __init__(self, pipeline: Any, room: int) -> None:
        super().__init__(pipeline)
        self._room = room

    def _forward(self, name: str, arguments: dict[str, Any]) -> Any:
        if name == "unet" and len(arguments["sample"]) > self._room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super()._forward(name, arguments)


@pytest.mark.parametrize("room", [4, 8])
def test_a_row_limit_that_does_not_fit_becomes_the_largest_that_does(tmp_path: Path, room: int) -> None:
    pipeline = build("stable_diffusion", tmp_path)
    model = PipelineModel(pipeline)
    model.exchange = SmallDevice(pipeline, room)
    found = find_promise(model, {64 * 64: 32}, SchedulerSpec("default"), TimeBudget(inf))
    assert found.row_limits == {64 * 64: room}
    assert found.promise == "exact"
