"""How many blocks each call of `bench.plane.calls` may read, and which read more."""

from dataclasses import dataclass

from bench.plane.blocks import Explained, Watch

MAX_BLOCKS_A_CALL = 250
"""Blocks of a statement without rows: a page of 51 jobs is as many probes, of trees of up to four levels."""
MAX_BLOCKS_A_ROW = 12
"""Blocks of a row that is returned: its table and an index of up to four levels, and those of its images."""
MAX_BLOCKS_A_CHANGE = 60
"""Blocks of a row that is changed: its table, and an entry in each index, below at most three inner pages."""
MORE_BLOCKS = {
    "authenticate": (400, "an SQL function: the first call of a connection reads the catalogue of Postgres"),
    "queue_facts": (2000, "it counts up to `queue_facts.MAX_COUNTED` jobs ahead in each tier and lane"),
    "redispatch_lost": (1000, "it looks at up to `dispatches.MAX_NOT_DUE` dispatches that are not due yet"),
    "next_jobs": (600, "it compares `queue_facts.MAX_COMPARED` jobs of each batch and tier"),
    "reap": (500, "it looks at all running jobs, whose number is limited by the slots of the workers"),
    "due_work": (500, "it looks for an expired lease among all running jobs"),
    "claim delivery": (400, "entries of rows that have just changed, until they are vacuumed"),
    "orphan": (1000, "it looks up a job and an image for each object"),
    "cancel": (4000, "entries of the rows that it has just changed, until they are vacuumed"),
    "erase_old": (2000, "it erases ten jobs within a function, whose changes are not counted"),
    "fold": (400, "entries of the rows that it has just deleted, until they are vacuumed"),
}
"""Calls whose statements may read more without rows, by the first words of their label, and the reason."""


@dataclass(frozen=True)
class Beyond:
    """A statement that read more blocks than its bound."""

    explained: Explained
    max_blocks: int

    def __str__(self) -> str:
        one = self.explained
        rows = f"{one.num_returned} rows returned and {one.num_changed} changed"
        read = f"{one.num_blocks} blocks for {rows}, and may read {self.max_blocks}"
        return f"{one.label} ({one.site.file}: {one.site.function}) reads {read}"


def beyond_bounds(watch: Watch) -> list[Beyond]:
    """The statements that read more than a bound for the call, and one for each row returned or changed."""
    found = [Beyond(one, _bound(one)) for one in watch.explained]
    return [one for one in found if one.explained.num_blocks > one.max_blocks]


def _bound(one: Explained) -> int:
    more = [blocks for label, (blocks, _) in MORE_BLOCKS.items() if one.label.startswith(label)]
    of_rows = MAX_BLOCKS_A_ROW * one.num_returned + MAX_BLOCKS_A_CHANGE * one.num_changed
    return max([MAX_BLOCKS_A_CALL, *more]) + of_rows
