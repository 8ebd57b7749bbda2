"""Values for a model's own parameters are judged by the catalogue alone, wherever they come from."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from catalogue.catalogue import Catalogue, tier_for
from settings import Settings
from tests.fixtures.catalogues import PARAMETERS, catalogue_with
from web.api.admission import Admission
from web.api.schemas import JobRequest, field_errors
from web.app import create_app
from web.csv.rows import parse_csv
from web.pages.draw_form import DrawForm, fields_of
from web.refusals import InvalidCsv, InvalidRequest

NOWHERE: dict[str, Any] = {
    "database_url": "postgresql://nobody@127.0.0.1:1/nothing",
    "broker_url": "redis://127.0.0.1:1/0",
    "s3_endpoint": "http://127.0.0.1:1",
    "s3_access_key": "none",
    "s3_secret_key": "none",
}
DEFAULTS = {"clip_skip": 1, "mode": "plain"}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    unbounded = '[models.tiny.parameters.any_number]\ntype = "int"\n'
    return catalogue_with(tmp_path_factory.mktemp("catalogue"), PARAMETERS + unbounded)


def asked_of(catalogue: Catalogue, given: Any, **fields: Any) -> dict[str, Any]:
    admission = Admission(catalogue, tier_for)
    request = admission.read({"prompt": "a", "pipeline_parameters": given, **fields})
    return dict(admission.admit(request, "acc_test").parameters.pipeline_parameters)


def faults_of(catalogue: Catalogue, given: Any) -> list[tuple[str, str]]:
    errors = Admission(catalogue, tier_for).errors_of({"prompt": "a", "pipeline_parameters": given})
    return [(error.field, error.detail) for error in errors]


def test_what_is_given_goes_before_the_preset_and_the_preset_before_the_default(catalogue: Catalogue) -> None:
    assert asked_of(catalogue, {}) == asked_of(catalogue, None) == DEFAULTS
    assert asked_of(catalogue, {}, preset="sharp") == {"clip_skip": 2, "mode": "Sharp"}
    assert asked_of(catalogue, {"clip_skip": 0}, preset="sharp") == {"clip_skip": 0, "mode": "Sharp"}
    assert asked_of(catalogue, {"clip_skip": None, "mode": "Sharp"}) == {"clip_skip": 1, "mode": "Sharp"}


def test_a_whole_number_is_a_number_where_one_is_declared(catalogue: Catalogue) -> None:
    found = asked_of(catalogue, {"true_cfg_scale": 4})["true_cfg_scale"]
    assert (found, type(found)) == (4.0, float)


def test_a_text_is_kept_in_one_form(catalogue: Catalogue) -> None:
    assert asked_of(catalogue, {"prompt_2": "cafe\u0301"})["prompt_2"] == "caf\u00e9"


@pytest.mark.parametrize(
    ("given", "field", "said"),
    [
        ({"clip_skip": 5}, "clip_skip", "is above 4"),
        ({"clip_skip": -1}, "clip_skip", "is below 0"),
        ({"clip_skip": 2.0}, "clip_skip", "is not a whole number"),
        ({"clip_skip": True}, "clip_skip", "is not a whole number"),
        ({"clip_skip": [2]}, "clip_skip", "is not a whole number"),
        ({"clip_skip": 2**70}, "clip_skip", "is above 4"),
        ({"any_number": 2**53 + 1}, "any_number", "is above 9007199254740992"),
        ({"any_number": -(10**4000)}, "any_number", "is below -9007199254740992"),
        ({"true_cfg_scale": "4"}, "true_cfg_scale", "is not a finite number"),
        ({"true_cfg_scale": float("nan")}, "true_cfg_scale", "is not a finite number"),
        ({"true_cfg_scale": 10**400}, "true_cfg_scale", "is not a finite number"),
        ({"zero_init": 1}, "zero_init", "is not true or false"),
        ({"mode": "sharp"}, "mode", "is not one of: plain, Sharp"),
        ({"mode": {}}, "mode", "is not one of: plain, Sharp"),
        ({"prompt_2": "a" * 13}, "prompt_2", "has more than 12 characters"),
        ({"prompt_2": "a\0"}, "prompt_2", "contains a NUL character"),
        ({"prompt_2": "\ud800"}, "prompt_2", "lone surrogate"),
        ({"prompt_2": "e" + "\u0301\u0316" * 20}, "prompt_2", "combining marks"),
        ({"eta": 0.5}, "eta", "is not a parameter of model 'tiny'; there is: clip_skip, true_cfg_scale, "),
        ({"a/b~": 1}, "a~1b~0", "is not a parameter of model 'tiny'"),
    ],
)
def test_a_value_that_is_not_declared_is_refused_by_name_and_limit(
    catalogue: Catalogue, given: dict[str, Any], field: str, said: str
) -> None:
    ((found, detail),) = faults_of(catalogue, given)
    assert found == f"pipeline_parameters/{field}"
    assert said in detail


def test_every_wrong_value_is_named_at_once_beside_other_faults(catalogue: Catalogue) -> None:
    errors = Admission(catalogue, tier_for).errors_of(
        {"prompt": "a", "width": 1, "pipeline_parameters": {"clip_skip": 5, "eta": 1}}
    )
    named = {error.field for error in errors}
    assert named == {"width", "pipeline_parameters/clip_skip", "pipeline_parameters/eta"}


def test_a_model_without_parameters_says_that_it_has_none(tmp_path: Path) -> None:
    ((_, detail),) = faults_of(catalogue_with(tmp_path, ""), {"eta": 1})
    assert detail == "is not a parameter of model 'tiny'; it has none"


@pytest.mark.parametrize("given", [[], "clip_skip", 3, {f"p{number}": 1 for number in range(33)}])
def test_what_is_no_object_of_so_many_entries_is_refused(given: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        JobRequest.model_validate({"prompt": "a", "pipeline_parameters": given})
    (error,) = field_errors(refused.value)
    assert error.field == "pipeline_parameters"
    assert "dictionary" in error.detail or "more than 32 entries" in error.detail


def rows_of(catalogue: Catalogue, text: str) -> list[dict[str, Any]]:
    rows = parse_csv(text.encode(), max_rows=10, own=catalogue.pipeline_types)
    return [{**row.cells, "errors": [(e.field, e.detail) for e in row.errors]} for row in rows]


def test_each_parameter_is_a_column_and_its_cells_have_its_type(catalogue: Catalogue) -> None:
    text = "prompt;Clip Skip;true_cfg_scale;zero_init;mode;prompt_2\na;2;4,5;ja;Sharp;b\nc;;;;;\n"
    first, second = rows_of(catalogue, text)
    assert first["pipeline_parameters"] == {
        "clip_skip": 2,
        "true_cfg_scale": 4.5,
        "zero_init": True,
        "mode": "Sharp",
        "prompt_2": "b",
    }
    assert second == {"prompt": "c", "errors": []}


def test_a_cell_of_another_type_is_named_by_its_column(catalogue: Catalogue) -> None:
    (row,) = rows_of(catalogue, "prompt,clip_skip\na,two\n")
    assert row["errors"] == [("clip_skip", "should be a whole number")]


def test_a_column_that_no_model_declares_is_not_known(catalogue: Catalogue) -> None:
    with pytest.raises(InvalidCsv) as refused:
        rows_of(catalogue, "prompt,clip_skipp\na,2\n")
    assert "did you mean 'clip_skip'?" in refused.value.detail
    with pytest.raises(InvalidCsv, match="not a known column"):
        list(parse_csv(b"prompt,clip_skip\na,2\n", max_rows=10))


def test_the_form_has_a_field_for_each_parameter_with_its_limits(catalogue: Catalogue) -> None:
    fields = {field.label: field for field in fields_of(catalogue)}
    assert fields["clip_skip"].hint == "tiny: layers of the text encoder to leave out; 0 to 4; 1 if empty"
    assert fields["true_cfg_scale"].hint == "tiny: 0 to 20; the default of the pipeline if empty"
    assert (fields["mode"].options, fields["zero_init"].options) == (("plain", "Sharp"), ("true", "false"))
    assert (fields["clip_skip"].is_number, fields["prompt_2"].is_number) == (True, False)


def test_what_the_form_says_is_what_the_api_would_be_given(catalogue: Catalogue) -> None:
    own = {"clip_skip": "2", "true_cfg_scale": "4.5", "zero_init": "true", "mode": "", "prompt_2": " b "}
    form = DrawForm.sent(
        {"prompt": "a", **{f"pipeline_parameters/{name}": text for name, text in own.items()}}
    )
    request: Any = form.job_request(catalogue, Admission(catalogue, tier_for))
    assert request.pipeline_parameters == {
        "clip_skip": 2,
        "true_cfg_scale": 4.5,
        "zero_init": True,
        "prompt_2": " b ",
    }


def test_a_fault_stands_beside_its_field_of_the_form(catalogue: Catalogue) -> None:
    form = DrawForm.sent({"prompt": "a", "pipeline_parameters/clip_skip": "9"})
    with pytest.raises(InvalidRequest) as refused:
        form.job_request(catalogue, Admission(catalogue, tier_for))
    assert form.refused(refused.value.errors).errors == {"pipeline_parameters/clip_skip": ["is above 4"]}
    edited = DrawForm.sent({"prompt": "a", "pipeline_parameters/clip_skip": "2", "once": form.once})
    assert edited.idempotency_key != form.idempotency_key


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The OpenAPI document of an installation whose model declares parameters."""
    folder = tmp_path_factory.mktemp("described")
    catalogue_with(folder, PARAMETERS)
    app = create_app(Settings(config=folder / "calotype.toml", **NOWHERE))
    document: dict[str, Any] = app.spec_json
    return document


@pytest.mark.parametrize(
    ("given", "is_right"),
    [
        ({"clip_skip": 2, "true_cfg_scale": 4, "zero_init": True, "mode": "Sharp", "prompt_2": "b"}, True),
        ({"clip_skip": None}, True),
        (None, True),
        ({"clip_skip": 5}, False),
        ({"true_cfg_scale": "4"}, False),
        ({"mode": "sharp"}, False),
        ({"prompt_2": "a" * 13}, False),
        ({"eta": 0.5}, False),
    ],
)
def test_the_described_object_lets_through_what_is_declared_and_nothing_else(
    described: dict[str, Any], given: Any, is_right: bool
) -> None:
    schema = {**described["components"]["schemas"]["JobRequest"], "components": described["components"]}
    asked = {"prompt": "a", "pipeline_parameters": given}
    assert jsonschema.Draft202012Validator(schema).is_valid(asked) == is_right


def test_the_document_describes_each_parameter_with_its_limits(described: dict[str, Any]) -> None:
    fields = described["components"]["schemas"]["PipelineParameters"]["properties"]
    assert fields.keys() == {"clip_skip", "true_cfg_scale", "zero_init", "mode", "prompt_2"}
    assert "layers of the text encoder to leave out, `1` if left out" in fields["clip_skip"]["description"]
    assert fields["clip_skip"]["anyOf"][0] == {"type": "integer", "minimum": 0, "maximum": 4}
