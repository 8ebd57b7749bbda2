"""Words that a model is taught when it is loaded: a token for prompts, and the vectors that it stands for.

They are learned by textual inversion (Gal et al. 2022, arXiv 2208.01618) and read by diffusers' own loader,
before anything else looks at tokenizers and text encoders. It does not know where files come from.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from engine.errors import LoadError

LOADER = "load_textual_inversion"
OF_SDXL: Mapping[str, str] = {"clip_l": "", "clip_g": "_2"}
"""The two parts of a file for SDXL, each with the ending of its tokenizer's and text encoder's names."""


@dataclass(frozen=True)
class TextualInversion:
    """A word of a prompt, and the one safetensors file that says what it means."""

    token: str
    path: str  # of a file, of a folder, or a hub id with its `revision`
    revision: str | None = None
    weight_name: str | None = None  # which file of a folder or a hub id


def teach(pipeline: Any, words: Iterable[tuple[str, Path]]) -> None:
    """Give the pipeline these tokens with their files; raises `LoadError`, which names the token."""
    for token, path in words:
        if not callable(getattr(pipeline, LOADER, None)):
            raise LoadError(f"embeddings: diffusers reads none for a {type(pipeline).__name__}")
        try:
            _teach(pipeline, token, load_file(path))
        except Exception as error:  # out of the libraries, for whatever the file has
            said = " ".join(str(error).split())
            raise LoadError(
                f"embeddings: {token!r} cannot be used: {type(error).__name__}: {said}"
            ) from error


def _teach(pipeline: Any, token: str, vectors: Mapping[str, Any]) -> None:
    if not vectors.keys() & OF_SDXL.keys():
        _teach_one(pipeline, token, vectors, "")
        return
    for part, ending in OF_SDXL.items():
        if part in vectors and getattr(pipeline, f"text_encoder{ending}", None) is not None:
            _teach_one(pipeline, token, {"emb_params": vectors[part]}, ending)


def _teach_one(pipeline: Any, token: str, vectors: Mapping[str, Any], ending: str) -> None:
    encoder = getattr(pipeline, f"text_encoder{ending}")
    width = encoder.get_input_embeddings().weight.shape[-1]
    for found in vectors.values():
        if found.shape[-1] != width:
            raise ValueError(f"its vectors have {found.shape[-1]} numbers, and the model's have {width}")
    getattr(pipeline, LOADER)(
        dict(vectors), token=token, tokenizer=getattr(pipeline, f"tokenizer{ending}"), text_encoder=encoder
    )
