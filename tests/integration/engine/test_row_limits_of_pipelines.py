"""Row limits that the memory of a device does not allow."""

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.exchange import Exchange, Forward
from engine.pipelines.parked_call import ParkedCall
from engine.pipelines.pipeline_model import PipelineModel
from engine.self_test.self_test import Offer, find_determinism
from engine.self_test.time_budget import TimeBudget
from tests.integration.engine.tiny_families import build


class SmallDevice(Exchange):
    """Has memory for `room` rows of the denoiser."""

    def __init__(self, pipeline: Any, room: int) -> None:
        super().__init__(pipeline)
        self._room = room

    def outputs(
        self, parked: Sequence[ParkedCall], num_rows: int | None = None, forward: Forward | None = None
    ) -> list[Any]:
        total = sum(one.num_rows for one in parked) if num_rows is None else num_rows
        if parked[0].name == "unet" and total > self._room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().outputs(parked, num_rows, forward)


@pytest.mark.parametrize("room", [4, 8])
def test_a_row_limit_that_does_not_fit_becomes_the_largest_that_does(tmp_path: Path, room: int) -> None:
    pipeline = build("stable_diffusion", tmp_path)
    model = PipelineModel(pipeline)
    model.exchange = SmallDevice(pipeline, room)
    found = find_determinism(model, {64 * 64: 32}, Offer(), TimeBudget(inf))
    assert found.row_limits == {64 * 64: room}
    assert found.determinism == "exact"
