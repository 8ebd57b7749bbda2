"""The `calotype` command: what all of its verbs share, and the programs that a supervisor runs.

A composition root; the other verbs are in `cli_*.py`, one file a noun, each a few lines over the package
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
from cli.config import config, description
from cli.database import database
from cli.jobs import jobs
from cli.keys import keys
from cli.local import local
from cli.models import models
from cli.profile import profiling
from cli.terminal import EXIT_UNREACHABLE, EXIT_USAGE, end_quietly, fail, print_text, without_style
from client.calotype import CalotypeError, UnreachableError
from settings import ROOT, Settings, load_settings

MAX_PORT = 65535

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(local)
app.add_typer(jobs)
app.add_typer(keys, name="keys", help="API keys.")
app.add_typer(database, name="database", help="The users of the database.")
app.add_typer(config, name="config", help="Settings and calotype.toml.")
app.add_typer(models, name="models", help="Models of diffusers.")
app.add_typer(description)
app.add_typer(profiling)


def main() -> None:
    """Run the command line; every foreseen failure is one line on standard error."""
    from local.errors import LocalError, NothingThere, WrongUsage
    from storage.errors import Unavailable

    gc.freeze()  # what is imported stays: no collection looks at it
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 gets a ? and no traceback
    try:
        app(prog_name="calotype")
    except NothingThere as error:
        fail(str(error), code=EXIT_UNREACHABLE)
    except WrongUsage as error:
        fail(str(error), code=EXIT_USAGE)
    except (UnreachableError, Unavailable) as error:
        fail(f"nothing answers: {error}", code=EXIT_UNREACHABLE)
    except (SettingsError, LocalError, CalotypeError) as error:
        fail(str(error))
    except BrokenPipeError:
        end_quietly()
    except OSError as error:
        if not error.filename:
            raise  # no file of the user's: the trace is worth more than a line
        fail(f"{error.filename}: {error.strerror}")
    finally:
        gc.freeze()  # the process ends: nothing that is left needs to be collected


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
            help="No colour and no bold; NO_COLOR does the same.",
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
    with _import_without_collector():
        from web.serve import run_api

    run_api(load_settings(), host, port)


@app.command()
def worker(
    device: Annotated[str, typer.Option(help="cpu:N, cuda:N, or none: webhooks.")],
    tiers: Annotated[
        str | None, typer.Option(help="Comma-separated; default: those of calotype.toml.")
    ] = None,
    ready_file: Annotated[Path | None, typer.Option(help="Written once it takes jobs.")] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Test the device again, whatever is kept of earlier tests.")
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Default: CALOTYPE_METRICS_PORT plus the number of the device; 0: none."
        ),
    ] = None,
) -> None:
    """Serve tiers on one device until SIGTERM, or without one deliver webhooks."""
    from local.devices import pin_this_process
    from logs import configure_logs

    settings = load_settings()
    configure_logs(settings.log_level, settings.log_format)
    if device == "none":
        if tiers:
            fail("--tiers: without a device no tier is served", code=EXIT_USAGE)
        with _import_without_collector():
            from tasks.webhooks.worker import run_webhook_worker

        port = settings.metrics_port if metrics_port is None else metrics_port
        raise typer.Exit(run_webhook_worker(settings, ready_file, metrics_port=port))
    options = worker_options(settings, device, tiers)
    if metrics_port is None:
        metrics_port = worker_metrics_port(settings.metrics_port, device)
    if "CALOTYPE_BOOT_ID" not in os.environ:
        pin_this_process(device)
    # After the environment is settled: torch reads it when it is imported.
    with _import_without_collector():
        from tasks.worker import WorkerOptions, run_worker

    options |= {"ready_file": ready_file, "test_again": self_test, "metrics_port": metrics_port}
    raise typer.Exit(run_worker(settings, WorkerOptions(device=device, **options)))


@contextmanager
def _import_without_collector() -> Iterator[None]:
    """Import many modules in three quarters of the time: they leave no garbage, and stay to the end."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def worker_options(settings: Settings, device: str, tiers: str | None) -> dict[str, Any]:
    """Tiers and slots of a worker: what was said, else what `calotype.toml` plans for this device."""
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
    """Where this device's worker answers Prometheus: workers of one machine may share an environment.

    `cpu:0` and `cuda:0` get the same port: a machine that runs both sets one for each.
    """
    from local.errors import WrongUsage

    number = device.partition(":")[2]
    port = first_port + int(number) if first_port and number.isdecimal() else first_port
    if port > MAX_PORT:
        raise WrongUsage(f"CALOTYPE_METRICS_PORT: {first_port} leaves no port for {device}")
    return port


@app.command()
def sweep(
    alive_file: Annotated[Path | None, typer.Option(help="Touched after every turn.")] = None,
) -> None:
    """Heal what messages and dead workers leave behind, until SIGTERM. Any number may run."""
    from cli.terminal import require_folder
    from logs import configure_logs

    with _import_without_collector():
        from tasks.sweep import run_sweeper

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
