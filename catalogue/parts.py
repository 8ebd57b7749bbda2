"""Parts of a model that are not read from its own folder: its entries `config`, `vae` and `transformer`.

Owns how a part is written in `calotype.toml`, and which kinds of files are accepted. It opens no file.
"""

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

NO_WEIGHTS = (".ckpt", ".bin", ".pt", ".pth", ".pkl", ".zip")
"""Suffixes of files that are never read, because reading one can run code that it contains."""


class Part(BaseModel):
    """A local folder or file, or a hub id at a commit; written as a table, or as the path alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    revision: str | None = None
    weight_name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_path(cls, data: Any) -> Any:
        return {"path": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _check(self) -> "Part":
        check_revision(self.revision)
        return self

    @property
    def file(self) -> str | None:
        """The name of the file, or None for a folder."""
        return self.weight_name or file_in(self.path)

    @property
    def place(self) -> str:
        """The path, file and revision, for messages."""
        name = f" ({self.weight_name})" if self.weight_name else ""
        return f"{self.path!r}{name}" + (f" at {self.revision}" if self.revision else "")


def check_revision(revision: str | None, entry: str = "revision") -> None:
    """Raise `ValueError` if the revision of a hub id is not a commit."""
    if revision is not None and not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(
            f"{entry} {revision!r} can move: give the commit, 40 hexadecimal digits in lower case"
        )


def file_in(path: str) -> str | None:
    """The path if it names a file of weights, or None if it names a folder."""
    return path if path.endswith((".safetensors", ".gguf", *NO_WEIGHTS)) else None


def check_parts(own: Part, config: Part | None, vae: Part | None, transformer: Part | None) -> None:
    """Raise `ValueError` for a file that is not accepted, and for a missing or superfluous `config`."""
    if own.file is not None and own.file.endswith(".gguf"):
        raise ValueError(f"{own.file!r} holds one component: `path` names the model, `transformer` this file")
    parts = (("path", own, (".safetensors",)), ("vae", vae, (".safetensors",)))
    for entry, part, suffixes in (*parts, ("transformer", transformer, (".safetensors", ".gguf"))):
        if part is not None and part.file is not None and not part.file.endswith(suffixes):
            raise ValueError(
                f"{entry}: weights are read as {' or '.join(suffixes)} only, and not {part.file!r}"
            )
    if config is not None and config.file is not None:
        raise ValueError("config: it must be a folder in diffusers' layout or a hub id, not a file")
    if own.file is not None and config is None:
        raise ValueError("config: a single file needs the folder, or the hub id, of its configuration")
    if own.file is None and config is not None:
        raise ValueError("config: the model is a folder, which has its own configuration")
