"""Lists every setting and every entry of `calotype.toml` with its value and its source, for display.

It owns the masking: the output of `shown_settings` is safe to paste into a bug report.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, SecretStr

from catalogue.catalogue import Catalogue
from local.endpoints import addresses
from local.roles import ROLES, Role
from local.state import STATE_FILE, State
from settings import Settings, load_settings, origins

MASK = "********"
_DEFAULT = "default"


@dataclass(frozen=True)
class Shown:
    """One entry, masked for display."""

    name: str
    value: Any
    origin: str


def effective_settings(data_dir: Path) -> tuple[Settings, dict[str, str]]:
    """Return the settings in force, and the source of each that is not a default.

    The environment comes first, then the folder of secrets, then the state that `calotype up` keeps in
    `data_dir`.
    """
    found = origins()
    embedded = {name: value for name, value in _of_installation(data_dir).items() if name not in found}
    settings = load_settings(**embedded, data_dir=data_dir)
    here = f"`calotype up` in {data_dir.absolute()}"
    given = {} if settings.data_dir == load_settings().data_dir else {"data_dir": "--data-dir"}
    return settings, {**dict.fromkeys(embedded, here), **found, **given}


def settings_by_role(data_dir: Path) -> dict[Role, Settings]:
    """Return the settings that `calotype up` passes to its processes; empty if it never ran there."""
    if not (data_dir / STATE_FILE).exists():
        return {}
    given = addresses(State.read(data_dir))
    return {role: load_settings(**_as_settings(given.environment_of(role))) for role in ROLES}


def shown_settings(settings: Settings, found: Mapping[str, str]) -> Iterator[Shown]:
    """List every setting, masked, by its variable, then every entry of the catalogue."""
    for name in Settings.model_fields:
        value = _masked(getattr(settings, name))
        yield Shown(f"CALOTYPE_{name.upper()}", value, found.get(name, _DEFAULT))
    yield from _shown_catalogue(settings.catalogue, str(settings.config))


def _shown_catalogue(catalogue: Catalogue, file: str) -> Iterator[Shown]:
    yield from _shown_entries("", catalogue, file, skip={"models", "workers"})
    for model in catalogue.models:
        here = f"models.{model.name}."
        yield from _shown_entries(here, model, file, skip={"name", "tiers", "presets", "parameters"})
        for table in ("presets", "parameters", "tiers"):
            for entries in getattr(model, table):
                place = f"{here}{table}.{entries.name}."
                yield from _shown_entries(place, entries, file, skip={"name", "model"})
    for number, plan in enumerate(catalogue.workers):
        yield from _shown_entries(f"workers[{number}].", plan, file, skip=set())


def _shown_entries(prefix: str, entries: BaseModel, file: str, *, skip: set[str]) -> Iterator[Shown]:
    for name in type(entries).model_fields:
        if name not in skip:
            value = getattr(entries, name)
            if isinstance(value, BaseModel):  # a table that is described by its entries
                value = value.model_dump(exclude_none=True) or None
            origin = file if name in entries.model_fields_set else _DEFAULT
            yield Shown(prefix + name, list(value) if isinstance(value, tuple) else value, origin)


def _of_installation(data_dir: Path) -> dict[str, str]:
    if not (data_dir / STATE_FILE).exists():
        return {}
    return _as_settings(addresses(State.read(data_dir)).environment)


def _as_settings(environment: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix("CALOTYPE_").lower(): value for name, value in environment.items()}


def _masked(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [str(part) for part in value]
    if isinstance(value, SecretStr):
        return _masked_url(value.get_secret_value(), secret=True)
    return _masked_url(value, secret=False) if isinstance(value, str) else value


def _masked_url(text: str, *, secret: bool) -> str:
    """Remove the password and the query of a URL; hide any other secret entirely."""
    if not text:
        return ""
    try:
        url = urlsplit(text)
        has_host = bool(url.scheme and url.hostname)
    except ValueError:
        has_host = False
    if not has_host:
        return MASK if secret else text
    user, at, host = url.netloc.rpartition("@")
    if secret and user and ":" not in user:
        user = MASK  # a token in place of user and password
    elif ":" in user:
        user = f"{user.partition(':')[0]}:{MASK}"
    return urlunsplit((url.scheme, user + at + host, url.path, MASK if url.query else "", ""))
