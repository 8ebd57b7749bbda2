"""A request becomes a row that its tier can serve, or a refusal that names the field and the limit."""

from typing import Any

import pytest
from pydantic import ValidationError

from catalogue.catalogue import Catalogue, tier_for
from catalogue.parameters import Parameters
from settings import Settings
from storage.submissions import NewJob
from web.api.admission import Admission
from web.api.schemas import JobRequest, field_errors
from web.refusals import InvalidRequest


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Settings().catalogue


def admit(catalogue: Catalogue, **fields: Any) -> NewJob:
    """What `POST /v1/jobs` does with a parsed body."""
    try:
        request = JobRequest.model_validate({"prompt": "a red heart", **fields})
    except ValidationError as error:
        raise InvalidRequest.of(field_errors(error)) from error
    return Admission(catalogue, tier_for).admit(request, "acc_test")


def drawn_by(catalogue: Catalogue, **fields: Any) -> Parameters:
    return admit(catalogue, **fields).parameters


def test_what_is_left_out_is_the_models_choice(catalogue: Catalogue) -> None:
    new = admit(catalogue)
    drawn = new.parameters
    assert (new.model, new.tier, drawn.width, drawn.height) == ("tiny", "sd", 128, 128)
    assert (drawn.num_inference_steps, drawn.guidance_scale, drawn.scheduler) == (20, 2.0, "ddim")
    assert (new.lane, drawn.num_images) == ("interactive", 1)
    assert (new.deadline_seconds, new.webhook_url) == (None, None)


def test_a_drawn_seed_is_one_that_every_json_client_keeps(catalogue: Catalogue) -> None:
    seeds = {drawn_by(catalogue).seed for _ in range(50)}
    assert len(seeds) == 50
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_a_file_is_a_png_unless_another_is_asked_for(catalogue: Catalogue) -> None:
    assert (drawn_by(catalogue).output_format, drawn_by(catalogue).output_quality) == ("png", None)
    lossy = drawn_by(catalogue, output_format="webp", output_quality=1)
    assert (lossy.output_format, lossy.output_quality) == ("webp", 1)
    assert drawn_by(catalogue, output_format="webp").output_quality is None


@pytest.mark.parametrize("seed", [0, 2**32, 2**63 - 1])
def test_every_seed_in_range_is_kept(catalogue: Catalogue, seed: int) -> None:
    assert drawn_by(catalogue, seed=seed).seed == seed


@pytest.mark.parametrize(("side", "tier"), [(64, "sd"), (128, "sd"), (136, "hd"), (192, "hd")])
def test_a_size_goes_to_the_smallest_tier_that_holds_it(catalogue: Catalogue, side: int, tier: str) -> None:
    assert admit(catalogue, width=side, height=side).tier == tier


def test_a_prompt_is_stored_in_one_form(catalogue: Catalogue) -> None:
    assert drawn_by(catalogue, prompt="cafe\u0301\n\tnoir").prompt == "caf\u00e9\n\tnoir"


BAD = [
    ({"prompt": ""}, "prompt", "1 character"),
    ({"prompt": " \n\t "}, "prompt", "blank"),
    ({"prompt": "a\0b"}, "prompt", "NUL"),
    ({"prompt": "a\x1bb"}, "prompt", "U+001B"),
    ({"prompt": "\ud800"}, "prompt", "surrogate"),
    ({"prompt": "a" * 2001}, "prompt", "2000"),
    ({"prompt": 7}, "prompt", "string"),
    ({"negative_prompt": "\0"}, "negative_prompt", "NUL"),
    ({"negative_prompt": "a" * 2001}, "negative_prompt", "2000"),
    ({"model": "huge"}, "model", "tiny"),
    ({"model": ""}, "model", "1 character"),
    ({"width": 513}, "width", "multiple of 8"),
    ({"width": 512}, "width", "64 to 256"),
    ({"height": 56}, "height", "64 to 256"),
    ({"height": 100}, "height", "multiple of 8"),
    ({"width": 100_000, "height": 100_000}, "width", "36864"),
    ({"width": 256, "height": 256}, "width", "'hd', accepts at most 36864"),
    ({"width": "128"}, "width", "integer"),
    ({"width": True}, "width", "integer"),
    ({"width": 2**70}, "width", "2147483647"),
    ({"num_inference_steps": 0}, "num_inference_steps", "1"),
    ({"num_inference_steps": 10**6}, "num_inference_steps", "150"),
    ({"num_inference_steps": 20.0}, "num_inference_steps", "integer"),
    ({"guidance_scale": -0.5}, "guidance_scale", "0"),
    ({"guidance_scale": 31}, "guidance_scale", "30"),
    ({"guidance_scale": float("nan")}, "guidance_scale", "finite"),
    ({"guidance_scale": "4"}, "guidance_scale", "number"),
    ({"guidance_cutoff": 1.1}, "guidance_cutoff", "1"),
    ({"guidance_cutoff": -0.1}, "guidance_cutoff", "0"),
    ({"guidance_cutoff": float("nan")}, "guidance_cutoff", "finite"),
    ({"step_cache": 0}, "step_cache", "1"),
    ({"step_cache": 9}, "step_cache", "is above 8"),
    ({"step_cache": 2.0}, "step_cache", "integer"),
    ({"preset": "instant"}, "preset", "they are: fast, thrifty"),
    ({"preset": ""}, "preset", "1 character"),
    ({"scheduler": "pndm"}, "scheduler", "ddim, euler"),
    ({"seed": -1}, "seed", "0"),
    ({"seed": 2**63}, "seed", "9223372036854775807"),
    ({"seed": 2**64}, "seed", "9223372036854775807"),
    ({"seed": 1.5}, "seed", "integer"),
    ({"num_images": 0}, "num_images", "1"),
    ({"num_images": 5}, "num_images", "4"),
    ({"num_images": True}, "num_images", "integer"),
    ({"output_format": "gif"}, "output_format", "'png', 'webp' or 'jpeg'"),
    ({"output_format": "PNG"}, "output_format", "'png', 'webp' or 'jpeg'"),
    ({"output_format": "jpeg", "output_quality": 0}, "output_quality", "1"),
    ({"output_format": "jpeg", "output_quality": 101}, "output_quality", "100"),
    ({"output_format": "jpeg", "output_quality": 9.5}, "output_quality", "integer"),
    ({"output_format": "png", "output_quality": 90}, "output_quality", "png"),
    ({"output_quality": 90}, "output_quality", "png"),
    ({"lane": "express"}, "lane", "'interactive' or 'bulk'"),
    ({"deadline_seconds": 0}, "deadline_seconds", "0"),
    ({"deadline_seconds": 1e9}, "deadline_seconds", "604800"),
    ({"webhook_url": "http://example.com"}, "webhook_url", "https"),
    ({"stepz": 20}, "stepz", "num_inference_steps"),
]


@pytest.mark.parametrize(("fields", "field", "limit"), BAD)
def test_a_refusal_names_the_field_and_the_limit(
    catalogue: Catalogue, fields: dict[str, Any], field: str, limit: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        admit(catalogue, **fields)
    details = [error.detail for error in refused.value.errors if error.field == field]
    assert any(limit in detail for detail in details), refused.value.errors


def test_a_missing_prompt_is_named() -> None:
    with pytest.raises(ValidationError) as refused:
        JobRequest.model_validate({})
    assert [(error.field, error.detail) for error in field_errors(refused.value)] == [
        ("prompt", "is required")
    ]


def test_every_wrong_field_is_named_at_once(catalogue: Catalogue) -> None:
    with pytest.raises(InvalidRequest) as refused:
        admit(catalogue, width=513, num_inference_steps=151, scheduler="pndm")
    assert {error.field for error in refused.value.errors} == {"width", "num_inference_steps", "scheduler"}


def test_a_refusal_does_not_repeat_what_was_sent(catalogue: Catalogue) -> None:
    with pytest.raises(InvalidRequest) as refused:
        admit(catalogue, prompt="secret\0words")
    assert "secret" not in str(refused.value.errors) + refused.value.detail


def test_a_preset_sets_what_the_request_leaves_out_and_nothing_else(catalogue: Catalogue) -> None:
    plain, thrifty = drawn_by(catalogue, seed=1), drawn_by(catalogue, seed=1, preset="thrifty")
    assert (plain.guidance_cutoff, plain.step_cache) == (1.0, 1)
    assert (thrifty.num_inference_steps, thrifty.guidance_cutoff, thrifty.step_cache) == (20, 0.5, 3)
    assert (thrifty.guidance_scale, thrifty.scheduler) == (plain.guidance_scale, plain.scheduler)


def test_a_field_that_is_given_goes_before_the_preset(catalogue: Catalogue) -> None:
    """Also one that says what would be the default, and zero, which is no less given than another number."""
    asked = {"step_cache": 1, "guidance_cutoff": 0.0, "guidance_scale": 0.0, "num_inference_steps": 7}
    drawn = drawn_by(catalogue, preset="thrifty", **asked)
    assert {name: getattr(drawn, name) for name in asked} == asked


def test_a_model_of_one_step_refuses_two_by_its_limit_and_does_not_say_that_it_has_no_steps(
    catalogue: Catalogue,
) -> None:
    one_step = {"max_num_inference_steps": 1, "default_num_inference_steps": 1, "presets": ()}
    model = catalogue.models[0].model_copy(update=one_step)
    with pytest.raises(InvalidRequest) as refused:
        admit(catalogue.model_copy(update={"models": (model,)}), num_inference_steps=2)
    assert [error.detail for error in refused.value.errors] == ["is above 1"]


def without_step_cache(catalogue: Catalogue) -> Catalogue:
    model = catalogue.models[0].model_copy(update={"step_cache": False, "presets": ()})
    return catalogue.model_copy(update={"models": (model,)})


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"step_cache": 2}, "step_cache", "is above 1: model 'tiny' has no step cache"),
        ({"preset": "fast"}, "preset", "is not one of this model's presets; it has none"),
    ],
)
def test_what_a_model_lacks_is_refused_by_name(
    catalogue: Catalogue, fields: dict[str, Any], field: str, said: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        admit(without_step_cache(catalogue), **fields)
    assert [(error.field, error.detail) for error in refused.value.errors] == [(field, said)]
