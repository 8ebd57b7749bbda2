"""Settings that make a model faster or smaller, on this device: image and promise stay the model's."""

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.loading.optimization import Optimization
from tests.gpu.drawing import SHIPPED, Engines, asked, differences, drawn
from tests.gpu.test_promise import MAX_DIFFERENCE

pytestmark = pytest.mark.filterwarnings("ignore")
needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed"
)
MEANS = {"int8": 1.0, "fp8": 12.0}
"""Of 255: how far 8-bit weights may move the image of the shipped model on average, as on a CPU."""


def check(engines: Engines, mean: float, note: Callable[[str], None], **changes: Any) -> Any:
    """Load the shipped model so; its images are the plain ones within `mean`, and company does not show."""
    engine = engines.load(SHIPPED, optimization=Optimization(**changes))
    requests = [asked(number) for number in (0, 1, 2, 3, 1)]
    alone = [drawn(engine, [request])[0] for request in requests]
    in_company, _ = differences(drawn(engine, requests), alone)
    _, moved = differences(alone, [drawn(engines.get(SHIPPED), [one])[0] for one in requests])
    note(f"determinism {engine.determinism!r}; in company {in_company}/255, from plain {moved:.3f}/255")
    assert in_company <= MAX_DIFFERENCE[engine.determinism]
    assert moved <= mean
    strict = asked(1, strict=True)
    solo = drawn(engine, [strict])[0]
    assert drawn(engine, [*requests[:3], strict])[-1].tobytes() == solo.tobytes()
    return engine


def num_compiled() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_compiled_models_keep_the_promise_and_compile_nothing_after_they_are_loaded(
    engines: Engines, note: Callable[[str], None]
) -> None:
    before = num_compiled()
    engine = engines.load("stable_diffusion", rows=4, optimization=Optimization(compile=True))
    at_start = num_compiled()
    assert at_start > before
    sizes: list[dict[str, Any]] = [{}, {"width": 40}, {"guidance_scale": 1.0}]
    requests = [asked(number, **sizes[number % 3]) for number in range(6)]
    alone = [drawn(engine, [request])[0] for request in requests]
    worst, _ = differences(drawn(engine, requests), alone)
    note(f"{at_start - before} graphs; determinism {engine.determinism!r}; in company {worst}/255")
    assert worst <= MAX_DIFFERENCE[engine.determinism]
    assert num_compiled() == at_start


def test_channels_last_keeps_the_image_and_the_promise(engines: Engines, note: Callable[[str], None]) -> None:
    check(engines, 0.2, note, channels_last=True)


@needs_torchao
@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_quantized_weights_keep_the_image_and_the_promise(
    engines: Engines, quantization: Any, note: Callable[[str], None]
) -> None:
    check(engines, MEANS[quantization], note, quantization=quantization)


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_an_offloaded_model_draws_the_same_and_leaves_the_device(
    engines: Engines, gpu: str, offload: Any, note: Callable[[str], None]
) -> None:
    engine = check(engines, 0.2, note, cpu_offload=offload)
    parts = engine._models.by_name["m"].modules.values()
    resident = [part for part in parts if any(one.device.type == "cuda" for one in part.parameters())]
    assert len(resident) <= (1 if offload == "model" else 0), gpu
