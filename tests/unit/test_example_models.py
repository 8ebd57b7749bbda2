"""The promises of `examples/models`: settings take them, they are pinned, and nothing is read twice."""

import json
import re
from functools import partial
from pathlib import Path

import pytest

from catalogue.catalogue import Model, load_catalogue
from engine.loading.layout import Layout, files_to_load
from settings import ROOT

FILES = sorted((ROOT / "examples" / "models").glob("*.toml"))
CLIP = ["merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json"]
T5 = ["special_tokens_map.json", "spiece.model", "tokenizer.json", "tokenizer_config.json"]
GEMMA = ["special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"]


def twice(stem: str) -> list[str]:
    return [f"{stem}.safetensors", f"{stem}.fp16.safetensors"]


UNET = ["config.json", *twice("diffusion_pytorch_model"), "diffusion_pytorch_model.bin", "model.onnx"]
VAE = ["config.json", *twice("diffusion_pytorch_model"), "diffusion_pytorch_model.bin"]
ENCODER = ["config.json", *twice("model"), "pytorch_model.bin", "model.onnx"]
SHARDS = [f"model{kind}-0000{n}-of-00002.safetensors" for kind in ("", ".fp16") for n in (1, 2)]
INDICES = ["model.safetensors.index.json", "model.safetensors.index.fp16.json"]
SCHEDULER = ["scheduler_config.json"]
SD_TURBO = {"scheduler": SCHEDULER, "text_encoder": ENCODER, "tokenizer": CLIP, "unet": UNET, "vae": VAE}
# As published: component -> the names in its folder that matter; and how much is read of it.
PUBLISHED: dict[str, dict[str, list[str]]] = {
    "stable-diffusion-1.5": {
        "scheduler": SCHEDULER,
        "text_encoder": ENCODER,
        "tokenizer": CLIP,
        "unet": [*UNET, "diffusion_pytorch_model.non_ema.safetensors"],
        "vae": VAE,
    },
    "sdxl": {
        "scheduler": SCHEDULER,
        "text_encoder": ENCODER,
        "text_encoder_2": ENCODER,
        "tokenizer": CLIP,
        "tokenizer_2": CLIP,
        "unet": UNET,
        "vae": VAE,
    },
    "stable-diffusion-3": {
        "scheduler": SCHEDULER,
        "text_encoder": ENCODER,
        "text_encoder_2": ENCODER,
        "text_encoder_3": ["config.json", *SHARDS, *INDICES],
        "tokenizer": CLIP,
        "tokenizer_2": CLIP,
        "tokenizer_3": T5,
        "transformer": ["config.json", "diffusion_pytorch_model.safetensors"],
        "vae": ["config.json", "diffusion_pytorch_model.safetensors"],
    },
    "flux": {
        "scheduler": SCHEDULER,
        "text_encoder": ["config.json", "model.safetensors"],
        "text_encoder_2": ["config.json", *SHARDS[:2], INDICES[0]],
        "tokenizer": CLIP,
        "tokenizer_2": T5,
        "transformer": [
            "config.json",
            *(f"diffusion_pytorch_model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)),
            "diffusion_pytorch_model.safetensors.index.json",
        ],
        "vae": ["config.json", "diffusion_pytorch_model.safetensors"],
    },
    "pixart": {
        "scheduler": SCHEDULER,
        "text_encoder": ["config.json", *(name for name in SHARDS if "fp16" not in name), INDICES[0]],
        "tokenizer": T5,
        "transformer": ["config.json", "diffusion_pytorch_model.safetensors"],
        "vae": ["config.json", "diffusion_pytorch_model.safetensors"],
    },
    "sana": {
        "scheduler": SCHEDULER,
        "text_encoder": [
            "config.json",
            *(f"model.bf16-0000{n}-of-00002.safetensors" for n in (1, 2)),
            "model.safetensors.index.bf16.json",
        ],
        "tokenizer": GEMMA,
        "transformer": ["config.json", "diffusion_pytorch_model.bf16.safetensors"],
        "vae": ["config.json", "diffusion_pytorch_model.bf16.safetensors"],
    },
    "lcm": {
        "scheduler": SCHEDULER,
        "text_encoder": ["config.json", "model.safetensors"],
        "tokenizer": CLIP,
        "unet": ["config.json", "diffusion_pytorch_model.safetensors"],
        "vae": ["config.json", "diffusion_pytorch_model.safetensors"],
    },
    "few-step": SD_TURBO,
}

SIDE_MULTIPLES = {"flux": 16, "stable-diffusion-3": 16, "pixart": 16, "sana": 32, "sdxl": 64}
"""SDXL's sizes are in steps of 64, as it was trained."""


def model_of(path: Path) -> Model:
    model = load_catalogue(path).model(None)
    assert model is not None
    return model


def index_of_shards(names: list[str], index: str) -> str:
    """What an index says about the shards beside it: those of its own precision."""
    folder, _, base = index.rpartition("/")
    shards = [name for name in names if name.startswith(f"{folder}/") and "-of-" in name]
    own = [name.rpartition("/")[2] for name in shards if ("fp16" in name) == ("fp16" in base)]
    return json.dumps({"weight_map": {f"layer.{number}": shard for number, shard in enumerate(own)}})


def test_there_is_one_for_each_kind_of_model() -> None:
    assert {path.stem for path in FILES} == set(PUBLISHED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_offers_a_step_cache_at_sides_that_its_patches_divide(path: Path) -> None:
    model = model_of(path)
    assert model.step_cache
    assert model.side_multiple == SIDE_MULTIPLES.get(path.stem, 8)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_pinned_and_local_and_says_what_was_not_seen(path: Path) -> None:
    model = model_of(path)
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.path)
    assert re.fullmatch(r"[0-9a-f]{40}", model.revision or "")
    assert model.local_files_only
    text = path.read_text()
    assert "Not yet seen on a GPU" in text
    assert "# Licence: " in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_tiers_are_served_and_their_defaults_are_allowed(path: Path) -> None:
    catalogue, model = load_catalogue(path), model_of(path)
    assert {tier.name for tier in model.tiers} == {name for plan in catalogue.workers for name in plan.tiers}
    for tier in model.tiers:
        for side in (tier.default_width, tier.default_height):
            assert model.min_side <= side <= model.max_side
            assert side % model.side_multiple == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_of_the_published_files_each_weight_is_read_once_and_in_half_precision(path: Path) -> None:
    published, model = PUBLISHED[path.stem], model_of(path)
    names = [f"{component}/{name}" for component, inside in published.items() for name in inside]
    rest = ["model_index.json", "README.md", "whole_model.safetensors", "vae_1_0/model.safetensors"]
    files = files_to_load(
        Layout("", tuple(published), ()), [*names, *rest], model.variant, partial(index_of_shards, names)
    )
    assert not any(name.endswith((".bin", ".onnx", ".md")) for name in files)
    weights = [name for name in files if name.endswith(".safetensors")]
    for component, inside in published.items():
        chosen = [name for name in weights if name.startswith(f"{component}/")]
        stems = {
            re.sub(r"\.fp16|\.bf16|\.non_ema", "", name) for name in inside if name.endswith(".safetensors")
        }
        assert len(chosen) == len(stems), component
        if any("fp16" in name for name in inside) and model.variant == "fp16":
            assert all("fp16" in name for name in chosen)
