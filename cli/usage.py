"""`calotype usage`: what the account's jobs used and cost, as a table. It uses the HTTP API only."""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Annotated

import typer

from catalogue.accounting import amount_text
from cli.jobs import connect
from cli.terminal import DEFAULT_DATA_DIR, AsJson, DataDir, Key, Url, note, print_json, print_table
from client.calotype import Usage

accounting = typer.Typer()


class Dimension(StrEnum):
    """What usage is summed by."""

    DAY = "day"
    KEY = "key"
    BATCH = "batch"
    TAG = "tag"
    TIER = "tier"


_FIELDS = {Dimension.KEY: "key_id", Dimension.BATCH: "batch_id"}


@accounting.command()
def usage(
    by: Annotated[
        list[Dimension] | None, typer.Option(help="What to sum by; may be repeated. Default: day.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="The first day in UTC, such as 2026-11-01.")] = None,
    until: Annotated[str | None, typer.Option(help="The day after the last one.")] = None,
    key: Annotated[str | None, typer.Option(help="Only jobs of this key, by its id.")] = None,
    batch: Annotated[str | None, typer.Option(help="Only jobs of this batch.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only jobs with this tag.")] = None,
    url: Url = "",
    api_key: Key = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Sum the images, device seconds and cost of your succeeded jobs, of the last 30 days by default."""
    asked = [one for one in Dimension if one in (by or [Dimension.DAY])]
    with connect(url, api_key, data_dir) as client:
        found = client.usage(
            by=[one.value for one in asked], since=since, until=until, key_id=key, batch_id=batch, tag=tag
        )
    if as_json:
        days = {"since": found.since.isoformat(), "until": found.until.isoformat()}
        print_json({**days, "data": [row.raw for row in found.rows], "total": found.total.raw})
        return
    rows = [(*_dimensions(row, asked), *_sums(row)) for row in found.rows]
    total = ("total", *[""] * (len(asked) - 1), *_sums(found.total))
    print_table((*asked, "jobs", "images", "device seconds", "cost"), [*rows, total])
    if found.total.unpriced_device_seconds:
        note(
            f"the cost is without {found.total.unpriced_device_seconds:.2f} device seconds,"
            " which had no price or one in another currency"
        )


def _dimensions(row: Usage, asked: Sequence[Dimension]) -> Iterator[object]:
    return (getattr(row, _FIELDS.get(one, one.value)) or "-" for one in asked)


def _sums(row: Usage) -> tuple[object, ...]:
    cost = "-" if row.cost is None else amount_text(row.cost.amount, row.cost.currency)
    return row.num_jobs, row.num_images, f"{row.device_seconds:.2f}", cost
