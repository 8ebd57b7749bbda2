"""Faults that are put into the code on purpose, to show that the suite catches them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.pipelines.parked_call import ParkedCall
from storage import jobs
from tests.unit.engine.fakes import FakeModel


def _guard_without_token(_model: FakeModel) -> None:
    """A worker ends any job that runs, whether or not it holds its lease."""
    jobs._IS_ENDED = "jobs.id = ended.job_id"


def _scatter_off_by_one(model: FakeModel) -> None:
    """Each request of a step batch gets the rows of the one before it."""
    plain = model.exchange.outputs

    def outputs(parked: Sequence[ParkedCall], *more: Any) -> list[Any]:
        parts = plain(parked, *more)
        are_alike = parked[0].name == "unet" and len({output.shape for (output,) in parts}) == 1
        return [*parts[-1:], *parts[:-1]] if are_alike else parts

    vars(model.exchange)["outputs"] = outputs


MUTANTS: Mapping[str, Callable[[FakeModel], None]] = {
    "guard without its token": _guard_without_token,
    "scatter off by one": _scatter_off_by_one,
}
