"""The `calotype workers` commands, for operators: they use the database as its owner does.

A worker learns what is asked of it with its next heartbeat. It is named by its id, or by a part of it.
"""

import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cli.terminal import (
    DEFAULT_DATA_DIR,
    EXIT_USAGE,
    AsJson,
    DataDir,
    fail,
    out,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from storage.database import Database
    from storage.workers import Worker

POLL_SECONDS = 0.5

workers = typer.Typer(no_args_is_help=True)
Named = Annotated[
    list[str] | None,
    typer.Argument(metavar="[WORKER]...", help="Its id, or a part of one, such as a host."),
]
All = Annotated[bool, typer.Option("--all", help="Every live worker.")]


@workers.command("list")
def list_workers(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """List the live workers, with the jobs that they run."""
    from local.access import open_database

    with open_database(data_dir) as db:
        found, running = _live(db)
    if as_json:
        print_json([_plain(worker, running[worker.boot_id]) for worker in found])
        return
    print_table(
        ("worker", "tiers", "state", "jobs", "slots", "determinism", "since"),
        [
            (
                *(worker.id, ", ".join(worker.tiers), _state(worker, running[worker.boot_id])),
                *(running[worker.boot_id], worker.interactive_slots + worker.bulk_slots),
                *(worker.determinism, worker.started_at and worker.started_at.isoformat(" ", "seconds")),
            )
            for worker in found
        ],
    )


@workers.command("drain")
def drain_workers(
    worker: Named = None,
    every: All = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until they run no job.")] = 0,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Let workers finish their jobs and take no others. Their processes stay, and `resume` undoes it."""
    from local.access import open_database
    from storage.workers import ask_to_drain

    with open_database(data_dir) as db:
        chosen = {one.id for one in _chosen(db, worker or [], every=every)}
        ask_to_drain(db, chosen)
        deadline = time.monotonic() + wait
        while "draining" in (states := _states(db, chosen)).values() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
    if as_json:
        print_json([{"id": id_, "state": state} for id_, state in states.items()])
    else:
        for id_, state in states.items():
            out.print(f"{id_} is {state}", markup=False, soft_wrap=True)
    if wait and "draining" in states.values():
        fail(f"some still run jobs after {wait:g} s; they take no others")


@workers.command("resume")
def resume_workers(
    worker: Named = None, every: All = False, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False
) -> None:
    """Let drained workers take jobs again."""
    from local.access import open_database
    from storage.workers import take_jobs_again

    with open_database(data_dir) as db:
        chosen = _chosen(db, worker or [], every=every)
        take_jobs_again(db, [one.id for one in chosen])
    if as_json:
        print_json([{"id": one.id, "state": "live"} for one in chosen])
        return
    for one in chosen:
        out.print(f"{one.id} takes jobs", markup=False, soft_wrap=True)


def _states(db: "Database", ids: Collection[str]) -> dict[str, str]:
    found, running = _live(db)
    return {one.id: _state(one, running[one.boot_id]) for one in found if one.id in ids}


def _live(db: "Database") -> "tuple[list[Worker], dict[str, int]]":
    from settings import load_settings
    from storage.workers import live_workers, num_running

    found = live_workers(db, load_settings().worker_alive_seconds, with_drained=True)
    return found, num_running(db, [worker.boot_id for worker in found])


def _chosen(db: "Database", names: Sequence[str], *, every: bool) -> "list[Worker]":
    """The live workers that are meant; ends the command if a name fits none."""
    if bool(names) == every:
        fail("name workers, or give --all", code=EXIT_USAGE)
    live = _live(db)[0]
    known = ", ".join(worker.id for worker in live) or "none"
    for name in names:
        if not any(name in worker.id for worker in live):
            fail(f"no live worker has {name!r} in its id; there is: {known}")
    if not live:
        fail("there is no live worker")
    return [worker for worker in live if every or any(name in worker.id for name in names)]


def _state(worker: "Worker", num_jobs: int) -> str:
    """A worker that has not been told yet, which its next heartbeat does, may still take a job."""
    if worker.drain_requested_at is None:
        return "live"
    is_told = worker.seen_at is not None and worker.seen_at > worker.drain_requested_at
    return "drained" if is_told and not num_jobs else "draining"


def _plain(worker: "Worker", num_jobs: int) -> dict[str, object]:
    return {
        "id": worker.id,
        "host": worker.host,
        "pid": worker.pid,
        "device": worker.device,
        "tiers": list(worker.tiers),
        "state": _state(worker, num_jobs),
        "num_jobs": num_jobs,
        "interactive_slots": worker.interactive_slots,
        "bulk_slots": worker.bulk_slots,
        "determinism": worker.determinism,
        "started_at": str(worker.started_at),
        "seen_at": str(worker.seen_at),
        "drain_requested_at": worker.drain_requested_at and str(worker.drain_requested_at),
    }
