"""Two tiny random models on disk in diffusers' layout, and diffusers' own pipelines of them."""

import warnings
from collections.abc import Iterator, Mapping
from math import inf
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from engine.engine import Engine
from engine.loading.load import ModelSpec, load_engine
from tests.integration.engine.reference import MODELS
from tiny.train.autoencoder import build_autoencoder
from tiny.train.denoiser import build_scheduler, build_unet
from tiny.train.text_encoder import build_text_encoder
from tiny.train.tokenizer import build_tokenizer

ROW_LIMITS = {16384: 16, 36864: 8}


def build_pipeline(folder: Path, scheduler: DDIMScheduler) -> StableDiffusionPipeline:
    """The layout of the tiny model with seeded random weights, large enough that every step matters."""
    torch.manual_seed(7)
    tokenizer = build_tokenizer(folder / "made")
    unet, vae, text_encoder = build_unet(), build_autoencoder(), build_text_encoder(tokenizer)
    with torch.no_grad():
        unet.conv_out.weight.mul_(2.0)
        vae.decoder.conv_out.weight.mul_(2.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers corrects steps_offset and warns
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model name -> folder: v-prediction with zero terminal SNR, and epsilon in Stable Diffusion's manner."""
    epsilon = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    folders = {}
    for name, scheduler in zip(MODELS, (build_scheduler(), epsilon), strict=True):
        folders[name] = tmp_path_factory.mktemp(name)
        build_pipeline(folders[name], scheduler).save_pretrained(folders[name] / "pipeline")
        folders[name] /= "pipeline"
    return folders


@pytest.fixture(scope="session")
def pipelines(folders: dict[str, Path]) -> dict[str, StableDiffusionPipeline]:
    """diffusers' own pipelines, to compare the engine with."""
    loaded = {}
    for name, folder in folders.items():
        loaded[name] = StableDiffusionPipeline.from_pretrained(
            folder, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
        loaded[name].set_progress_bar_config(disable=True)
    return loaded


def load(
    folders: dict[str, Path],
    num_threads: int,
    row_limits: dict[int, int],
    *,
    self_test_seconds: float = inf,
    limits_of: Mapping[str, dict[int, int]] | None = None,
) -> Engine:
    """An engine with both models, not started; `limits_of` replaces `row_limits` for the models it names."""
    specs = [ModelSpec(name, str(folder)) for name, folder in folders.items()]
    limits = dict.fromkeys(folders, row_limits) | dict(limits_of or {})
    return load_engine(
        specs,
        device="cpu:0",
        row_limits=limits,
        num_threads=num_threads,
        self_test_seconds=self_test_seconds,
    )


@pytest.fixture(scope="session")
def engine(folders: dict[str, Path]) -> Iterator[Engine]:
    """A started engine with one torch thread, as in a worker that is pinned to one core.

    Its self-test is the shortest. A test that needs the engine's determinism level loads another one.
    """
    num_threads = torch.get_num_threads()
    engine = load(folders, 1, ROW_LIMITS, self_test_seconds=0)
    engine.start()
    yield engine
    engine.stop()
    torch.set_num_threads(num_threads)
