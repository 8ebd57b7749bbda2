"""`calotype submit`: one job, with an option for each parameter that `catalogue.parameters` declares.

The server checks the values; this module only reads them from the command line and uploads the files.
"""

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from catalogue.parameters import FILES, PARAMETERS, KnownParameter, entries_of
from cli.display import note_reasons
from cli.jobs import connect, end_unless_succeeded, watched
from cli.terminal import (
    DEFAULT_DATA_DIR,
    EXIT_USAGE,
    AsJson,
    DataDir,
    Key,
    Url,
    fail,
    out,
    print_json,
    require_folder,
)
from client.calotype import Client, JobParameters

submission = typer.Typer()

Command = Callable[..., None]
OPTIONS: Mapping[str, KnownParameter] = {
    name: parameter
    for name, parameter in PARAMETERS.items()
    if not parameter.is_required and parameter.type != "object"
}
"""The parameters that have an option: all but the prompt and the model's own, which `--set` sets."""
_ADAPTERS = tuple(name for name, parameter in OPTIONS.items() if parameter.type == "adapters")
_TYPES: Mapping[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "file": Path,
    "files": list[Path],
    "adapters": list[str],
}


def _with_options(command: Command) -> Command:
    """Give the command an option for each of `OPTIONS` and pass what was given as `parameters`."""

    @wraps(command)
    def run(**values: Any) -> None:
        given = {name: value for name in OPTIONS if (value := values.pop(name)) not in (None, [])}
        command(parameters=given, **values)

    own = [one for one in inspect.signature(command).parameters.values() if one.name != "parameters"]
    options = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(name, parameter)
        )
        for name, parameter in OPTIONS.items()
    ]
    keyword_only = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
    run.__signature__ = inspect.Signature([*options, *keyword_only])  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in (*options, *keyword_only)}
    return run


def _option(name: str, parameter: KnownParameter) -> Any:
    """The type of an option and how Typer shows it."""
    kind = Literal[parameter.choices] if parameter.choices else _TYPES.get(parameter.type, str)
    several = " May be repeated." if parameter.type in ("files", "adapters") else ""
    shown = typer.Option(
        f"--{parameter.option or name.replace('_', '-')}",
        help=parameter.description + several,
        metavar="NAME[:SCALE]" if parameter.type == "adapters" else None,
    )
    return Annotated[kind | None, shown]


@submission.command()
@_with_options
def submit(
    prompt: str,
    parameters: dict[str, Any],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Wait and save the first image here.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The default model if left out.")] = None,
    preset: Annotated[str | None, typer.Option(help="One of the model's presets.")] = None,
    tag: Annotated[str | None, typer.Option(help="What the job is accounted under (calotype usage).")] = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any parameter by its name; may be repeated."),
    ] = None,
    url: Url = "",
    api_key: Key = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Submit one job; with -o, wait for it and save its image."""
    if not prompt.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in prompt):
        fail("PROMPT is not UTF-8", code=EXIT_USAGE)
    files = {name: parameters.pop(name) for name in FILES if name in parameters}
    parameters |= {name: list(map(_adapter, parameters[name])) for name in _ADAPTERS if name in parameters}
    parameters |= {"model": model, "preset": preset, "tag": tag}
    _set(parameters, given or [], others=[*files])
    for path in chain.from_iterable(map(entries_of, files.values())):
        if not path.is_file():
            fail(f"{path} is not a file", code=EXIT_USAGE)
    if output is not None:
        require_folder("-o", output)
    with connect(url, api_key, data_dir) as client:
        parameters |= {name: _uploaded(client, paths) for name, paths in files.items()}
        job = client.submit(prompt, **parameters)
        if output is not None:
            job = watched(client, job.id)
            if job.state == "succeeded":
                client.download(job, output)
    if as_json:
        print_json(job.raw)
    else:
        note_reasons(job)
        saved = f" → {output}" if output and job.state == "succeeded" else ""
        out.print(f"{job.id} {job.state}{saved}", markup=False, soft_wrap=True)
    if output is not None:
        end_unless_succeeded(job)


def _set(parameters: dict[str, Any], given: Sequence[str], others: Sequence[str]) -> None:
    """Add the values of `--set`: each is read as JSON, or as plain text if it is not JSON.

    A name that the API does not have for every job is a parameter of the model's own. `others` are names
    that were given as options and are not in `parameters`.
    """
    own: dict[str, Any] = {}
    for entry in given:
        name, is_given, text = entry.partition("=")
        name = name.strip()
        if not is_given or not name:
            fail(f"--set: {entry[:100]!r} is not NAME=VALUE", code=EXIT_USAGE)
        place = parameters if name in JobParameters.__annotations__ else own
        if name == "prompt" or name in others or place.get(name) is not None:
            fail(f"--set: {name[:100]!r} is given twice", code=EXIT_USAGE)
        place[name] = _scalar(text.strip())
    if own:
        parameters.update({name: own for name, known in PARAMETERS.items() if known.type == "object"})


def _adapter(text: str) -> dict[str, Any]:
    """An adapter and its scale, from `outline:0.8`."""
    name, is_scaled, scale = text.partition(":")
    return {"name": name, "scale": _scalar(scale)} if is_scaled else {"name": name}


def _scalar(text: str) -> bool | int | float | str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    is_finite = not isinstance(value, float) or math.isfinite(value)
    return value if isinstance(value, bool | int | float | str) and is_finite else text


def _uploaded(client: Client, paths: Path | list[Path]) -> str | list[str]:
    """The ids of the files, once they are stored at the server."""
    if isinstance(paths, Path):
        return client.upload(paths).id
    return [client.upload(path).id for path in paths]
