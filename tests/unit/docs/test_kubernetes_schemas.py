"""Kubernetes' schemas, and ours of KEDA's `ScaledObject`, accept the manifests and notice a wrong field."""

import copy
import json
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from .kubernetes_files import FOLDER, Document, Manifests

VERSIONS = ("1.32", "1.37")
"""An older one that has all fields (`preStop.sleep` is on since 1.30), and the newest that is known."""
MANIFESTS = Manifests()
SCHEMA = json.loads((FOLDER / "keda-scaledobject.schema.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_knows_every_field(version: str) -> None:
    for path, document in MANIFESTS.applied:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            pytest.fail(f"{path}: {'.'.join(map(str, error.path))}: {error.message}")


@pytest.mark.parametrize(
    ("kind", "name", "path"),
    [
        ("Deployment", "worker-sd", "spec.template.spec.terminationGracePeriodSecond"),
        ("Deployment", "api", "spec.template.spec.containers.0.readinesProbe"),
        ("Job", "migrate", "spec.backofLimit"),
        ("PodDisruptionBudget", "api", "spec.minAvailabel"),
        ("NetworkPolicy", "calotype-api", "spec.podSelectors"),
    ],
)
def test_a_misspelt_field_is_noticed(kind: str, name: str, path: str) -> None:
    document = copy.deepcopy(MANIFESTS.of_kind(kind)[name])
    _set(document, path, {})
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


def test_our_schema_of_keda_is_valid_and_names_its_source_and_date() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert "keda.sh/docs/" in SCHEMA["$comment"]
    assert "2026-11-30" in SCHEMA["$comment"]


def test_keda_knows_every_field() -> None:
    for document in MANIFESTS.of_kind("ScaledObject").values():
        jsonschema.validate(document, SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.coolDownPeriod", 600),
        ("spec.pollingInterval", "15"),
        ("spec.scaleTargetRef.namespace", "calotype"),
        ("spec.fallback.behavior", "current"),
        ("spec.advanced.horizontalPodAutoscalerConfig.behavior.scaleDown.policies.0.type", "Replicas"),
        ("spec.advanced.horizontalPodAutoscalerConfig.behavior.scaleDown.stabilizationWindowSeconds", 3601),
        ("spec.triggers.0.metadata.threshold", 16),
        ("spec.triggers.0.metadata.ignoreNullValue", "true"),
    ],
)
def test_a_field_that_keda_does_not_have_is_noticed(path: str, value: Any) -> None:
    document = copy.deepcopy(MANIFESTS.of_kind("ScaledObject")["worker-sd"])
    _set(document, path, value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


def _set(document: Document, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    place: Any = document
    for part in parents:
        place = place[int(part) if part.isdecimal() else part]
    place[last] = value
