"""Measures the API's parsers on the largest hostile inputs: CPU time at half of the limit and at the limit.

    python -m bench.parsers [--repeats 3]

One row a parser and input: bytes, CPU milliseconds of n/2 and n bytes (the best of the repeats), their
ratio, and the peak of the memory that parsing took besides its input. A ratio near 2 is linear, near 4 the
square; near 1, the input was refused by a count before it was read. It needs no service.
"""

import argparse
import io
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pydantic import ValidationError
from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import HTTPException
from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_accept_header, parse_cookie, parse_etags, parse_options_header

from web.api.json_body import parse_object
from web.api.paging import decode_cursor
from web.api.schemas import JobRequest, field_errors
from web.api.webhook_url import check_webhook_url
from web.csv.rows import parse_csv
from web.middleware import MAX_HEADER_BYTES
from web.refusals import Refusal

CSV_BYTES, BODY_BYTES, MAX_ROWS = 10_000_000, 65_536, 10_000


@dataclass(frozen=True)
class Case:
    """One parser and one kind of hostile input, made at a size."""

    parser: str
    name: str
    parse: Callable[[bytes], object]
    make: Callable[[int], bytes]
    max_bytes: int


def read_csv(data: bytes, encoding: str | None = None) -> None:
    """Read every row, and the request of each valid one."""
    for row in parse_csv(data, max_rows=MAX_ROWS, encoding=encoding):
        if not row.errors:
            _as_job(row.cells)


def read_json(data: bytes) -> None:
    """Read the body and its request."""
    _as_job(parse_object(data))


def _as_job(fields: dict[str, object]) -> None:
    try:
        JobRequest.model_validate(fields)
    except ValidationError as error:
        field_errors(error)


def read_multipart(data: bytes) -> None:
    """Parse the upload with werkzeug and our limit of parts."""
    parser = FormDataParser(lambda *_, **__: io.BytesIO(), max_form_parts=32, max_form_memory_size=500_000)
    parser.parse(io.BytesIO(data), "multipart/form-data", len(data), {"boundary": "x"})


def read_accept(data: bytes) -> object:
    """Choose between JSON and HTML, as for a missing page."""
    accepted = parse_accept_header(data.decode(), MIMEAccept)
    return accepted.best_match(["application/problem+json", "application/json", "text/html"])


def cases_of(parser: str, parse: Callable[[bytes], object], limit_bytes: int) -> Callable[..., Case]:
    """Makes cases of one parser: `before`, then a piece again and again, then `after`."""

    def make_case(
        name: str, piece: bytes, *, before: bytes = b"", after: bytes = b"", max_bytes: int = limit_bytes
    ) -> Case:
        def make(num_bytes: int) -> bytes:
            return before + piece * ((num_bytes - len(before) - len(after)) // len(piece)) + after

        return Case(parser, name, parse, make, max_bytes)

    return make_case


def of_text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    """The same for a parser that takes text."""
    return lambda data: parse(data.decode())


CSV = cases_of("csv", read_csv, CSV_BYTES)
GB18030 = cases_of("csv, gb18030", partial(read_csv, encoding="gb18030"), CSV_BYTES)
MULTIPART = cases_of("multipart", read_multipart, CSV_BYTES)
JSON = cases_of("json", read_json, BODY_BYTES)
HEADER = "prompt,guidance_scale\na,"
FILE = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
END = b"\r\n--x--"
MARKS = "\u0301\u0316".encode()
EMOJI = "\U0001f7e2".encode()

CASES = (
    CSV("header a,a,a,...", b"a,", max_bytes=5_000_000),
    CSV("header prompt,prompt,...", b"prompt,", max_bytes=140_000),
    CSV("one header without an end", b"a"),
    CSV("empty lines", b"\n", before=b"prompt\n"),
    CSV("commas", b"," * 1000 + b"\n", before=b"prompt,seed\n"),
    CSV("one quoted cell of line breaks", b"\n", before=b'prompt\n"'),
    CSV("quotes", b'""', before=b'prompt\n"'),
    CSV("rows, each with an error", b"a red heart," + b"1" * 30 + b"x\n", before=b"prompt,seed\n"),
    CSV("prompts of 1,000 characters", b"a" * 999 + b"\n", before=b"prompt\n"),
    CSV("emoji", EMOJI * 249 + b"\n", before=b"prompt\n"),
    CSV("combining marks", MARKS * 250 + b"\n", before=b"prompt\n"),
    CSV("a number without an end", b"1", before=HEADER.encode(), after=b"x\n", max_bytes=131_000),
    CSV("no UTF-8 at its end", b"a", before=b"prompt\n", after=b"\xff"),
    CSV("Windows-1252", b"caf\xe9 " * 100 + b"\n", before=b"prompt\n"),
    CSV("Windows-1252, one line", b"\xe9a", before=b"prompt\n"),
    CSV("UTF-16", "grün ".encode("utf-16-le") * 100 + b"\n\0", before="\ufeffprompt\n".encode("utf-16-le")),
    CSV("UTF-16 of surrogates", b"\x00\xd8", before="\ufeffprompt\n".encode("utf-16-le")),
    CSV("marks in the middle", "\ufeff".encode(), before=b"prompt\n"),
    CSV("CR", b"a\r", before=b"prompt\r"),
    CSV("lone CR inside a cell", b"a\r", before=b"prompt\n"),
    CSV("empty columns", b"," * 100_000 + b"\n", before=b"prompt"),
    CSV("near titles", b"num_inference_stepz,", before=b"prompt,", max_bytes=1200),
    CSV("the header again", b"prompt,seed\n"),
    CSV("quotes, never closed", b'"a\n', before=b"prompt,seed\n"),
    CSV("quoted cells of semicolons", b'";";', before=b"prompt;"),
    CSV("spaces before quotes", b' "a",', before=b"prompt, seed\n"),
    CSV("separators in numbers", b"a;1.000.000,0\n", before=b"prompt;guidance_scale\n"),
    GB18030("two bytes a character", b"\xb0\xa1" * 200 + b"\n", before=b"prompt\n"),
    GB18030("a byte that it lacks, at the end", b"\xb0\xa1", before=b"prompt\n", after=b"\xff"),
    MULTIPART("a file of line breaks", b"\r\n", before=FILE, after=END),
    MULTIPART("a file of carriage returns", b"\r", before=FILE, after=END),
    MULTIPART("almost boundaries", b"\r\n--", before=FILE, after=END),
    MULTIPART("parts", FILE + b"a\r\n"),
    MULTIPART("a part's header without an end", b"A: b\r\n", before=b"--x\r\n"),
    JSON("members", b'"a":1,', before=b"{", after=b'"a":1}'),
    JSON("a list of numbers", b"1,", before=b'{"prompt":[', after=b"1]}"),
    JSON("a deep list", b"["),
    JSON("a number without an end", b"1", before=b'{"seed":', after=b"}"),
    JSON("escapes", b"\\u00e9", before=b'{"prompt":"', after=b'"}'),
    JSON("combining marks", MARKS, before=b'{"prompt":"a', after=b'"}'),
    JSON("marks in runs of 30", b"a" + MARKS * 15, before=b'{"prompt":"', after=b'"}'),
    cases_of("cursor", of_text(decode_cursor), BODY_BYTES)("letters", b"A"),
    cases_of("webhook url", of_text(check_webhook_url), 2048)("dots", b"a.", before=b"https://"),
    cases_of("cookie", of_text(parse_cookie), MAX_HEADER_BYTES)("a;a;", b"a;"),
    cases_of("accept", read_accept, MAX_HEADER_BYTES)("a,a,", b"a,"),
    cases_of("if-none-match", of_text(parse_etags), MAX_HEADER_BYTES)("a,a,", b"a,"),
    cases_of("content-type", of_text(parse_options_header), MAX_HEADER_BYTES)("x;a;a;", b"a;", before=b"x;"),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="What hostile inputs cost the parsers.")
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print(f"{'parser':14}{'input':33}{'bytes':>11}{'ms at n/2':>11}{'ms at n':>9}{'ratio':>7}{'peak MB':>9}")
    for case in CASES:
        half = cpu_milliseconds(case, case.max_bytes // 2, repeats)
        whole = cpu_milliseconds(case, case.max_bytes, repeats)
        ratio = f"{whole / half:.1f}" if whole > 1 else "-"  # times below a millisecond are noise
        row = f"{case.parser:14}{case.name:33}{case.max_bytes:11,}{half:11.1f}{whole:9.1f}{ratio:>7}"
        print(f"{row}{peak_megabytes(case):9.2f}", flush=True)


def cpu_milliseconds(case: Case, num_bytes: int, repeats: int) -> float:
    """The best of several parses of a fresh input."""
    data = case.make(num_bytes)
    return min(_timed(case, data) for _ in range(repeats))


def peak_megabytes(case: Case) -> float:
    """Return the peak memory of parsing the largest input, without the input."""
    data = case.make(case.max_bytes)
    tracemalloc.start()
    try:
        _run(case, data)
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def _timed(case: Case, data: bytes) -> float:
    began = time.process_time()
    _run(case, data)
    return (time.process_time() - began) * 1000


def _run(case: Case, data: bytes) -> None:
    try:
        case.parse(data)
    except (Refusal, HTTPException, ValueError):
        return  # most of these inputs are meant to be refused


if __name__ == "__main__":
    main()
