"""Descriptions of models, for every pipeline class of the installed diffusers.

A class that draws no request is refused by its reason; the sides of those that draw from text are right.
"""

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from engine.errors import LoadError
from engine.loading.description import Description, describe
from engine.pipelines.pipeline_task import outputs_of, own_tasks, refusal_of
from tests.pipelines import families
from tests.pipelines.builds import BUILDS, CONTROL, EDIT, IMAGE, INPAINT, TEXT, built
from tests.pipelines.classes import AUDIO, NOT_IMAGE_CLASSES, NOT_IMAGES, VIDEO, image_pipelines

pytestmark = [
    # diffusers' DEISMultistepScheduler hands tensors to numpy's logarithm, which numpy 2 warns of.
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    # What diffusers says of its own classes when they are built.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning"),
]
assert families.FAMILIES  # it fills `BUILDS`
TASKS = {
    TEXT: "text-to-image",
    IMAGE: "image-to-image",
    INPAINT: "inpainting",
    EDIT: "edit",
    CONTROL: "control",
}
ALSO_FROM_TEXT = {"Flux2KleinKVPipeline", "FluxKontextPipeline"}
"""They are made for editing, and draw from text alone as well."""
DECODERS = {
    *("KandinskyPipeline", "KandinskyImg2ImgPipeline", "KandinskyInpaintPipeline"),
    *("KandinskyV22Pipeline", "KandinskyV22Img2ImgPipeline", "KandinskyV22InpaintPipeline"),
    *("KandinskyV22ControlnetPipeline", "KandinskyV22ControlnetImg2ImgPipeline"),
    "StableCascadeDecoderPipeline",
}
"""They draw from embeddings that another pipeline makes of a text."""
CLASSES = {
    name: kind
    for name in dir(diffusers)
    if inspect.isclass(kind := getattr(diffusers, name)) and issubclass(kind, DiffusionPipeline)
}
SERVED = sorted(
    name
    for name in BUILDS
    if refusal_of(CLASSES[name]) is None and own_tasks(CLASSES[name])[0] == "text-to-image"
)
OWN_SIZES = {
    "FluxKontextPipeline": "keeps the area of an image at its max_area",
    "HiDreamImagePipeline": "keeps the area of an image at its default",
    "Kandinsky5T2IPipeline": "has a list of sizes",
    "StableCascadeCombinedPipeline": "is built with a prior of other sides than published",
    "BriaFiboPipeline": "is built for prompts of its own",
    "Ideogram4Pipeline": "is built for arguments of its own",
}
"""Classes whose small builds do not draw at any size."""


def made_of(name: str, folder: Path) -> Description:
    """The description of a small pipeline by its configuration alone, as a hub has it."""
    pipeline = built(name)
    pipeline.save_config(folder)
    for part, component in pipeline.components.items():
        if hasattr(component, "save_config"):
            component.save_config(folder / part)
        elif hasattr(component, "config"):
            component.config.save_pretrained(folder / part)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    for entry in index.values():
        if isinstance(entry, list) and entry[0] not in (None, "diffusers"):
            entry[0] = "transformers"  # else of a tokenizer that stands in for a downloaded one
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return describe(folder)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_class_is_described_with_its_tasks_or_refused_by_its_reason(name: str) -> None:
    refused = refusal_of(CLASSES[name])
    packages = CLASSES[name].__module__.split(".")
    kind = NOT_IMAGE_CLASSES.get(name) or next((NOT_IMAGES[one] for one in packages if one in NOT_IMAGES), "")
    if name in BUILDS and refused is None:
        tasks = {TASKS[one] for one in BUILDS[name].tasks if one in TASKS}
        own = {*own_tasks(CLASSES[name])} - ({"text-to-image"} if name in ALSO_FROM_TEXT else set())
        # The mask of an edit says where to edit, so that is inpainting.
        assert own == (tasks - {"edit"} if "inpainting" in tasks else tasks)
    if name not in image_pipelines():
        assert refused is not None
        assert kind != VIDEO or refused == "makes video, not an image" or not outputs_of(CLASSES[name])
        assert kind != AUDIO or refused == "makes sound, not an image"
    else:
        assert refused is None or not refused.startswith("makes video")


def test_few_classes_are_refused_for_another_reason_than_two_kinds_of_images() -> None:
    refused = {name: refusal_of(kind) or "" for name, kind in CLASSES.items() if name in image_pipelines()}
    others = {
        name
        for name, why in refused.items()
        if why and not why.startswith(("needs an image beside", "needs a mode", "does a task"))
    }
    assert {name for name in others if ".deprecated." not in CLASSES[name].__module__} == {
        *DECODERS,
        *("ConsistencyModelPipeline", "DDIMPipeline", "DDPMPipeline", "DiTPipeline"),  # no text
        *("VisualClozePipeline", "VisualClozeGenerationPipeline"),
        *("LEditsPPPipelineStableDiffusion", "LEditsPPPipelineStableDiffusionXL"),
        "BlipDiffusionControlNetPipeline",
    }


@pytest.mark.parametrize("name", sorted({*SERVED} - {*OWN_SIZES}))
def test_an_image_has_the_size_that_was_asked_for_at_its_described_multiple(
    name: str, tmp_path: Path
) -> None:
    multiple = made_of(name, tmp_path).side_multiple
    sides = {"width": max(1, 64 // multiple) * multiple, "height": (max(1, 64 // multiple) + 1) * multiple}
    assert drawn(name, **sides) == (sides["height"], sides["width"])
    if multiple > 16:
        smaller = {"width": sides["width"], "height": sides["width"] + multiple // 2}
        assert drawn(name, **smaller) != (smaller["height"], smaller["width"])


def drawn(name: str, **sides: int) -> tuple[int, ...] | None:
    """Height and width of the image of a call; None where the call refuses the size."""
    pipeline = built(name)
    given: dict[str, Any] = {
        "prompt": "a red heart",
        "num_inference_steps": 2,
        "prior_num_inference_steps": 2,
        "generator": torch.Generator().manual_seed(1),
        "output_type": "np",
        "use_resolution_binning": False,
        **{key: value(0) if callable(value) else value for key, value in BUILDS[name].arguments.items()},
        **sides,
    }
    taken = inspect.signature(pipeline.__call__).parameters
    try:
        with torch.inference_mode():
            found = pipeline(
                **{key: value for key, value in given.items() if key in taken and key != "image"}
            )
    except (ValueError, RuntimeError):
        return None
    images = found.image if hasattr(found, "image") else found.images
    return tuple(images[0].shape[:2])


@pytest.mark.parametrize(
    ("name", "multiple"),
    [
        ("FluxPipeline", 16),
        ("StableDiffusion3Pipeline", 16),
        ("PixArtSigmaPipeline", 16),
        ("SanaPipeline", 32),
        ("QwenImagePipeline", 16),
        ("ZImagePipeline", 16),
        ("Kandinsky3Pipeline", 64),
        ("StableDiffusionPipeline", 8),
    ],
)
def test_the_multiple_of_well_known_classes(name: str, multiple: int, tmp_path: Path) -> None:
    assert made_of(name, tmp_path).side_multiple == multiple


@pytest.mark.parametrize(
    ("name", "tasks", "parameter"),
    [
        ("StableDiffusionPipeline", ("text-to-image", "image-to-image", "inpainting"), "padding_mask_crop"),
        ("ChromaPipeline", ("text-to-image", "image-to-image", "inpainting"), "max_sequence_length"),
        ("Flux2KleinPipeline", ("text-to-image", "edit", "inpainting"), "padding_mask_crop"),
        ("QwenImageEditPlusPipeline", ("edit",), "max_sequence_length"),
        ("StableDiffusionInpaintPipeline", ("inpainting",), "padding_mask_crop"),
        ("StableDiffusionControlNetPipeline", ("control",), "controlnet_conditioning_scale"),
        ("FluxControlPipeline", ("control",), "max_sequence_length"),
    ],
)
def test_what_is_described_offers_the_tasks_that_its_weights_can_draw_and_the_parameters_of_their_calls(
    name: str, tasks: tuple[str, ...], parameter: str, tmp_path: Path
) -> None:
    found = made_of(name, tmp_path)
    assert found.tasks == tasks
    assert parameter in [one.name for one in found.parameters]
    assert "strength" not in [one.name for one in found.parameters]


def changed(folder: Path, file: str, **entries: Any) -> Path:
    """The folder, with entries of one of its files replaced."""
    document = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps({**document, **entries}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "file", "entries", "reason"),
    [
        (
            "FluxPipeline",
            "transformer/config.json",
            {"guidance_embeds": False},
            "neither guidance_embeds nor",
        ),
        ("Flux2KleinPipeline", "model_index.json", {"is_distilled": True}, "says is_distilled"),
        ("HunyuanImagePipeline", "transformer/config.json", {"use_meanflow": True}, "says use_meanflow"),
        ("StableDiffusionPipeline", "unet/config.json", {"time_cond_proj_dim": 8}, "time_cond_proj_dim"),
    ],
)
def test_a_configuration_that_tells_of_distillation_means_few_steps_and_others_are_said_to_be_guesses(
    name: str, file: str, entries: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    plain = made_of(name, tmp_path)
    if name == "FluxPipeline":  # as FLUX.1 [schnell] is published
        FlowMatchEulerDiscreteScheduler().save_config(tmp_path / "scheduler")
    few = describe(changed(tmp_path, file, **entries))
    assert plain.num_inference_steps > 20
    assert plain.origins["steps"].startswith("a guess, the default of the pipeline's call")
    assert few.num_inference_steps == 4
    assert reason in few.origins["steps"]


def test_a_model_of_the_flux_kind_that_shifts_by_size_is_not_taken_for_a_distilled_one(
    tmp_path: Path,
) -> None:
    made_of("FluxPipeline", tmp_path)
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_config(tmp_path / "scheduler")
    found = describe(changed(tmp_path, "transformer/config.json", guidance_embeds=False))
    assert found.num_inference_steps == 28


def test_a_step_cache_is_offered_where_the_denoiser_has_a_walk_and_the_pipeline_asks_for_tuples(
    tmp_path: Path,
) -> None:
    with_one = {name for name in SERVED if made_of(name, tmp_path / name).has_step_cache}
    assert {"FluxPipeline", "SanaPipeline", "PixArtAlphaPipeline", "StableDiffusion3Pipeline"} <= with_one
    assert {"StableDiffusionPipeline", "StableDiffusionXLPipeline"} <= with_one
    # Without tuples, with guidance as an input, without a partial forward.
    assert not with_one & {"LDMTextToImagePipeline", "SanaSprintPipeline", "ZImagePipeline"}


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"num_layers": 10**9}, "more than 1000 num_layers"),
        ({"patch_size": 1000}, "sides would be multiples of 8000"),
    ],
)
def test_a_configuration_without_measure_is_refused_before_anything_is_built(
    entries: dict[str, Any], said: str, tmp_path: Path
) -> None:
    made_of("StableDiffusion3Pipeline", tmp_path)
    with pytest.raises(LoadError, match=said):
        describe(changed(tmp_path, "transformer/config.json", **entries))
