"""The commands for a server on this machine: start, inspect and stop it, and check the machine."""

import shlex
import signal
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.terminal import (
    DEFAULT_DATA_DIR,
    EXIT_REFUSED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    AsJson,
    DataDir,
    fail,
    note,
    out,
    print_json,
    print_table,
    print_text,
    printable,
    require_folder,
    say,
)
from client.calotype import CalotypeError
from settings import ROOT, load_settings

local = typer.Typer()

_FOLLOW_SECONDS = 0.2


class Shell(StrEnum):
    """The values of `env --shell`."""

    SH = "sh"
    FISH = "fish"
    POWERSHELL = "powershell"


ASSIGNMENTS: dict[Shell, Callable[[str, str], str]] = {
    Shell.SH: lambda name, value: f"export {name}={shlex.quote(value)}",
    Shell.FISH: lambda name, value: (
        f"set -gx {name} '" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    ),
    Shell.POWERSHELL: lambda name, value: f"$env:{name} = '" + value.replace("'", "''") + "'",
}


@local.command()
def up(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    host: Annotated[
        str | None,
        typer.Option(
            help="The IPv4 address at which other machines reach it, which is kept; default: 127.0.0.1."
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="The port of the API; by default a free one, which is kept."),
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="A JSON object is written to it once everything answers.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("-d", "--detach", help="Return once everything answers; `down` stops it.")
    ] = False,
) -> None:
    """Run the whole system on this machine until Ctrl-C, or in the background with --detach."""
    from local.up import greeting, run_up

    if ready_file is not None:
        require_folder("--ready-file", ready_file)
    if not detach:
        code = run_up(
            data_dir, host=host, port=port, ready_file=ready_file, say=say, show_secrets=out.is_terminal
        )
        raise typer.Exit(code)
    from local.detached import start

    ready = start(data_dir, say=note, host=host, port=port, ready_file=ready_file)
    last = "It runs in the background; `calotype down` drains and stops everything."
    for line in greeting(ready, last, show_secrets=out.is_terminal):
        say(line)


@local.command()
def down(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    now: Annotated[bool, typer.Option("--now", help="Kill processes that do not end at once.")] = False,
) -> None:
    """Stop what `up` runs in --data-dir, after its running jobs have ended."""
    from local.detached import stop

    say("stopped" if stop(data_dir, say=note, at_once=now) else f"nothing runs in {data_dir.absolute()}")


@local.command()
def status(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Show what runs in --data-dir: addresses, processes, workers, queues."""
    from local.status import status_of

    found = status_of(data_dir)
    if as_json:
        print_json(found or {"data_dir": str(data_dir.absolute()), "state": "stopped"})
    elif found is None:
        note(f"nothing runs in {data_dir.absolute()}")
    else:
        _show_status(found)
    if found is None:
        raise typer.Exit(EXIT_UNREACHABLE)


@local.command("env")
def print_environment(
    shell: Annotated[Shell, typer.Option(help="The syntax to use; sh is also for bash and zsh.")] = Shell.SH,
    role: Annotated[
        str | None,
        typer.Option(
            help="Print what a process of this role needs on another host instead, passwords included: api, "
            "worker, sender, sweeper or flower."
        ),
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print shell commands that set CALOTYPE_URL and CALOTYPE_API_KEY for --data-dir."""
    from local.status import environment_of, ready_of

    ready = ready_of(data_dir)
    found = {"CALOTYPE_URL": ready["url"], "CALOTYPE_API_KEY": ready["api_key"]}
    if role is not None:
        found = environment_of(role, ready)
    for name, value in found.items():
        print_text(ASSIGNMENTS[shell](name, value) + "\n")


@local.command()
def logs(
    service: Annotated[
        list[str] | None, typer.Argument(help="Only these services; `status` lists their names.")
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Continue until Ctrl-C.")] = False,
    num_lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="The last N lines of each.")] = 20,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print the logs of the services of --data-dir, with the service of each line if there are several."""
    from local.log_lines import log_names, read_logs

    folder = data_dir.absolute() / "logs"
    names = list(dict.fromkeys(service or []))
    if not log_names(folder):
        fail(f"there are no logs in {folder}: nothing has run there", EXIT_UNREACHABLE)
    width = 0 if len(names) == 1 else max(map(len, names or log_names(folder)))

    def go_on() -> bool:
        if follow:
            time.sleep(_FOLLOW_SECONDS)
        return follow

    try:
        for name, line in read_logs(folder, names, num_lines, go_on):
            if width:
                out.print(f"{name:{width}} | ", style="cyan", end="", soft_wrap=True)
            out.print(printable(line), markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        return  # Ctrl-C ends following


@local.command()
def doctor(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Check this machine, and say what would keep calotype from running and how to fix it."""
    from local.doctor import examine
    from local.machine import look_at_machine

    findings = examine(look_at_machine(data_dir))
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        styles = {"ok": "green", "warn": "yellow", "FAIL": "bold red"}
        for finding in findings:
            out.print(f"{finding.state:4} ", style=styles[finding.state], end="")
            out.print(f"{finding.name}: {finding.found}", markup=False, soft_wrap=True)
            if finding.fix:
                out.print(f"     → {finding.fix}", markup=False, soft_wrap=True)
    if any(finding.state == "FAIL" for finding in findings):
        raise typer.Exit(EXIT_REFUSED)


@local.command()
def demo(
    csv: Annotated[Path, typer.Option(help="The prompts.")] = ROOT / "examples" / "prompts.csv",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Default: `output` in its data folder.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Default: `demo` in CALOTYPE_DATA_DIR, beside what `up` keeps there.")
    ] = None,
) -> None:
    """Start everything, generate a CSV of prompts over HTTP, check every image, stop everything."""
    from local.up import running
    from tiny.demo import DemoFailed, run_demo

    data_dir = data_dir or load_settings().data_dir / "demo"
    output = output or data_dir / "output"
    if not csv.is_file():
        fail(f"--csv: {csv} is not a file", EXIT_USAGE)
    # A SIGTERM must stop what was started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with running(data_dir, say=say) as ready:
            run_demo(ready, csv, output, out)
    except (DemoFailed, CalotypeError, OSError) as error:
        fail(f"the demo failed: {error}; the logs are in {data_dir / 'logs'}")


def _show_status(found: dict[str, Any]) -> None:
    if found["state"] != "running":
        say(f"process {found['pid']} is starting or stopping in {found['data_dir']}")
        return
    say(f"running in {found['data_dir']} since {found['started_at']} (process {found['pid']})")
    for name, key in (("API", "url"), ("Flower", "flower_url"), ("metrics", "metrics_url"), ("logs", "logs")):
        say(f"  {name:8} {found[key]}")
    say("")
    ports = found["ports"]
    print_table(
        ("process", "state", "pid", "port", "since", "device", "tiers", "determinism"),
        [
            (
                *(one["name"], one["state"], one["pid"], ports.get(one["name"]), one["started_at"]),
                *(one.get("device"), ", ".join(one.get("tiers", [])), one.get("determinism")),
            )
            for one in (*found["services"], *found["workers"])
        ],
    )
    say("")
    if found["tiers"] is None:
        say(str(found["problem"]))
        return
    print_table(
        ("tier", "model", "interactive", "bulk", "live workers"),
        [
            (tier["name"], tier["model"], *tier["queue_depth"].values(), tier["num_live_workers"])
            for tier in found["tiers"]
        ],
    )
