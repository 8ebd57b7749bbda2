"""Finds names in deployment files that do not exist in the code: commands, options, ports, paths, variables.

Each check returns a sentence for each missing name, so that a test can change a copy of a file and expect
one. Which settings a process cannot do without is not checked here: `tests/integration/test_images.py` runs
the services with the settings that they are given.
"""

import importlib.util
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any

import typer.main

from catalogue.catalogue import WorkerPlan
from cli.__main__ import app
from local.roles import ROLES
from settings import OTHER_VARIABLES, ROOT, Settings
from storage.roles import ROLES as DATABASE_ROLES

from .deployment_files import HOME, Command, Deployment, mounted

SETTINGS = {f"CALOTYPE_{name.upper()}" for name in Settings.model_fields}
CALOTYPE = typer.main.get_command(app)
OURS_IN_THE_ENVIRONMENT = {"PORT", "FLOWER_PORT"}
POSTGRES_IMAGE = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD_FILE"}
PYTHON = {"PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "HOME"}
IN_THE_IMAGES = {"test", "pg_isready", "valkey-cli", "wget"}
"""Programs that health checks call; that other projects' images contain them is from their documentation."""
ON_THE_HOST = {"cp", "docker", "git", "honcho", "install", "kubectl", "make", "sh", "sleep", "systemctl"}


def problems(deployment: Deployment) -> list[str]:
    """Every name in the files that does not exist."""
    return [
        *(f"{command.place}: {found}" for command in deployment.commands for found in check_command(command)),
        *check_variables(deployment),
        *check_ports(deployment),
        *check_paths(deployment),
    ]


def check_command(command: Command) -> Iterable[str]:
    """Check the program, and for our own its module, subcommand, options and application."""
    program, *words = [word for word in command.words if not re.match(r"\w+=", word)]
    if program == "sudo":
        program, *words = words
    if program == "systemd-run":
        start = next(index for index, word in enumerate(words) if word.endswith("/python"))
        program, *words = words[start:]
    program = program.removeprefix(f"{HOME}/.venv/bin/").removeprefix(".venv/bin/")
    if program == "calotype":
        program, words = "python", ["-m", "cli", *words]
    if program == "docker":
        yield from _check_docker(command, words)
    elif program != "python":
        if program not in IN_THE_IMAGES | ON_THE_HOST:
            yield f"there is no program {program}"
    elif words[0] == "-m":
        yield from _check_module(*words[1:])


def _check_docker(command: Command, words: list[str]) -> Iterable[str]:
    """`docker compose run --rm SERVICE COMMAND...` runs a command of ours inside a service."""
    if words[:3] == ["compose", "run", "--rm"] and len(words) > 4:
        yield from check_command(Command(command.place, words[4:]))


def _check_module(module: str, *arguments: str) -> Iterable[str]:
    if not importlib.util.find_spec(module):
        yield f"there is no module {module}"
        return
    options = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    if module == "cli":
        yield from _check_cli(list(arguments))
    elif module == "celery":
        from flower.options import options as known

        yield from _unknown(options, {f"--{name.replace('_', '-')}" for name in known})
        if "flower" not in arguments:
            yield f"celery does not run `flower`: {arguments}"
    elif module == "alembic" and arguments != ("upgrade", "head"):
        yield f"alembic runs {arguments}"
    for word in arguments:
        if match := re.fullmatch(r"([a-z]+\.[a-z]+):(\w+)(\(\))?", word):
            path = ROOT / (match[1].replace(".", "/") + ".py")
            if not path.is_file() or not re.search(rf"\b{match[2]}\b", path.read_text(encoding="utf-8")):
                yield f"there is no application {word}"


def _check_cli(arguments: list[str]) -> Iterable[str]:
    command: Any = CALOTYPE
    while arguments and hasattr(command, "commands"):
        name = arguments.pop(0)
        if name not in command.commands:
            yield f"there is no command calotype {name}"
            return
        command = command.commands[name]
    options = {name: part for part in command.params for name in part.opts if name.startswith("-")}
    given = {word.partition("=")[0] for word in arguments if word.startswith("-")}
    yield from _unknown(given, options)
    for part in command.params:
        if part.required and part.param_type_name == "option" and not given & set(part.opts):
            yield f"{part.opts[0]} is required"
    if "--device" in arguments:
        device = arguments[arguments.index("--device") + 1]
        pattern = next(rule.pattern for rule in WorkerPlan.model_fields["device"].metadata)
        if device != "none" and (device == "auto" or not re.match(pattern, device)):
            yield f"there is no device {device}"


def _unknown(given: Iterable[str], known: Iterable[str]) -> Iterable[str]:
    return (f"there is no option {name}" for name in given if name not in known)


def check_variables(deployment: Deployment) -> Iterable[str]:
    """Check that some process reads each variable that the files set."""
    from flower.options import options as flower

    of_flower = {f"FLOWER_{name.replace('-', '_').upper()}" for name in flower}
    known = SETTINGS | OTHER_VARIABLES | of_flower | POSTGRES_IMAGE | PYTHON | OURS_IN_THE_ENVIRONMENT
    for name in deployment.names:
        for variable in re.findall(r"\b(?:CALOTYPE|FLOWER|POSTGRES)_[A-Z0-9_]+\b", deployment.text(name)):
            if variable not in known:
                yield f"{name}: no process reads {variable}"
    offered = deployment.variables_of(".env.example")
    used = dict(re.findall(r"(?<!\$)\$\{(\w+):-([^}]*)\}", deployment.text("docker-compose.yml")))
    if used != offered:
        yield f".env.example offers {offered}, docker-compose.yml reads {used}"
    if open_ones := re.findall(r"(?<!\$)\$\{\w+\}", deployment.text("docker-compose.yml")):
        yield f"docker-compose.yml: no default for {open_ones}"
    yield from _check_procfile_and_units(deployment, known)
    for name, service in deployment.ours.items():
        environment = service["environment"]
        secrets = {path.rpartition("/")[2].upper() for path in mounted(service)}
        for variable in {key for key in environment if key not in known}:
            yield f"docker-compose.yml: {name}: no process reads {variable}"
        for variable in sorted(secrets - SETTINGS):
            if variable.startswith("CALOTYPE_"):
                yield f"docker-compose.yml: {name}: {variable} is no setting"


def _check_procfile_and_units(deployment: Deployment, known: set[str]) -> Iterable[str]:
    for name, line in deployment.procfile.items():
        for variable in set(re.findall(r"\$\{?(\w+)", line)) - known:
            yield f"Procfile: {name}: nothing sets {variable}"
    for path in sorted((deployment.root / "deploy" / "systemd").glob("*.env.example")):
        for variable in deployment.variables_of(f"deploy/systemd/{path.name}").keys() - known:
            yield f"{path.name}: no process reads {variable}"
    for name, unit in deployment.units.items():
        service = unit["Service"] if unit.has_section("Service") else {}
        given = {word.partition("=")[0] for word in service.get("Environment", "").split()}
        for variable in given - known:
            yield f"{name}: no process reads {variable}"
        for variable in set(re.findall(r"\$\{?(\w+)", service.get("ExecStart", ""))) - given:
            yield f"{name}: {variable} has no default"


def check_ports(deployment: Deployment) -> Iterable[str]:
    """Check that a port is the same in all files, and that a service listens on each published port."""
    services, text = deployment.services, deployment.text
    web = re.findall(r"--port=(\d+)", str(deployment.stage("api", "CMD")[-1]))[0]
    s3 = re.findall(r"-s3\.port=(\d+)", str(services["seaweedfs"]["command"]))[0]
    flower = re.findall(r"--port=(\d+)", str(services["flower"]["command"]))[0]
    for name, port in (("api", web), ("seaweedfs", s3), ("flower", flower)):
        if services[name]["ports"] != [f"127.0.0.1:{port}:{port}"]:
            yield f"docker-compose.yml: {name} listens on {port} and publishes {services[name]['ports']}"
        if f"http://127.0.0.1:{port}/" not in str(services[name]["healthcheck"]):
            yield f"docker-compose.yml: {name}'s health check does not ask port {port}"
    if deployment.stage("api", "EXPOSE") != [[web]]:
        yield f"Dockerfile: exposes {deployment.stage('api', 'EXPOSE')} and listens on {web}"
    endpoint = services["api"]["environment"].get("CALOTYPE_S3_ENDPOINT")
    if endpoint != f"http://seaweedfs:{s3}":
        yield f"docker-compose.yml: S3 listens on {s3}, and CALOTYPE_S3_ENDPOINT is {endpoint}"
    if f":{web}" not in deployment.variables_of(".env.example")["CALOTYPE_PUBLIC_URL"]:
        yield ".env.example: CALOTYPE_PUBLIC_URL is not the API's address"
    if f":{s3}" not in deployment.variables_of(".env.example")["CALOTYPE_S3_PUBLIC_ENDPOINT"]:
        yield ".env.example: CALOTYPE_S3_PUBLIC_ENDPOINT is not the address of S3"
    brokers = {f"calotype_broker_url_{role}": "@valkey:6379/0" for role in ROLES}
    databases = {f"calotype_database_url_{role}": "@postgres:5432/calotype" for role in DATABASE_ROLES}
    owner = {"calotype_database_url": "@postgres:5432/calotype"}
    for secret, address in {**owner, **databases, **brokers}.items():
        if not deployment.made_secrets.get(secret, "").strip().endswith(address):
            yield f"deploy/make-secrets: {secret} does not lead to {address}"
    example = "deploy/systemd/calotype.env.example"
    for place, default in (
        ("Procfile", f"{{PORT:-{web}}}"),
        ("Procfile", f"{{FLOWER_PORT:-{flower}}}"),
        (example, f"\nPORT={web}\n"),
        (example, f"\nFLOWER_PORT={flower}\n"),
    ):
        if default not in text(place):
            yield f"{place}: not {default.strip()}"


def check_paths(deployment: Deployment) -> Iterable[str]:
    """Check that each file is in the checkout, among the made secrets, or written by the command."""
    yield from _check_mounts(deployment)
    allowed = re.findall(r"^!(.+)$", deployment.text(".dockerignore"), re.MULTILINE)
    for target in ("dependencies", "api", "worker"):
        for words in deployment.stage(target, "COPY"):
            for source in [] if words[0].startswith("--from") else words[:-1]:
                if not any(ROOT.glob(source)):
                    yield f"Dockerfile: {target} copies {source}, which does not exist"
                if not any(fnmatch(source, rule) for rule in allowed):
                    yield f".dockerignore: excludes {source}, which {target} copies"
    for rule in allowed:
        if not any(ROOT.glob(rule)):
            yield f".dockerignore: {rule} does not exist"
    for name in deployment.names:
        for path in re.findall(rf"{HOME}/([\w./-]*\w)", deployment.text(name)):
            if not path.startswith(".venv") and not (ROOT / path).exists():
                yield f"{name}: {path} is not in the checkout"
        for path in re.findall(r"(?<![\w./-])deploy/[\w./@-]*\w", deployment.text(name)):
            if not (deployment.root / path).exists():
                yield f"{name}: there is no {path}"


def _check_mounts(deployment: Deployment) -> Iterable[str]:
    declared = deployment.compose["secrets"]
    for name, entry in declared.items():
        if entry != {"file": f"./secrets/{name}"}:
            yield f"docker-compose.yml: the secret {name} is {entry}"
        if name not in deployment.made_secrets:
            yield f"docker-compose.yml: deploy/make-secrets makes no {name}"
    for name, service in deployment.services.items():
        secrets = mounted(service)
        for source in set(secrets.values()) - declared.keys():
            yield f"docker-compose.yml: {name}: no secret {source}"
        for path in set(re.findall(r"/run/secrets/[\w.-]+", str(service))) - secrets.keys():
            yield f"docker-compose.yml: {name} reads {path}, which it is not given"
        for volume in service.get("volumes", []):
            source, target = volume.split(":")[:2]
            if source.startswith("./") and not ((ROOT / source).exists() and target == f"/app/{source[2:]}"):
                yield f"docker-compose.yml: {name} mounts {volume}"
        probe = str(service.get("healthcheck", {}).get("test", ""))
        for path in re.findall(r"/tmp/[\w.-]+", probe):
            if path not in service["command"]:
                yield f"docker-compose.yml: {name}: {path} is read by the health check, and nothing writes it"
