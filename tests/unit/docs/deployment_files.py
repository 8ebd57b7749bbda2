"""Reads the deployment files: Procfile, Compose file, Dockerfile, systemd units, env examples, how-tos.

Owns their syntax: continuation lines, merge keys, `$${...}`. `deployment_checks` compares them with the code.
"""

import re
import shlex
import subprocess
from configparser import RawConfigParser
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from settings import ROOT

HOWTOS = ("autoscale-workers", "deploy-with-compose", "deploy-with-systemd", "use-your-own-services")
PAGES = tuple(f"docs/howto/{name}.md" for name in HOWTOS)
FILES = ("Procfile", "docker-compose.yml", "Dockerfile", ".dockerignore", ".env.example", "deploy", *PAGES)
HOME = "/opt/calotype"
"""The checkout that the units expect."""


@dataclass(frozen=True)
class Command:
    """One command, and the file and process that it is from."""

    place: str
    words: list[str]


class Unit(RawConfigParser):
    """A systemd unit: keys keep their case, and a duplicate key is an error."""

    def __init__(self, path: Path) -> None:
        super().__init__(strict=True, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
        self.read_string(path.read_text(encoding="utf-8"))

    def optionxform(self, optionstr: str) -> str:
        """Keep the case."""
        return optionstr


class Deployment:
    """Every deployment file below `root`, which is the checkout or a changed copy of these files."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root

    def text(self, name: str) -> str:
        """The text of one file."""
        return (self.root / name).read_text(encoding="utf-8")

    @property
    def names(self) -> list[str]:
        """The path of every file below the root."""
        places = [self.root / name for name in FILES]
        found = [path for place in places for path in (place, *sorted(place.rglob("*")))]
        texts = [path for path in found if path.is_file() and path.suffix != ".pyc"]
        return [str(path.relative_to(self.root)) for path in texts]

    @cached_property
    def procfile(self) -> dict[str, str]:
        """The line of each process."""
        return dict(re.findall(r"^([A-Za-z0-9_-]+):\s*(.+)$", self.text("Procfile"), re.MULTILINE))

    @cached_property
    def compose(self) -> dict[str, Any]:
        """The Compose file, merge keys resolved and variables not."""
        return _parsed(self.text("docker-compose.yml"))

    @property
    def services(self) -> dict[str, dict[str, Any]]:
        """The services of the Compose file."""
        services: dict[str, dict[str, Any]] = self.compose["services"]
        return services

    @property
    def ours(self) -> dict[str, dict[str, Any]]:
        """The services whose image is built here."""
        return {name: service for name, service in self.services.items() if "build" in service}

    @cached_property
    def stages(self) -> dict[str, list[tuple[str, list[str]]]]:
        """The instructions of each stage of the Dockerfile, as word and arguments."""
        text = re.sub(r"^\s*#.*\n", "", self.text("Dockerfile"), flags=re.MULTILINE)
        stages: dict[str, list[tuple[str, list[str]]]] = {}
        for line in re.sub(r"\\\n\s*", "", text).splitlines():
            word, _, rest = line.partition(" ")
            if word == "FROM":
                stages[rest.split(" AS ")[1]] = []
            elif word == "CMD":
                list(stages.values())[-1].append((word, yaml.safe_load(rest)))
            elif word:
                list(stages.values())[-1].append((word, shlex.split(rest)))
        return stages

    def stage(self, target: str, word: str) -> list[list[str]]:
        """The arguments of every such instruction of a target, those of the stage below it first."""
        return [words for name, words in self.stages["base"] + self.stages[target] if name == word]

    @cached_property
    def units(self) -> dict[str, Unit]:
        """The systemd units and the settings that they share, by file name."""
        folder = self.root / "deploy" / "systemd"
        paths = [*folder.glob("*.service"), *folder.glob("*.target"), *folder.glob("*.d/*.conf")]
        return {path.name: Unit(path) for path in sorted(paths)}

    def variables_of(self, name: str) -> dict[str, str]:
        """The assignments in an env example."""
        return dict(re.findall(r"^(\w+)=(.*)$", self.text(name), re.MULTILINE))

    @cached_property
    def commands(self) -> list[Command]:
        """Every command that one of the files would run."""
        found = [Command(f"Procfile: {name}", shlex.split(line)) for name, line in self.procfile.items()]
        for name, service in self.services.items():
            if "build" in service:
                words = service.get("command") or self.stage(service["build"]["target"], "CMD")[-1]
                found += in_shell(f"docker-compose.yml: {name}", words)
            if "healthcheck" in service:
                kind, *words = service["healthcheck"]["test"]
                words = ["sh", "-c", words[0]] if kind == "CMD-SHELL" else words
                found += in_shell(f"docker-compose.yml: {name} healthcheck", words)
        for target in ("api", "worker"):
            found += [Command(f"Dockerfile: {target}", words) for words in self.stage(target, "CMD")[-1:]]
        for name, unit in self.units.items():
            if unit.has_option("Service", "ExecStart"):
                line = unit["Service"]["ExecStart"].replace(f"{HOME}/.venv/bin/", "")
                words = shlex.split(line.replace("%i", "cuda:0").replace("/bin/sh", "sh"))
                found += in_shell(name, words)
        for page in PAGES:
            found += [Command(page, words) for words in _shell_blocks(self.text(page))]
        return found

    @property
    def made_secrets(self) -> dict[str, str]:
        """The secrets that `deploy/make-secrets` makes, by file name."""
        paths = [path for path in sorted((self.root / "deploy").iterdir()) if path.is_file()]
        return _made_by(tuple((path.name, path.read_text(encoding="utf-8")) for path in paths))


@cache
def _parsed(compose: str) -> dict[str, Any]:
    """The document; one for all copies whose text is the same, since parsing takes a tenth of a second."""
    document: dict[str, Any] = yaml.safe_load(compose)
    return document


@cache
def _made_by(files: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """The secrets by file name; one run of the script for all copies of it and its templates."""
    with TemporaryDirectory() as folder:
        deploy, made = Path(folder, "deploy"), Path(folder, "secrets")
        deploy.mkdir()
        for name, text in files:
            (deploy / name).write_text(text, encoding="utf-8")
        subprocess.run(["sh", str(deploy / "make-secrets"), str(made)], check=True, capture_output=True)
        return {path.name: path.read_text(encoding="utf-8") for path in made.iterdir()}


def mounted(service: dict[str, Any]) -> dict[str, str]:
    """The secrets of a service by their path inside it."""
    entries = [
        {"source": entry, "target": entry} if isinstance(entry, str) else entry
        for entry in service.get("secrets", [])
    ]
    return {f"/run/secrets/{entry['target']}": entry["source"] for entry in entries}


def in_shell(place: str, words: list[str]) -> list[Command]:
    """The commands of a line, or of each line of a shell's script."""
    if words[:2] not in (["sh", "-c"], ["sh", "-ec"]):
        return [Command(place, words)]
    lines = re.sub(r"\\\n\s*", "", words[2].replace("$$", "$").strip()).splitlines()
    parts = [part.strip() for line in lines for part in line.split("; ") if not line.startswith("export ")]
    run = [re.sub(r"^(exec|until|do) ", "", part) for part in parts if part != "done"]
    return [Command(place, shlex.split(part)) for part in run]


def _shell_blocks(text: str) -> list[list[str]]:
    """Each command in the `sh` blocks of a page, without comments and exports; lines may continue."""
    lines = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    joined = re.sub(r"\\\n\s*", "", lines).splitlines()
    return [words for line in joined if (words := shlex.split(line, comments=True)) and words[0] != "export"]
