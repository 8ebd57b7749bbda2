"""The notations of one CSV cell: numbers, booleans and text as spreadsheets of many languages write them.

Each notation is reduced to a plain one, which pydantic reads; an ambiguous cell is refused. This module also
escapes text that a spreadsheet would run as a formula, and removes the escape. It knows no file and no row.
"""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from catalogue.parameters import PARAMETERS, TEXTS, ParameterType

TYPES: Mapping[str, ParameterType] = {
    **{name: parameter.type for name, parameter in PARAMETERS.items()},
    "deadline_seconds": "float",
}
"""The type of each column; columns that are not listed contain names."""
MAX_NUMBER_CHARACTERS = 40

# TRUE and FALSE as spreadsheets of many languages show them, and as people type them.
_TRUE = {
    "true", "wahr", "vrai", "verdadero", "vero", "verdadeiro", "waar", "prawda", "sant", "sann", "sand",
    "tosi", "igaz", "pravda", "adevărat", "doğru", "истина", "true()", "yes", "y", "ja", "oui", "si", "sí",
    "sì", "sim", "tak", "да", "on", "1", "1.0", "x", "✓",
}  # fmt: skip
_FALSE = {
    "false", "falsch", "faux", "falso", "onwaar", "fałsz", "falskt", "usann", "falsk", "epätosi", "hamis",
    "nepravda", "fals", "yanl\u0131ş", "ложь", "false()", "no", "n", "nein", "non", "nee", "não", "nao",
    "nie", "нет", "off", "0", "0.0",
}  # fmt: skip
_SPREADSHEET_ERRORS = {
    "#n/a", "#ref!", "#value!", "#div/0!", "#name?", "#num!", "#null!", "#spill!", "#calc!", "#nv",
    "#bezug!", "#wert!", "#zahl!", "#valeur!", "#nom?", "#nombre!", "#error!", "#err",
}  # fmt: skip
_FEW_DIGITS = 19  # fewer fit into 64 bits
_MISSING = {"NA", "NULL", "\\N"}
_INVISIBLE = "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
_GROUPED = re.compile(r"[+-]?[0-9]{1,3}([,.'\u2019 \u00a0\u202f])[0-9]{3}(?:\1[0-9]{3})*(?:[.,][0-9]+)?")
_SCIENTIFIC = re.compile(r"[+-]?[0-9]+(?:[.,][0-9]+)?[eE][+-]?[0-9]{1,4}")
_INT: TypeAdapter[int] = TypeAdapter(int)
_FLOAT: TypeAdapter[float] = TypeAdapter(FiniteFloat)
_COMMA_NUMBER = re.compile(r"[+-]?[0-9]*,[0-9]+(?:[eE][+-]?[0-9]{1,4})?")
_AS_TEXT = re.compile(r'="(.{0,100})"')
# Excel and LibreOffice read a cell that begins with one of these as a formula, full-width forms included.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001
_MARK = "'"
_MAX_RETYPED_CHARACTERS = 40
_WORDS_OF_VALUES = re.compile(
    r"(?:am|pm|e|true|false|eur|usd|gbp|chf|jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?"
    r"|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)",
    re.IGNORECASE,
)
"""Words beside digits in text that a spreadsheet takes for a number, date, time, amount or boolean."""


def typed_cell(
    column: str, cell: str, delimiter: str = ",", kind: ParameterType | None = None
) -> str | int | float | list[str] | list[dict[str, str | float]]:
    """The value of a cell or form field; raises `ValueError` with what it should be.

    `kind` is the type of a column that a model declares.
    """
    kind = kind or TYPES.get(column, "string")
    if kind == "text":
        return _text(cell)
    if kind == "int" and cell.isdecimal() and cell.isascii() and len(cell) < _FEW_DIGITS and cell[0] != "0":
        return int(cell)  # most whole numbers have no other notation
    text = cell.strip().strip(_INVISIBLE).strip()
    if kind in ("int", "float", "bool") and len(text) > MAX_NUMBER_CHARACTERS:
        raise ValueError(f"has more than {MAX_NUMBER_CHARACTERS} characters")
    _refuse_spreadsheet_errors(text)
    if found := _AS_TEXT.fullmatch(text):
        text = found[1].strip()
    if kind == "int":
        return _whole_number(text, delimiter)
    if kind == "float":
        return _number(text, delimiter)
    if kind == "bool":
        return _truth(text)
    text = unmarked(text)
    if kind == "files":
        return text.split()
    if kind == "adapters":
        return [_lora(part) for part in text.split()]
    return text.lower() if column in PARAMETERS and kind == "choice" else text


def is_empty(cell: str) -> bool:
    """Whether the cell has no visible character."""
    if "!" <= cell[:1] <= "~":
        return False  # most cells begin with a visible character
    return not cell.strip().strip(_INVISIBLE).strip()


def is_missing(column: str, cell: str) -> bool:
    """Whether the cell is a missing value of R (`NA`) or SQL (`NULL`, `\\N`); in prompts these are text."""
    return column not in TEXTS and cell.strip() in _MISSING


def harmless(cell: object) -> object:
    """The cell, escaped if it is text that a spreadsheet would change or that looks like an error of one.

    Without the escape it might be run as a formula, or be saved as other text: `007` as 7, `3/4` as a date.
    Numbers are unchanged, and None becomes an empty cell.
    """
    if isinstance(cell, str) and _is_marked(cell.lstrip(_MARK)):
        return _MARK + cell
    return "" if cell is None else cell


def unmarked(cell: str) -> str:
    """The text that `harmless` escaped."""
    if cell.startswith(_MARK) and _is_marked(cell.lstrip(_MARK)):
        return cell.removeprefix(_MARK)
    return cell


def _is_marked(text: str) -> bool:
    return text.startswith(_FORMULA_STARTS) or _is_spreadsheet_error(text.strip()) or _is_retyped(text)


def _is_retyped(text: str) -> bool:
    """Whether a spreadsheet takes the text for a value and would write it in another notation."""
    if len(text) > _MAX_RETYPED_CHARACTERS:
        return False
    words = re.findall(r"[^\W\d_]+", text)
    has_digits = any(character.isdigit() for character in text)
    is_truth = text.strip().lower() in ("true", "false")
    return is_truth or (has_digits and all(_WORDS_OF_VALUES.fullmatch(word) for word in words))


def _text(cell: str) -> str:
    _refuse_spreadsheet_errors(cell.strip())
    return unmarked(cell.replace("\r\n", "\n").replace("\r", "\n"))


def _whole_number(text: str, delimiter: str) -> int:
    if _SCIENTIFIC.fullmatch(text):
        raise ValueError(
            "should be a whole number; a spreadsheet has shortened it and dropped digits: format the column "
            "as a number without decimals, or as text"
        )
    plain = _with_point(text, delimiter)
    return int(_read(_INT, plain.removesuffix("."), "should be a whole number"))


def _number(text: str, delimiter: str) -> float:
    is_percent = text.endswith("%")
    plain = _with_point(text.removesuffix("%").rstrip(), delimiter, is_whole=False)
    return float(_read(_FLOAT, plain, "should be a number")) / (100 if is_percent else 1)


def _read(reader: TypeAdapter[Any], plain: str, should_be: str) -> Any:
    """The number that pydantic reads in plain notation; Python's own `1_000` is refused."""
    if "_" in plain:
        raise ValueError(should_be)
    try:
        return reader.validate_strings(plain)
    except ValidationError as error:
        is_infinite = error.errors()[0]["type"] == "finite_number"
        raise ValueError("should be a finite number" if is_infinite else should_be) from error


def _lora(text: str) -> dict[str, str | float]:
    """An adapter and its scale, such as `outline:0.8`; the scale is 1 if left out.

    A scale has no thousands, so a comma in it is a decimal comma.
    """
    name, colon, scale = text.partition(":")
    should_be = "should be names of adapters separated by spaces, such as outline or outline:0.8"
    if not name or name.endswith(","):
        raise ValueError(should_be)
    return (
        {"name": name, "scale": _read(_FLOAT, scale.replace(",", "."), should_be)}
        if colon
        else {"name": name}
    )


def _with_point(text: str, delimiter: str, *, is_whole: bool = True) -> str:
    """The number with a decimal point; raises `ValueError` if its separators are ambiguous.

    Programs that separate cells with semicolons do so because their decimals have commas.
    """
    grouped = _GROUPED.fullmatch(text)
    if grouped and not _is_decimal(text, grouped[1], delimiter, is_whole):
        raise ValueError(f"may have a thousands separator ({grouped[1]!r}); write the number without one")
    return text.replace(",", ".") if _COMMA_NUMBER.fullmatch(text) else text


def _is_decimal(text: str, separator: str, delimiter: str, is_whole: bool) -> bool:
    """Whether three digits after a separator are decimals: `1,500` may be 1.5 or 1500."""
    if separator not in ".," or text.count(",") + text.count(".") > 1:
        return False
    if text.lstrip("+-").startswith("0"):
        return True
    if is_whole:
        return False
    return (separator == ",") == (delimiter == ";")


def _truth(text: str) -> bool:
    word = text.casefold()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise ValueError("should be true or false")


def _is_spreadsheet_error(text: str) -> bool:
    if not text.startswith(("#", "Err:")) or len(text) > MAX_NUMBER_CHARACTERS:
        return False
    return text.casefold() in _SPREADSHEET_ERRORS or bool(re.fullmatch(r"Err:[0-9]{3}|#{3,}", text))


def _refuse_spreadsheet_errors(text: str) -> None:
    if _is_spreadsheet_error(text):
        raise ValueError(f"contains the spreadsheet error {text[:12]}: fix its formula or widen its column")
