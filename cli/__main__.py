"""The `calotype` command: its entry point, and the commands that a supervisor runs.

A composition root. The other commands are in the other modules of `cli`, one per noun, and call the package
that does the work. Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 nothing answers there.
"""

import gc
import io
import os
import signal
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from catalogue.catalogue import SettingsError
from cli.backup import backups
from cli.bench import measuring
from cli.config import config, description
from cli.database import database
from cli.jobs import jobs
from cli.keys import keys
from cli.local import local
from cli.models import models
from cli.plan import planning
from cli.profile import profiling
from cli.submit import submission
from cli.terminal import EXIT_UNREACHABLE, EXIT_USAGE, end_quietly, fail, print_text, without_style
from cli.tiers import tiers
from cli.usage import accounting
from cli.workers import workers
from client.calotype import CalotypeError, UnreachableError
from settings import ROOT, Settings, load_settings

MAX_PORT = 65535

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(local)
app.add_typer(submission)
app.add_typer(jobs)
app.add_typer(keys, name="keys", help="API keys.")
app.add_typer(database, name="database", help="The users of the database.")
app.add_typer(config, name="config", help="Settings and calotype.toml.")
app.add_typer(models, name="models", help="Models of diffusers.")
app.add_typer(workers, name="workers", help="Workers: which there are, drain and resume.")
app.add_typer(tiers, name="tiers", help="Tiers: which there are, pause and resume.")
app.add_typer(description)
app.add_typer(backups)
app.add_typer(profiling)
app.add_typer(accounting)
app.add_typer(planning)
app.add_typer(measuring)


def main() -> None:
    """Run the command line; an expected failure is one line on standard error."""
    from local.errors import LocalError, NothingThere, WrongUsage
    from storage.errors import Unavailable

    gc.freeze()  # imported modules stay in memory, so the collector need not scan them
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows ? instead of a traceback
    try:
        app(prog_name="calotype")
    except NothingThere as error:
        fail(str(error), code=EXIT_UNREACHABLE)
    except WrongUsage as error:
        fail(str(error), code=EXIT_USAGE)
    except (UnreachableError, Unavailable) as error:
        fail(f"no answer: {error}", code=EXIT_UNREACHABLE)
    except (SettingsError, LocalError, CalotypeError) as error:
        fail(str(error))
    except BrokenPipeError:
        end_quietly()
    except OSError as error:
        if not error.filename:
            raise  # not about a file of the user, so the traceback says more than one line would
        fail(f"{error.filename}: {error.strerror}")
    finally:
        gc.freeze()  # the process ends, so nothing needs to be collected


@app.callback()
def calotype(
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=lambda wanted: wanted and show_version(),
            help="Print the version.",
        ),
    ] = False,
    _no_color: Annotated[
        bool,
        typer.Option(
            "--no-color",
            is_eager=True,
            callback=lambda wanted: wanted and without_style(),
            help="Print without colour and bold, as with NO_COLOR.",
        ),
    ] = False,
) -> None:
    """Turn prompts into images on fleets of GPUs."""


def show_version() -> None:
    """Print the version of this checkout and end."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    print_text(f"calotype {project['version']}\n")
    raise typer.Exit


@app.command()
def api(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
) -> None:
    """Serve the REST API and its pages until SIGTERM."""
    from web.front.parent import Given

    settings, given = load_settings(), Given.read(os.environ)
    if settings.web_processes > 1 and given is None:
        from local.tree import PROGRAM, with_tree
        from web.serve_processes import run_processes

        command = [*PROGRAM, "api"]
        raise typer.Exit(run_processes(settings, host, port, command=command, environment=with_tree()))
    with _import_without_collector():
        from web.serve import run_api

    run_api(settings, host, port, given)


@app.command()
def worker(
    device: Annotated[str, typer.Option(help="cpu:N, cuda:N, or none for webhooks.")],
    tiers: Annotated[
        str | None, typer.Option(help="Comma-separated; default: the tiers in calotype.toml.")
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Written when the worker is ready for jobs.")
    ] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Test the device again and ignore kept results.")
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Default: CALOTYPE_METRICS_PORT plus the device number; 0 for none."
        ),
    ] = None,
) -> None:
    """Serve tiers on one device until SIGTERM; without a device, deliver webhooks."""
    from local.devices import pin_this_process
    from logs import configure_logs

    settings = load_settings()
    configure_logs(settings.log_level, settings.log_format)
    if device == "none":
        if tiers:
            fail("--tiers: tiers need a device", code=EXIT_USAGE)
        with _import_without_collector():
            from tasks.webhooks.worker import run_webhook_worker

        port = settings.metrics_port if metrics_port is None else metrics_port
        raise typer.Exit(run_webhook_worker(settings, ready_file, metrics_port=port))
    options = worker_options(settings, device, tiers)
    if metrics_port is None:
        metrics_port = worker_metrics_port(settings.metrics_port, device)
    if "CALOTYPE_BOOT_ID" not in os.environ:
        pin_this_process(device)
    # Imported after the environment is set, because torch reads it on import.
    with _import_without_collector():
        from tasks.worker import WorkerOptions, run_worker

    options |= {"ready_file": ready_file, "test_again": self_test, "metrics_port": metrics_port}
    raise typer.Exit(run_worker(settings, WorkerOptions(device=device, **options)))


@contextmanager
def _import_without_collector() -> Iterator[None]:
    """Import many modules in three quarters of the time: they leave no garbage to collect."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def worker_options(settings: Settings, device: str, tiers: str | None) -> dict[str, Any]:
    """Tiers and slots of a worker: the given tiers, or those that `calotype.toml` plans for the device."""
    from local.errors import WrongUsage

    plans = settings.catalogue.workers
    plan = next((plan for plan in plans if plan.device == device), None) or plans[0]
    wanted = tuple(tiers.split(",")) if tiers else plan.tiers
    for tier in wanted:
        if settings.catalogue.tier(tier) is None:
            known = ", ".join(tier.name for tier in settings.catalogue.tiers)
            raise WrongUsage(f"--tiers: there is no tier {tier!r}; there is: {known}")
    return {"tiers": wanted, "interactive_slots": plan.interactive_slots, "bulk_slots": plan.bulk_slots}


def worker_metrics_port(first_port: int, device: str) -> int:
    """The metrics port of the worker of a device, so that the workers of a machine can share an environment.

    `cpu:0` and `cuda:0` get the same port; on a machine with both, set a port for each.
    """
    from local.errors import WrongUsage

    number = device.partition(":")[2]
    port = first_port + int(number) if first_port and number.isdecimal() else first_port
    if port > MAX_PORT:
        raise WrongUsage(f"CALOTYPE_METRICS_PORT: {first_port} leaves no port for {device}")
    return port


@app.command()
def sweep(
    alive_file: Annotated[Path | None, typer.Option(help="Touched after each sweep.")] = None,
) -> None:
    """Redispatch lost jobs and release those of dead workers, until SIGTERM. Any number may run."""
    from cli.terminal import require_folder
    from logs import configure_logs

    with _import_without_collector():
        from tasks.sweeper import run_sweeper

    settings = load_settings()
    if alive_file is not None:
        require_folder("--alive-file", alive_file)
    configure_logs(settings.log_level, settings.log_format)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run_sweeper(settings, stop, alive_file)


if __name__ == "__main__":
    main()
