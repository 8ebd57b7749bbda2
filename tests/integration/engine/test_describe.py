"""`calotype models describe` prints an entry that is accepted and with which the model draws."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusionPAGPipeline

from catalogue.catalogue import Model, load_catalogue
from cli.models import entry_of
from engine.errors import LoadError
from engine.loading.description import describe
from engine.loading.hub import Hub
from engine.loading.load import ModelSpec, load_engine
from engine.pipelines.pipeline_model import LEFT_OUT
from engine.request import GenerationRequest, SchedulerSpec
from settings import ROOT
from tests.integration.engine.fake_hub import FakeHub
from tests.integration.engine.test_any_pipeline import finish, pixels
from tests.integration.engine.tiny_families import build

# diffusers' DEISMultistepScheduler hands tensors to numpy's logarithm, which numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")

PAG: dict[str, Any] = {"pipeline_class": StableDiffusionPAGPipeline}
DRAWN = {"stable_diffusion": {}, "stable_diffusion_xl": {}, "stable_diffusion_3": {}, "pag": PAG}
LARGE = {"flux": 16, "pixart": 16, "sana": 32}
"""Their native size is 1024 x 1024, which a test has no time to draw."""


def saved(kind: str, folder: Path) -> Path:
    build("stable_diffusion" if kind == "pag" else kind, folder, **DRAWN.get(kind, {})).save_pretrained(
        folder / "model"
    )
    return folder / "model"


def accepted(folder: Path) -> Model:
    """The entry of the model as the web reads it."""
    file = folder.parent / "calotype.toml"
    file.write_text(entry_of(describe(folder), "tiny", str(folder), is_whole=True), encoding="utf-8")
    model = load_catalogue(file).model("tiny")
    assert model is not None
    return model


@pytest.mark.parametrize("kind", DRAWN)
def test_a_model_draws_by_its_described_entry_with_every_default_given(kind: str, tmp_path: Path) -> None:
    model = accepted(saved(kind, tmp_path))
    tier = model.tiers[0]
    spec = ModelSpec(
        "tiny",
        model.path,
        tasks=model.tasks,
        step_cache=model.step_cache,
        schedulers=model.schedulers,
        default_num_inference_steps=model.default_num_inference_steps,
        max_num_inference_steps=model.max_num_inference_steps,
        max_side=model.max_side,
        trial_values={one.name: None for one in model.parameters},
        pipeline_defaults={one.name: one.default for one in model.parameters},
    )
    limits = {"tiny": {tier.max_pixels: 2}}
    # The shortest self-test: images alone and in one batch.
    engine = load_engine([spec], device="cpu:0", row_limits=limits, num_threads=1, self_test_seconds=0)
    request = GenerationRequest(
        "tiny",
        "a red heart",
        tier.default_width,
        tier.default_height,
        2,
        model.default_guidance_scale,
        seed=1,
        scheduler=SchedulerSpec("default"),
        pipeline_parameters=model.defaults["pipeline_parameters"],
    )
    handle = engine.submit(request)
    finish(engine)
    engine.stop()
    assert model.parameters
    assert {"text-to-image", "image-to-image"} <= {*model.tasks}
    assert model.step_cache
    assert not {"denoising_end", "mu"} & {one.name for one in model.parameters}
    assert pixels(handle).shape == (tier.default_height, tier.default_width, 3)


@pytest.mark.parametrize("kind", LARGE)
def test_the_entry_of_a_large_model_is_accepted_with_its_native_size(kind: str, tmp_path: Path) -> None:
    model = accepted(saved(kind, tmp_path))
    length = next(one for one in model.parameters if one.name == "max_sequence_length")
    assert model.tiers[0].default_width == 1024
    assert model.side_multiple == LARGE[kind]
    assert length.max == length.default
    assert "clean_caption" not in [one.name for one in model.parameters]


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (None, "there is no model_index.json"),
        ({"_class_name": "NoSuchPipeline"}, "has no pipeline 'NoSuchPipeline'"),
        ({"_class_name": "StableDiffusionControlNetImg2ImgPipeline"}, "needs an image beside a control im"),
        ({"_class_name": "StableDiffusionUpscalePipeline"}, "does a task that requests cannot ask for"),
        ({"_class_name": "KandinskyV22PriorPipeline"}, "draws no image: its call returns image_embeds"),
        ({"_class_name": "KandinskyV22Pipeline"}, "needs image_embeds and negative_image_embeds besides"),
        ({"_class_name": "StableDiffusionGLIGENPipeline"}, "needs gligen_phrases and gligen_boxes besides"),
        ({"_class_name": "WanPipeline"}, "makes video, not an image"),
        ({"_class_name": "StableAudioPipeline"}, "makes sound, not an image"),
        ({"_class_name": "FluxModularPipeline"}, "a FluxModularPipeline is a modular pipeline"),
        ({"_class_name": "OnnxStableDiffusionPipeline"}, "needs onnx, which is not installed"),
        ({"_class_name": "StableDiffusionPipeline"}, "it has no scheduler"),
    ],
)
def test_what_draws_no_request_is_refused_by_its_reason(
    index: dict[str, str] | None, said: str, tmp_path: Path
) -> None:
    if index is not None:
        (tmp_path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(LoadError, match=said):
        describe(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no such folder"):
        describe(tmp_path / "nothing")


def test_a_hub_id_is_described_from_its_configuration_and_no_weights_are_fetched(tmp_path: Path) -> None:
    folder, revision = saved("stable_diffusion", tmp_path), "0123456789abcdef0123456789abcdef01234567"
    with FakeHub(folder, "nobody/tiny", revision) as served:
        hub = Hub(endpoint=served.url, cache=tmp_path / "cache", timeout_seconds=2)
        asked: dict[str, Any] = {"path": "nobody/tiny", "revision": revision, "left_out": list(LEFT_OUT)}
        with pytest.raises(LoadError, match=r"configuration is not on this disk$"):
            hub.configuration(local_files_only=True, **asked)
        found = hub.configuration(local_files_only=False, **asked)
        assert not [one for one in served.asked if "safetensors" in one]
    assert describe(found) == describe(folder)
    assert hub.configuration(local_files_only=True, **asked) == found


def test_a_single_file_is_described_by_its_configuration(tmp_path: Path) -> None:
    folder, file = saved("stable_diffusion", tmp_path), tmp_path / "my.safetensors"
    file.write_bytes(b"no weights are opened")
    command = [sys.executable, "-m", "cli", "models", "describe", str(file), "--whole"]
    printed = subprocess.run(
        [*command, "--config", str(folder)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (tmp_path / "printed.toml").write_text(printed.stdout, encoding="utf-8")
    model = load_catalogue(tmp_path / "printed.toml").model("my")
    assert model is not None
    assert model.path == str(file)
    assert model.parts["config"].path == str(folder)
    alone = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert alone.stderr.splitlines() == [
        "calotype: --config: it is required for a single file, and not allowed for a folder"
    ]


def test_the_command_prints_a_whole_file_or_one_line_of_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli", "models", "describe", "--whole"]
    folder = saved("stable_diffusion", tmp_path)
    printed = subprocess.run([*command, str(folder)], cwd=ROOT, capture_output=True, text=True, check=True)
    (tmp_path / "printed.toml").write_text(printed.stdout, encoding="utf-8")
    assert load_catalogue(tmp_path / "printed.toml").default_model == "model"
    assert "family" not in printed.stdout
    assert "# Steps and guidance scale: a guess, the default of the pipeline's call" in printed.stdout
    unknown = subprocess.run(
        [*command, "nobody/none", "--revision", 40 * "0"],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert unknown.stderr.splitlines() == [
        "calotype: nobody/none: its configuration is not on this disk; --download fetches it"
    ]
    missing = subprocess.run(
        [*command, str(tmp_path / "none")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert missing.returncode == 1
    assert missing.stdout == ""
    assert [line.startswith("calotype: ") for line in missing.stderr.splitlines()] == [True]
