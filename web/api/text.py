"""The text of a prompt as a request may hold it: in one normal form, and bounded before it is looked into."""

import re
import unicodedata
from typing import Annotated

from pydantic import AfterValidator

MAX_TEXT_CHARACTERS = 131_072  # whatever the model's own limit: what is longer is not looked into
MAX_MARKS_IN_A_ROW = 30  # UAX #15 §13, Stream-Safe Text: no script needs more
_REFUSED_CHARACTER = re.compile("[\0-\x08\x0b-\x1f\ud800-\udfff]")


def cleaned(text: str) -> str:
    """NFC, without characters that no prompt means and that rows or encoders cannot hold."""
    if len(text) > MAX_TEXT_CHARACTERS:
        raise ValueError(f"has more than {MAX_TEXT_CHARACTERS} characters")
    if found := _REFUSED_CHARACTER.search(text):
        raise ValueError(_what_is_wrong_with(found[0]))
    if text.isascii():
        return text
    _check_marks(text)
    return unicodedata.normalize("NFC", text)


def _what_is_wrong_with(character: str) -> str:
    if character == "\0":
        return "holds a NUL character"
    if character < " ":
        return f"holds the control character U+{ord(character):04X}; only \\n and \\t are accepted"
    return "holds a lone surrogate, which is no character"


def _check_marks(text: str) -> None:
    # Normalization sorts the marks behind a letter, in a time that grows with the square of their number.
    num_marks = 0
    for character in text:
        num_marks = num_marks + 1 if unicodedata.combining(character) else 0
        if num_marks > MAX_MARKS_IN_A_ROW:
            raise ValueError(f"has more than {MAX_MARKS_IN_A_ROW} combining marks in a row")


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank; at least 1 character that can be seen is required")
    return text


Text = Annotated[str, AfterValidator(cleaned)]
VisibleText = Annotated[Text, AfterValidator(_not_blank)]
