"""The promises about the tiny model's LoRAs: small, diffusers' own format, and their styles are seen."""

import hashlib
import stat
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open

from settings import ROOT
from tiny.scenes import Scene, Thing
from tiny.styles import STYLES
from tiny.train.evaluate import load_pipeline
from tiny.train.lora import MAX_BYTES, WEIGHT_NAME, Trainer

TINY = ROOT / "models" / "tiny"
LORAS = ROOT / "models" / "tiny-loras"
SCENES = [
    Scene("yellow", Thing("square", "blue", "large", "at the top")),
    Scene("green", Thing("circle", "red", "", "at the top")),
]
"""Shapes that the VAE can draw as lines at 128 pixels; the model card says which it cannot."""
FEW = {128: (32, 64, 8.0), 192: (32, 32, 0.0)}


def images_of(pipeline: StableDiffusionPipeline, scenes: list[Scene]) -> list[Image.Image]:
    found: list[Image.Image] = pipeline(
        [scene.caption() for scene in scenes],
        num_inference_steps=12,
        guidance_scale=2.0,
        width=128,
        height=128,
        generator=[torch.Generator().manual_seed(number) for number in range(len(scenes))],
    ).images
    return found


def test_one_ships_for_every_style() -> None:
    assert {path.name for path in LORAS.iterdir()} == set(STYLES)


@pytest.mark.parametrize("name", list(STYLES))
def test_it_is_small_and_half_precision_and_everyone_may_read_it(name: str) -> None:
    [file] = (LORAS / name).iterdir()
    assert file.name == WEIGHT_NAME
    assert file.stat().st_size <= MAX_BYTES
    assert stat.S_IMODE(file.stat().st_mode) & 0o444 == 0o444
    with safe_open(file, "pt") as weights:
        names = list(weights.keys())
        assert {weights.get_tensor(name).dtype for name in names} == {torch.float16}
    assert all(name.startswith("unet.") for name in names)


@pytest.mark.parametrize("name", list(STYLES))
def test_the_card_is_of_the_file_that_ships(name: str) -> None:
    page = (ROOT / "docs" / "model-card.md").read_text(encoding="utf-8")
    assert hashlib.sha256((LORAS / name / WEIGHT_NAME).read_bytes()).hexdigest() in page


@pytest.mark.parametrize("name", list(STYLES))
def test_its_style_is_seen_with_it_and_not_without(name: str) -> None:
    style = STYLES[name]
    pipeline = load_pipeline(TINY)
    assert not any(map(style.shows, images_of(pipeline, SCENES), SCENES))
    pipeline.load_lora_weights(LORAS / name, weight_name=WEIGHT_NAME, local_files_only=True)
    images = images_of(pipeline, SCENES)
    assert all(map(style.shows, images, SCENES))
    assert all(style.judge(image, scene).all for image, scene in zip(images, SCENES, strict=True))


def test_a_run_that_was_stopped_goes_on_where_it_was_and_ships_what_it_learnt(tmp_path: Path) -> None:
    first = Trainer(STYLES["outline"], tmp_path / "build", seed=0, model=TINY)
    first.train(minutes=0.01, seed=0, pools=FEW)
    assert first.step > 0
    second = Trainer(STYLES["outline"], tmp_path / "build", seed=1, model=TINY)
    assert (second.step, second.spent_seconds) == (first.step, first.spent_seconds)
    for mine, theirs in zip(second.weights, first.weights, strict=True):
        assert torch.equal(mine, theirs)
    second.export(tmp_path / "out")
    pipeline = load_pipeline(TINY)
    pipeline.load_lora_weights(tmp_path / "out", weight_name=WEIGHT_NAME, local_files_only=True)
    loaded = [weight for name, weight in pipeline.unet.named_parameters() if "lora_" in name]
    assert {weight.dtype for weight in loaded} == {torch.float32}
    for mine, theirs in zip(loaded, second.weights, strict=True):
        assert torch.equal(mine, theirs.half().float())
