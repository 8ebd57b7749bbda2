"""The text of an uploaded CSV: the encoding of its bytes, and its lines, decoded piece by piece.

The encoding is given, or follows from a fixed rule that examines the first bytes and whether all bytes are
UTF-8 (docs/adr/0017). A file is read in pieces and never held as a whole. This module knows no delimiters,
quotes or columns.
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from web.refusals import FieldError, InvalidCsv

DECODED_BYTES = 65_536
EVIDENCE_BYTES = 65_536
MAX_LINE_CHARACTERS = 131_072
"""A longer line is cut; as a row may not be longer, the row is refused."""
MAX_NAME_CHARACTERS = 40
MAX_SAMPLE_CHARACTERS = 60
BREAK_IN_A_CELL = "\0"
"""Stands for a line break inside a cell, for the CSV reader; accepted files contain no NUL."""

_OTHER_FORMATS = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x1f\x8b": "gzip-compressed",
    b"PK\x03\x04": "a ZIP archive or a spreadsheet document",
    b"\xd0\xcf\x11\xe0": "a spreadsheet document of Excel 97",
    b"%PDF": "a PDF",
    b"{\\rtf": "an RTF document",
    b"<!DOCTYPE": "a web page",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "XML",
}
# Longer marks first: the mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Python's names, and the usual names.
ENCODINGS = {
    "utf-8": "UTF-8",
    "utf-16-le": "UTF-16 LE",
    "utf-16-be": "UTF-16 BE",
    "utf-32-le": "UTF-32 LE",
    "utf-32-be": "UTF-32 BE",
    **{f"cp{number}": f"Windows-{number}" for number in range(1250, 1259)},
    **{f"iso8859-{number}": f"ISO-8859-{number}" for number in range(2, 17) if number != 12},
    **{f"cp{number}": f"IBM{number}" for number in (437, 850, 852, 858, 866)},
    "mac-roman": "Mac OS Roman",
    "mac-latin2": "Mac OS Central European",
    "mac-cyrillic": "Mac OS Cyrillic",
    "koi8-r": "KOI8-R",
    "koi8-u": "KOI8-U",
    "cp874": "Windows-874",
    "cp932": "Shift_JIS",
    "euc_jp": "EUC-JP",
    "cp949": "EUC-KR",
    "gb18030": "GB18030",
    "big5hkscs": "Big5",
}
# Programs use the larger set under the name of the smaller one (WHATWG Encoding Standard).
_SUPERSETS = {
    "ascii": "utf-8",
    "utf-8-sig": "utf-8",
    "iso8859-1": "cp1252",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
}
_SEVERAL = {"utf-16": ("utf-16-le", "utf-16-be"), "utf-32": ("utf-32-le", "utf-32-be")}
_EXAMPLES = "utf-8, utf-16, windows-1252, windows-1251, iso-8859-15, macintosh, shift_jis, gb18030"
_BEYOND_ASCII = bytes(range(0x80, 0x100))
_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# Punctuation that is common in Western text and therefore not evidence of another encoding.
_USUAL_MARKS = "«»‹›“”‘’„…–—•€£§©®™°²³½×ºª¿¡\u00a0"  # noqa: RUF001
# Western letters, punctuation, Cyrillic and CJK in UTF-8, which Windows-1252 shows as `Ã©`, `â€™`, `ÐºÐ¾`.
# The search is much faster for a pattern that begins with a set of bytes than with an alternative.
_UTF_8 = re.compile(
    rb"[\xc2-\xed](?:(?<=[\xc2\xc3])[\x80-\xbf]|(?<=\xe2)\x80[\x90-\xbf]|(?<=\xe2)\x82\xac"
    rb"|(?<=[\xc4-\xdf])[\x80-\xbf][\xc4-\xdf][\x80-\xbf]"
    rb"|(?<=[\xe3-\xed])[\x80-\xbf]{2}[\xe3-\xed][\x80-\xbf]{2})"
)


@dataclass(frozen=True)
class Encoding:
    """How bytes become text; `assumed` is a warning for the user if the encoding is a guess."""

    codec: str
    assumed: str = ""

    @property
    def words(self) -> str:
        """The usual name: `UTF-8`, `Windows-1252`."""
        return ENCODINGS[self.codec]


@dataclass(frozen=True)
class _Fault:
    """The first byte that is invalid in an encoding, or a NUL; and whether non-ASCII letters precede it."""

    position: int
    line: int
    is_nul: bool
    after_other_letters: bool


def known_encoding(name: str) -> str:
    """Python's name of an encoding in any usual spelling; raises `ValueError`."""
    try:
        found = codecs.lookup(name[:MAX_NAME_CHARACTERS].strip()).name
    except (LookupError, ValueError):
        found = ""
    found = _SUPERSETS.get(found, found)
    if found not in ENCODINGS and found not in _SEVERAL:
        raise ValueError(f"is not a known encoding; examples are: {_EXAMPLES}")
    return found


def encoding_of(file: BinaryIO, given: str | None = None) -> Encoding:
    """The encoding in which all bytes of a file are valid and none is a NUL.

    `given` is a name from `known_encoding`. Raises `InvalidCsv` with the line of the first invalid byte.
    """
    file.seek(0)
    head = file.read(EVIDENCE_BYTES)
    for start, name in _OTHER_FORMATS.items():
        if head.startswith(start):
            raise refused(f"the file is {name}, not CSV; save or download it as CSV", 1)
    evident = _marked(head) or _alternating(head)
    if given is not None:
        return _as_given(file, head, given, evident)
    codec = evident or "utf-8"
    fault = _first_fault(file, codec)
    if fault is None:
        return Encoding(codec)
    if fault.is_nul:
        raise refused("the file contains a NUL byte; CSV is text", fault.line)
    if evident or fault.after_other_letters:
        raise refused(
            f"the file is not {ENCODINGS[codec]} from here on, but is before: it is damaged, or consists of "
            "two files; if it has one encoding, name it in 'encoding'",
            fault.line,
        )
    return _assumed(file, head, fault)


def refused(detail: str, line: int, field: str = "") -> InvalidCsv:
    """The refusal of a whole file for one error in one line."""
    place = f", {field}" if field else ""
    return InvalidCsv(f"line {line}{place}: {detail}", [FieldError(field, detail, line)])


class Lines:
    """The lines of a file without their line ends, decoded one by one and limited in length.

    A line ends with LF, CR LF or CR CR LF (Windows writes this for CR LF in text mode), or with CR if the
    first line does, as on a classic Mac. Any other of these characters is a break inside a cell and becomes
    `BREAK_IN_A_CELL`. Byte-order marks, and the control-Z that ends a file on DOS, are removed.
    """

    def __init__(self, file: BinaryIO, encoding: Encoding, *, max_lines: int) -> None:
        file.seek(0)
        self.num_lines = 0
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding.codec)()
        self._end = "\r" if _ends_lines_with_cr(file.read(EVIDENCE_BYTES), encoding.codec) else "\n"
        self._max_lines = max_lines
        file.seek(0)

    def __iter__(self) -> Iterator[str]:
        inside = "\n" if self._end == "\r" else "\r"
        for line in self._split():
            self.num_lines += 1
            if self.num_lines > self._max_lines:
                raise refused(f"the file has more than {self._max_lines} lines", self.num_lines)
            plain = line.replace("\ufeff", "") if "\ufeff" in line else line
            plain = plain.rstrip("\r\n\x1a")
            yield plain.replace(inside, BREAK_IN_A_CELL) if inside in plain else plain

    def _split(self) -> Iterator[str]:
        """The lines without the character that ends them; a line that is too long is cut and the last."""
        rest = ""
        while piece := self._file.read(DECODED_BYTES):
            first, *more = self._decoder.decode(piece).split(self._end)
            rest += first
            if more:
                yield rest
                rest = more.pop()
                yield from more
            if len(rest) > MAX_LINE_CHARACTERS:
                yield rest[: MAX_LINE_CHARACTERS + 1]
                return
        if rest:
            yield rest


def _marked(data: bytes) -> str | None:
    return next((codec for mark, codec in _MARKS if data.startswith(mark)), None)


def _alternating(data: bytes) -> str | None:
    """UTF-16 without a mark that begins with two ASCII characters, as every known header does."""
    is_zero = [byte == 0 for byte in data[:4]]
    if is_zero == [False, True, False, True]:
        return "utf-16-le"
    return "utf-16-be" if is_zero == [True, False, True, False] else None


def _as_given(file: BinaryIO, head: bytes, given: str, evident: str | None) -> Encoding:
    candidates = _SEVERAL.get(given, (given,))
    if evident and evident not in candidates and _marked(head):
        raise refused(
            f"the file begins with the byte-order mark of {ENCODINGS[evident]}, but 'encoding' names another",
            1,
        )
    codec = next((codec for codec in candidates if codec == evident), candidates[0])
    fault = _first_fault(file, codec)
    if fault is not None:
        what = "the file contains a NUL byte" if fault.is_nul else f"the file is not {ENCODINGS[codec]}"
        raise refused(f"{what}, although 'encoding' names {given}", fault.line)
    return Encoding(codec)


def _assumed(file: BinaryIO, head: bytes, first: _Fault) -> Encoding:
    """The code page in which Excel saves files that are not UTF-8; nothing in the file names it."""
    codec = "mac-roman" if _ends_lines_with_cr(head, "utf-8") else "cp1252"
    fault = _first_fault(file, codec)
    unlikely = _unlikely_at(file, first.position, codec)
    if fault is not None or unlikely is not None:
        lines = [fault.line] if fault is not None else []
        line = min([*lines, *([_line_number_at(file, unlikely)] if unlikely is not None else [])])
        raise refused(
            f"the file is not UTF-8 and probably not {ENCODINGS[codec]}: name its encoding in 'encoding' "
            f"({_EXAMPLES}), or save it as UTF-8",
            line,
        )
    start = max(_line_start(file, first.position), first.position - 24)
    file.seek(start)
    sample = file.read(first.position + 36 - start).decode(codec)
    shown = sample.replace("\r", "\n").split("\n")[0][:MAX_SAMPLE_CHARACTERS]
    return Encoding(
        codec,
        f"the file is not UTF-8 and was read as {ENCODINGS[codec]}: line {first.line} has {shown!r}. If that "
        "is wrong, cancel the batch and name the encoding in 'encoding'",
    )


def _unlikely_at(file: BinaryIO, position: int, codec: str) -> int | None:
    """The position of evidence that a file is not Western text of one code page.

    The whole file is searched for words without ASCII letters and for UTF-8; lines are examined in the
    `EVIDENCE_BYTES` from the line of `position` on.
    """
    start = _line_start(file, position)
    patterns = {_UTF_8, _words_beyond_ascii(codec)}
    found: list[int] = []
    for begin, piece in _pieces_of_whole_lines(file):
        for pattern in list(patterns):
            if place := pattern.search(piece):
                found.append(begin + place.start())
                patterns.remove(pattern)  # only its first place counts
        if not patterns:
            break
    marks = _USUAL_MARKS.encode(codec, "ignore")
    file.seek(start)
    for line in re.finditer(rb"[^\r\n]+", file.read(EVIDENCE_BYTES)):
        text = line[0]
        if not text.isascii() and (_is_mostly_beyond_ascii(text, marks) or _is_utf_8(text, codec)):
            found.append(start + line.start())
            break
    return min(found, default=None)


def _pieces_of_whole_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Pieces of the file with their positions; only a line that is too long for a row is in several."""
    file.seek(0)
    begin, rest = 0, b""
    while piece := file.read(DECODED_BYTES):
        piece = rest + piece
        end = max(piece.rfind(b"\n"), piece.rfind(b"\r")) + 1
        if end == 0 and len(piece) > 4 * MAX_LINE_CHARACTERS:
            end = len(piece)
        if end:
            yield begin, piece[:end]
        begin, rest = begin + end, piece[end:]
    yield begin, rest


def _words_beyond_ascii(codec: str) -> re.Pattern[bytes]:
    """A word of three or more letters without an ASCII letter: Cyrillic or Greek in a code page."""
    letters = bytes(byte for byte in _BEYOND_ASCII if bytes([byte]).decode(codec, "replace").isalpha())
    beyond = re.escape(letters)
    # The same as (?<![A-Za-z%b])[%b]{3,}+, but beginning with a set: see _UTF_8.
    return re.compile(rb"[%b](?<![A-Za-z%b].)[%b]{2,}+(?![A-Za-z])" % ((beyond,) * 3), re.DOTALL)


def _is_mostly_beyond_ascii(line: bytes, marks: bytes) -> bool:
    num_letters = len(line) - len(line.translate(None, _LETTERS))
    others = line.translate(None, marks)
    return len(others) - len(others.translate(None, _BEYOND_ASCII)) > num_letters


def _is_utf_8(line: bytes, codec: str) -> bool:
    """Whether a line is UTF-8, and not by chance: `’é` in Mac OS Roman is also a letter in UTF-8."""
    if codec == "mac-roman":
        return False
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _line_number_at(file: BinaryIO, position: int) -> int:
    num_lf = num_cr = 0
    for piece in _pieces(file, position):
        num_lf, num_cr = num_lf + piece.count(b"\n"), num_cr + piece.count(b"\r")
    return 1 + (num_lf or num_cr)


def _line_start(file: BinaryIO, position: int) -> int:
    start, begin = 0, 0
    for piece in _pieces(file, position):
        if end := max(piece.rfind(b"\n"), piece.rfind(b"\r")) + 1:
            start = begin + end
        begin += len(piece)
    return start


def _pieces(file: BinaryIO, num_bytes: int) -> Iterator[bytes]:
    """The first bytes of the file, in pieces."""
    file.seek(0)
    while num_bytes > 0 and (piece := file.read(min(DECODED_BYTES, num_bytes))):
        num_bytes -= len(piece)
        yield piece


def _ends_lines_with_cr(data: bytes, codec: str) -> bool:
    text = codecs.getincrementaldecoder(codec)("replace").decode(data[:EVIDENCE_BYTES])
    before, mark, rest = text.partition("\r")
    return bool(mark) and "\n" not in before and not rest.lstrip("\r").startswith("\n")


def _first_fault(file: BinaryIO, codec: str) -> _Fault | None:
    decoder = codecs.getincrementaldecoder(codec)()
    file.seek(0)
    start = num_lf = num_cr = 0
    is_ascii = True
    while True:
        piece = file.read(DECODED_BYTES)
        num_kept = len(decoder.getstate()[0])  # bytes of a character that began in the previous piece
        position = None
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            position = start - num_kept + error.start
            text = bytes(error.object[: error.start]).decode(codec)
        is_nul = "\0" in text
        if is_nul:
            text = text[: text.index("\0")]
        num_lf, num_cr = num_lf + text.count("\n"), num_cr + text.count("\r")
        is_ascii = is_ascii and text.replace("\ufeff", "").isascii()
        if is_nul or position is not None:
            return _Fault(position or 0, 1 + (num_lf or num_cr), is_nul, not is_ascii)
        if not piece:
            return None
        start += len(piece)
