"""The trace on the page about measuring is read, and its program makes one of jobs as the API lists them."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.load.trace import Trace, read
from settings import ROOT

PAGE = (ROOT / "docs" / "howto" / "measure-a-service.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## Replay a trace\n")[1].split("\n## ")[0]
SCHEMAS = json.loads((ROOT / "docs" / "reference" / "openapi.json").read_text(encoding="utf-8"))["components"]


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
    return str(found)


def job(number: int, created_at: str, **fields: Any) -> dict[str, Any]:
    """A job with every field of the API, most of them null."""
    known = dict.fromkeys(SCHEMAS["schemas"]["JobResource"]["properties"])
    assert fields.keys() <= known.keys()
    shown = {"id": str(number), "created_at": created_at, "prompt": f"star {number}", "lane": "interactive"}
    return {**known, **shown, "num_inference_steps": 20, "seed": number, "num_images": 1, **fields}


def test_the_trace_of_the_page_is_read(tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_text(block("json"), encoding="utf-8")
    trace = read(tmp_path / "trace.jsonl")
    assert [(one.due_seconds, one.form, one.num_images) for one in trace.arrivals] == [
        (0.4, "single", 1),
        (7.25, "single", 2),
        (9.0, "csv", 2),
    ]
    requests = [request for one in trace.arrivals for request in one.requests]
    assert {name for one in requests for name in one} <= SCHEMAS["schemas"]["JobRequest"]["properties"].keys()


def test_the_program_of_the_page_makes_a_trace_of_jobs(tmp_path: Path) -> None:
    first = job(1, "2027-03-01T09:00:00Z", model="m")
    rows = [
        job(number, f"2027-03-01T09:00:02.{number}00000Z", batch_id="b", lane="bulk") for number in (2, 3)
    ]
    bulk = job(4, "2027-03-01T09:01:00+00:00", lane="bulk", num_images=3)
    trace = traced([bulk, *rows[::-1], first], tmp_path / "mine.jsonl")
    assert [(one.due_seconds, one.form) for one in trace.arrivals] == [
        (0.0, "single"),
        (2.2, "csv"),
        (60.0, "single"),
    ]
    (one,), (second, third), (last,) = (arrival.requests for arrival in trace.arrivals)
    assert [request["prompt"] for request in (one, second, third, last)] == [
        f"star {n}" for n in (1, 2, 3, 4)
    ]
    assert (one["seed"], one["model"], one["num_inference_steps"], one["lane"]) == (1, "m", 20, "interactive")
    assert "lane" not in second, "a row of a CSV has none"
    assert (last["lane"], last["num_images"]) == ("bulk", 3)
    assert one.keys() <= SCHEMAS["schemas"]["JobRequest"]["properties"].keys()
    assert traced([first], tmp_path / "lone.jsonl").seconds == 1.0


def traced(jobs: list[dict[str, Any]], path: Path) -> Trace:
    """What the page's program makes of a list of jobs, newest first."""
    answer = subprocess.run(
        [sys.executable, "-c", block("python")],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        check=True,
    )
    path.write_text(answer.stdout, encoding="utf-8")
    return read(path)
