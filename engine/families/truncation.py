"""What a text loses at a text encoder's limit, in words: how much is read, and which words are not.

Every family's encoder has such a limit and none of them complains. Knows a tokenizer, and no model.
"""

from typing import Any

MAX_SHOWN_CHARACTERS = 120


def truncation(tokenizer: Any, text: str, limit: int, instruction: str = "") -> str | None:
    """A sentence for the owner of the text, or nothing when its tokens are at most `limit`.

    The limit counts the encoder's own start and end, and the `instruction` that it reads before the text;
    the sentence counts neither. Of what is dropped, it shows the beginning.
    """
    num_tokens = len(tokenizer(instruction + text, truncation=False, verbose=False).input_ids)
    if num_tokens <= limit:
        return None
    own = len(tokenizer(instruction, truncation=False, verbose=False).input_ids)
    sentence = f"it has {num_tokens - own} tokens and the text encoder reads the first {limit - own}"
    dropped = _dropped(tokenizer, instruction + text, limit)
    return f'{sentence}: "{dropped}" was not used' if dropped else sentence


def _dropped(tokenizer: Any, text: str, limit: int) -> str:
    if not tokenizer.is_fast:
        return ""  # only the tokenizers in Rust know where in the text a token came from
    kept = tokenizer(text, truncation=True, max_length=limit, return_offsets_mapping=True)
    end = max(end for _, end in kept.offset_mapping)  # the encoder's own tokens stand at (0, 0)
    is_within_word = text[end - 1 : end].isalnum() and text[end : end + 1].isalnum()
    printable = (letter if letter.isprintable() else " " for letter in text[end:])
    words = "…" * is_within_word + " ".join("".join(printable).split())
    return words if len(words) <= MAX_SHOWN_CHARACTERS else words[: MAX_SHOWN_CHARACTERS - 1] + "…"
