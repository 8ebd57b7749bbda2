"""What a folder must hold to be loaded, for every family; and what its model's entry may change."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from catalogue.catalogue import FAMILIES as SETTINGS_FAMILIES
from engine.errors import LoadError, RequestInvalid
from engine.hub import Hub
from engine.load import ANY, FAMILIES, ModelSpec, load_engine
from engine.request import SCHEDULERS, GenerationRequest, scheduler_named
from tests.integration.engine.tiny_families import build

REVISION = "0123456789abcdef0123456789abcdef01234567"
NO_HUB = "http://127.0.0.1:1"
LIMITS = {"m": {64 * 64: 4}}
OFFERED: dict[str, tuple[str, ...]] = {
    family: schedulers for family, (schedulers, _) in SETTINGS_FAMILIES.items()
}
LARGEST = {"stable_diffusion": "unet", "stable_diffusion_xl": "unet"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> folder, as `save_pretrained` writes it, with half-precision twins of some weights."""
    folders = {}
    for family in FAMILIES:
        folders[family] = tmp_path_factory.mktemp(family) / "pipeline"
        pipeline = build(family, folders[family].parent)
        pipeline.save_pretrained(folders[family])
        # In shards, and as a variant that the other components lack: so Stable Diffusion 3 is published.
        pipeline.text_encoder.half().save_pretrained(
            folders[family] / "text_encoder", variant="fp16", max_shard_size="20KB"
        )
        assert len(list((folders[family] / "text_encoder").glob("model.fp16-*.safetensors"))) > 1
    return folders


@pytest.fixture
def copied(saved: dict[str, Path], tmp_path: Path, family: str) -> Path:
    """A folder of `family` to be spoilt."""
    return Path(shutil.copytree(saved[family], tmp_path / "copied"))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def load(path: Path | str, family: str, **changes: Any) -> Any:
    spec = ModelSpec("m", str(path), family, **changes)
    return load_engine([spec], device="cpu:0", row_limits=LIMITS, num_threads=1, hub=Hub(endpoint=NO_HUB))


def draw(engine: Any, family: str, scheduler: str | None = None) -> Any:
    handle = engine.submit(
        GenerationRequest(
            model="m",
            prompt="a red heart",
            width=64,
            height=64,
            num_inference_steps=2,
            guidance_scale=2.0,
            seed=3,
            scheduler=scheduler_named(scheduler or OFFERED[family][-1]),
        )
    )
    while not engine.is_idle:
        engine.tick()
    return handle.future.result().pixels


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pinned_revision_is_read_from_the_hubs_cache(
    saved: dict[str, Path], tmp_path: Path, family: str
) -> None:
    """Links into `blobs`, as the hub's library makes them, and nobody to ask."""
    repository = tmp_path / "models--nobody--tiny"
    for source in (path for path in saved[family].rglob("*") if path.is_file()):
        link = repository / "snapshots" / REVISION / source.relative_to(saved[family])
        blob = repository / "blobs" / str(len(list((repository / "blobs").glob("*"))))
        for path in (link, blob):
            path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, blob)
        link.symlink_to(blob)
    spec = ModelSpec("m", "nobody/tiny", family, revision=REVISION)
    hub = Hub(endpoint=NO_HUB, cache=tmp_path)
    engine = load_engine([spec], device="cpu:0", row_limits=LIMITS, num_threads=1, hub=hub)
    assert (draw(engine, family) == draw(load(saved[family], family), family)).all()


def test_settings_know_the_families_of_the_engine() -> None:
    assert set(SETTINGS_FAMILIES) == {*FAMILIES, ANY}
    assert set(SETTINGS_FAMILIES["diffusers"][0]) == set(SCHEDULERS)


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_tell_the_truth_about_a_family(saved: dict[str, Path], family: Any) -> None:
    """The web refuses by `catalogue.FAMILIES`, so what that allows must run, and nothing else."""
    engine = load(saved[family], family)
    for scheduler in SCHEDULERS:
        if scheduler in OFFERED[family]:
            assert draw(engine, family, scheduler).shape == (64, 64, 3)
        else:
            with pytest.raises(RequestInvalid, match="scheduler"):
                draw(engine, family, scheduler)
    loaded = engine._models.families["m"]
    assert SETTINGS_FAMILIES[family][1] == loaded.pixels_per_latent * loaded.latents_per_patch


@pytest.mark.parametrize("family", FAMILIES)
def test_pickled_weights_are_refused(copied: Path, family: str) -> None:
    component = copied / LARGEST.get(family, "transformer")
    (weights,) = component.glob("*.safetensors")
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(LoadError, match=f"'m' from .*safetensors only, and its {component.name} has only"):
        load(copied, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_another_family_is_refused(saved: dict[str, Path], family: str) -> None:
    other = next(name for name in FAMILIES if name != family)
    with pytest.raises(
        LoadError, match=rf"it is a \w+Pipeline, .* needs a \w+Pipeline( or a \w+)?: set family = '{family}'"
    ):
        load(saved[family], other)


@pytest.mark.parametrize("family", ["stable_diffusion_xl"])
def test_a_file_that_is_no_safetensors_is_named(copied: Path, family: str) -> None:
    (copied / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
    with pytest.raises(LoadError, match="'m' from"):
        load(copied, family)


def change(path: Path, **entries: Any) -> None:
    """Set these entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_component_that_is_not_there_is_named(copied: Path, family: str) -> None:
    name = LARGEST.get(family, "transformer")
    change(copied / "model_index.json", **{name: [None, None], "vae": [None, None]})
    with pytest.raises(LoadError, match=rf"'m' from .*: it has no vae and no {name}|no {name} and no vae"):
        load(copied, family)
    index = json.loads((copied / "model_index.json").read_text())
    del index["vae"]
    (copied / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(LoadError, match="no vae"):
        load(copied, family)


@pytest.mark.parametrize("family", ["stable_diffusion"])
@pytest.mark.parametrize(
    ("file", "entries", "complaint"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "image"}, "'image' of its .* not supported"),
        ("unet/config.json", {"block_out_channels": 7}, r"its configuration cannot be read \(TypeError"),
    ],
)
def test_every_complaint_is_one_line_that_names_the_model(
    copied: Path, family: str, file: str, entries: dict[str, Any], complaint: str
) -> None:
    change(copied / file, **entries)
    with pytest.raises(LoadError, match=rf"^model 'm' from .*{complaint}") as raised:
        load(copied, family)
    assert "\n" not in str(raised.value)


def test_a_model_that_does_not_fit_is_told_so(saved: dict[str, Path]) -> None:
    """The self-test is what needs the most memory of all that happens at the start."""
    spec = ModelSpec("m", str(saved["stable_diffusion"]))
    with pytest.raises(LoadError, match=r"'m' from .*too little memory, even for a step batch of 4 rows"):
        load_engine([spec], device="cpu:0", row_limits={"m": {2**44: 4}}, num_threads=1)


@pytest.mark.parametrize("family", ["stable_diffusion"])
def test_a_component_that_brings_code_is_refused_and_not_run(copied: Path, family: str) -> None:
    change(copied / "model_index.json", unet=["attack", "Attack"])
    for folder in (copied, copied / "unet"):
        (folder / "attack.py").write_text(f"open({str(copied / 'ran')!r}, 'w')")
    with pytest.raises(LoadError, match="its unet needs code of its own"):
        load(copied, family)
    assert not (copied / "ran").exists()


@pytest.mark.parametrize("family", ["stable_diffusion"])
def test_a_custom_pipeline_beside_the_weights_is_not_run(copied: Path, family: str) -> None:
    (copied / "pipeline.py").write_text(f"open({str(copied / 'ran')!r}, 'w')")
    draw(load(copied, family), family)
    assert not (copied / "ran").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_variant_and_dtype_are_as_the_entry_says(saved: dict[str, Path], family: str) -> None:
    """The variant where a component has one; a half-precision copy of the text encoder is not the same."""
    plain = load(saved[family], family)
    variant = load(saved[family], family, variant="fp16")
    assert (draw(plain, family) != draw(variant, family)).any()
    half = load(saved[family], family, dtype="bfloat16")
    loaded = half._models.families["m"]
    assert loaded.encode("a star").prompt_embeds.dtype == torch.bfloat16
    assert loaded.dtype == (torch.float32 if family == "sana" else torch.bfloat16), (
        "SANA's pipeline steps in fp32"
    )
    difference = draw(plain, family).astype(float) - draw(half, family).astype(float)
    assert abs(difference).mean() < 40, "half precision draws another picture, not another noise"


@pytest.mark.parametrize("family", ["stable_diffusion_xl"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_of_sdxl_decodes_in_full_where_its_autoencoder_says_so(
    copied: Path, family: str, dtype: str
) -> None:
    """`force_upcast`: it is for an autoencoder whose activations are beyond fp16, as this one's are made."""
    weights = copied / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["decoder.conv_in.weight"] *= 2e5  # itself within fp16
    save_file(tensors, weights, metadata={"format": "pt"})
    engine = load(copied, family, dtype=dtype)
    loaded = engine._models.families["m"]
    assert (loaded.dtype, loaded._vae.dtype) == (getattr(torch, dtype), torch.float32)
    assert loaded.decode(torch.ones(1, 4, 8, 8, dtype=loaded.dtype)).dtype == torch.float32
    assert draw(engine, family).std() > 5
    change(copied / "vae" / "config.json", force_upcast=False)
    if dtype == "float16":
        with pytest.raises(
            LoadError, match=r"what its vae \(AutoencoderKL\) computes in float16 is not finite"
        ):
            load(copied, family, dtype=dtype)
    else:
        engine = load(copied, family, dtype=dtype)
        assert engine._models.families["m"]._vae.dtype == getattr(torch, dtype)
