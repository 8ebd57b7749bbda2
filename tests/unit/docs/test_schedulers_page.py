"""docs/reference/schedulers.md names the schedulers that the engine can make, and the kinds of model."""

import re
from typing import get_args

from catalogue.schedulers import SchedulerName
from engine.pipelines.scheduler_classes import CLASSES, SAMPLERS
from engine.request import SCHEDULERS
from settings import ROOT

from .conftest import ReadTable

PAGE = "docs/reference/schedulers.md"


def test_every_name_is_documented_with_its_class_and_its_kinds(read_table: ReadTable) -> None:
    rows = read_table(PAGE, "## Names")
    assert [row[0].strip("`") for row in rows] == list(get_args(SchedulerName))
    made = {
        (name, sampler.scheduler_class.__name__, kind)
        for kind, samplers in SAMPLERS.items()
        for name, sampler in samplers.items()
    }
    assert made == {
        (name.strip("`"), class_name.strip("`"), kind)
        for name, class_name, kinds in rows[1:]
        for kind in kinds.split(", ")
    }


def test_every_name_with_karras_sigmas_is_documented() -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    assert set(re.findall(r"`(\w+_karras)`", text)) == {
        name for name, spec in SCHEDULERS.items() if spec.karras
    }


def test_every_kind_is_documented_with_its_classes(read_table: ReadTable) -> None:
    documented = {
        row[0]: set(re.findall(r"`(\w+Scheduler)`", row[1])) for row in read_table(PAGE, "## Kinds")
    }
    assert documented == {kind: set(CLASSES.get(kind, ())) for kind in SAMPLERS}
