"""docs/reference/api.md names every route, state, field and error code of the API."""

import ast
import re
from typing import get_args

import numpy as np
import pytest

from catalogue.states import State
from catalogue.warnings import WarningCode
from engine.policy.policy import Reason
from engine.request import GeneratedImage, Timings
from settings import ROOT, Settings
from storage import errors as storage_errors
from tasks.errors import InputMissing
from tasks.generate import timings_of
from web import refusals
from web.api.schemas import JobRequest
from web.app import create_app
from web.estimates.waiting_reasons import CODES, RULES
from web.front import refusals as front_refusals

from .conftest import ReadTable

PAGE = "docs/reference/api.md"
TEXT = (ROOT / PAGE).read_text(encoding="utf-8")
ADDRESSES = {
    "database_url": "postgresql://nobody@127.0.0.1:1/nothing",
    "broker_url": "redis://127.0.0.1:1/0",
    "s3_endpoint": "http://127.0.0.1:1",
    "s3_access_key": "none",
    "s3_secret_key": "none",
}


def _codes(module: object) -> set[str]:
    return {kind.code for kind in vars(module).values() if isinstance(kind, type) and hasattr(kind, "code")}


def test_every_route_is_documented_and_exists() -> None:
    app = create_app(Settings(**ADDRESSES))  # type: ignore[arg-type]
    served = {
        f"{method} {_braced(rule.rule)}"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if not rule.rule.startswith(("/static", "/docs/"))
    }
    documented = set(re.findall(r"`((?:GET|POST|PUT|PATCH|DELETE) /[^`?]*)`", _section("## Routes")))
    assert documented == served


def _braced(rule: str) -> str:
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule)


def test_every_state_is_documented(read_table: ReadTable) -> None:
    rows = read_table(PAGE, "## States")
    assert {row[0].strip("`") for row in rows if row[1] == "job"} == {state.value for state in State}


def test_every_timing_is_documented() -> None:
    timings = Timings(0.1, 0.1, 0.1, 0.1, 1, 0.1)
    image = GeneratedImage(
        np.zeros((1, 1, 3), np.uint8), (), timings, 1.0, dict.fromkeys(get_args(Reason), 1), 1
    )
    made = {*timings_of([image]), "queued_seconds", "file_seconds", "upload_seconds"}
    section = _section("### Where the time went").partition("\n### ")[0]
    documented = {
        name for row in re.findall(r"(?m)^\| (`[^|]*) \|", section) for name in re.findall(r"`(\w+)`", row)
    }
    assert documented == made


@pytest.mark.parametrize("field", JobRequest.model_fields)
def test_every_field_of_a_job_request_is_documented(field: str) -> None:
    assert f"`{field}`" in _section("## A job")


def test_every_code_of_a_refusal_is_documented(read_table: ReadTable) -> None:
    rows = read_table(PAGE, "## Errors")
    documented = {code for row in rows if row[0].isdigit() for code in re.findall(r"`(\w+)`", row[1])}
    # Only commands of the owner set roles.
    of_storage = _codes(storage_errors) - {storage_errors.RolesNotSet.code}
    of_web = _codes(refusals) - {refusals.Refusal.code} | _codes(front_refusals)
    raised = of_web | of_storage | {"internal_error"}
    assert documented == raised


def test_every_code_of_a_failed_job_is_documented(read_table: ReadTable) -> None:
    rows = read_table(PAGE, "### Codes in a job's `error`")
    documented = {code for row in rows for code in re.findall(r"`(\w+)`", row[0])}
    # A worker that stops or loses its device releases its jobs: these never end one.
    engine = _engine_codes() - {"canceled", "engine_stopped", "device_lost", "model_not_loadable"}
    assert engine <= documented
    of_the_task = {"internal_error", "worker_lost", InputMissing.code}
    assert documented - engine <= _codes(storage_errors) | of_the_task


def test_every_waiting_reason_is_documented_in_its_order(read_table: ReadTable) -> None:
    rows = read_table(PAGE, "### Why a job waits")
    documented = [row[0].strip("`") for row in rows]
    assert documented == [*RULES, "unknown"]
    assert set(documented) == CODES


def test_every_code_of_a_warning_is_documented(read_table: ReadTable) -> None:
    documented = {row[0].strip("`") for row in read_table(PAGE, "### Warnings")}
    assert documented == set(get_args(WarningCode))


def _engine_codes() -> set[str]:
    tree = ast.parse((ROOT / "engine/errors.py").read_text(encoding="utf-8"))
    assigned = [
        (node.target if isinstance(node, ast.AnnAssign) else node.targets[0], node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign)
    ]
    return {
        str(value.value)
        for target, value in assigned
        if isinstance(target, ast.Name) and target.id == "code" and isinstance(value, ast.Constant)
    }


def _section(heading: str) -> str:
    return TEXT.partition(f"\n{heading}\n")[2].partition("\n## ")[0]
