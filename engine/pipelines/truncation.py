"""What a text loses at a text encoder's limit, in words: how much is read, and which words are not.

Text encoders have such a limit and none of them complains. Knows tokenizers, and no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_SHOWN_CHARACTERS = 120


@dataclass(frozen=True)
class Reader:
    """A text encoder's tokenizer, and how many tokens it reads.

    The limit counts the encoder's own start and end, and the `instruction` that it reads before the text;
    sentences count neither.
    """

    tokenizer: Any
    limit: int
    name: str = ""  # where a model has several encoders, whose limits differ
    instruction: str = ""


def unread(text: str, readers: Sequence[Reader]) -> tuple[str, ...]:
    """A sentence for the owner of the text about each reader that does not read all of it.

    Of what is dropped, a sentence shows the beginning. Readers of one name say one sentence.
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
        return ""  # only the tokenizers in Rust know where in the text a token came from
    kept = tokenizer(text, truncation=True, max_length=limit, return_offsets_mapping=True)
    end = max(end for _, end in kept.offset_mapping)  # the encoder's own tokens stand at (0, 0)
    is_within_word = text[end - 1 : end].isalnum() and text[end : end + 1].isalnum()
    printable = (letter if letter.isprintable() else " " for letter in text[end:])
    words = "…" * is_within_word + " ".join("".join(printable).split())
    return words if len(words) <= MAX_SHOWN_CHARACTERS else words[: MAX_SHOWN_CHARACTERS - 1] + "…"
