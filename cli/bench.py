"""The `calotype bench` command: measures a running service over HTTP and writes tables and plots.

It reads the options and prints the result; `bench.load` measures. That is imported late, since it imports a
library for plots.
"""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from cli.terminal import (
    DEFAULT_DATA_DIR,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    AsJson,
    DataDir,
    Key,
    Url,
    fail,
    needing_bench,
    note,
    print_json,
    print_table,
    say,
)
from settings import load_settings

if TYPE_CHECKING:
    from bench.load.connection import Place
    from bench.load.report import Measurement
    from bench.load.runs import Pattern
    from bench.load.summary import Goal

T = TypeVar("T")
measuring = typer.Typer()

MAX_RATE, MAX_SECONDS = 100_000.0, 86_400.0
PATTERNS = ("poisson", "constant", "bursts", "ramp")
_SHARES = "VALUE[:WEIGHT],…"
OF_A_DRAWN_LOAD = (
    *("seconds", "warm_up", "arrivals", "burst_size", "size", "steps", "guidance", "images", "lane", "form"),
    *("csv_rows", "prompts", "prompt_words", "model", "seed"),
)
"""The parameters that decide what is drawn, which a trace has already."""


@measuring.command()
def bench(
    context: typer.Context,
    rate: Annotated[
        str | None,
        typer.Option(metavar="RATE,…", help="Images a second; several are as many runs. Default: estimated."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=1, max=MAX_SECONDS, help="The length of each run, after its warm-up.")
    ] = 45,
    warm_up: Annotated[
        float, typer.Option(min=0, max=MAX_SECONDS, help="Seconds of load before, which do not count.")
    ] = 5,
    arrivals: Annotated[
        str, typer.Option(metavar="|".join(PATTERNS), help="A ramp rises from no load to twice the rate.")
    ] = "poisson",
    burst_size: Annotated[int, typer.Option(min=2, max=10_000, help="Arrivals in a burst.")] = 8,
    size: Annotated[
        str | None, typer.Option(metavar="WxH[:WEIGHT],…", help="In pixels. Default: the first tier's.")
    ] = None,
    steps: Annotated[str | None, typer.Option(metavar=_SHARES, help="Default: the model's.")] = None,
    guidance: Annotated[str | None, typer.Option(metavar=_SHARES, help="Default: the model's.")] = None,
    images: Annotated[str, typer.Option(metavar=_SHARES, help="Images of a job, 1 to 4.")] = "1",
    lane: Annotated[str, typer.Option(metavar=_SHARES, help="interactive, bulk.")] = "interactive",
    form: Annotated[str, typer.Option(metavar=_SHARES, help="single: a job; csv: an upload.")] = "single",
    csv_rows: Annotated[int, typer.Option(min=1, max=100_000, help="Rows of an upload.")] = 20,
    prompts: Annotated[
        Path | None, typer.Option(help="A line each, or the column `prompt` of a .tsv or .csv.")
    ] = None,
    prompt_words: Annotated[
        str | None, typer.Option(metavar=_SHARES, help="Lengths of prompts. Default: as they are.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Default: the service's default model.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of arrivals, requests and their seeds.")] = 1,
    trace: Annotated[
        Path | None, typer.Option(help="Send the requests of this file; --rate stretches its time.")
    ] = None,
    slo: Annotated[
        str,
        typer.Option(
            metavar="SECONDS|TIMESx", help="The limit of a request; 3x: three times its time alone."
        ),
    ] = "3x",
    search: Annotated[
        bool, typer.Option("--search", help="Search the highest rate at which enough requests are in time.")
    ] = False,
    target: Annotated[
        float, typer.Option(min=0.01, max=1, help="The share that --search wants in time.")
    ] = 0.9,
    max_runs: Annotated[int, typer.Option(min=1, max=100, help="Of --search.")] = 10,
    drain: Annotated[
        float, typer.Option(min=0, max=MAX_SECONDS, help="Seconds after a run in which its requests may end.")
    ] = 120,
    check_repeat: Annotated[
        int, typer.Option(min=0, max=1000, help="Draw so many requests again, alone, and compare the images.")
    ] = 0,
    metrics: Annotated[
        list[str] | None,
        typer.Option(help="The address of a worker's metrics; may be repeated. Default: those of `up`."),
    ] = None,
    name: Annotated[str, typer.Option(help="Of this configuration, in plots.")] = "calotype",
    beside: Annotated[
        list[Path] | None, typer.Option(help="The folder of an earlier result to draw too; may be repeated.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A folder. Default: bench/TIME in the data folder.")
    ] = None,
    url: Url = "",
    api_key: Key = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Measure latency, throughput and goodput of a running service, and check every image's hash."""
    if search and trace is not None:
        fail("--search draws its own requests: leave out --trace", code=EXIT_USAGE)
    if trace is not None and (given := _given(context, OF_A_DRAWN_LOAD)):
        fail(f"--trace has its own requests and times: leave out {', '.join(given)}", code=EXIT_USAGE)
    rates = _of("--rate", lambda: _rates(rate))
    if search and len(rates) > 1:
        fail("--search starts at one rate: give --rate once", code=EXIT_USAGE)
    with needing_bench("a checkout"):
        from bench.load import mix, report
        from bench.load.runs import NoAnswerError, ServiceError
        from bench.load.setup import Search, Setup, measure
        from bench.load.trace import read

    texts = {
        "sizes": ("--size", size, mix.size_of),
        "steps": ("--steps", steps, mix.whole_number(1, 10_000)),
        "guidance_scales": ("--guidance", guidance, mix.number),
        "nums_images": ("--images", images, mix.whole_number(1, 4)),
        "lanes": ("--lane", lane, mix.lane_of),
        "forms": ("--form", form, mix.form_of),
        "prompt_words": ("--prompt-words", prompt_words, mix.whole_number(1, 10_000)),
    }
    for folder in beside or []:
        _of("--beside", partial(report.read, folder))
    place, their_metrics = _place(url, api_key, data_dir)
    setup = Setup(
        goal=_of("--slo", lambda: _goal(slo)),
        shares={
            field: _of(option, partial(mix.weighted, text, value_of))
            for field, (option, text, value_of) in texts.items()
            if text is not None
        },
        pattern=_of("--arrivals", lambda: _pattern(arrivals, burst_size)),
        pattern_name=arrivals,
        seconds=seconds,
        warm_up_seconds=warm_up,
        drain_seconds=drain,
        seed=seed,
        rates=rates,
        csv_rows=csv_rows,
        prompts=() if prompts is None else _of("--prompts", lambda: mix.read_prompts(prompts)),
        model=model,
        replayed=None if trace is None else _of("--trace", lambda: read(trace)),
        search=Search(target, max_runs) if search else None,
        num_repeats=check_repeat,
        name=name,
        metrics_urls=metrics or their_metrics,
        about={"command": ["calotype", *sys.argv[1:]]},
    )
    out_folder = output or data_dir / "bench" / time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    is_new = not out_folder.exists()
    if not is_new and not out_folder.is_dir():
        fail(f"-o: {out_folder} is a file, not a folder", code=EXIT_USAGE)
    _of("-o", lambda: report.prepare(out_folder))
    kept: list[Path] = []

    def keep(found: "Measurement") -> None:
        _write(lambda: report.keep(found, out_folder), out_folder)
        kept[:] = [out_folder]

    try:
        found = measure(setup, place, note, keep)
    except NoAnswerError as error:
        fail(f"{error}{_where(kept)}", code=EXIT_UNREACHABLE)
    except ServiceError as error:
        fail(f"{error}{_where(kept)}")
    except KeyboardInterrupt:
        note(f"interrupted{_where(kept)}")
        raise
    finally:
        if is_new and not kept:
            with suppress(OSError):
                out_folder.rmdir()
    paths = _write(lambda: report.write(found, out_folder, beside or []), out_folder)
    if as_json:
        print_json(found.as_json())
    else:
        _show(found, paths)
    if any(run.summary.by_kind.get("wrong") for run in found.runs):
        fail("an image was not the one that its job names: see requests-*.csv")
    if (excess := report.excess_difference(found)) is not None:
        fail(excess)


def _given(context: typer.Context, names: Sequence[str]) -> list[str]:
    """The options that are on the command line, of these parameters."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return [
        f"--{name.replace('_', '-')}"
        for name, source in sources.items()
        if source is not None and source.name != "DEFAULT"
    ]


def _write(write: Callable[[], T], folder: Path) -> T:
    """What `write` returns; an error of the disk ends the command, and what was written before stays."""
    try:
        return write()
    except OSError as error:
        fail(f"-o: {error.filename or folder}: {error.strerror}")


def _where(kept: Sequence[Path]) -> str:
    return f"; the runs that had ended are in {kept[0]}" if kept else ""


def _of(option: str, read: Callable[[], T]) -> T:
    """What `read` returns; an error of the option's value ends the command and names the option."""
    try:
        return read()
    except OSError as error:
        fail(f"{option}: {error.filename}: {error.strerror}", code=EXIT_USAGE)
    except ValueError as error:
        fail(f"{option}: {error}", code=EXIT_USAGE)


def _rates(text: str | None) -> list[float]:
    found = []
    for part in (text or "").split(",") if text is not None else []:
        try:
            value = float(part)
        except ValueError:
            value = 0.0
        if not 0 < value <= MAX_RATE:
            raise ValueError(
                f"{part.strip()[:40]!r} is not a number of images a second, up to {MAX_RATE:,.0f}"
            )
        found.append(value)
    return found


def _goal(text: str) -> "Goal":
    from bench.load.summary import Goal

    try:
        value = float(text.removesuffix("x"))
    except ValueError:
        value = 0.0
    if not 0 < value <= MAX_SECONDS:
        raise ValueError(
            f"{text[:40]!r} is neither seconds, such as 2.5, nor times the time alone, such as 3x"
        )
    return Goal(times=value) if text.endswith("x") else Goal(seconds=value)


def _pattern(name: str, burst_size: int) -> "Pattern":
    from bench.load.arrivals import PATTERNS as KNOWN
    from bench.load.arrivals import bursts_of

    patterns: dict[str, Pattern] = {**KNOWN, "bursts": bursts_of(burst_size)}
    if name not in patterns:
        raise ValueError(f"{name[:40]!r} is not one of {', '.join(patterns)}")
    return patterns[name]


def _place(url: str, api_key: str, data_dir: Path) -> tuple["Place", list[str]]:
    """The service that the options name, and the metrics of its workers if it runs in the data folder."""
    from bench.load.connection import Place
    from local.access import address, connect
    from local.status import read_ready

    with connect(url, api_key, data_dir) as client:
        base = client.url  # checked and normalised
    place = Place(base, address(url, api_key, data_dir)[1], load_settings().ca_file)
    ready = read_ready(data_dir.absolute())
    if ready is None or ready["url"].rstrip("/") != base.rstrip("/"):
        return place, []
    return place, [one["metrics_url"] for one in ready["workers"] if one.get("metrics_url")]


def _show(found: "Measurement", paths: Sequence[Path]) -> None:
    from bench.load import report

    for titles, rows in (report.table(found), report.stage_table(found)):
        if rows:
            print_table(titles, rows)
            say("")
    for line in report.remarks(found):
        say(line)
    say(f"in goal: {found.goal}; latency counts from when a request was due, in seconds")
    for path in paths:
        if path.suffix in (".json", ".csv", ".png"):
            say(f"  {path}")
