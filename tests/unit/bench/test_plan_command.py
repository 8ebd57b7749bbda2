"""`calotype plan` on the command line: what it asks for, what it needs, and how it refuses."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from bench.plan.search import Plan
from cli.__main__ import app
from cli.plan import _write
from settings import load_settings
from tests.unit.bench.test_plan import FLAT, request


@pytest.mark.parametrize("goals", ["", "[goals]\n"])
def test_a_rate_is_a_goal_as_an_option_and_in_a_file(tmp_path: Path, goals: str) -> None:
    profile = tmp_path / "sd.json"
    profile.write_text(json.dumps(FLAT.profile.to_dict()), encoding="utf-8")
    file = tmp_path / "plan.toml"
    file.write_text(
        f"[traffic]\njobs_per_second = 4\njobs = [{{tier = 'sd', width = 128, height = 128}}]\n{goals}"
        f"[[devices]]\nname = 'd'\nprofiles = {{sd = '{profile}'}}\n"
    )
    here = ["--data-dir", str(tmp_path / "data")]
    for words in (["--rate", "4", "--profile", f"sd={profile}"], [str(file)]):
        done = CliRunner().invoke(app, ["plan", *words, *here])
        assert done.exit_code == 0, done.output
        assert "the only goal is to keep up with 4 images/s" in done.output


@pytest.mark.parametrize(
    ("command", "module", "where"),
    [
        ("plan", "bench.plan.search", "a checkout, or the API image"),
        ("bench", "bench.load", "a checkout"),
    ],
)
def test_a_command_that_an_image_lacks_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, command: str, module: str, where: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    refused = CliRunner().invoke(app, [command])
    assert refused.exit_code == 2
    assert refused.output == f"calotype: this command needs {where}: there is no {module} here\n"


def test_a_plan_without_plots_is_written_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "bench.plan.charts", raising=False)
    monkeypatch.setitem(sys.modules, "bench.charts", None)
    written = _write(Plan(request(), None, 0, ()), load_settings(data_dir=tmp_path), tmp_path)
    assert [file.name for file in written] == ["plan.json"]
    assert capsys.readouterr().err == "no plots: bench.charts is not installed\n"


def test_a_fault_in_the_plots_is_not_taken_for_a_missing_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bench.plan.charts", ModuleType("without_draw"))
    with pytest.raises(ImportError, match="draw"):
        _write(Plan(request(), None, 0, ()), load_settings(data_dir=tmp_path), tmp_path)
