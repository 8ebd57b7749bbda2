"""The form means one request of the API, for however many models there are."""

from typing import Any

import pytest

from catalogue.catalogue import Catalogue, load_catalogue, tier_for
from catalogue.parameters import PARAMETERS
from settings import Settings
from web.api.admission import Admission
from web.pages.draw_form import DrawForm, fields_of
from web.refusals import InvalidRequest


@pytest.fixture(scope="module")
def two_models() -> Catalogue:
    shipped = load_catalogue(Settings().config)
    tier = shipped.models[0].tiers[1].model_copy(update={"name": "wide", "model": "other"})
    other = shipped.models[0].model_copy(
        update={
            "name": "other",
            "tiers": (tier,),
            "default_num_inference_steps": 4,
            "max_num_inference_steps": 8,
            "max_prompt_characters": 77,
        }
    )
    return shipped.model_copy(update={"models": (*shipped.models, other)})


def request_of(form: DrawForm, catalogue: Catalogue) -> Any:
    return form.job_request(catalogue, Admission(catalogue, tier_for))


def test_a_size_brings_its_model_along(two_models: Catalogue) -> None:
    request = request_of(DrawForm.sent({"prompt": "a", "tier": "wide"}), two_models)
    assert (request.model, request.width, request.height) == ("other", 192, 192)
    request = request_of(DrawForm.sent({"prompt": "a"}), two_models)
    assert (request.model, request.width) == ("tiny", 128)


def test_an_exact_size_goes_before_the_chosen_one(two_models: Catalogue) -> None:
    request = request_of(DrawForm.sent({"prompt": "a", "tier": "sd", "width": " 96 "}), two_models)
    assert (request.width, request.height) == (96, 128)


def test_limits_are_told_for_each_model(two_models: Catalogue) -> None:
    hints = {field.name: field.hint for field in fields_of(two_models)}
    assert hints["num_inference_steps"].endswith("tiny: 1 to 150; 20 if empty · other: 1 to 8; 4 if empty")
    hints = {field.name: field.hint for field in fields_of(Settings().catalogue)}
    assert hints["prompt"].endswith("at most 2000 characters")
    assert hints["step_cache"].endswith("1 to 8; 1 if empty")


def test_every_parameter_has_a_field_with_a_label_of_its_own(two_models: Catalogue) -> None:
    fields = fields_of(two_models)
    assert {field.name for field in fields} == PARAMETERS.keys() - {"pipeline_parameters"}
    assert len({field.label for field in fields}) == len(fields)
    assert [field.label for field in fields if field.is_shown_at_once] == ["Prompt", "Images"]


def test_every_field_that_cannot_be_read_is_named(two_models: Catalogue) -> None:
    form = DrawForm.sent({"prompt": "", "seed": "1e3", "width": "9" * 5000, "tier": "none"})
    with pytest.raises(InvalidRequest) as refused:
        request_of(form, two_models)
    assert {error.field for error in refused.value.errors} == {"prompt", "seed", "width", "tier"}
    assert form.refused(refused.value.errors).errors.keys() == {"prompt", "seed", "width", "tier"}


def test_what_is_no_field_of_ours_is_passed_over(two_models: Catalogue) -> None:
    form = DrawForm.sent({"prompt": "a", "lane": "bulk", "webhook_url": "https://elsewhere.example/"})
    request = request_of(form, two_models)
    assert (request.lane, request.webhook_url) == ("interactive", None)


def test_a_forged_mark_of_a_form_is_replaced() -> None:
    assert "\n" not in DrawForm.sent({"once": "x\ny"}).once
    assert DrawForm.sent({"once": "0" * 32}).once == "0" * 32
    assert DrawForm.sent({"once": "0" * 32}).idempotency_key.startswith(f"page {'0' * 32}\n")
