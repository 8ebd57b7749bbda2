"""A model's own parameters are checked when `calotype.toml` is read; a mistake is named by its place."""

from pathlib import Path

import pytest

from catalogue.catalogue import SettingsError
from catalogue.pipeline_parameters import MAX_DECLARED, RESERVED, PipelineParameter, value_faults
from tests.fixtures.catalogues import PARAMETERS, catalogue_with
from web.api.schemas import JOB_FIELDS
from web.csv.header import REPORT_COLUMNS
from web.pages.draw_form import FIELDS

OTHER = """
[models.other]
path = "models/tiny"
schedulers = ["ddim"]
min_side = 64
max_side = 128
[models.other.tiers.other]
default_width = 128
default_height = 128
max_pixels = 16384
"""


def test_a_declared_default_is_the_models_choice(tmp_path: Path) -> None:
    model = catalogue_with(tmp_path, PARAMETERS).models[0]
    assert model.defaults["pipeline_parameters"] == {"clip_skip": 1, "mode": "plain"}


@pytest.mark.parametrize(
    ("table", "place", "fault"),
    [
        ('type = "number"', "a.type", "'int', 'float', 'bool', 'string' or 'choice'"),
        ("min = 1", "a.type", "required"),
        ('type = "int"\nminimum = 1', "a.minimum", "not permitted"),
        ('type = "int"\nis_required = true', "a.is_required", "not permitted"),
        ('type = "int"\nmin = 5\nmax = 4', "a", "min 5 is above max 4"),
        ('type = "int"\nmax = 2.5', "a", "max is not a whole number"),
        ('type = "int"\nmax = 1e300', "a", "max is not a whole number"),
        ('type = "float"\nmin = nan', "a", "min is not a finite number"),
        ('type = "float"\nmax = true', "a.max", "valid"),
        ('type = "bool"\nmin = 0', "a", "min: a bool has none"),
        ('type = "string"\nmin = -1', "a", "min is below 0"),
        ('type = "int"\ndefault = 5\nmax = 4', "a", "default is above 4"),
        ('type = "int"\ndefault = true', "a", "default is not a whole number"),
        ('type = "int"\ndefault = "5"', "a", "default is not a whole number"),
        ('type = "float"\ndefault = inf', "a", "default is not a finite number"),
        ('type = "string"\ndefault = "longer"\nmax = 3', "a", "default has more than 3 characters"),
        ('type = "string"\ndefault = "\\u0000"', "a", "NUL"),
        ('type = "choice"', "a", "choices: a choice needs at least one"),
        ('type = "choice"\nchoices = ["b", "b"]', "a", "choices: one is there twice"),
        ('type = "choice"\nchoices = ["b"]\ndefault = "c"', "a", "default is not one of: b"),
        ('type = "int"\nchoices = ["b"]', "a", "choices: only a choice has them"),
    ],
)
def test_a_wrong_declaration_is_named_by_its_place_and_its_limit(
    tmp_path: Path, table: str, place: str, fault: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        catalogue_with(tmp_path, f"[models.tiny.parameters.a]\n{table}\n")
    assert str(refused.value).startswith(f"{tmp_path}/calotype.toml: models.tiny.parameters.{place}")
    assert fault in str(refused.value)


@pytest.mark.parametrize(
    "name", ["width", "seed", "pipeline_parameters", "tier", "latents", "use_resolution_binning"]
)
def test_a_name_that_means_something_already_cannot_be_declared(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=rf"models\.tiny\.parameters\.{name}: this name is taken"):
        catalogue_with(tmp_path, f'[models.tiny.parameters.{name}]\ntype = "int"\n')


def test_no_name_of_a_request_a_report_or_the_form_can_be_declared() -> None:
    assert {*JOB_FIELDS, *REPORT_COLUMNS, *FIELDS} <= RESERVED


@pytest.mark.parametrize("name", ['"Clip"', '"clip-skip"', '"2nd"', '"größe"', f'"{"a" * 65}"'])
def test_a_name_that_no_argument_has_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=r"\.name: String should match pattern"):
        catalogue_with(tmp_path, f'[models.tiny.parameters.{name}]\ntype = "int"\n')


def test_so_many_parameters_may_be_declared_and_no_more(tmp_path: Path) -> None:
    tables = [f'[models.tiny.parameters.p{number}]\ntype = "int"\n' for number in range(MAX_DECLARED + 1)]
    assert len(catalogue_with(tmp_path, "".join(tables[:-1])).models[0].parameters) == MAX_DECLARED
    with pytest.raises(SettingsError, match=rf"models\.tiny\.parameters: .* at most {MAX_DECLARED} items"):
        catalogue_with(tmp_path, "".join(tables))


def test_two_models_that_share_a_name_share_its_type(tmp_path: Path) -> None:
    same = OTHER + '[models.other.parameters.clip_skip]\ntype = "{}"\n'
    types = catalogue_with(tmp_path, PARAMETERS + same.format("int")).pipeline_types
    assert types["clip_skip"] == "int"
    with pytest.raises(
        SettingsError, match=r"models\.other\.parameters\.clip_skip: type is 'float', and 'int'"
    ):
        catalogue_with(tmp_path, PARAMETERS + same.format("float"))


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ("{ clip_skip = 9 }", "preset 'fastest': pipeline_parameters.clip_skip is above 4"),
        ("{ eta = 1 }", "eta is not a parameter of model 'tiny'; there is: clip_skip, true_cfg_scale"),
    ],
)
def test_a_preset_keeps_to_the_declarations(tmp_path: Path, values: str, fault: str) -> None:
    preset = f"[models.tiny.presets.fastest]\npipeline_parameters = {values}\n"
    with pytest.raises(SettingsError) as refused:
        catalogue_with(tmp_path, PARAMETERS + preset)
    assert fault in str(refused.value)


def test_a_string_without_a_limit_has_one() -> None:
    declared = PipelineParameter(name="style", type="string")
    assert not list(value_faults([declared], {"style": "a" * 1000}, "tiny"))
    assert list(value_faults([declared], {"style": "a" * 1001}, "tiny")) == [
        ("style", "has more than 1000 characters")
    ]
