"""Counts the blocks that each statement of `storage` reads, by EXPLAIN immediately before it runs.

Every statement passes the watchers of `storage.database`, where it is explained with the same connection,
role and account in a part of the transaction that is rolled back. It knows the statements of no module: what
`storage` can send is read off its source.
"""

import ast
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from storage.database import WATCHERS

STORAGE = Path(__file__).parents[2] / "storage"
_METHODS = ("execute", "scalars", "scalar")


@dataclass(frozen=True, order=True)
class Site:
    """A call in the source of `storage` that sends a statement, and the function that has it."""

    file: str
    first_line: int
    last_line: int
    function: str


@dataclass(frozen=True)
class Explained:
    """A statement that ran: for which call, from which site, and the blocks and rows that it read."""

    label: str
    site: Site
    sql: str
    num_blocks: int
    num_returned: int
    num_changed: int
    plan: Mapping[str, Any] = field(repr=False)

    @property
    def scanned_tables(self) -> frozenset[str]:
        """The tables that it read from end to end."""
        return frozenset(
            node["Relation Name"] for node in _nodes(self.plan) if node["Node Type"].endswith("Seq Scan")
        )

    @property
    def num_read(self) -> int:
        """The rows that it read from tables, once for each time, without those that a filter left out."""
        return int(
            sum(
                node["Actual Rows"] * node["Actual Loops"]
                for node in _nodes(self.plan)
                if "Relation Name" in node and node["Node Type"] != "ModifyTable"
            )
        )


@dataclass
class Watch:
    """What has been explained, and the functions of `storage` that were called for it, as `file: name`."""

    explained: list[Explained] = field(default_factory=list)
    functions: set[str] = field(default_factory=set)
    label: str = ""


@contextmanager
def watched() -> Iterator[Watch]:
    """Explain every statement that `storage` sends in this process until the block returns."""
    watch = Watch()
    sites = {(site.file, line): site for site in sites_of() for line in _lines(site)}

    def look(driver: Any, sql: str, parameters: Any, account_id: str | None) -> None:
        frames = list(_frames_of_storage(sys._getframe()))
        if not frames or sql.startswith(("BEGIN", "COMMIT", "ROLLBACK")):
            return
        watch.functions |= {f"{name}: {frame.f_code.co_qualname}" for name, frame in frames}
        name, frame = frames[0]
        site = sites[name, frame.f_lineno]
        values = parameters[0] if isinstance(parameters, list) else parameters
        plan = _explained(driver, sql, values, account_id)
        counted = _blocks(plan), int(plan["Actual Rows"]), _num_changed(plan)
        watch.explained.append(Explained(watch.label, site, sql, *counted, plan))

    WATCHERS.append(look)
    try:
        yield watch
    finally:
        WATCHERS.remove(look)


def sites_of() -> list[Site]:
    """Every call in `storage` that sends a statement."""
    found = []
    for path in sorted(STORAGE.glob("*.py")):
        if path.name == "database.py":
            continue
        for function, node in _calls(ast.parse(path.read_text(encoding="utf-8")), ""):
            is_sending = (
                isinstance(node.func, ast.Attribute)
                and node.func.attr in (*_METHODS, "exec_driver_sql")
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id in ("connection", "db")
            )
            if is_sending:
                found.append(Site(path.name, node.lineno, node.end_lineno or node.lineno, function))
    return found


def functions_of() -> set[str]:
    """Every public function in `storage` whose first argument is a database or a connection."""
    found = set()
    for path in STORAGE.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.args.args:
                first = node.args.args[0].annotation
                if isinstance(first, ast.Name) and first.id in ("Database", "Connection"):
                    found.add(f"{path.name}: {node.name}")
    return found


def _calls(node: ast.AST, function: str) -> Iterator[tuple[str, ast.Call]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield function, child
        is_named = isinstance(child, ast.FunctionDef) and not function
        yield from _calls(child, child.name if is_named else function)  # type: ignore[attr-defined]


def _lines(site: Site) -> range:
    return range(site.first_line, site.last_line + 1)


def _frames_of_storage(frame: FrameType | None) -> Iterator[tuple[str, FrameType]]:
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.parent == STORAGE and path.name != "database.py":
            yield path.name, frame
        frame = frame.f_back


def _explained(
    driver: Any, sql: str, values: Mapping[str, Any] | Sequence[Any] | None, account_id: str | None
) -> Mapping[str, Any]:
    """The plan of a statement after it ran, in a part of the transaction that is rolled back."""
    is_idle = driver.info.transaction_status == TRANSACTION_STATUS_IDLE
    begin, end = ("BEGIN", "ROLLBACK") if is_idle else ("SAVEPOINT plan", "ROLLBACK TO plan")
    with driver.cursor() as cursor:
        cursor.execute(begin)
        try:
            if account_id is not None:
                cursor.execute("SELECT set_config('calotype.account_id', %s, true)", (account_id,))
            first, _, last = sql.rpartition(";")  # several statements in one string: a lock, then the work
            if first:
                cursor.execute(first, values)
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {last}", values)
            found = cursor.fetchone()[0]
            # SQLAlchemy's connections give JSON as text.
            plan: Mapping[str, Any] = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
        finally:
            cursor.execute(end)
    return plan


def _blocks(plan: Mapping[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


def _num_changed(plan: Mapping[str, Any]) -> int:
    return int(
        sum(
            child["Actual Rows"] * child["Actual Loops"]
            for node in _nodes(plan)
            if node["Node Type"] == "ModifyTable"
            for child in node.get("Plans", ())[-1:]
        )
    )


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)
