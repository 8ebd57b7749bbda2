"""Which files of a model are read is decided by names: safetensors, whole, and nothing that could run."""

import json
from pathlib import Path

import pytest

from engine.errors import LoadError
from engine.loading.layout import Layout, check_components, files_to_load, read_layout

LAYOUT = Layout("SomePipeline", ("unet", "tokenizer"), ())
PLAIN = ["model_index.json", "unet/config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"]
WEIGHTS = "unet/diffusion_pytorch_model"


def chosen(names: list[str], variant: str | None, **indices: list[str]) -> list[str]:
    """What is read of these names, where each index names these shards of the folder."""

    def read(name: str) -> str:
        ending = (
            name.removeprefix(f"{WEIGHTS}.safetensors.index").removesuffix(".json").lstrip(".") or "plain"
        )
        return json.dumps({"weight_map": {str(n): shard for n, shard in enumerate(indices[ending])}})

    return files_to_load(LAYOUT, names, variant, read)


def index(folder: Path, **entries: object) -> Path:
    path = folder / "model_index.json"
    path.write_text(json.dumps({"_class_name": "SomePipeline", "_diffusers_version": "0", **entries}))
    return path


def test_only_what_is_read_is_chosen() -> None:
    rest = [
        "unet/pipeline.py",
        f"{WEIGHTS}.bin",
        f"{WEIGHTS}.fp16.safetensors",
        "all.safetensors",
        "README.md",
    ]
    nested = ["unet/deep/model.safetensors", "unet/openvino_model.xml", "other/model.safetensors"]
    names = [*PLAIN, f"{WEIGHTS}.safetensors", *rest, *nested]
    assert sorted(chosen(names, None)) == sorted([*PLAIN, f"{WEIGHTS}.safetensors"])


def test_a_variant_is_chosen_where_there_is_one() -> None:
    names = [*PLAIN, f"{WEIGHTS}.safetensors"]
    assert f"{WEIGHTS}.safetensors" in chosen(names, "fp16")
    found = chosen([*names, f"{WEIGHTS}.fp16.safetensors"], "fp16")
    assert f"{WEIGHTS}.fp16.safetensors" in found
    assert f"{WEIGHTS}.safetensors" not in found


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ([], "its unet has no safetensors"),
        ([".bin"], "safetensors only, and its unet has only unet/diffusion_pytorch_model.bin"),
        ([".ckpt"], "safetensors only"),
        ([".fp16.safetensors"], "only as variant fp16: set `variant`"),
        (["-00001-of-00003.safetensors", "-00003-of-00003.safetensors"], "incomplete: 2 of 3 shards"),
    ],
)
def test_weights_that_are_missing_are_named(weights: list[str], complaint: str) -> None:
    with pytest.raises(LoadError, match=complaint):
        chosen([*PLAIN, *(f"{WEIGHTS}{ending}" for ending in weights)], None)


def test_a_component_without_configuration_is_named() -> None:
    names = ["model_index.json", "unet/config.json", f"{WEIGHTS}.safetensors"]
    with pytest.raises(LoadError, match="its tokenizer has no vocabulary"):
        chosen(names, None)


def test_sharded_weights_are_taken_whole() -> None:
    shards = [f"{WEIGHTS}.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    names = [*PLAIN, *shards, f"{WEIGHTS}.safetensors.index.fp16.json"]
    found = chosen(names, "fp16", fp16=[shard.rpartition("/")[2] for shard in shards])
    assert sorted(found) == sorted(names)


def test_an_index_is_read_without_what_is_left_out(tmp_path: Path) -> None:
    path = index(
        tmp_path,
        unet=["diffusers", "UNet2DConditionModel"],
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        text_encoder_3=[None, None],
        force_zeros_for_empty_prompt=True,
    )
    assert read_layout(path, {"safety_checker"}) == Layout(
        "SomePipeline", ("unet",), ("text_encoder_3",), {"unet": ("diffusers", "UNet2DConditionModel")}
    )


def test_a_model_that_brings_code_is_refused(tmp_path: Path) -> None:
    path = index(tmp_path, unet=["my_unet", "MyUNet"])
    with pytest.raises(LoadError, match="its unet needs code of its own"):
        read_layout(path, ())


@pytest.mark.parametrize("text", ["", "[]", "{}", "{"])
def test_an_index_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model_index.json"
    path.write_text(text)
    with pytest.raises(LoadError, match="not one of diffusers'"):
        read_layout(path, ())
    path.unlink()
    with pytest.raises(LoadError, match="no model_index"):
        read_layout(path, ())


def test_a_component_that_the_pipeline_needs_is_missed_by_name() -> None:
    check_components(LAYOUT, ["unet"])
    with pytest.raises(LoadError, match=r"^it has no vae and no scheduler, which its pipeline needs$"):
        check_components(LAYOUT, ["unet", "vae", "scheduler"])


@pytest.mark.parametrize(
    ("component", "class_name", "configuration"),
    [
        ("guider", "AdaptiveProjectedMixGuidance", "guider_config.json"),
        ("low_res_scheduler", "DDPMScheduler", "scheduler_config.json"),
        ("siglip_processor", "Siglip2ImageProcessorPil", "preprocessor_config.json"),
        ("processor", "Qwen2VLProcessor", "processor_config.json"),
        ("tokenizer_2", "ByT5Tokenizer", "tokenizer_config.json"),
        ("prior_tokenizer", "CLIPTokenizer", "tokenizer.json"),
    ],
)
def test_a_component_without_weights_is_known_by_its_class(
    component: str, class_name: str, configuration: str
) -> None:
    """As HunyuanImage's guider, an upscaler's second scheduler, and what prepares an image for SigLIP."""
    layout = Layout("SomePipeline", (component,), (), {component: ("diffusers", class_name)})
    names = ["model_index.json", f"{component}/{configuration}"]
    assert files_to_load(layout, names, None, lambda _: "") == names
    if class_name != "ByT5Tokenizer":  # it reads bytes, so that nothing of it can be missing
        with pytest.raises(LoadError, match=f"its {component} has no (configuration|vocabulary)"):
            files_to_load(layout, names[:1], None, lambda _: "")
