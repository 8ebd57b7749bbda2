"""`calotype bench`: what it writes, and that a wrong option is named before anything is sent."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.load.report import ResultError
from bench.load.report import read as read_result
from bench.load.trace import read
from cli.terminal import EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_USAGE
from settings import ROOT

from .fake_service import FakeService, Faults, served

NOBODY = "http://127.0.0.1:9"


def bench(*arguments: str, url: str = NOBODY) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "CALOTYPE_URL": url, "CALOTYPE_API_KEY": "calo_key"}
    return subprocess.run(
        [sys.executable, "-m", "cli", "bench", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_a_sweep_writes_tables_traces_and_plots(tmp_path: Path) -> None:
    load = ("--seconds", "1", "--warm-up", "0", "--arrivals", "constant")
    options = ("--drain", "20", "--slo", "5")
    with served(FakeService(draw_seconds=0.01)) as service:
        first = bench("--rate", "4,8", *load, *options, "-o", str(tmp_path / "a"), "--json", url=service.url)
        assert first.returncode == 0, first.stderr
        replay = ("--trace", str(tmp_path / "a" / "trace-2.jsonl"), "--name", "again")
        second = bench(
            *replay, *options, "--beside", str(tmp_path / "a"), "-o", str(tmp_path / "b"), url=service.url
        )
    assert second.returncode == 0, second.stderr
    document = json.loads(first.stdout)
    assert document == read_result(tmp_path / "a")
    assert [run["num_requests"] for run in document["runs"]] == [4, 8]
    assert [run["in_goal_share"] for run in document["runs"]] == [1.0, 1.0]
    plots = {"latency-throughput", "latency-1", "latency-2", "occupancy-1", "occupancy-2"}
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert {f"{name}.{kind}" for name in plots for kind in ("png", "svg")} <= files
    with (tmp_path / "a" / "summary.csv").open() as file:
        assert [0 < float(row["p95_seconds"]) < 5 for row in csv.DictReader(file)] == [True, True]
    with (tmp_path / "a" / "requests-2.csv").open() as file:
        requests = list(csv.DictReader(file))
    assert [one["kind"] for one in requests] == ["succeeded"] * 8
    assert read(tmp_path / "b" / "trace-1.jsonl") == read(tmp_path / "a" / "trace-2.jsonl")
    assert "images/s" in second.stdout.splitlines()[0]
    assert str(tmp_path / "b" / "latency-throughput.png") in second.stdout


def test_a_wrong_image_ends_with_an_error(tmp_path: Path) -> None:
    with served(FakeService(faults=Faults(spoils=lambda number: number > 3))) as service:
        answer = bench(
            *("--rate", "8", "--seconds", "1", "--warm-up", "0", "-o", str(tmp_path)), url=service.url
        )
    assert answer.returncode == EXIT_REFUSED
    assert "an image was not the one that its job names" in answer.stderr
    assert "wrong (image: another hash)" in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "0"], "--rate: '0' is not a number of images a second, up to 100,000"),
        (["--rate", "1,,2"], "--rate: '' is not a number"),
        (["--slo", "fast"], "--slo: 'fast' is neither seconds"),
        (["--steps", "4:0"], "--steps: a weight must be above 0"),
        (["--size", "128"], "--size: '128' is not WIDTHxHEIGHT"),
        (["--images", "5"], "--images: '5' is not a whole number from 1 to 4"),
        (["--lane", "fast"], "--lane: 'fast' is not one of interactive, bulk"),
        (["--arrivals", "tidal"], "--arrivals: 'tidal' is not one of poisson, constant, ramp, bursts"),
        (["--prompts", "missing.txt"], "--prompts: missing.txt: No such file"),
        (["--trace", "README.md"], "--trace: line 1 is not JSON"),
        (["--trace", "README.md", "--search"], "--search draws its own requests"),
        (
            ["--trace", "README.md", "--size", "64x64", "--warm-up", "5"],
            "--trace has its own requests and times: leave out --warm-up, --size",
        ),
        (["--trace", "README.md", "--model", "tiny"], "leave out --model"),
        (["--search", "--rate", "1,2"], "--search starts at one rate"),
        (["--beside", "docs"], "--beside: docs/result.json: No such file"),
        (["-o", "README.md"], "-o: README.md is a file"),
        (["-o", "README.md/x"], "-o: README.md/x: Not a directory"),
    ],
)
def test_an_option_that_is_wrong_is_named(arguments: Sequence[str], said: str) -> None:
    answer = bench(*arguments)
    assert answer.returncode == EXIT_USAGE, answer.stderr
    assert said in answer.stderr


def test_a_service_that_does_not_answer_is_unreachable() -> None:
    answer = bench()
    assert answer.returncode == EXIT_UNREACHABLE
    assert "is not answered" in answer.stderr


def test_another_file_is_no_result(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"runs": []}'):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(ResultError):
            read_result(tmp_path)
