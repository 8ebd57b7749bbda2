"""Offloading of whole models: one is on the device at a time, in any order in which an engine runs them.

The device is the CPU here, so nothing really moves: the tests check which model is resident.
"""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.exchange import Exchange
from engine.loading.optimization import DeviceSlot, offload_models
from engine.pipelines.components import is_denoiser
from tests.integration.engine.tiny_families import BUILDERS, build

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Model(torch.nn.Linear):
    """Records its moves, and can fail to fit on the device."""

    def __init__(self, name: str, moves: list[tuple[str, str]], *, fits: bool = True) -> None:
        super().__init__(1, 1)
        self.name, self.moves, self.fits = name, moves, fits

    def to(self, device: Any) -> "Model":  # type: ignore[override]
        self.moves.append((self.name, str(device)))
        if not self.fits and str(device) != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self


def test_model_that_runs_evicts_the_resident_model() -> None:
    moves: list[tuple[str, str]] = []
    text_encoder, denoiser, vae = (Model(name, moves) for name in ("text_encoder", "denoiser", "vae"))
    slot = DeviceSlot(torch.device("meta"))
    for model in (text_encoder, denoiser, denoiser, vae, denoiser, text_encoder, denoiser):
        slot.load(model)
        assert slot.resident is model
    there: set[str] = set()
    for name, where in moves:
        (there.discard if where == "cpu" else there.add)(name)
        assert len(there) <= 1, moves
    assert there == {"denoiser"}
    assert len(moves) == 6 + 5, "the resident model is not moved again"


def test_model_that_does_not_fit_is_moved_back_to_main_memory() -> None:
    moves: list[tuple[str, str]] = []
    slot = DeviceSlot(torch.device("meta"))
    slot.load(Model("denoiser", moves))
    with pytest.raises(torch.OutOfMemoryError):
        slot.load(Model("text_encoder", moves, fits=False))
    assert moves[-1] == ("text_encoder", "cpu")
    assert slot.resident is None


@pytest.mark.parametrize("kind", BUILDERS)
@torch.inference_mode()
def test_each_part_of_a_pipeline_takes_the_device_for_itself(kind: str, tmp_path: Path) -> None:
    """Encode, step and decode, with a request that joins between two steps: offloading changes no pixel."""
    images = []
    for is_offloaded in (False, True):
        pipeline = build(kind, tmp_path)
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        slot = offload_models(pipeline, torch.device("cpu")) if is_offloaded else None
        exchange, ran = Exchange(pipeline), []
        calls = [exchange.begin(**asked(pipeline, 0))]
        while any(call.parked is not None for call in calls):
            for call in [one for one in calls if one.parked is not None]:
                assert call.parked is not None
                ran.append(call.parked.name)
                exchange.run([call])
                component = getattr(pipeline, ran[-1].partition(".")[0])
                assert slot is None or slot.resident is component
            if len(calls) == 1 and is_denoiser(ran[-1]):
                calls.append(exchange.begin(**asked(pipeline, 1)))
        assert len({name.partition(".")[0] for name in ran}) >= 3, "an encoder, the denoiser, the VAE"
        images.append([call.result.images[0] for call in calls])
    assert all(np.array_equal(one, other) for one, other in zip(*images, strict=True))


def asked(pipeline: Any, number: int) -> dict[str, Any]:
    """Arguments of a small request; each number gives another prompt and seed."""
    given = {
        "prompt": f"a red heart {number}",
        "num_inference_steps": 2,
        "width": 64,
        "height": 64,
        "generator": torch.Generator("cpu").manual_seed(number),
        "output_type": "np",
        "use_resolution_binning": False,
    }
    takes = inspect.signature(pipeline.__call__).parameters
    return {name: value for name, value in given.items() if name in takes}
