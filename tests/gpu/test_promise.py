"""What is promised of images holds on this device: in company, for strict requests, and beside diffusers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from engine.exchange import Exchange
from engine.pipelines.components import is_denoiser
from engine.request import SchedulerSpec
from tests.gpu.drawing import OVERFLOWING, SHIPPED, Engines, asked, differences, drawn, scheduler_of, theirs

pytestmark = pytest.mark.filterwarnings("ignore")
KINDS = (SHIPPED, "stable_diffusion_xl", "flux", "sana")
each_kind = pytest.mark.parametrize("kind", KINDS)
MAX_DIFFERENCE = {"exact": 0, "exact within a bucket": 1, "within 1/255": 1}


@pytest.fixture(params=["float32", "bfloat16", "float16"])
def dtype(request: pytest.FixtureRequest, device: str) -> str:
    name: str = request.param
    if name == "float16" and not device.startswith("cuda"):
        pytest.skip("a CPU is not asked for float16")
    return name


@each_kind
def test_an_image_in_company_is_the_one_drawn_alone(
    engines: Engines, kind: str, dtype: str, note: Callable[[str], None]
) -> None:
    engine = engines.get(kind, dtype)
    requests = [asked(number, scheduler=scheduler_of(kind)) for number in (0, 1, 2, 3, 1)]
    alone = [drawn(engine, [request])[0] for request in requests]
    worst, _ = differences(drawn(engine, requests), alone)
    note(f"determinism {engine.determinism!r}; largest difference in company {worst}/255")
    assert worst <= MAX_DIFFERENCE[engine.determinism]


@each_kind
def test_a_strict_request_has_the_bytes_of_its_solo_run(engines: Engines, kind: str, dtype: str) -> None:
    engine = engines.get(kind, dtype)
    strict = asked(1, scheduler=scheduler_of(kind), strict=True)
    mates = [asked(number, scheduler=scheduler_of(kind)) for number in (0, 2, 3)]
    alone = drawn(engine, [strict])[0]
    assert drawn(engine, [*mates, strict])[-1].tobytes() == alone.tobytes()


@each_kind
def test_an_image_of_the_pipeline_is_the_one_that_diffusers_draws(
    engines: Engines, kind: str, dtype: str, note: Callable[[str], None]
) -> None:
    """In half precision the bound is what diffusers itself loses by it: its own distance from fp32."""
    requests = [asked(number, scheduler=SchedulerSpec("default")) for number in range(4)]
    ours = drawn(engines.get(kind, dtype), requests)
    pipeline = engines.untouched(kind, dtype)
    expected = [theirs(pipeline, request) for request in requests]
    worst, mean = differences(ours, expected)
    most, most_mean = 2, 0.2
    if dtype != "float32":
        precise = engines.untouched(kind)
        lost, lost_mean = differences(expected, [theirs(precise, request) for request in requests])
        most, most_mean = most + lost, most_mean + lost_mean
    note(f"largest {worst}/255 of {most} allowed, mean {mean:.3f}/255 of {most_mean:.3f}")
    assert worst <= most
    assert mean <= most_mean


def test_an_autoencoder_that_overflows_in_fp16_draws_finite_images(
    engines: Engines, note: Callable[[str], None]
) -> None:
    requests = [asked(number, scheduler=scheduler_of("stable_diffusion_xl")) for number in range(4)]
    images = drawn(engines.get(OVERFLOWING, "float16"), requests)
    _, mean = differences(images, drawn(engines.get(OVERFLOWING), requests))
    note(f"mean difference from fp32 {mean:.3f}/255")
    assert all(image.std() > 5 for image in images)
    assert mean < 20


@torch.inference_mode()
def test_what_a_call_draws_from_torch_on_this_device_follows_its_seed_alone(
    engines: Engines,
) -> None:
    """Some pipelines draw noise with no generator of their own, on the device."""
    pipeline = engines.untouched(SHIPPED)

    def arguments(number: int) -> dict[str, Any]:
        return {
            "prompt": "a red heart", "width": 64, "height": 64, "num_inference_steps": 4, "output_type": "np",
            "generator": torch.Generator("cpu").manual_seed(number), "callback_on_step_end": _add_noise,
        }  # fmt: skip

    alone = []
    for number in (1, 3):
        torch.manual_seed(number)
        alone.append(pipeline(**arguments(number)).images[0])
    exchange = Exchange(pipeline)
    calls = [exchange.begin(**arguments(number)) for number in (1, 3)]
    while any(call.parked is not None for call in calls):
        for call in calls:
            if call.parked is not None:
                exchange.run([call], 4 if is_denoiser(call.parked.name) else None)
    for call, image in zip(calls, alone, strict=True):
        assert call.error is None
        assert np.abs(call.result.images[0] - image).max() <= 1 / 255


def _add_noise(_: Any, __: int, ___: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {"latents": tensors["latents"] + 0.1 * torch.randn_like(tensors["latents"])}
