"""What the text of one cell means: numbers, truth values and text as people's spreadsheets write them.

What could mean two things is refused and says so. It also marks text that a spreadsheet would run as a
formula, and takes that mark off again. It knows no file and no row.
"""

import math
import re
from collections.abc import Mapping

from catalogue.parameters import PARAMETERS, TEXTS, ParameterType

TYPES: Mapping[str, ParameterType] = {
    **{name: parameter.type for name, parameter in PARAMETERS.items()},
    "deadline_seconds": "float",
}
"""The type of each column; one that is not here holds a name."""
MAX_NUMBER_CHARACTERS = 40

# What spreadsheets show for TRUE and FALSE in the languages of their users, and what people type.
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
_MISSING = {"NA", "NULL", "\\N"}
_INVISIBLE = "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
_GROUPED = re.compile(r"[+-]?[0-9]{1,3}([,.'\u2019 \u00a0\u202f])[0-9]{3}(?:\1[0-9]{3})*(?:[.,][0-9]+)?")
_SCIENTIFIC = re.compile(r"[+-]?[0-9]+(?:[.,][0-9]+)?[eE][+-]?[0-9]{1,4}")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_WHOLE = re.compile(r"([+-]?[0-9]+)(?:\.0*)?")
_COMMA_NUMBER = re.compile(r"[+-]?[0-9]*,[0-9]+(?:[eE][+-]?[0-9]{1,4})?")
_AS_TEXT = re.compile(r'="(.{0,100})"')
# What makes Excel or LibreOffice read a cell as a formula, full-width forms included.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001
_MARK = "'"
_MAX_RETYPED_CHARACTERS = 40
_WORDS_OF_VALUES = re.compile(
    r"(?:am|pm|e|true|false|eur|usd|gbp|chf|jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?"
    r"|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)",
    re.IGNORECASE,
)
"""The words beside the digits of what a spreadsheet takes for a number, a date, a time, money or a truth."""


def typed_cell(
    column: str, cell: str, delimiter: str = ",", kind: ParameterType | None = None
) -> str | int | float | list[str] | list[dict[str, str | float]]:
    """The value that a field's text means; raises `ValueError` saying what it should be.

    `kind` is the type of a column that is no column of ours.
    """
    kind = kind or TYPES.get(column, "string")
    if kind == "text":
        return _text(cell)
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
    if kind == "loras":
        return [_lora(part) for part in text.split()]
    return text.lower() if column == "output_format" else text


def is_empty(cell: str) -> bool:
    """Whether nothing can be seen in it."""
    return not cell.strip().strip(_INVISIBLE).strip()


def is_missing(column: str, cell: str) -> bool:
    """Whether R (`NA`) or SQL (`NULL`, `\\N`) wrote that there is no value; in prompts these are text."""
    return column not in TEXTS and cell.strip() in _MISSING


def harmless(cell: object) -> object:
    """A text cell that every spreadsheet keeps as it is, and that we take for no error of one.

    Without its mark it might be run as a formula, or come back as another text: `007` as 7, `3/4` as a date.
    Numbers and nothing stay as they are.
    """
    if isinstance(cell, str) and _is_marked(cell.lstrip(_MARK)):
        return _MARK + cell
    return "" if cell is None else cell


def unmarked(cell: str) -> str:
    """The text that `harmless` was given."""
    if cell.startswith(_MARK) and _is_marked(cell.lstrip(_MARK)):
        return cell.removeprefix(_MARK)
    return cell


def _is_marked(text: str) -> bool:
    return text.startswith(_FORMULA_STARTS) or _is_spreadsheet_error(text.strip()) or _is_retyped(text)


def _is_retyped(text: str) -> bool:
    """Whether a spreadsheet takes the text for a value, and writes that in a way of its own."""
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
            "should be a whole number; a spreadsheet has shortened it and lost digits: format the column as "
            "a number without decimals, or as text"
        )
    plain = _with_point(text, delimiter)
    found = _WHOLE.fullmatch(plain)
    if found is None:
        raise ValueError("should be a whole number")
    return int(found[1])


def _number(text: str, delimiter: str) -> float:
    is_percent = text.endswith("%")
    plain = _with_point(text.removesuffix("%").rstrip(), delimiter, is_whole=False)
    if not _NUMBER.fullmatch(plain):
        raise ValueError("should be a number")
    number = float(plain) / (100 if is_percent else 1)
    if not math.isfinite(number):
        raise ValueError("should be a finite number")
    return number


def _lora(text: str) -> dict[str, str | float]:
    """An adapter and its scale, as `outline:0.8`; 1 where none is given.

    A scale has no thousands, so that a comma in it is a point.
    """
    name, colon, scale = text.partition(":")
    plain = scale.replace(",", ".")
    if not name or name.endswith(",") or (colon and not _NUMBER.fullmatch(plain)):
        raise ValueError("should be names of adapters with a space between them, as outline or outline:0.8")
    return {"name": name, "scale": float(plain)} if colon else {"name": name}


def _with_point(text: str, delimiter: str, *, is_whole: bool = True) -> str:
    """The same number with a point, where its separators can mean only one thing.

    Programs that part cells with semicolons do so since their decimals have commas.
    """
    grouped = _GROUPED.fullmatch(text)
    if grouped and not _is_decimal(text, grouped[1], delimiter, is_whole):
        raise ValueError(
            f"has what may be a thousands separator ({grouped[1]!r}), and should be written without"
        )
    return text.replace(",", ".") if _COMMA_NUMBER.fullmatch(text) else text


def _is_decimal(text: str, separator: str, delimiter: str, is_whole: bool) -> bool:
    """Whether three digits after a mark are decimals: `1,500` may be one and a half, or fifteen hundred."""
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
        raise ValueError(f"holds the spreadsheet's error {text[:12]}: mend its formula, or widen its column")
