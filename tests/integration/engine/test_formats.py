"""Models of every form: one file, shards beside it, variants of a part, another autoencoder.

The checkpoints are made here, of tiny pipelines and of the shipped model, in the form of other programs.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from engine.errors import LoadError
from engine.loading.hub import Hub
from engine.loading.load import ModelSpec, load_engine
from engine.loading.read_pipeline import Source, read_pipeline
from engine.loading.replaced_components import Part
from engine.request import GenerationRequest, SchedulerSpec
from settings import ROOT
from tests.integration.engine.fake_hub import FakeHub
from tests.integration.engine.single_files import write_stable_diffusion
from tests.integration.engine.test_any_pipeline import theirs
from tests.integration.engine.test_model_folders import draw
from tests.integration.engine.tiny_families import build

REVISION = "0123456789abcdef0123456789abcdef01234567"
ANOTHER = "89abcdef0123456789abcdef0123456789abcdef"
NOWHERE = "http://127.0.0.1:1"
LIMITS = {"m": {64 * 64: 4}}
CPU = torch.device("cpu")
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion pipeline: `model` as diffusers saves it, `one.safetensors` as others do."""
    folder = tmp_path_factory.mktemp("made")
    pipeline = build("stable_diffusion", folder)
    pipeline.save_pretrained(folder / "model")
    write_stable_diffusion(pipeline, folder / "one.safetensors")
    return folder


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """The same folder, to be changed."""
    return Path(shutil.copytree(made / "model", tmp_path / "model"))


@pytest.fixture(scope="module")
def plain(made: Path) -> np.ndarray:
    return drawn(made / "model")


def loaded(path: Path | str, hub: Hub | None = None, **changes: Any) -> Any:
    return load_engine(
        [ModelSpec("m", str(path), **changes)],
        device="cpu:0",
        row_limits=LIMITS,
        num_threads=1,
        hub=hub or Hub(endpoint=NOWHERE),
        self_test_seconds=0,
    )


def drawn(path: Path | str, **changes: Any) -> np.ndarray:
    image: np.ndarray = draw(loaded(path, **changes))
    return image


def refused(path: Path | str, **changes: Any) -> str:
    with pytest.raises(LoadError) as raised:
        loaded(path, **changes)
    said = str(raised.value)
    assert said.startswith("model 'm' from ")
    assert "\n" not in said
    return said


def configured(model: Path, *kept: str) -> Path:
    """The folder without weights, but for those of some components."""
    for weights in model.rglob("*.safetensors"):
        if weights.parent.name not in kept:
            weights.unlink()
    return model


def test_a_single_file_draws_what_its_folder_draws(made: Path, model: Path, plain: np.ndarray) -> None:
    config = Part(str(configured(model)))
    assert np.array_equal(drawn(made / "one.safetensors", config=config), plain)


def test_the_shipped_model_as_a_single_file_draws_what_its_folder_draws(tmp_path: Path) -> None:
    folder = ROOT / "models" / "tiny"
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    file = write_stable_diffusion(pipeline, tmp_path / "tiny.safetensors")
    config = Path(shutil.copytree(folder, tmp_path / "config"))
    found = drawn(file, config=Part(str(configured(config))))
    assert np.array_equal(found, drawn(folder))


@pytest.mark.parametrize("lacking", [("text_encoder",), ("vae",), ("text_encoder", "vae")], ids=" and ".join)
def test_what_a_file_lacks_is_read_from_its_configuration(
    made: Path, model: Path, plain: np.ndarray, lacking: tuple[str, ...]
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(made / "model")
    file = write_stable_diffusion(pipeline, model.parent / "part.safetensors", without=lacking)
    folder = configured(model, *lacking)
    assert np.array_equal(drawn(file, config=Part(str(folder))), plain)
    (weights,) = (folder / lacking[0]).glob("*.safetensors")
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))  # which is not read in its place
    weights.unlink()
    said = refused(file, config=Part(str(folder)))
    assert (
        "for components not in part.safetensors: weights are read as safetensors only, and its"
        f" {lacking[0]}" in said
    )


@pytest.mark.parametrize(
    ("path", "changes", "said"),
    [
        ("one.safetensors", {}, "config: a single file needs a configuration: set"),
        ("model", {"config": Part("model")}, "config: the model is a folder"),
        ("none.safetensors", {"config": Part("model")}, "there is no file .*: correct the path"),
        (
            "one.ckpt",
            {"config": Part("model")},
            "weights are read as safetensors only, not one.ckpt: choose",
        ),
        ("one.gguf", {"config": Part("model")}, "contains one component: set `path`"),
        ("model", {"transformer": Part("one.safetensors")}, "has no transformer: remove the entry"),
        ("model", {"vae": Part("one.gguf")}, "vae: from .*one.gguf"),
        ("model", {"vae": Part("nobody/taesd")}, "vae: from 'nobody/taesd': .* needs `revision`"),
        ("model", {"vae": Part("nobody/taesd", ANOTHER)}, f"at {ANOTHER}: it is not on this disk: set"),
        (
            "model",
            {"vae": Part("model/text_encoder")},
            "vae: from .*: it is a None, and the model needs AutoencoderKL",
        ),
    ],
)
def test_a_part_that_cannot_be_is_named_by_its_entry(
    made: Path, tmp_path: Path, path: str, changes: dict[str, Any], said: str
) -> None:
    for name in ("one.ckpt", "one.gguf"):
        (tmp_path / name).write_bytes(b"nothing")
    at = lambda name: str(made / name) if (made / name).exists() else str(tmp_path / name)  # noqa: E731
    parts = {
        entry: part if part.path.startswith("nobody") else replace(part, path=at(part.path))
        for entry, part in changes.items()
    }
    assert re.search(said, refused(at(path), **parts))


def test_a_class_that_diffusers_reads_from_folders_alone_is_refused(tmp_path: Path) -> None:
    """Its weights in the folder of `config` are not taken for those of the file."""
    build("pixart", tmp_path).save_pretrained(tmp_path / "model")
    save_file({"x": torch.zeros(1)}, tmp_path / "one.safetensors")
    said = refused(tmp_path / "one.safetensors", config=Part(str(tmp_path / "model")))
    assert re.search(r"diffusers cannot read a PixArt\w+ from a single file: use the model as a folder", said)


def test_a_file_of_a_pinned_hub_id_is_read_from_the_cache_with_its_configuration(
    made: Path, model: Path, plain: np.ndarray, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    files = cache / "models--nobody--merged" / "snapshots" / REVISION
    files.mkdir(parents=True)
    shutil.copy(made / "one.safetensors", files / "one.safetensors")
    shutil.copytree(configured(model), cache / "models--nobody--config" / "snapshots" / ANOTHER)
    spec: dict[str, Any] = {
        "revision": REVISION,
        "weight_name": "one.safetensors",
        "config": Part("nobody/config", ANOTHER),
        "hub": Hub(endpoint=NOWHERE, cache=cache),
    }
    assert np.array_equal(draw(loaded("nobody/merged", **spec)), plain)
    said = refused("nobody/merged", **{**spec, "weight_name": "two.safetensors"})
    assert f"'nobody/merged' (two.safetensors) at {REVISION}: it is not on this disk" in said
    assert f"hf download nobody/merged two.safetensors --revision {REVISION}" in said
    said = refused("nobody/merged", **{**spec, "config": Part("nobody/config", REVISION)})
    assert (
        f"config: from 'nobody/config' at {REVISION}, for components not in one.safetensors: it is not"
        in said
    )


def test_of_a_hub_id_the_file_alone_is_downloaded_and_of_its_configuration_what_the_file_lacks(
    made: Path, tmp_path: Path
) -> None:
    with FakeHub(made, "nobody/merged", REVISION) as served:
        hub = Hub(endpoint=served.url, cache=tmp_path / "cache", timeout_seconds=2)
        asked: dict[str, Any] = {"revision": REVISION, "local_files_only": False}
        file = hub.file("nobody/merged", name="one.safetensors", **asked)
        assert file.read_bytes() == (made / "one.safetensors").read_bytes()
        assert not [one for one in served.asked if "/model/" in one]
        with pytest.raises(LoadError, match=r"there is no two.safetensors; there is .*one.safetensors"):
            hub.file("nobody/merged", name="two.safetensors", **asked)
    with FakeHub(made / "model", "nobody/config", ANOTHER) as served:
        hub = Hub(endpoint=served.url, cache=tmp_path / "cache", timeout_seconds=2)
        folder = hub.folder(
            "nobody/config",
            revision=ANOTHER,
            variant=None,
            local_files_only=False,
            left_out=("safety_checker", "feature_extractor", "image_encoder"),
            config_only=lambda layout: {"unet", "vae"} & set(layout.components),
        )
        fetched = {one.parent.name for one in folder.rglob("*.safetensors")}
        assert fetched == {"text_encoder"}
        own = hub.component(
            "nobody/config", revision=ANOTHER, component="vae", variant=None, local_files_only=False
        )
        assert (own / "diffusion_pytorch_model.safetensors").is_file()


def test_a_tiny_autoencoder_decodes_as_in_diffusers(made: Path, plain: np.ndarray, tmp_path: Path) -> None:
    folder = tiny_autoencoder(tmp_path / "taesd")
    engine = loaded(made / "model", vae=Part(str(folder)))
    pipeline = StableDiffusionPipeline.from_pretrained(
        made / "model", vae=AutoencoderTiny.from_pretrained(folder)
    )
    pipeline.set_progress_bar_config(disable=True)
    asked = request()
    handle = engine.submit(asked)
    while not engine.is_idle:
        engine.tick()
    found = handle.future.result().pixels.astype(int)
    assert np.abs(found - theirs(pipeline, asked).astype(int)).max() <= 1
    assert found.std() > 2
    assert not np.array_equal(draw(engine), plain)


def request() -> GenerationRequest:
    return GenerationRequest("m", "a red heart", 64, 64, 2, 2.0, seed=3, scheduler=SchedulerSpec("default"))


def tiny_autoencoder(folder: Path, num_levels: int = 4, **changes: Any) -> Path:
    torch.manual_seed(5)
    widths, blocks = (8,) * num_levels, (1,) * num_levels
    vae = AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
        **changes,
    )
    vae.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"latent_channels": 16}, "has latents of 16 channels, and those of the model have 4: choose"),
        (
            {"num_levels": 3},
            "a latent of its AutoencoderTiny is 4 pixels wide, and a latent of the model 8: choose",
        ),
    ],
)
def test_an_autoencoder_of_other_latents_is_refused(
    made: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    folder = tiny_autoencoder(tmp_path / "vae", **changes)
    found = refused(made / "model", vae=Part(str(folder)))
    assert f"vae: from '{folder}': its AutoencoderTiny {said}" in found or said in found


def test_another_autoencoder_is_read_from_a_folder_a_model_and_a_single_file(
    made: Path, plain: np.ndarray, tmp_path: Path
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(made / "model")
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.bias.add_(0.3)
    pipeline.vae.save_pretrained(tmp_path / "vae")
    file = write_stable_diffusion(pipeline, tmp_path / "vae.safetensors", without=("unet", "text_encoder"))
    pipeline.save_pretrained(tmp_path / "whole")
    images = [
        drawn(made / "model", vae=Part(str(one))) for one in (tmp_path / "vae", file, tmp_path / "whole")
    ]
    assert not np.array_equal(images[0], plain)
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(images[0], images[2])


def test_the_own_weights_of_what_is_replaced_need_not_be_there(
    made: Path, model: Path, plain: np.ndarray
) -> None:
    configured(model, "unet", "text_encoder")
    assert np.array_equal(drawn(model, vae=Part(str(made / "model" / "vae"))), plain)


def in_shards(model: Path, suffix: str = "") -> None:
    """The denoiser's weights in shards with an index, as diffusers saves them; a single file stays."""
    single = (model / UNET).read_bytes()
    pipeline = StableDiffusionPipeline.from_pretrained(model)
    pipeline.unet.save_pretrained(model / "unet", max_shard_size="200KB", variant=suffix or None)
    assert len(list((model / "unet").glob("*-of-*.safetensors"))) > 1
    (model / UNET).write_bytes(single)


def test_weights_in_shards_draw_what_one_file_draws(model: Path, plain: np.ndarray) -> None:
    in_shards(model)
    (model / UNET).unlink()
    assert np.array_equal(drawn(model), plain)


def test_of_shards_beside_one_file_the_shards_are_read_and_the_log_says_what_lies_beside(
    model: Path, plain: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    in_shards(model)
    zeros = {key: torch.zeros_like(tensor) for key, tensor in load_file(model / UNET).items()}
    save_file(zeros, model / UNET, metadata={"format": "pt"})
    with caplog.at_level(logging.INFO, "engine.loading.read_pipeline"):
        assert np.array_equal(drawn(model), plain)
    (said,) = [record.getMessage() for record in caplog.records if "not read" in record.getMessage()]
    assert said.endswith(f"weights that are not read: {UNET}")
    _, facts = read_pipeline(Source(str(model)), CPU, Hub(endpoint=NOWHERE))
    assert UNET not in [name for name, *_ in facts]


def test_a_variant_of_one_component_is_read_and_the_others_are_plain(model: Path, plain: np.ndarray) -> None:
    """As SDXL's fp16-fixed autoencoder lies beside a plain denoiser."""
    vae = AutoencoderKL.from_pretrained(model / "vae")
    with torch.no_grad():
        vae.decoder.conv_out.bias.add_(0.3)
    vae.half().save_pretrained(model / "vae", variant="fp16")
    assert np.array_equal(drawn(model), plain)
    image = drawn(model, variant="fp16")
    assert not np.array_equal(image, plain)
    _, facts = read_pipeline(Source(str(model), variant="fp16"), CPU, Hub(endpoint=NOWHERE))
    weights = [name for name, *_ in facts if name.endswith(".safetensors")]
    assert weights == [
        "text_encoder/model.safetensors",
        UNET,
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]


def test_a_variant_that_no_component_has_reads_the_plain_weights(model: Path, plain: np.ndarray) -> None:
    assert np.array_equal(drawn(model, variant="fp16"), plain)


def test_the_files_of_every_part_are_among_what_a_kept_self_test_depends_on(
    made: Path, model: Path, tmp_path: Path
) -> None:
    vae = tiny_autoencoder(tmp_path / "taesd")
    source = Source(str(made / "one.safetensors"), config=Part(str(model)), vae=Part(str(vae)))
    _, facts = read_pipeline(source, CPU, Hub(endpoint=NOWHERE))
    names = [name for name, *_ in facts]
    assert {"one.safetensors", "vae: config.json", "vae: diffusion_pytorch_model.safetensors"} <= set(names)
    assert "unet/config.json" in names
    tiny_autoencoder(tmp_path / "taesd", latent_magnitude=4)
    _, changed = read_pipeline(source, CPU, Hub(endpoint=NOWHERE))
    assert changed != facts


def test_a_configuration_that_fits_no_file_is_told_so(made: Path, model: Path) -> None:
    config = json.loads((model / "unet" / "config.json").read_text(encoding="utf-8"))
    config["cross_attention_dim"] = 64
    (model / "unet" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    said = refused(made / "one.safetensors", config=Part(str(model)))
    assert "its unet (UNet2DConditionModel)" in said
    assert "take weights and config.json from one revision" in said
