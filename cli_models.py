"""The `calotype models` command: entries of `calotype.toml` for models of diffusers.

Owns how an entry is written; what it says is read by `engine.describe`.
"""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from terminal import EXIT_USAGE, fail, print_text

if TYPE_CHECKING:
    from engine.describe import Description

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")

models = typer.Typer(no_args_is_help=True)


@models.command("describe")
def describe_model(
    model: Annotated[str, typer.Argument(help="A folder in diffusers' layout, or a hub id.")],
    revision: Annotated[str | None, typer.Option(help="Of a hub id: the commit, 40 digits.")] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the configuration of a hub id; never weights.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Of the entry and its tier; default: the folder's name.")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Print a whole calotype.toml, with one worker.")
    ] = False,
) -> None:
    """Print the entry of calotype.toml for a model, read from its configuration alone."""
    called = name or _name_of(Path(model))
    if not NAME.fullmatch(called):
        fail("--name: 1 to 32 characters of a-z, 0-9 and -, the first no -", code=EXIT_USAGE)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of what is not needed here
    # It imports torch, which no other command waits for.
    from engine.describe import describe
    from engine.errors import LoadError
    from engine.hub import Hub, NotOnDisk
    from engine.pipeline_model import LEFT_OUT

    try:
        folder = Hub().configuration(
            model, revision=revision, local_files_only=not download, left_out=list(LEFT_OUT)
        )
        description = describe(folder)
    except NotOnDisk as error:
        fail(f"{model}: {error}; --download fetches it")
    except LoadError as error:
        fail(f"{model}: {error}")
    if Path(model).is_dir():
        print_text(entry_of(description, called, str(Path(model).absolute()), is_whole=whole))
    else:
        print_text(entry_of(description, called, model, revision, downloads=download, is_whole=whole))


def _name_of(folder: Path) -> str:
    return re.sub(r"[^a-z0-9]+", "-", folder.absolute().name.lower()).strip("-")[:32].strip("-") or "model"


def entry_of(
    found: "Description",
    name: str,
    path: str,
    revision: str | None = None,
    *,
    downloads: bool = False,
    is_whole: bool = False,
) -> str:
    """The entry as TOML; with `is_whole`, a file that `load_catalogue` accepts."""
    table = f"models.{name}"
    lines = [f"default_model = {_text(name)}", ""] if is_whole else []
    lines += [
        *([_deprecation(found)] if found.deprecated_since else []),
        f"[{table}]  # a {found.pipeline}, text to image",
        f"path = {_text(path)}",
        *([f"revision = {_text(revision)}"] if revision else []),
        *(["local_files_only = false  # a worker downloads the weights"] if downloads else []),
        f"schedulers = [{', '.join(map(_text, found.schedulers))}]  # those that fit; first: default",
        f"# Steps and guidance scale: {found.origins['steps']}.",
        f"default_num_inference_steps = {found.num_inference_steps}",
        f"max_num_inference_steps = {found.max_num_inference_steps}",
        f"default_guidance_scale = {found.guidance_scale}",
        *(
            ["step_cache = true  # requests may ask for one; not with cpu_offload"]
            if found.has_step_cache
            else []
        ),
        f"min_side = {found.min_side}  # a quarter of the native side",
        f"max_side = {found.max_side}  # twice the native side, or what its positions reach",
        f"side_multiple = {found.side_multiple}  # {found.origins['side_multiple']}",
        "",
        f"[{table}.tiers.{name}]",
        f"default_width = {found.side}  # {found.origins['side']}",
        f"default_height = {found.side}",
        f"max_pixels = {found.side * found.side}",
    ]
    for parameter in found.parameters:
        lines += ["", f"[{table}.parameters.{parameter.name}]"]
        values = parameter.model_dump(exclude={"name"}, exclude_defaults=True)
        lines += [f"{key} = {_text(value)}" for key, value in values.items()]
    if is_whole:
        lines += ["", "[[workers]]", f"tiers = [{_text(name)}]"]
    return "\n".join(lines) + "\n"


def _deprecation(found: "Description") -> str:
    return f"# diffusers has deprecated {found.pipeline} since {found.deprecated_since}: it may not work."


def _text(value: object) -> str:
    """A string, number or boolean as TOML writes it: as JSON does, but for DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
