"""The `calotype` command: one function a verb, each a few lines over the package that does the work.

A composition root. Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 nothing answers there.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from cli_keys import keys
from client.api import ApiError, Unreachable
from settings import ROOT, Settings, SettingsError, load_settings
from terminal import (
    DEFAULT_DATA_DIR,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    AsJson,
    DataDir,
    fail,
    out,
    print_json,
    require_folder,
    say,
)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(keys, name="keys", help="API keys.")

Url = Annotated[str, typer.Option("--url", envvar="CALOTYPE_URL", help="Default: what runs in --data-dir.")]
Key = Annotated[str, typer.Option("--api-key", envvar="CALOTYPE_API_KEY", show_envvar=True)]


def main() -> None:
    """Run the command line; every foreseen failure is one line on standard error."""
    from local.errors import LocalError
    from storage.errors import Unavailable

    try:
        app()
    except (SettingsError, LocalError, ApiError) as error:
        fail(str(error))
    except (Unreachable, Unavailable) as error:
        fail(f"nothing answers: {error}", code=EXIT_UNREACHABLE)


@app.command()
def up(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The API's port; else a free one, kept.")
    ] = None,
    ready_file: Annotated[Path | None, typer.Option(help="Gets one JSON object once all answers.")] = None,
) -> None:
    """Run the whole system on this machine until Ctrl-C."""
    from local.up import run_up

    if ready_file is not None:
        require_folder("--ready-file", ready_file)
    raise typer.Exit(run_up(data_dir, port=port, ready_file=ready_file, say=say))


@app.command()
def demo(
    csv: Annotated[Path, typer.Option(help="The prompts.")] = ROOT / "examples" / "prompts.csv",
    output: Annotated[Path, typer.Option("-o", "--output")] = ROOT / "demo-output",
    data_dir: DataDir = DEFAULT_DATA_DIR / "demo",
) -> None:
    """Start everything, draw a CSV of prompts over HTTP, check every image, stop everything."""
    from local.demo import DemoFailed, run_demo
    from local.up import running

    # So that a SIGTERM stops what was started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with running(data_dir, say=say) as ready:
            run_demo(ready, csv, output, out)
    except (DemoFailed, TimeoutError, ApiError, Unreachable, OSError) as error:
        fail(f"the demo failed: {error}; the logs are in {data_dir / 'logs'}")


@app.command()
def worker(
    device: Annotated[str, typer.Option(help="cpu:N or cuda:N.")],
    tiers: Annotated[
        str | None, typer.Option(help="Comma-separated; default: those of calotype.toml.")
    ] = None,
    ready_file: Annotated[Path | None, typer.Option(help="Written once it takes jobs.")] = None,
) -> None:
    """Serve tiers on one device until SIGTERM."""
    from local.devices import pin_this_process
    from logs import configure_logs

    settings = load_settings()
    configure_logs(settings.log_level, settings.log_format)
    options = worker_options(settings, device, tiers)
    if "CALOTYPE_BOOT_ID" not in os.environ:
        pin_this_process(device)
    # After the environment is settled: torch reads it when it is imported.
    from tasks.worker import WorkerOptions, run_worker

    raise typer.Exit(run_worker(settings, WorkerOptions(device=device, ready_file=ready_file, **options)))


def worker_options(settings: Settings, device: str, tiers: str | None) -> dict[str, Any]:
    """Tiers and slots of a worker: what was said, else what `calotype.toml` plans for this device."""
    plans = settings.catalogue.workers
    plan = next((plan for plan in plans if plan.device == device), None) or plans[0]
    wanted = tuple(tiers.split(",")) if tiers else plan.tiers
    for tier in wanted:
        if settings.catalogue.tier(tier) is None:
            known = ", ".join(tier.name for tier in settings.catalogue.tiers)
            raise SettingsError(f"--tiers: there is no tier {tier!r}; there is: {known}")
    return {"tiers": wanted, "interactive_slots": plan.interactive_slots, "bulk_slots": plan.bulk_slots}


@app.command()
def sweep() -> None:
    """Heal what messages and dead workers leave behind, until SIGTERM. Any number may run."""
    from logs import configure_logs
    from tasks.sweep import run_sweeper

    settings = load_settings()
    configure_logs(settings.log_level, settings.log_format)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run_sweeper(settings, stop)


@app.command()
def submit(
    prompt: str,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Wait and save the image here.")
    ] = None,
    width: int | None = None,
    height: int | None = None,
    steps: Annotated[int | None, typer.Option(help="num_inference_steps")] = None,
    guidance: Annotated[float | None, typer.Option(help="guidance_scale")] = None,
    seed: int | None = None,
    model: str | None = None,
    negative: Annotated[str | None, typer.Option(help="negative_prompt")] = None,
    url: Url = "",
    api_key: Key = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Submit one job; with -o, wait for it and save its image."""
    if not prompt.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in prompt):
        fail("PROMPT is not UTF-8", code=EXIT_USAGE)
    request = {
        "prompt": prompt,
        "width": width,
        "height": height,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "seed": seed,
        "model": model,
        "negative_prompt": negative,
    }
    from local.access import connect

    if output is not None:
        require_folder("-o", output)
    with connect(url, api_key, data_dir) as api:
        job = api.submit({name: value for name, value in request.items() if value is not None})
        if output is not None:
            job = api.finished(job["id"])
            output.write_bytes(api.download(job["images"][0]["url"]))
    if as_json:
        print_json(job)
    else:
        out.print(
            f"{job['id']} {job['state']}" + (f" → {output}" if output else ""), markup=False, soft_wrap=True
        )


@app.command()
def csv(
    path: Path,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Wait and save the images here.")
    ] = None,
    url: Url = "",
    api_key: Key = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Submit a CSV of prompts as one batch; with -o, wait for it and save its images."""
    if not path.is_file():
        fail(f"{path} is not a file", code=EXIT_USAGE)
    from local.access import connect

    with connect(url, api_key, data_dir) as api:
        batch = api.submit_csv(path)
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            batch = api.finished_batch(batch["id"])
            # Each page of jobs comes with fresh links, and is downloaded before the next is asked for.
            for job in api.jobs(batch_id=batch["id"], state="succeeded"):
                for image in job["images"]:
                    name = f"{job['batch_line']:05d}-{image['index']}.png"
                    (output / name).write_bytes(api.download(image["url"]))
    if as_json:
        print_json(batch)
    else:
        out.print(f"{batch['id']} {batch['state']}, {batch['num_jobs']} jobs", markup=False)
    if batch["state"] not in ("running", "succeeded"):
        raise typer.Exit(1)


@app.command()
def get(
    job_id: str,
    url: Url = "",
    api_key: Key = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show one job."""
    from local.access import connect

    with connect(url, api_key, data_dir) as api:
        job = api.job(job_id)
    if as_json:
        print_json(job)
    else:
        for name in (
            "id",
            "state",
            "tier",
            "lane",
            "worker",
            "prompt",
            "seed",
            "created_at",
            "finished_at",
            "error",
        ):
            out.print(f"{name:12} {job[name]}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
