"""What an image would hold, laid out in a folder: files by the COPY lines, packages by what pip is told.

The nearest thing to building it without a docker engine. It stands in for neither the base image's
programs nor a container's walls.
"""

import importlib.metadata
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from settings import ROOT
from tests.unit.docs.deployment_files import Deployment

STATED = Deployment()


@dataclass(frozen=True)
class Image:
    """A laid out image: its `/app`, and the environment of a process in it."""

    app: Path
    environment: dict[str, str]

    def run(self, *command: str, **more: str) -> "subprocess.CompletedProcess[str]":
        """One command inside, to its end."""
        environment = {**self.environment, **more}
        return subprocess.run(
            command,
            cwd=self.app,
            env=environment,
            executable=shutil.which(command[0], path=environment["PATH"]),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


def lay_out(target: str, folder: Path) -> Image:
    """The image of one target of the Dockerfile, below `folder`."""
    app, site, programs = (folder / name for name in ("app", "site", "bin"))
    for place in (app, site, programs):
        place.mkdir(parents=True)
    for words in STATED.stage(target, "COPY"):
        if words[0].startswith("--from"):
            continue  # the list of packages, which `_requirements` reads
        for pattern in words[:-1]:
            for source in ROOT.glob(pattern):
                _copy(source, app / words[-1], into_folder=words[-1].endswith("/"))
    for name in packages(target):
        _link(name, site)
    # Without `-S` it would see all that is installed here.
    python = programs / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    environment = {
        "PATH": f"{programs}:/usr/bin:/bin",
        "PYTHONPATH": f"{app}:{site}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(folder),
        "LANG": "C.UTF-8",
    }
    return Image(app, environment)


def _copy(source: Path, target: Path, *, into_folder: bool) -> None:
    if into_folder:
        target.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def packages(target: str) -> set[str]:
    """The names of what pip would install in an image of that target, on this machine."""
    return _closure(_requirements(target))


def _requirements(target: str) -> list[str]:
    command = [sys.executable, str(ROOT / "deploy" / "dependencies.py"), target]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def _closure(wanted: list[str]) -> set[str]:
    found: set[tuple[str, frozenset[str]]] = set()
    open_ones = [Requirement(line) for line in wanted]
    while open_ones:
        requirement = open_ones.pop()
        key = (requirement.name.lower(), frozenset(requirement.extras))
        if key in found:
            continue
        found.add(key)
        for line in importlib.metadata.requires(requirement.name) or []:
            child = Requirement(line)
            extras = requirement.extras or {""}
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in extras):
                open_ones.append(child)
    return {name for name, _ in found}


def _link(name: str, site: Path) -> None:
    """Let a package be found: every file or folder that it has in site-packages."""
    for file in importlib.metadata.files(name) or []:
        top = file.parts[0]
        if top not in ("..", "__pycache__") and not (site / top).exists():
            (site / top).symlink_to(Path(str(importlib.metadata.distribution(name).locate_file(top))))
