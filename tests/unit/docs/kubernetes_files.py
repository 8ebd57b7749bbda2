"""Reads the manifests in deploy/kubernetes: documents by kind and name, pods, their containers and mounts."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from settings import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
SECRETS = "secrets.example.yml"
Document = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """The one container of a workload, and what is around it."""

    name: str
    spec: Document
    labels: dict[str, str]

    @property
    def container(self) -> Document:
        """The only container."""
        (container,) = self.spec["containers"]
        return dict(container)

    @property
    def command(self) -> list[str]:
        """The words of its command."""
        return list(self.container["command"])

    @property
    def secrets(self) -> list[str]:
        """The secret whose entries are settings of the process."""
        named = {volume["name"]: volume.get("secret", {}) for volume in self.spec["volumes"]}
        return [named["secrets"]["secretName"]]


class Manifests:
    """Every manifest below a folder."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

    @cached_property
    def documents(self) -> list[tuple[str, Document]]:
        """Each document with the path of its file."""
        return [
            (str(path.relative_to(self.folder)), document)
            for path in sorted(self.folder.rglob("*.yml"))
            for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
        ]

    def of_kind(self, *kinds: str) -> dict[str, Document]:
        """The documents of these kinds by name."""
        return {one["metadata"]["name"]: one for _, one in self.documents if one["kind"] in kinds}

    @property
    def applied(self) -> Iterator[tuple[str, Document]]:
        """What Kubernetes itself knows: all but Kustomize's files and KEDA's."""
        for path, document in self.documents:
            if document["kind"] not in ("Kustomization", "ScaledObject"):
                yield path, document

    @cached_property
    def pods(self) -> dict[str, Pod]:
        """The pod of each workload."""
        return {
            name: Pod(name, one["spec"]["template"]["spec"], one["spec"]["template"]["metadata"]["labels"])
            for name, one in self.of_kind("Deployment", "Job").items()
        }
