"""The promise about training: it runs, saves a pipeline that draws, and goes on where it stopped."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel

from settings import ROOT
from tiny.train.denoiser import Trainer
from tiny.train.text_encoder import Readout

TINY = ROOT / "models" / "tiny"
FEW = {128: (32, 64, 8.0), 192: (32, 32, 0.0)}


@pytest.fixture
def build(tmp_path: Path) -> Path:
    for part in ("vae", "tokenizer"):
        (tmp_path / part).symlink_to(TINY / part)
    CLIPTextModel.from_pretrained(TINY / "text_encoder", dtype=torch.float32).save_pretrained(
        tmp_path / "text_encoder"
    )
    torch.save(Readout().state_dict(), tmp_path / "readout.pt")
    return tmp_path


def test_a_run_that_was_stopped_goes_on_where_it_was(build: Path) -> None:
    first = Trainer(build, seed=0, start=TINY / "unet")
    first.train(minutes=0.01, seed=0, pools=FEW)
    assert first.step > 0
    second = Trainer(build, seed=0, start=None)
    assert (second.step, second.spent_seconds) == (first.step, first.spent_seconds)
    for mine, theirs in zip(second.weights, first.weights, strict=True):
        assert torch.equal(mine, theirs)
    pipeline = StableDiffusionPipeline.from_pretrained(build / "pipeline", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "a red heart on a white background", num_inference_steps=2, width=128, height=128
    ).images[0]
    assert image.size == (128, 128)
    for average, weight in zip(first.average, pipeline.unet.parameters(), strict=False):
        assert torch.equal(average, weight)
