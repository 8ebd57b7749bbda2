"""The `calotype models` command: prints entries of `calotype.toml` for diffusers models.

Owns the TOML of an entry; `engine.loading.description` reads the facts from the model.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from catalogue.parts import file_in
from cli.terminal import EXIT_USAGE, fail, print_text

if TYPE_CHECKING:
    from engine.loading.description import Description

CONTROLNET = 'For a ControlNet: add "control" to tasks, and set controlnet and its controlnet_revision.'
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")

models = typer.Typer(no_args_is_help=True)


@models.command("describe")
def describe_model(
    model: Annotated[
        str, typer.Argument(help="A folder in diffusers' layout, a hub id, or a single file with --config.")
    ],
    revision: Annotated[str | None, typer.Option(help="The commit of a hub id, 40 digits.")] = None,
    config: Annotated[
        str | None, typer.Option(help="The folder or hub id of the configuration of a single file.")
    ] = None,
    config_revision: Annotated[
        str | None, typer.Option(help="The commit of a hub id in --config, 40 digits.")
    ] = None,
    weight_name: Annotated[
        str | None, typer.Option(help="The single file in a folder or hub id; needs --config.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Download the configuration of a hub id, but no weights.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="The name of the entry and its tier; default: the name of the folder.")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Print a complete calotype.toml with one worker.")
    ] = False,
) -> None:
    """Print the entry of calotype.toml for a model. Only its configuration is read."""
    if (weight_name is None and file_in(model) is None) != (config is None):
        fail("--config: it is required for a single file, and not allowed for a folder", code=EXIT_USAGE)
    called = name or _name_of(Path(weight_name or model).with_suffix("") if config else Path(model))
    if not NAME.fullmatch(called):
        fail("--name: use 1 to 32 characters of a-z, 0-9 and -, not starting with -", code=EXIT_USAGE)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its warnings do not matter here
    # Imported here because it imports torch, which is slow.
    from engine.errors import LoadError
    from engine.loading.description import describe
    from engine.loading.hub import Hub, NotOnDisk
    from engine.pipelines.pipeline_model import LEFT_OUT

    described, commit = (config, config_revision) if config is not None else (model, revision)
    try:
        folder = Hub().configuration(
            described, revision=commit, local_files_only=not download, left_out=list(LEFT_OUT)
        )
        description = describe(folder)
    except NotOnDisk as error:
        fail(f"{described}: {error}; --download fetches it")
    except LoadError as error:
        fail(f"{described}: {error}")
    more = [f"weight_name = {_text(weight_name)}"] if weight_name else []
    if config is not None:
        more.append(f"config = {_part(config, config_revision)}  # supplies what the file lacks")
    if Path(model).exists():
        print_text(entry_of(description, called, str(Path(model).absolute()), more=more, is_whole=whole))
    else:
        print_text(
            entry_of(description, called, model, revision, more=more, downloads=download, is_whole=whole)
        )


def _name_of(folder: Path) -> str:
    return re.sub(r"[^a-z0-9]+", "-", folder.absolute().name.lower()).strip("-")[:32].strip("-") or "model"


def _part(path: str, revision: str | None) -> str:
    """A folder or hub id as TOML."""
    if Path(path).exists():
        return _text(str(Path(path).absolute()))
    return f"{{ path = {_text(path)}, revision = {_text(revision)} }}"


def entry_of(
    found: "Description",
    name: str,
    path: str,
    revision: str | None = None,
    *,
    more: Sequence[str] = (),
    downloads: bool = False,
    is_whole: bool = False,
) -> str:
    """The entry as TOML, with the lines `more` after its path; `is_whole` gives a complete file."""
    table = f"models.{name}"
    lines = [f"default_model = {_text(name)}", ""] if is_whole else []
    lines += [
        *([_deprecation(found)] if found.deprecated_since else []),
        f"[{table}]  # a {found.pipeline}",
        f"path = {_text(path)}",
        *([f"revision = {_text(revision)}"] if revision else []),
        *more,
        *(["local_files_only = false  # a worker downloads the weights"] if downloads else []),
        f"tasks = [{', '.join(map(_text, found.tasks))}]",
        *([f"# {CONTROLNET}"] if found.takes_controlnet else []),
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
    """A string, number or boolean as TOML, which is JSON except for DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
