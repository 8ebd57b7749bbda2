"""The promises of the rule that says what draws a request, and what is wrong with one that fits nothing."""

from typing import Any

import pytest
from pydantic import ValidationError

from catalogue.catalogue import Model, load_catalogue
from catalogue.parameters import Parameters
from catalogue.pipeline_tasks import PipelineTask, num_steps_at, strength_fault, task_faults, task_of
from settings import ROOT

FILE, OTHER = f"file_{'0' * 64}", f"file_{'1' * 64}"
SHIPPED: tuple[PipelineTask, ...] = ("text-to-image", "image-to-image", "inpainting")
ALL: tuple[PipelineTask, ...] = (*SHIPPED, "edit", "control")


def asked(**given: Any) -> Parameters:
    plain = {
        "prompt": "a red heart",
        "width": 64,
        "height": 64,
        "num_inference_steps": 20,
        "guidance_scale": 2.0,
        "scheduler": "ddim",
        "seed": 0,
    }
    return Parameters(**{**plain, **given})


@pytest.mark.parametrize(
    ("given", "offered", "task"),
    [
        ({}, SHIPPED, "text-to-image"),
        ({"image": [FILE]}, SHIPPED, "image-to-image"),
        ({"image": [FILE], "mask_image": OTHER}, SHIPPED, "inpainting"),
        ({"control_image": FILE}, ALL, "control"),
        ({"image": [FILE]}, ("edit",), "edit"),
        ({"image": [FILE]}, ALL, "edit"),
        ({"image": [FILE], "strength": 0.5}, ALL, "image-to-image"),
        ({"image": [FILE, OTHER]}, ("text-to-image", "edit"), "edit"),
    ],
)
def test_what_a_request_gives_says_what_draws_it(
    given: dict[str, Any], offered: tuple[PipelineTask, ...], task: PipelineTask
) -> None:
    assert task_of(asked(**given), offered) == task
    assert list(task_faults(asked(**given), offered, "tiny")) == []


@pytest.mark.parametrize(
    ("given", "offered", "fault"),
    [
        (
            {"image": [FILE]},
            ("text-to-image",),
            "image: is for image-to-image or edit, and model 'tiny' offers",
        ),
        ({"mask_image": FILE}, ("text-to-image",), "mask_image: is for inpainting, and model 'tiny' offers"),
        ({"control_image": FILE}, SHIPPED, "control_image: is for control, and model 'tiny' offers text-to"),
        ({"image": [FILE]}, ("inpainting",), "mask_image: is needed with an image: model 'tiny' offers inp"),
        ({}, ("edit",), "image: is needed: model 'tiny' offers edit"),
        ({}, ("control",), "control_image: is needed: model 'tiny' offers control"),
        ({"mask_image": FILE}, SHIPPED, "image: is needed with a mask_image"),
        ({"control_image": FILE, "image": [FILE]}, ALL, "image: goes with no control_image"),
        ({"control_image": FILE, "mask_image": FILE}, ALL, "mask_image: goes with no control_image"),
        ({"image": [FILE, OTHER]}, SHIPPED, "image: has 2 images, and image-to-image takes one"),
        ({"strength": 0.5}, SHIPPED, "strength: is for image-to-image and inpainting, and this request asks"),
        ({"image": [FILE], "strength": 0.04}, SHIPPED, "strength: with 20 steps at least 0.05"),
        ({"image": [FILE], "strength": 0.0}, SHIPPED, "strength: with 20 steps at least 0.05"),
    ],
)
def test_what_fits_nothing_that_the_model_offers_is_named(
    given: dict[str, Any], offered: tuple[PipelineTask, ...], fault: str
) -> None:
    [(name, words)] = task_faults(asked(**given), offered, "tiny")
    assert f"{name}: {words}".startswith(fault)


@pytest.mark.parametrize("num_inference_steps", [1, 2, 3, 7, 20, 30, 49, 99, 150, 1000])
def test_the_least_strength_that_is_named_leaves_a_step_and_none_that_leaves_one_is_refused(
    num_inference_steps: int,
) -> None:
    fault = strength_fault(0.0, num_inference_steps)
    assert fault is not None
    least = float(fault.rpartition(" ")[2])
    assert strength_fault(least, num_inference_steps) is None
    assert num_steps_at(least, num_inference_steps) == 1
    assert num_steps_at(1.0, num_inference_steps) == num_inference_steps


def test_the_shipped_model_offers_what_its_weights_can_draw() -> None:
    model = load_catalogue(ROOT / "calotype.toml").model("tiny")
    assert model is not None
    assert model.tasks == SHIPPED


def entry(**changes: Any) -> Model:
    """The shipped model with these entries."""
    model = load_catalogue(ROOT / "calotype.toml").models[0]
    return Model.model_validate({**model.model_dump(by_alias=True), **changes})


def test_an_entry_without_tasks_offers_text_to_image() -> None:
    entries = load_catalogue(ROOT / "calotype.toml").models[0].model_dump(exclude={"tasks"}, by_alias=True)
    assert Model.model_validate(entries).tasks == ("text-to-image",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": []}, "at least 1 item"),
        ({"tasks": ["text-to-video"]}, "Input should be 'text-to-image', 'image-to-image'"),
        ({"tasks": ["edit", "edit"]}, "tasks: one is there twice"),
        ({"controlnet": "here"}, "controlnet: it is for the task 'control', which tasks does not name"),
        (
            {"controlnet_revision": "0" * 40},
            "controlnet_revision: there is no controlnet that it could be of",
        ),
        (
            {"tasks": ["control"], "controlnet": "a/b", "controlnet_revision": "main"},
            "controlnet_revision 'main' can move",
        ),
        (
            {"tasks": ["control"], "controlnet": "a", "cpu_offload": "model", "step_cache": False},
            "controlnet: it",
        ),
    ],
)
def test_entries_that_contradict_each_other_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        entry(**changes)
