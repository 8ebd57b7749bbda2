"""The OpenAPI document is valid, complete and true."""

from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import one_of
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.integration.web.conftest import Client
from web.api import batches, files, health, jobs, tiers

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
UNDOCUMENTED = {
    "/", "/jobs", "/jobs/<job_id>", "/jobs/<job_id>/cancel", "/jobs/<job_id>/retry", "/session",
    "/session/end", "/docs", "/docs/try", "/docs/<path:asset>", "/openapi.json", "/static/<path:filename>",
}  # fmt: skip


@pytest.fixture
def document(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = client("GET", "/openapi.json").get_json()
    return found


def test_the_document_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(document).validate()


def test_every_route_is_documented_with_its_key_and_its_problems(
    app: Flask, document: dict[str, Any]
) -> None:
    rules = {rule.rule for rule in app.url_map.iter_rules()} - UNDOCUMENTED
    paths = {rule.replace("<int:", "{").replace("<", "{").replace(">", "}") for rule in rules}
    assert paths == set(document["paths"])
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path.startswith("/v1/"):
                assert operation["security"] == [{"api_key": []}]
            for status, answer in operation["responses"].items():
                if status.startswith(("4", "5")) and path != "/readyz":
                    assert list(answer["content"]) == ["application/problem+json"], (path, status)


def operations() -> list[str]:
    """Every operation, named before any service runs."""
    return [
        f"{method} {path}"
        for module in (jobs, batches, files, tiers, health)
        for path, item in module.blueprint.paths.items()
        for method in ("GET", "POST", "DELETE")
        if getattr(item, method.lower()) is not None
    ]


@pytest.mark.parametrize("operation", operations())
def test_whatever_is_sent_the_answer_is_as_documented(app: Flask, api_key: str, operation: str) -> None:
    schema = schemathesis.openapi.from_wsgi("/openapi.json", app)
    method, path = operation.split()
    strategies = [
        schema[path][method].as_strategy(generation_mode=mode)
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    ]

    @settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=one_of(strategies))
    def answers(case: Any) -> None:
        case.call_and_validate(headers={"Authorization": f"Bearer {api_key}"}, checks=CHECKS)

    answers()
