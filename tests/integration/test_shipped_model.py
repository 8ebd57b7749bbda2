"""The promises about the model that ships: small, plain, and what `calotype.toml` says of it is true."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open

from catalogue.catalogue import Model, load_catalogue
from engine.engine import Engine
from engine.loading.load import ModelSpec, load_engine
from engine.request import GenerationRequest, scheduler_named
from settings import ROOT
from tests.integration.engine.reference import diffusers_image
from tiny.judge import obeys
from tiny.train.evaluate import held_out_scenes, is_obeyed
from tiny.train.export import MAX_BYTES

# diffusers' Euler scheduler calls numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TINY = ROOT / "models" / "tiny"


@pytest.fixture(scope="module")
def model() -> Model:
    found = load_catalogue(ROOT / "calotype.toml").model("tiny")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def engine(model: Model) -> Iterator[Engine]:
    limits = {"tiny": {tier.max_pixels: tier.max_step_batch_rows for tier in model.tiers}}
    spec = ModelSpec("tiny", str(TINY))
    # The shortest self-test: `test_running_engine` checks the full one on this model.
    engine = load_engine([spec], device="cpu:0", row_limits=limits, num_threads=1, self_test_seconds=0)
    engine.start()
    yield engine
    engine.stop()


def test_it_is_small_and_half_precision_and_holds_nothing_that_could_run() -> None:
    files = [path for path in TINY.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert not any("_name_or_path" in path.read_text() for path in TINY.rglob("*.json"))
    for path in TINY.rglob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}  # noqa: SIM118


def test_every_scheduler_that_is_offered_draws_what_diffusers_draws(engine: Engine, model: Model) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(TINY, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    for name in model.schedulers:
        request = GenerationRequest(
            model="tiny",
            prompt="a red heart on a white background",
            width=128,
            height=128,
            num_inference_steps=6,
            guidance_scale=4.0,
            seed=11,
            scheduler=scheduler_named(name),
        )
        ours = engine.submit(request).future.result(timeout=60).pixels
        theirs = diffusers_image(pipeline, request)
        difference = np.abs(ours.astype(int) - theirs.astype(int))
        assert difference.max() <= 2, name
        assert difference.mean() <= 0.2, name


def test_the_limits_in_the_catalogue_are_the_models_own(engine: Engine, model: Model) -> None:
    for steps, side in ((model.max_num_inference_steps, model.min_side), (1, 192)):
        request = GenerationRequest(
            model="tiny",
            prompt="",
            width=side,
            height=side,
            num_inference_steps=steps,
            guidance_scale=0.0,
            seed=0,
        )
        image = engine.submit(request).future.result(timeout=120)
        assert image.pixels.shape == (side, side, 3)


def test_it_obeys_captions_that_it_never_saw(engine: Engine) -> None:
    """A short form of `make card`, which has the figures: here only that nothing is badly wrong."""
    scenes = [*held_out_scenes(16, pairs=False), *held_out_scenes(16, pairs=True)]
    handles = [
        engine.submit(
            GenerationRequest(
                model="tiny",
                prompt=scene.caption(),
                width=128,
                height=128,
                num_inference_steps=4,
                guidance_scale=2.0,
                seed=number,
            )
        )
        for number, scene in enumerate(scenes)
    ]
    images = [Image.fromarray(handle.future.result(timeout=120).pixels) for handle in handles]
    obeyed = [is_obeyed(obeys(image, scene), scene) for image, scene in zip(images, scenes, strict=True)]
    assert sum(obeyed[:16]) >= 14
    assert sum(obeyed[16:]) >= 12
