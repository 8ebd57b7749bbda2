"""A parameter of a request is declared once: what carries, checks, stores and shows it follows from there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from catalogue.parameters import PARAMETERS, Parameter, Parameters
from settings import ROOT

TREE = ("catalogue", "client", "engine", "migrations", "storage", "tasks", "web", "calotype.toml")
DECLARED = """
    clip_skip: Annotated[
        int, KnownParameter(type="int", min=0, max=4, description="Layers of the text encoder to leave out.")
    ] = 0

    def values("""
PLACES = """
import json
from engine.request import GenerationRequest
from catalogue.parameters import Parameters
from storage.grants import GRANTS
from storage.job_views import JOB_COLUMNS
from storage import new_jobs
from storage.submissions import _CREATE
from tasks.webhooks.payload import _PARAMETERS
from web.api.admission import Admission
from web.csv.reports import REPORTED
from web.csv.cells import typed_cell
from web.csv.header import COLUMNS
from web.pages.draw_form import FIELDS
from web.api.resources import JobResource
from web.api.schemas import JobRequest
from catalogue.catalogue import load_catalogue, tier_for
from pathlib import Path

admission = Admission(load_catalogue(Path("calotype.toml")), tier_for)
asked = admission.read({"prompt": "a", "clip_skip": typed_cell("clip_skip", " 2 ")})
new = admission.admit(asked, "acc_test")
drawn = GenerationRequest("tiny", parameters=new.parameters)
print(json.dumps({
    "the request": JobRequest.model_json_schema()["properties"]["clip_skip"]["anyOf"][0],
    "the refusal": [error.detail for error in admission.errors_of({"prompt": "a", "clip_skip": 5})],
    "the engine": drawn.parameters.clip_skip,
    "its default": admission.admit(admission.read({"prompt": "a"}), "acc_test").parameters.clip_skip,
    "names": {
        "the job": "clip_skip" in JobResource.model_fields,
        "the insert": "new_clip_skip" in str(_CREATE),
        "the insert of a batch": "clip_skip int" in str(new_jobs._INSERT).lower(),
        "the row": "clip_skip" in [column.name for column in JOB_COLUMNS],
        "the rights": all("clip_skip" in GRANTS[role]["jobs"].select for role in ("api", "worker")),
        "the webhook": "clip_skip" in _PARAMETERS,
        "the upload": "clip_skip" in COLUMNS,
        "the report": "clip_skip" in REPORTED,
        "the form": "clip_skip" in FIELDS,
    },
}))
"""


def test_a_new_parameter_is_one_declaration(tmp_path: Path) -> None:
    """In a copy of the product one file is changed; a migration, its consumer and the docs are the others."""
    for name in TREE:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    for file in ROOT.glob("*.py"):
        shutil.copy(file, tmp_path / file.name)
    _replace_once(tmp_path / "catalogue/parameters.py", "\n    def values(", DECLARED)
    found = subprocess.run(
        [sys.executable, "-c", PLACES], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    places = json.loads(found.stdout)
    assert places["the request"] == {"minimum": 0, "maximum": 4, "type": "integer"}
    assert places["the refusal"] == ["should be less than or equal to 4"]
    assert (places["the engine"], places["its default"]) == (2, 0)
    assert {place for place, is_there in places["names"].items() if not is_there} == set()


def _replace_once(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("declared", "value", "fault"),
    [
        ({"type": "int", "min": 1, "max": 8}, 8, None),
        ({"type": "int", "min": 1, "max": 8}, 9, "is above 8"),
        ({"type": "int", "min": 1, "max": 8}, 0, "is below 1"),
        ({"type": "int"}, True, "is not a whole number"),
        ({"type": "int"}, 2.0, "is not a whole number"),
        ({"type": "float", "min": 0}, 2, None),
        ({"type": "float", "min": 0}, -0.5, "is below 0"),
        ({"type": "float"}, float("nan"), "is not a finite number"),
        ({"type": "float"}, 10**400, "is not a finite number"),
        ({"type": "float"}, "4", "is not a finite number"),
        ({"type": "bool"}, False, None),
        ({"type": "bool"}, 1, "is not true or false"),
        ({"type": "choice", "choices": ("a", "b")}, "b", None),
        ({"type": "choice", "choices": ("a", "b")}, "c", "is not one of: a, b"),
        ({"type": "choice", "choices": ("a", "b")}, ["a"], "is not one of: a, b"),
        ({"type": "string"}, 7, "is not a string"),
    ],
)
def test_a_value_outside_its_declaration_is_told_the_limit(
    declared: dict[str, Any], value: object, fault: str | None
) -> None:
    assert Parameter(description="", **declared).fault_of(value) == fault


def test_every_default_keeps_to_its_declaration() -> None:
    plain = Parameters(
        prompt="a", width=8, height=8, num_inference_steps=1, guidance_scale=1.0, scheduler="ddim", seed=0
    )
    values = {name: value for name, value in plain.values().items() if value is not None}
    assert {name: PARAMETERS[name].fault_of(value) for name, value in values.items()} == dict.fromkeys(values)


def test_image_i_has_the_seed_plus_i_and_wraps_at_the_end() -> None:
    last = Parameters(
        prompt="a",
        width=8,
        height=8,
        num_inference_steps=1,
        guidance_scale=1.0,
        scheduler="ddim",
        seed=2**63 - 1,
    )
    assert [last.seed_of(index) for index in range(3)] == [2**63 - 1, 0, 1]
