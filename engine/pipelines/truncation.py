"""Describes in words how much of a text exceeds a text encoder's limit, and which words are dropped.

Text encoders cut long texts without an error. This module knows tokenizers and no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_SHOWN_CHARACTERS = 120


@dataclass(frozen=True)
class Reader:
    """The tokenizer of a text encoder and its limit in tokens.

    The limit includes start and end tokens, and the `instruction` before the text. Sentences do not count
    these.
    """

    tokenizer: Any
    limit: int
    name: str = ""  # set if a model has several encoders
    instruction: str = ""


def unread(text: str, readers: Sequence[Reader]) -> tuple[str, ...]:
    """Return a sentence for each reader that does not read all of the text.

    It shows the beginning of the dropped part. Readers with the same name share one sentence.
    """
    sentences: dict[str, str] = {}
    for reader in sorted(readers, key=lambda reader: reader.limit):
        if reader.name not in sentences and (sentence := _sentence(reader, text)):
            sentences[reader.name] = sentence
    return tuple(sentences.values())


def _sentence(reader: Reader, text: str) -> str | None:
    tokenizer, limit, instruction = reader.tokenizer, reader.limit, reader.instruction
    num_tokens = len(tokenizer(instruction + text, truncation=False, verbose=False).input_ids)
    if num_tokens <= limit:
        return None
    own = len(tokenizer(instruction, truncation=False, verbose=False).input_ids)
    encoder = f"text encoder {reader.name}" if reader.name else "text encoder"
    sentence = f"it has {num_tokens - own} tokens and the {encoder} reads the first {limit - own}"
    dropped = _dropped(tokenizer, instruction + text, limit)
    by = f" by {reader.name}" if reader.name else ""
    return f'{sentence}: "{dropped}" was not used{by}' if dropped else sentence


def _dropped(tokenizer: Any, text: str, limit: int) -> str:
    if not tokenizer.is_fast:
        return ""  # only the Rust tokenizers return offsets
    kept = tokenizer(text, truncation=True, max_length=limit, return_offsets_mapping=True)
    end = max(end for _, end in kept.offset_mapping)  # start and end tokens have the offset (0, 0)
    is_within_word = text[end - 1 : end].isalnum() and text[end : end + 1].isalnum()
    printable = (letter if letter.isprintable() else " " for letter in text[end:])
    words = "…" * is_within_word + " ".join("".join(printable).split())
    return words if len(words) <= MAX_SHOWN_CHARACTERS else words[: MAX_SHOWN_CHARACTERS - 1] + "…"
