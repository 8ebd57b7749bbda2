"""diffusers' own pipelines draw with every scheduler that `Schedulers` lists for their model."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    EDMDPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
    StableDiffusion3Img2ImgPipeline,
)

from engine.pipelines.schedulers import Schedulers
from engine.request import scheduler_named
from tests.integration.engine.tiny_families import build

# diffusers' Euler scheduler calls numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DISTILLED = ("lcm", "tcd", "flow_match_lcm")
FLUX = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
SCHNELL = FlowMatchEulerDiscreteScheduler()


def evaluated(kind: str, folder: Path) -> Any:
    """The tiny pipeline, without dropout."""
    pipeline = build(kind, folder)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    return pipeline


def draw(pipeline: Any, scheduler: Any, steps: int = 4, **arguments: Any) -> np.ndarray:
    """The pixels of one image, 0 to 255, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    if "use_resolution_binning" in inspect.signature(pipeline.__call__).parameters:
        arguments["use_resolution_binning"] = False  # otherwise it draws 1024 pixels and scales them down
    pipeline.scheduler = scheduler
    try:
        return 255 * np.asarray(
            pipeline(
                "a red heart",
                num_inference_steps=steps,
                guidance_scale=2.0,
                generator=torch.Generator("cpu").manual_seed(3),
                output_type="np",
                **{"width": 64, "height": 64, **arguments},
            ).images[0]
        )
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("kind", "own", "handed"),
    [
        ("stable_diffusion", EulerDiscreteScheduler(**BETAS, prediction_type="v_prediction"), set()),
        ("stable_diffusion_xl", EDMDPMSolverMultistepScheduler(), set()),
        ("stable_diffusion_xl", IPNDMScheduler(), set()),
        ("pixart", None, set()),
        ("stable_diffusion_3", None, set()),
        ("stable_diffusion_3", FLUX, {"mu"}),
        ("sana", None, set()),
        ("flux", FLUX, {"sigmas", "mu"}),
        ("flux", SCHNELL, {"sigmas", "mu"}),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_every_name_draws_and_what_the_pipeline_gives_is_seen(
    tmp_path: Path, kind: str, own: Any, handed: set[str]
) -> None:
    pipeline = evaluated(kind, tmp_path)
    own = own or pipeline.scheduler
    default = Schedulers(own).make(scheduler_named("default"), 4)
    image = draw(pipeline, default)
    assert default.handed == handed
    schedulers = Schedulers(own, handed=default.handed)
    names = schedulers.names()
    assert names[0] == "default"
    assert len(names) > 1 or isinstance(own, IPNDMScheduler)
    for name in names:
        again = draw(pipeline, schedulers.make(scheduler_named(name), 4))
        assert np.isfinite(again).all(), name
        assert again.std() > 5, name
        if name == "default":
            assert (again == image).all()


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("stable_diffusion_xl", EDMDPMSolverMultistepScheduler()),
        ("stable_diffusion_3", FlowMatchEulerDiscreteScheduler(shift=3.0)),
        ("flux", FLUX),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_E1_E2_at_50_steps_the_schedulers_of_a_kind_draw_the_same_image(
    tmp_path: Path, kind: str, own: Any
) -> None:
    pipeline = evaluated(kind, tmp_path)
    schedulers = Schedulers(own, handed=("sigmas", "mu") if kind == "flux" else ())
    names = [name for name in schedulers.names() if name not in DISTILLED]
    images = {name: draw(pipeline, schedulers.make(scheduler_named(name), 50), 50) for name in names}
    assert len(images) >= 3
    for name, image in images.items():
        assert np.abs(image - images["default"]).mean() < 8, name


@pytest.mark.parametrize("name", ["flow_match_euler", "flow_match_heun", "dpmpp_2m", "unipc"])
def test_every_scheduler_of_a_flow_begins_with_an_image(tmp_path: Path, name: str) -> None:
    whole = evaluated("stable_diffusion_3", tmp_path)
    schedulers = Schedulers(whole.scheduler)
    pipeline = StableDiffusion3Img2ImgPipeline(**whole.components)
    pipeline.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    drawn = draw(pipeline, schedulers.make(scheduler_named(name), 6), 6, image=image, strength=0.5)
    assert np.isfinite(drawn).all()
    assert drawn.std() > 5
