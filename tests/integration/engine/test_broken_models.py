"""What is wrong with a model's files is said in one line: the model, its revision, and a remedy.

Every case is the shipped model in the hub's cache, spoilt in one place.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import LoadError
from engine.loading.failures import failure
from engine.loading.hub import Hub
from engine.loading.load import ModelSpec, load_models
from settings import ROOT

REVISION = "0123456789abcdef0123456789abcdef01234567"
REMEDY = re.compile(
    r"(?:: |, or |, )(?:add|take|use|fetch|choose|set|run|correct|remove|install|give|pip install)\b"
    r"|\brun (?:hf|`git)"
)
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"
PAGE = "<!DOCTYPE html>\n<html><body>Not found</body></html>"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{64 * 'a'}\nsize 1234\n"

Spoil = Callable[[Path], None]


def without(*names: str) -> Spoil:
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return spoil


def text(name: str, content: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).write_text(content, encoding="utf-8")

    return spoil


def content(name: str, change: Callable[[bytes], bytes]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return spoil


def entries(name: str, **changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        document = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps({**document, **changes}), encoding="utf-8")

    return spoil


def tensors(name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Spoil:
    def spoil(folder: Path) -> None:
        save_file(change(load_file(folder / name)), folder / name, metadata={"format": "pt"})

    return spoil


def renamed(found: dict[str, Any]) -> dict[str, Any]:
    key = sorted(found)[0]
    return {f"another.{key}" if one == key else one: tensor for one, tensor in found.items()}


def resized(found: dict[str, Any]) -> dict[str, Any]:
    key = sorted(found)[0]
    return {**found, key: torch.cat([found[key], found[key]])}


def header(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[bytes], bytes]:
    """Change what the header of a safetensors file says, and leave its tensors."""

    def spoil(whole: bytes) -> bytes:
        length = int.from_bytes(whole[:8], "little")
        found = json.dumps(change(json.loads(whole[8 : 8 + length]))).encode()
        return len(found).to_bytes(8, "little") + found + whole[8 + length :]

    return spoil


def strange_dtype(found: dict[str, Any]) -> dict[str, Any]:
    key = next(one for one in found if one != "__metadata__")
    return {**found, key: {**found[key], "dtype": "F99"}}


def as_pickle(name: str, file: str) -> Spoil:
    def spoil(folder: Path) -> None:
        found = load_file(folder / name)
        (folder / name).unlink()
        torch.save(found, folder / file)

    return spoil


def in_shards(**index: Any) -> Spoil:
    """The denoiser's weights in two shards, with an index that has these entries."""

    def spoil(folder: Path) -> None:
        found = load_file(folder / UNET)
        (folder / UNET).unlink()
        keys = sorted(found)
        weight_map: dict[str, str] = {}
        for number, some in enumerate((keys[::2], keys[1::2]), start=1):
            file = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
            save_file({key: found[key] for key in some}, folder / "unet" / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(some, file)
        document = {"metadata": {}, "weight_map": weight_map, **index}
        path = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
        path.write_text(json.dumps(document), encoding="utf-8")

    return spoil


def each(*spoils: Spoil) -> Spoil:
    def spoil(folder: Path) -> None:
        for one in spoils:
            one(folder)

    return spoil


def quantized(**config: Any) -> Spoil:
    return entries("unet/config.json", quantization_config=config)


CASES: dict[str, tuple[Spoil, str]] = {
    "no index": (
        without("model_index.json"),
        "not on this disk: set `local_files_only = false`|there is no model_index",
    ),
    "an index that is a web page": (
        text("model_index.json", PAGE),
        "model_index.json is not one of diffusers'",
    ),
    "an index of something else": (text("model_index.json", "{}"), "names no pipeline"),
    "an unknown pipeline": (entries("model_index.json", _class_name="NoPipeline"), "NoPipeline.*: install"),
    "an unknown class": (
        entries("model_index.json", unet=["diffusers", "NoUNet"]),
        "its unet is a NoUNet, which diffusers .* does not have: choose",
    ),
    "another known class": (
        entries("model_index.json", unet=["diffusers", "FluxTransformer2DModel"]),
        "its unet",
    ),
    "code of its own": (
        entries("model_index.json", unet=["my_code", "UNet"]),
        "code is never loaded from a model",
    ),
    "no configuration": (without("unet/config.json"), r"its unet has no configuration \(config.json\)"),
    "no scheduler": (without("scheduler/scheduler_config.json"), "its scheduler has no configuration"),
    "no vocabulary": (without("tokenizer/tokenizer.json"), "its tokenizer has no vocabulary"),
    "no weights": (without(UNET), "its unet has no safetensors"),
    "no text encoder": (without(TEXT_ENCODER), "its text_encoder has no safetensors"),
    "a pickle alone": (
        as_pickle(UNET, "unet/diffusion_pytorch_model.bin"),
        "safetensors only, and its unet has only",
    ),
    "a pickle by another name": (as_pickle(UNET, UNET), f"{UNET} is a pickle with the name"),
    "a text encoder that is a pickle": (as_pickle(TEXT_ENCODER, TEXT_ENCODER), f"{TEXT_ENCODER} is a pickle"),
    "a pointer of Git LFS": (text(UNET, POINTER), f"{UNET} is a Git LFS pointer .* run `git lfs pull`"),
    "a pointer for a text encoder": (text(TEXT_ENCODER, POINTER), f"{TEXT_ENCODER} is a Git LFS pointer"),
    "a pointer for a vocabulary": (
        text("tokenizer/tokenizer.json", POINTER),
        "tokenizer.json is a Git LFS pointer",
    ),
    "a web page for weights": (text(VAE, PAGE), f"{VAE} is a web page .* `resolve`"),
    "a web page for a configuration": (text("vae/config.json", PAGE), "vae/config.json is a web page"),
    "nothing": (content(VAE, lambda _: b""), f"{VAE} is empty: fetch it again"),
    "a few bytes": (content(VAE, lambda whole: whole[:5]), f"{VAE} is not a safetensors file"),
    "noise": (content(VAE, lambda _: bytes(range(200)) * 9), f"{VAE} is not a safetensors file"),
    "cut in its header": (content(UNET, lambda whole: whole[:100]), f"{UNET} is truncated in its header"),
    "cut in its tensors": (
        content(UNET, lambda whole: whole[:-100]),
        rf"{UNET} is truncated: it has \d+ bytes of \d+:",
    ),
    "a text encoder cut": (content(TEXT_ENCODER, lambda whole: whole[:-1]), f"{TEXT_ENCODER} is truncated"),
    "bytes too many": (content(VAE, lambda whole: whole + b"more"), f"{VAE} is too long"),
    "a header that is not JSON": (
        content(VAE, lambda whole: whole[:8] + b"x" + whole[9:]),
        f"{VAE} has a broken header",
    ),
    "a header of another form": (content(VAE, header(lambda _: {"a": 1})), f"{VAE} has a broken header"),
    "no tensors": (content(VAE, lambda _: (2).to_bytes(8, "little") + b"{}"), f"{VAE} has no tensors"),
    "a strange dtype of a tensor": (content(UNET, header(strange_dtype)), f"{UNET}: .* the dtype 'F99'"),
    "a strange dtype of a text encoder": (
        entries("text_encoder/config.json", dtype="float99", torch_dtype="float99"),
        "",
    ),
    "a weight by another name": (
        tensors(UNET, renamed),
        r"its unet .*no file contains the weights|unet.*missing",
    ),
    "an autoencoder's weight by another name": (tensors(VAE, renamed), r"its vae .*weights"),
    "a text encoder's weight by another name": (
        tensors(TEXT_ENCODER, renamed),
        r"its text_encoder \(CLIPTextModel\): no file contains the weights embeddings",
    ),
    "weights of another model": (tensors(UNET, lambda _: {"x": torch.zeros(1)}), "its unet"),
    "a weight of another size": (tensors(UNET, resized), "its unet .*expected shape.*: take weights and"),
    "an autoencoder's of another size": (
        tensors(VAE, resized),
        "its vae .*expected shape.*: take weights and",
    ),
    "a text encoder's of another size": (
        tensors(TEXT_ENCODER, resized),
        r"its text_encoder \(CLIPTextModel\): the sizes of its weights .* differ from its config.json",
    ),
    "a configuration cut": (
        content("unet/config.json", lambda whole: whole[:50]),
        "unet/config.json is not JSON",
    ),
    "a configuration of latin letters": (
        content("vae/config.json", lambda _: b'{"a": "\xe9"}'),
        "config.json is not JSON",
    ),
    "a configuration that is a list": (
        text("unet/config.json", "[]"),
        "unet/config.json is not a JSON object",
    ),
    "a configuration of nothing": (text("text_encoder/config.json", "{}"), "its text_encoder"),
    "another configuration": (
        entries("unet/config.json", cross_attention_dim=7),
        "its unet .*take weights and",
    ),
    "blocks that are no list": (
        entries("unet/config.json", block_out_channels=7),
        "its unet .*configuration",
    ),
    "blocks that do not exist": (entries("unet/config.json", down_block_types=["No"] * 4), "its unet"),
    "an activation that does not exist": (entries("vae/config.json", act_fn="none"), "its vae"),
    "a text encoder of another width": (
        entries("text_encoder/config.json", hidden_size=8),
        "its text_encoder",
    ),
    "a width that is a word": (entries("text_encoder/config.json", hidden_size="wide"), "its text_encoder"),
    "a scheduler of no kind": (
        entries("scheduler/scheduler_config.json", beta_schedule="none"),
        "its scheduler",
    ),
    "a scheduler that is a list": (text("scheduler/scheduler_config.json", "[1]"), "is not a JSON object"),
    "a tokenizer cut": (
        content("tokenizer/tokenizer.json", lambda whole: whole[: len(whole) // 2]),
        "its tokenizer",
    ),
    "a tokenizer of nothing": (text("tokenizer/tokenizer.json", "{}"), "its tokenizer"),
    "an unknown quantization": (quantized(quant_method="magic"), r"its unet .* is quantized by 'magic'"),
    "bitsandbytes, which is not here": (
        quantized(quant_method="bitsandbytes", load_in_4bit=True),
        r"its unet \(UNet2DConditionModel\) is quantized by bitsandbytes, .*: pip install bitsandbytes",
    ),
    "bitsandbytes without its name": (quantized(load_in_8bit=True), "pip install bitsandbytes"),
    "torchao, which is not here": (
        quantized(quant_method="torchao", quant_type="int8wo"),
        "quantized by torchao, .*: pip install --no-deps -r requirements-quantization.lock",
    ),
    "a quantization that is a word": (
        entries("unet/config.json", quantization_config="int8"),
        "its quantization_config is not an object",
    ),
    "a quantized text encoder": (
        entries("text_encoder/config.json", quantization_config={"quant_method": "bitsandbytes"}),
        r"its text_encoder \(CLIPTextModel\) is quantized by bitsandbytes",
    ),
    "a shard too few": (
        each(in_shards(), without("unet/diffusion_pytorch_model-00002-of-00002.safetensors")),
        "its unet is incomplete: 1 of 2 shards",
    ),
    "shards without an index": (
        each(in_shards(), without("unet/diffusion_pytorch_model.safetensors.index.json")),
        "its shards have no index|no index that lists them",
    ),
    "an index of no shards": (in_shards(weight_map={}), "lists no shards"),
    "an index of another form": (in_shards(weight_map=[1]), "is not an index of shards"),
    "an index out of the folder": (in_shards(weight_map={"a": "../../x.safetensors"}), "is incomplete"),
    "a shard cut": (
        each(
            in_shards(),
            content("unet/diffusion_pytorch_model-00002-of-00002.safetensors", lambda whole: whole[:-3]),
        ),
        "00002-of-00002.safetensors is truncated",
    ),
}


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    folder = tmp_path / "models--nobody--tiny" / "snapshots" / REVISION
    return Path(shutil.copytree(ROOT / "models" / "tiny", folder))


@pytest.mark.parametrize("is_pinned", [False, True], ids=["a folder", "a hub id"])
@pytest.mark.parametrize("case", CASES)
def test_a_broken_model_is_told_in_one_line_that_names_model_revision_and_remedy(
    snapshot: Path, case: str, is_pinned: bool
) -> None:
    spoil, expected = CASES[case]
    spoil(snapshot)
    spec = ModelSpec("m", "nobody/tiny", REVISION) if is_pinned else ModelSpec("m", str(snapshot))
    place = f"'nobody/tiny' at {REVISION}" if is_pinned else repr(str(snapshot))
    said = said_of(spec, snapshot.parents[2])
    start = f"model 'm' from {place}: "
    assert said.startswith(start)
    assert re.search(expected, said), said
    assert REMEDY.search(said.removeprefix(start.rstrip())), said
    assert "\n" not in said
    assert len(said) < 900


def said_of(spec: ModelSpec, cache: Path) -> str:
    """What keeps a model from loading."""
    hub = Hub(endpoint="http://127.0.0.1:1", cache=cache)
    limits: Any = {"device": "cpu:0", "row_limits": {"m": {64 * 64: 4}}, "num_threads": 1}
    with pytest.raises(LoadError) as raised:
        load_models([spec], hub=hub, self_test_seconds=0, **limits)
    return str(raised.value)


@pytest.mark.parametrize(
    "kind",
    [
        ArithmeticError,
        AssertionError,
        EOFError,
        ImportError,
        KeyError,
        OSError,
        RuntimeError,
        NotImplementedError,
        StopIteration,
        UnicodeError,
        ValueError,
    ],
)
def test_whatever_a_library_raises_has_a_remedy(kind: type[Exception]) -> None:
    said = str(failure(kind("one thing\nand another"), {}))
    assert REMEDY.search(said)
    assert f"({kind.__name__}: " in said
    assert "\n" not in said


def test_memory_that_runs_out_is_no_fault_of_the_files() -> None:
    with pytest.raises(MemoryError):
        failure(MemoryError(), {})


def test_a_dtype_that_does_not_exist_is_told_those_that_do() -> None:
    spec = ModelSpec("m", str(ROOT / "models" / "tiny"), dtype="float8")
    assert "dtype: 'float8' is not one of auto, float32, bfloat16, float16" in said_of(spec, ROOT)
