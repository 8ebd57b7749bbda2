"""What a folder must hold to be loaded, whatever its pipeline; and what its model's entry may change."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import LoadError, RequestInvalid
from engine.loading.hub import Hub
from engine.loading.load import ModelSpec, load_engine
from engine.request import SCHEDULERS, GenerationRequest, scheduler_named
from tests.integration.engine.tiny_families import BUILDERS, build

# diffusers' DEISMultistepScheduler hands tensors to numpy's logarithm, which numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

REVISION = "0123456789abcdef0123456789abcdef01234567"
NO_HUB = "http://127.0.0.1:1"
LIMITS = {"m": {64 * 64: 4}}
LARGEST = {"stable_diffusion": "unet", "stable_diffusion_xl": "unet"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind -> folder, as `save_pretrained` writes it, with half-precision twins of some weights."""
    folders = {}
    for kind in BUILDERS:
        folders[kind] = tmp_path_factory.mktemp(kind) / "pipeline"
        pipeline = build(kind, folders[kind].parent)
        pipeline.save_pretrained(folders[kind])
        # In shards, and as a variant that the other components lack: so Stable Diffusion 3 is published.
        pipeline.text_encoder.half().save_pretrained(
            folders[kind] / "text_encoder", variant="fp16", max_shard_size="20KB"
        )
        assert len(list((folders[kind] / "text_encoder").glob("model.fp16-*.safetensors"))) > 1
    return folders


@pytest.fixture
def copy(saved: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A folder of a kind to be spoilt."""
    return lambda kind: Path(shutil.copytree(saved[kind], tmp_path / "copied"))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def load(path: Path | str, **changes: Any) -> Any:
    spec = ModelSpec("m", str(path), **changes)
    return load_engine(
        [spec],
        device="cpu:0",
        row_limits=LIMITS,
        num_threads=1,
        hub=Hub(endpoint=NO_HUB),
        self_test_seconds=0,  # the shortest self-test: images alone and in one batch
    )


def draw(engine: Any, scheduler: str = "default") -> Any:
    handle = engine.submit(
        GenerationRequest(
            model="m",
            prompt="a red heart",
            width=64,
            height=64,
            num_inference_steps=2,
            guidance_scale=2.0,
            seed=3,
            scheduler=scheduler_named(scheduler),
        )
    )
    while not engine.is_idle:
        engine.tick()
    return handle.future.result().pixels


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_pinned_revision_is_read_from_the_hubs_cache(
    saved: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """Links into `blobs`, as the hub's library creates them, without a hub to connect to."""
    repository = tmp_path / "models--nobody--tiny"
    for source in (path for path in saved[kind].rglob("*") if path.is_file()):
        link = repository / "snapshots" / REVISION / source.relative_to(saved[kind])
        blob = repository / "blobs" / str(len(list((repository / "blobs").glob("*"))))
        for path in (link, blob):
            path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, blob)
        link.symlink_to(blob)
    spec = ModelSpec("m", "nobody/tiny", revision=REVISION)
    engine = load_engine(
        [spec],
        device="cpu:0",
        row_limits=LIMITS,
        num_threads=1,
        hub=Hub(endpoint=NO_HUB, cache=tmp_path),
        self_test_seconds=0,
    )
    assert (draw(engine) == draw(load(saved[kind]))).all()


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_scheduler_that_loading_admits_draws_and_any_other_is_refused(
    saved: dict[str, Path], kind: str
) -> None:
    """The web refuses by the entry's list, which is checked when the model is loaded."""
    engine = load(saved[kind])
    admitted = []
    for scheduler in SCHEDULERS:
        try:
            engine._models.by_name["m"].schedulers.check_offer(scheduler, scheduler_named(scheduler), 2, 50)
        except LoadError:
            with pytest.raises(RequestInvalid, match="scheduler"):
                draw(engine, scheduler)
        else:
            admitted.append(scheduler)
            assert draw(engine, scheduler).shape == (64, 64, 3)
    assert "default" in admitted
    assert 2 < len(admitted) < len(SCHEDULERS)


@pytest.mark.parametrize("kind", BUILDERS)
def test_pickled_weights_are_refused(copy: Callable[[str], Path], kind: str) -> None:
    copied = copy(kind)
    component = copied / LARGEST.get(kind, "transformer")
    (weights,) = component.glob("*.safetensors")
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(LoadError, match=f"'m' from .*safetensors only, and its {component.name} has only"):
        load(copied)


def test_a_pipeline_that_the_installed_diffusers_does_not_have_is_named(copy: Callable[[str], Path]) -> None:
    copied = copy("flux")
    change(copied / "model_index.json", _class_name="MagicPipeline")
    with pytest.raises(LoadError, match=r"it is a MagicPipeline, which diffusers .* does not have: install"):
        load(copied)


def test_a_file_that_is_no_safetensors_is_named(copy: Callable[[str], Path]) -> None:
    copied = copy("stable_diffusion_xl")
    (copied / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
    with pytest.raises(LoadError, match="'m' from"):
        load(copied)


def change(path: Path, **entries: Any) -> None:
    """Set these entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_component_that_is_not_there_is_named(copy: Callable[[str], Path], kind: str) -> None:
    copied = copy(kind)
    name = LARGEST.get(kind, "transformer")
    change(copied / "model_index.json", **{name: [None, None], "vae": [None, None]})
    with pytest.raises(LoadError, match=rf"'m' from .*: it has no vae and no {name}|no {name} and no vae"):
        load(copied)
    index = json.loads((copied / "model_index.json").read_text())
    del index["vae"]
    (copied / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(LoadError, match="no vae"):
        load(copied)


@pytest.mark.parametrize(
    ("file", "entries", "complaint"),
    [
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "image"},
            "its EulerDiscreteScheduler cannot be",
        ),
        (
            "unet/config.json",
            {"block_out_channels": 7},
            r"its unet \(UNet2DConditionModel\): its configuration cannot be read \(TypeError",
        ),
    ],
)
def test_every_complaint_is_one_line_that_names_the_model(
    copy: Callable[[str], Path], file: str, entries: dict[str, Any], complaint: str
) -> None:
    copied = copy("stable_diffusion")
    change(copied / file, **entries)
    with pytest.raises(LoadError, match=rf"^model 'm' from .*{complaint}") as raised:
        load(copied)
    assert "\n" not in str(raised.value)


def test_a_model_that_does_not_fit_is_told_so(saved: dict[str, Path]) -> None:
    """The self-test is what needs the most memory of all that happens at the start."""
    spec = ModelSpec("m", str(saved["stable_diffusion"]))
    with pytest.raises(LoadError, match=r"'m' from .*too little memory, even for a step batch of 4 rows"):
        load_engine([spec], device="cpu:0", row_limits={"m": {2**44: 4}}, num_threads=1)


def test_a_component_that_brings_code_is_refused_and_not_run(copy: Callable[[str], Path]) -> None:
    copied = copy("stable_diffusion")
    change(copied / "model_index.json", unet=["attack", "Attack"])
    for folder in (copied, copied / "unet"):
        (folder / "attack.py").write_text(f"open({str(copied / 'ran')!r}, 'w')")
    with pytest.raises(LoadError, match="its unet needs code of its own"):
        load(copied)
    assert not (copied / "ran").exists()


def test_a_custom_pipeline_beside_the_weights_is_not_run(copy: Callable[[str], Path]) -> None:
    copied = copy("stable_diffusion")
    (copied / "pipeline.py").write_text(f"open({str(copied / 'ran')!r}, 'w')")
    draw(load(copied))
    assert not (copied / "ran").exists()


@pytest.mark.parametrize("kind", BUILDERS)
def test_variant_and_dtype_are_as_the_entry_says(saved: dict[str, Path], kind: str) -> None:
    """The variant where a component has one; a half-precision copy of the text encoder is not the same."""
    plain = load(saved[kind])
    variant = load(saved[kind], variant="fp16")
    assert (draw(plain) != draw(variant)).any()
    half = load(saved[kind], dtype="bfloat16")
    loaded = half._models.by_name["m"]
    assert loaded.dtype == loaded.modules["text_encoder"].dtype == torch.bfloat16
    difference = draw(plain).astype(float) - draw(half).astype(float)
    assert abs(difference).mean() < 40, "half precision draws another picture, not another noise"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_of_sdxl_decodes_in_full_where_its_autoencoder_says_so(
    copy: Callable[[str], Path], dtype: str
) -> None:
    """`force_upcast`: it is for an autoencoder whose activations are beyond fp16, as this one's are made."""
    copied = copy("stable_diffusion_xl")
    weights = copied / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["decoder.conv_in.weight"] *= 2e5  # itself within fp16
    save_file(tensors, weights, metadata={"format": "pt"})
    engine = load(copied, dtype=dtype)
    loaded = engine._models.by_name["m"]
    assert (loaded.dtype, loaded.modules["vae"].dtype) == (getattr(torch, dtype), torch.float32)
    assert draw(engine).std() > 5
    change(copied / "vae" / "config.json", force_upcast=False)
    if dtype == "float16":
        with pytest.raises(
            LoadError, match=r"the output of its vae \(AutoencoderKL\) in float16 is not finite"
        ):
            load(copied, dtype=dtype)
    else:
        engine = load(copied, dtype=dtype)
        assert engine._models.by_name["m"].modules["vae"].dtype == getattr(torch, dtype)
