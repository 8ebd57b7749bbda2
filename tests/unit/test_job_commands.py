"""The promises of the commands about jobs, against a server that answers as it is told."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from cli.terminal import EXIT_REFUSED, EXIT_USAGE
from tests.unit.test_command_line import in_a_pipe

CUT = {"code": "prompt_cut", "field": "prompt", "detail": "the end was not used: 'a bird'"}
WAITS = {"code": "no_live_worker", "detail": "no live worker serves tier 'hd'"}
DRAWN: dict[str, Any] = {"id": "job_1", "state": "succeeded", "progress": 1, "warnings": [CUT]}
BATCH: dict[str, Any] = {"id": "bat_1", "num_jobs": 2, "waiting_reasons": []}
IMAGE = {"index": 0, "url": "http://127.0.0.1/image", "sha256": hashlib.sha256(b"a png").hexdigest()}


@contextmanager
def serving(
    status: int = 200,
    paths: Mapping[str, Any] = MappingProxyType({}),
    posted: list[Any] | None = None,
    **answers: Any,
) -> Iterator[tuple[str, ...]]:
    """The options that lead to a server with one answer for GET, one for POST; `paths` go before them.

    `posted` takes the JSON bodies that come.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.endswith("/images/0"):
                self.send_response(302)
                self.send_header("Location", "/image")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if (path := self.path.split("?")[0]) in paths:
                found = paths[path]
                if isinstance(found, list):  # in turn, and the last one from then on
                    found = found.pop(0) if len(found) > 1 else found[0]
                self.answer(found if isinstance(found, bytes) else json.dumps(found).encode())
                return
            is_file = self.path == "/image" or self.path.endswith(".csv")
            self.answer(b"a png" if is_file else json.dumps(answers["get"]).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if posted is not None:
                posted.append(json.loads(body))
            self.answer(json.dumps(answers["post"]).encode())

        def answer(self, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        digest = hashlib.sha256(b"a png").hexdigest()
        image = {"images": [{"index": 0, "url": f"{url}/image", "sha256": digest}]}
        answers = {name: {**image, **answer} for name, answer in answers.items()}
        yield "--url", url, "--api-key", "a"
        server.shutdown()


def test_an_image_that_was_deleted_is_said_to_be_gone(tmp_path: Path) -> None:
    output = tmp_path / "a.png"
    with serving(get={**DRAWN, "images": [{"index": 0, "url": None}]}) as options:
        answer = in_a_pipe("get", "job_1", "-o", str(output), *options)
    assert answer.returncode == EXIT_REFUSED
    assert answer.stderr == "calotype: job job_1 is succeeded and has no image any more\n"
    assert not output.exists()


def test_a_prompt_that_was_cut_is_said_to_whoever_waited_for_the_image(tmp_path: Path) -> None:
    said = "warning: prompt_cut: the end was not used: 'a bird'"
    output = str(tmp_path / "a.png")
    for arguments in (("submit", "a long wish", "-o", output), ("watch", "job_1")):
        with serving(get=DRAWN, post={**DRAWN, "state": "queued"}) as options:
            answer = in_a_pipe(*arguments, *options)
        assert (answer.returncode, said in answer.stderr.splitlines()) == (0, True), answer.stderr
        assert "prompt_cut" not in answer.stdout
    assert Path(output).read_bytes() == b"a png"


def test_a_job_or_a_batch_that_nobody_will_take_says_so_when_it_is_submitted(tmp_path: Path) -> None:
    job = {"id": "job_1", "state": "queued", "waiting_reason": WAITS, "warnings": []}
    batch = {
        **BATCH,
        "state": "running",
        "counts": {"queued": 2},
        "waiting_reasons": [{"tier": "hd", **WAITS}],
    }
    path = tmp_path / "a.csv"
    path.write_text("prompt\na\nb\n")
    for words, made, shown in (
        (("submit", "a"), job, "job_1 queued\n"),
        (("csv", str(path)), batch, "bat_1 running, 2 jobs: 2 queued\n"),
    ):
        with serving(post=made) as options:
            answer = in_a_pipe(*words, *options)
        assert (answer.returncode, answer.stdout) == (0, shown)
        assert answer.stderr == f"{made['id']} waits: {WAITS['detail']}\n"


def test_a_batch_of_which_a_part_failed_ends_with_a_line_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt\na\nb\n")
    ended = {**BATCH, "state": "partially_failed", "counts": {"failed": 2}, "jobs": [], "next_cursor": None}
    with serving(get=ended, post={**BATCH, "state": "running", "counts": {"queued": 2}}) as options:
        answer = in_a_pipe("csv", str(path), "-o", str(tmp_path / "out"), *options)
    assert answer.returncode == EXIT_REFUSED
    assert answer.stderr.splitlines()[-1] == "calotype: bat_1 is partially_failed"


@pytest.mark.parametrize("command", ["get", "submit"])
def test_an_image_is_not_drawn_for_a_place_that_cannot_hold_it(tmp_path: Path, command: str) -> None:
    answer = in_a_pipe(command, "a", "-o", str(tmp_path), "--url", "http://127.0.0.1:9", "--api-key", "a")
    assert answer.returncode == 2
    assert "is a folder" in answer.stderr


def test_S20_every_mistake_of_a_csv_is_named_by_line_and_column_and_the_rest_is_counted(
    tmp_path: Path,
) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,seed\na,x\nb,y\nc,z\n")
    errors = [{"line": line, "field": "seed", "detail": "should be a whole number"} for line in (2, 3, 4)]
    errors.append({"line": 5, "field": "", "detail": "the row has 3 cells, the header 2"})
    problem = {"title": "Unprocessable", "detail": "line 2, seed: ...", "errors": errors, "num_errors": 250}
    with serving(status=422, post=problem) as options:
        answer = in_a_pipe("csv", str(path), *options)
    assert (answer.returncode, answer.stdout) == (EXIT_REFUSED, "")
    assert answer.stderr.splitlines() == [
        "calotype: prompts.csv was refused, and nothing was created:",
        "  line 2, seed: should be a whole number",
        "  line 3, seed: should be a whole number",
        "  line 4, seed: should be a whole number",
        "  line 5: the row has 3 cells, the header 2",
        "  and 246 more",
    ]


def test_S15_csv_says_how_the_file_was_read_and_what_was_assumed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt\na\n")
    warnings = [{"code": "encoding_assumed", "field": "encoding", "detail": "line 2 has 'ä'"}]
    rows = {"new": 1, "retried": 1, "already_succeeded": 3, "still_open": 0}
    made = {**BATCH, "state": "running", "counts": {"queued": 2}, "warnings": warnings, "rows": rows}
    with serving(post={**made, "read_as": "semicolons, Windows-1252"}) as options:
        answer = in_a_pipe("csv", str(path), *options)
    assert (answer.returncode, answer.stdout) == (0, "bat_1 running, 2 jobs: 2 queued\n")
    assert answer.stderr.splitlines() == [
        "read as semicolons, Windows-1252",
        "rows: 1 new, 1 retried, 3 already succeeded",
        "warning: encoding_assumed: line 2 has 'ä'",
    ]


@pytest.mark.parametrize("words", [(), ("a.csv", "--retry", "bat_1")])
def test_S22_csv_takes_a_file_or_a_batch_to_retry(words: tuple[str, ...]) -> None:
    answer = in_a_pipe("csv", *words, "--url", "http://127.0.0.1:9", "--api-key", "a")
    assert (answer.returncode, answer.stderr) == (2, "calotype: name either PATH or --retry BATCH\n")


def test_S22_csv_never_replaces_another_image_of_the_folder(tmp_path: Path) -> None:
    path, out = tmp_path / "a.csv", tmp_path / "out"
    path.write_text("prompt\na\n")
    out.mkdir()
    (out / "00002-0.png").write_bytes(b"another png")
    job = {"id": "job_1", "state": "succeeded", "batch_line": 2, "output_format": "png", "images": [IMAGE]}
    ended = {**BATCH, "state": "succeeded", "counts": {"succeeded": 1}, "jobs": [job], "next_cursor": None}
    said = []
    for _ in range(2):
        with serving(get=ended, post=ended) as options:
            answer = in_a_pipe("csv", str(path), "-o", str(out), *options)
        assert answer.returncode == 0, answer.stderr
        said.append("is another image: 00002-0-job_1.png is that of job job_1" in answer.stderr)
    saved = {file.name: file.read_bytes() for file in out.glob("*.png")}
    assert saved == {"00002-0.png": b"another png", "00002-0-job_1.png": b"a png"}
    assert said == [True, False]


@pytest.mark.parametrize("end", ["succeeded", "canceled"])
def test_S22_csv_waits_for_the_earlier_jobs_of_its_rows_and_saves_their_images(
    tmp_path: Path, end: str
) -> None:
    path, out = tmp_path / "a.csv", tmp_path / "out"
    path.write_text("job_id\njob_7\njob_8\n")
    rows = {"new": 0, "retried": 0, "already_succeeded": 1, "still_open": 1}
    ended = {**BATCH, "num_jobs": 0, "state": "succeeded", "counts": {}, "rows": rows}
    ended |= {"jobs": [], "next_cursor": None}
    job = {"output_format": "png", "warnings": []}
    drawn = {**job, "state": "succeeded", "images": [IMAGE]}
    last = {**job, "id": "job_8", "state": end, "images": [IMAGE] if end == "succeeded" else []}
    paths = {
        "/v1/batches/bat_1/results.csv": b"line,job_id\r\n2,job_7\r\n5,job_8\r\n",
        "/v1/jobs/job_7": {**drawn, "id": "job_7"},
        "/v1/jobs/job_8": [{**job, "id": "job_8", "state": "running", "images": []}, last],
    }
    with serving(get=ended, post=ended, paths=paths) as options:
        answer = in_a_pipe("csv", str(path), "-o", str(out), *options)
    saved = sorted(file.name for file in out.glob("*.png"))
    if end == "succeeded":
        assert (answer.returncode, saved) == (0, ["00002-0.png", "00005-0.png"]), answer.stderr
    else:
        assert (answer.returncode, saved) == (EXIT_REFUSED, ["00002-0.png"])
        assert answer.stderr.splitlines()[-1] == "calotype: job_8 of an earlier batch is canceled"


def test_S15_csv_says_what_is_doubtful_before_it_waits_and_says_it_once(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt\na\n")
    warnings = [{"code": "encoding_assumed", "field": "encoding", "detail": "line 2 has 'ä'"}]
    made = {**BATCH, "warnings": warnings, "jobs": [], "next_cursor": None, "read_as": "commas, Windows-1252"}
    ended = {**made, "state": "succeeded", "counts": {"succeeded": 2}}
    with serving(get=ended, post={**made, "state": "running", "counts": {"queued": 2}}) as options:
        answer = in_a_pipe("csv", str(path), "-o", str(tmp_path / "out"), *options)
    assert answer.stderr.splitlines() == [
        "read as commas, Windows-1252",
        "warning: encoding_assumed: line 2 has 'ä'",
        "bat_1 succeeded, 100 %",
    ]


def test_any_parameter_is_set_by_its_name_with_the_type_that_it_looks_like() -> None:
    posted: list[Any] = []
    given = {
        "clip_skip": "2",
        "true_cfg_scale": "4.5",
        "zero_init": "true",
        "mode": "Sharp",
        "style": '"7"',
        "formula": "a=b",
        "odd": "NaN",
        "list": "[1]",
        "scheduler": "euler",
        "num_images": "2",
        "lane": "bulk",
    }
    options = [option for name, value in given.items() for option in ("--set", f"{name}={value}")]
    with serving(post=DRAWN, posted=posted) as server:
        assert in_a_pipe("submit", "a red heart", *options, *server).returncode == 0
        assert in_a_pipe("submit", "a red heart", *server).returncode == 0
    assert posted[0]["pipeline_parameters"] == {
        "clip_skip": 2,
        "true_cfg_scale": 4.5,
        "zero_init": True,
        "mode": "Sharp",
        "style": "7",
        "formula": "a=b",
        "odd": "NaN",
        "list": "[1]",
    }
    assert (posted[0]["scheduler"], posted[0]["num_images"], posted[0]["lane"]) == ("euler", 2, "bulk")
    assert "pipeline_parameters" not in posted[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--set", "clip_skip"), "--set: 'clip_skip' is not NAME=VALUE"),
        (("--set", "=2"), "--set: '=2' is not NAME=VALUE"),
        (("--set", "prompt=b"), "--set: 'prompt' is given twice"),
        (("--set", "a=1", "--set", "a=2"), "--set: 'a' is given twice"),
        (("--steps", "4", "--set", "num_inference_steps=5"), "--set: 'num_inference_steps' is given twice"),
    ],
)
def test_a_set_that_is_no_name_and_value_is_refused_before_anything_is_sent(
    options: tuple[str, ...], said: str
) -> None:
    posted: list[Any] = []
    with serving(post=DRAWN, posted=posted) as server:
        ended = in_a_pipe("submit", "a red heart", *options, *server)
    assert (ended.returncode, posted) == (EXIT_USAGE, [])
    assert said in ended.stderr


def test_usage_is_a_table_with_its_sum_last() -> None:
    sums = {"num_images": 3, "device_seconds": 7.25, "unpriced_device_seconds": 0}
    cost = {"amount": 0.000123, "currency": "USD"}
    row = {"day": "2026-11-30", "tag": None, "num_jobs": 2, **sums, "cost": cost}
    total = {"num_jobs": 2, **sums, "cost": None, "unpriced_device_seconds": 7.25}
    report = {"since": "2026-11-01", "until": "2026-12-01", "data": [row], "total": total}
    with serving(paths={"/v1/usage": {**report, "next_cursor": None}}, get={}) as options:
        shown = in_a_pipe("usage", "--by", "tag", "--by", "day", *options)
        as_json = in_a_pipe("usage", "--json", *options)
    assert shown.stdout.splitlines() == [
        "day\ttag\tjobs\timages\tdevice seconds\tcost",
        "2026-11-30\t-\t2\t3\t7.25\t0.000123 USD",
        "total\t\t2\t3\t7.25\t-",
    ]
    assert shown.stderr == (
        "the cost is without 7.25 device seconds, which had no price or one in another currency\n"
    )
    assert json.loads(as_json.stdout) == report


def test_a_finished_job_is_shown_with_its_cost_and_its_tag() -> None:
    cost = {"amount": 0.0412, "currency": "EUR"}
    with serving(get={**DRAWN, "cost": cost, "tag": "project-7", "error": None}) as options:
        answer = in_a_pipe("get", "job_1", *options)
    assert "cost           0.0412 EUR" in answer.stdout.splitlines()
    assert "tag            project-7" in answer.stdout.splitlines()


def test_a_tag_is_sent_with_a_job() -> None:
    posted: list[Any] = []
    with serving(post={**DRAWN, "state": "queued"}, posted=posted) as options:
        assert in_a_pipe("submit", "a", "--tag", "project-7", *options).returncode == 0
    assert posted[0]["tag"] == "project-7"
