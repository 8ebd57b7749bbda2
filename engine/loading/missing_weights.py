"""Weights that transformers did not find in the files of a component, and made up.

Owns how they are learned of: transformers reports them to its log alone, and goes on with random numbers.
What diffusers did not find stays without a value, which `engine.loading.failures.check_whole` sees.
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
"""Which list every weight that is missing or left over, or that lies on one device alone."""
OF_NO_USE = ("Some weights of", "The following layers were not sharded")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
HEADING = re.compile(r"(?P<model>\w+) LOAD REPORT.* from: (?P<folder>.+)")
ROW = re.compile(r"^\s*(?P<key>\S[^|\n]*?)\s*\|\s*(?P<status>MISSING|MISMATCH)", re.MULTILINE)
UNUSED = re.compile(r"(?:^|\.)(?:pooler|lm_head|position_ids)(?:\.|$)")
"""Weights that a text encoder's class has and no pipeline reads."""


@contextmanager
def none_missing() -> Iterator[None]:
    """Raise `LoadError` at the end where transformers made up weights meanwhile; its reports reach no log."""
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
        return not record.getMessage().startswith(OF_NO_USE)

    level = logger.level
    for other in others:
        other.addFilter(drop)
    logger.addFilter(keep)
    logger.setLevel(logging.WARNING)  # else it may not even say so
    try:
        yield
    except RuntimeError:  # which refers to the report
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
                f"its {named}: its weights {', '.join(other[:MAX_NAMED])} are of another size than its"
                f" config.json says: {ONE_REVISION}"
            )
        if missing:
            raise LoadError(missing_weights(named, missing))
