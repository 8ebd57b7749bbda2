"""Detects weights that transformers did not find in a component's files and initialized at random.

transformers reports them only in its log, so this reads its log records. Weights that diffusers did not find
stay on the meta device, and `engine.loading.failures.check_complete` detects those.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import LoadError
from engine.loading.failures import MAX_NAMED, ONE_REVISION, missing_weights

REPORTING = "transformers.modeling_utils"
WARNING = (
    "diffusers.models.modeling_utils",
    "diffusers.loaders.single_file_model",
    "transformers.distributed.tensor_parallel",
)
"""Loggers that warn of every missing, unused or unsharded weight."""
DROPPED = ("Some weights of", "The following layers were not sharded")
"""Prefixes of the warnings that are dropped."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
HEADING = re.compile(r"(?P<model>\w+) LOAD REPORT.* from: (?P<folder>.+)")
ROW = re.compile(r"^\s*(?P<key>\S[^|\n]*?)\s*\|\s*(?P<status>MISSING|MISMATCH)", re.MULTILINE)
UNUSED = re.compile(r"(?:^|\.)(?:pooler|lm_head|position_ids)(?:\.|$)")
"""Weights of text encoder classes that no pipeline uses."""


@contextmanager
def none_missing() -> Iterator[None]:
    """Raise `LoadError` at the end if transformers initialized weights at random; drops its log reports."""
    logger = logging.getLogger(REPORTING)
    others = [logging.getLogger(name) for name in WARNING]
    reports: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        said = COLOURS.sub("", record.getMessage())
        if HEADING.search(said) is None:
            return True
        reports.append(said)
        return False

    def drop(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(DROPPED)

    level = logger.level
    for other in others:
        other.addFilter(drop)
    logger.addFilter(keep)
    logger.setLevel(logging.WARNING)  # the report is a warning, and the level may be above that
    try:
        yield
    except RuntimeError:  # its message refers to the report
        _check(reports)
        raise
    finally:
        for other in others:
            other.removeFilter(drop)
        logger.removeFilter(keep)
        logger.setLevel(level)
    _check(reports)


def _check(reports: list[str]) -> None:
    for report in reports:
        heading = HEADING.search(report)
        rows = [(one["key"], one["status"]) for one in ROW.finditer(report) if not UNUSED.search(one["key"])]
        missing = [key for key, status in rows if status == "MISSING"]
        other = [key for key, status in rows if status == "MISMATCH"]
        named = f"{Path(heading['folder'].strip()).name} ({heading['model']})" if heading else "text encoder"
        if other:
            raise LoadError(
                f"its {named}: the sizes of its weights {', '.join(other[:MAX_NAMED])} differ from its"
                f" config.json: {ONE_REVISION}"
            )
        if missing:
            raise LoadError(missing_weights(named, missing))
