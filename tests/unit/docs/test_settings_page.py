"""docs/reference/settings.md documents every setting and every entry of `calotype.toml`, and no others."""

from pathlib import Path
from typing import Any

import pytest
import typer.main
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from catalogue.accounting import Prices
from catalogue.catalogue import (
    Catalogue,
    EmbeddingFile,
    LoraFile,
    Model,
    Preset,
    SchedulerOverrides,
    Tier,
    WorkerPlan,
)
from catalogue.parts import Part
from catalogue.pipeline_parameters import PipelineParameter
from catalogue.schedulers import ALL_SCHEDULERS
from cli.__main__ import app
from settings import ROOT, Settings

from .conftest import ReadTable

PAGE = "docs/reference/settings.md"


def test_every_setting_is_documented_and_nothing_else(read_table: ReadTable) -> None:
    documented = [row[0].strip("`") for row in read_table(PAGE, "## Environment") if len(row) == 3]
    assert documented == [f"CALOTYPE_{name.upper()}" for name in Settings.model_fields]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_documented_default_of_a_setting_is_its_default(name: str, read_table: ReadTable) -> None:
    rows = {row[0].strip("`"): row for row in read_table(PAGE, "## Environment") if len(row) == 3}
    row = rows[f"CALOTYPE_{name.upper()}"]
    shown = _shown(Settings.model_fields[name])
    assert row[1].strip("`") == ("profiles` in `CALOTYPE_DATA_DIR" if name == "profiles_dir" else shown)
    assert row[2]


def test_every_variable_of_the_command_line_is_documented(read_table: ReadTable) -> None:
    documented = {row[0].strip("`") for row in read_table(PAGE, "### Of the command line")}
    read = {
        variable
        for command in _commands(typer.main.get_command(app))
        for option in command.params
        for variable in ([option.envvar] if isinstance(option.envvar, str) else option.envvar or [])
    }
    assert documented == read


@pytest.mark.parametrize(
    ("heading", "entries"),
    [
        ("## `calotype.toml`", Catalogue),
        ("### `[models.NAME]`", Model),
        ("### `[models.NAME.PART]`", Part),
        ("### `[models.NAME.scheduler]`", SchedulerOverrides),
        ("### `[models.NAME.presets.PRESET]`", Preset),
        ("### `[models.NAME.parameters.PARAM]`", PipelineParameter),
        ("### `[models.NAME.embeddings.EMBEDDING]`", EmbeddingFile),
        ("### `[models.NAME.loras.LORA]`", LoraFile),
        ("### `[models.NAME.tiers.TIER]`", Tier),
        ("### `[[workers]]`", WorkerPlan),
        ("### `[prices]`", Prices),
    ],
)
def test_every_entry_of_the_catalogue_is_documented_with_its_default(
    heading: str, entries: type[BaseModel], read_table: ReadTable
) -> None:
    rows = read_table(PAGE, heading)[: len(entries.model_fields)]
    fields = {field.alias or name: field for name, field in entries.model_fields.items()}
    assert [row[0].strip("`") for row in rows] == list(fields)
    for row in rows:
        field = fields[row[0].strip("`")]
        if "table" not in row[1]:  # named by the table itself
            assert row[1].strip("`") == _shown(field), row[0]


def test_every_scheduler_is_documented(read_table: ReadTable) -> None:
    documented = [row[0].strip("`") for row in read_table(PAGE, "### Schedulers")]
    assert sorted(documented) == sorted(ALL_SCHEDULERS)


def _shown(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, Path):
        value = value.relative_to(ROOT)
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    return "none" if value in ("", None, {}, SchedulerOverrides(), Prices()) else str(value)


def _commands(command: Any) -> list[Any]:
    children = getattr(command, "commands", {})
    return [command, *(found for child in children.values() for found in _commands(child))]
