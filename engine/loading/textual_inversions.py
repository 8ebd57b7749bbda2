"""Loads textual inversions (Gal et al. 2022, arXiv 2208.01618): a token for prompts and its embeddings.

diffusers' own loader reads them, before other code reads tokenizers and text encoders. It does not know where
the files come from.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from engine.errors import LoadError

LOADER = "load_textual_inversion"
OF_SDXL: Mapping[str, str] = {"clip_l": "", "clip_g": "_2"}
"""Part of a file for SDXL -> ending of the names of its tokenizer and text encoder."""


@dataclass(frozen=True)
class TextualInversion:
    """A token for prompts, and the safetensors file with its embeddings."""

    token: str
    path: str  # a file, a folder, or a hub id with its `revision`
    revision: str | None = None
    weight_name: str | None = None  # the file to use in a folder or a hub id


def load_textual_inversions(pipeline: Any, files: Iterable[tuple[str, Path]]) -> None:
    """Add tokens to the pipeline from their files; raises `LoadError`, which names the token."""
    for token, path in files:
        if not callable(getattr(pipeline, LOADER, None)):
            raise LoadError(f"embeddings: diffusers cannot load them for a {type(pipeline).__name__}")
        try:
            _load(pipeline, token, load_file(path))
        except Exception as error:  # the libraries may raise any exception for a broken file
            said = " ".join(str(error).split())
            raise LoadError(
                f"embeddings: {token!r} cannot be used: {type(error).__name__}: {said}"
            ) from error


def _load(pipeline: Any, token: str, vectors: Mapping[str, Any]) -> None:
    if not vectors.keys() & OF_SDXL.keys():
        _load_one(pipeline, token, vectors, "")
        return
    for part, ending in OF_SDXL.items():
        if part in vectors and getattr(pipeline, f"text_encoder{ending}", None) is not None:
            _load_one(pipeline, token, {"emb_params": vectors[part]}, ending)


def _load_one(pipeline: Any, token: str, vectors: Mapping[str, Any], ending: str) -> None:
    encoder = getattr(pipeline, f"text_encoder{ending}")
    width = encoder.get_input_embeddings().weight.shape[-1]
    for found in vectors.values():
        if found.shape[-1] != width:
            raise ValueError(f"its embeddings have {found.shape[-1]} dimensions, the model's have {width}")
    getattr(pipeline, LOADER)(
        dict(vectors), token=token, tokenizer=getattr(pipeline, f"tokenizer{ending}"), text_encoder=encoder
    )
