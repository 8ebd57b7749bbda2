"""Every scheduler of a model through the exchange: each image is that of diffusers' own pipeline."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
    UniPCMultistepScheduler,
)

from engine.errors import LoadError
from engine.pipelines.schedulers import Schedulers
from engine.request import GenerationRequest, scheduler_named
from tests.integration.engine.test_any_pipeline import asked, finish, load, pixels
from tests.integration.engine.tiny_families import build

# diffusers' Euler scheduler calls numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLUX = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def theirs(pipeline: Any, request: GenerationRequest, generator: torch.Generator) -> np.ndarray:
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval()
    parameters = inspect.signature(pipeline.__call__).parameters
    image = pipeline(
        prompt=request.prompt,
        width=request.width,
        height=request.height,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        generator=generator,
        output_type="pil",
        **({"use_resolution_binning": False} if "use_resolution_binning" in parameters else {}),
    ).images[0]
    return np.asarray(image)


CASES = [
    ("stable_diffusion", DDIMScheduler(**BETAS, clip_sample=False), ()),
    ("stable_diffusion", UniPCMultistepScheduler(**BETAS), ()),
    ("stable_diffusion_xl", EDMDPMSolverMultistepScheduler(), ()),
    ("stable_diffusion_xl", IPNDMScheduler(), ()),
    (
        "stable_diffusion_xl",
        EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
        (),
    ),
    ("pixart", CogVideoXDDIMScheduler(), ()),
    ("stable_diffusion_3", FlowMatchEulerDiscreteScheduler(shift=3.0), ()),
    ("stable_diffusion_3", FLUX, ("mu",)),
    ("flux", FLUX, ("sigmas", "mu")),
]


@pytest.mark.parametrize(
    ("kind", "own", "handed"),
    CASES,
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_every_scheduler_of_a_model_draws_in_mixed_batches_what_it_draws_alone(
    tmp_path: Path, kind: str, own: Any, handed: Any
) -> None:
    pipeline = build(kind, tmp_path)
    pipeline = type(pipeline)(
        **{**pipeline.components, "scheduler": own}
    )  # which corrects some entries of `own`
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "saved")
    published = type(own).from_pretrained(tmp_path / "saved", subfolder="scheduler")
    schedulers = Schedulers(published, handed=handed)
    names = tuple(schedulers.names())
    engine = load({kind: tmp_path / "saved"}, kind, schedulers=names, max_num_inference_steps=50)
    requests = [
        asked(kind, i, scheduler=scheduler_named(name), num_inference_steps=5) for i, name in enumerate(names)
    ]
    handles = [engine.submit(request) for request in requests]
    finish(engine)
    for name, request, handle in zip(names, requests, handles, strict=True):
        generator = torch.Generator("cpu").manual_seed(request.seed)
        pipeline.scheduler = schedulers.make(scheduler_named(name), 5, generator=generator)
        difference = np.abs(pixels(handle).astype(int) - theirs(pipeline, request, generator).astype(int))
        assert difference.max() <= 1, name
    engine.stop()


def test_a_scheduler_of_another_kind_is_refused_at_load_by_name(tmp_path: Path) -> None:
    pipeline = build("stable_diffusion_xl", tmp_path)
    pipeline.register_modules(scheduler=EDMDPMSolverMultistepScheduler())
    pipeline.save_pretrained(tmp_path / "saved")
    with pytest.raises(
        LoadError, match=r"schedulers: 'euler' cannot be offered .*EDMDPMSolverMultistepScheduler"
    ):
        load({"sdxl": tmp_path / "saved"}, "sdxl", schedulers=("default", "euler"))
