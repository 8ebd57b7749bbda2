"""`calotype plan` on the command line: what it asks for, what it needs, and how it refuses."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from bench.plan.profiles import PlanError
from bench.plan.search import Plan
from cli.__main__ import app
from cli.plan import _offer, _one_job, _write
from settings import ROOT, Settings, load_settings
from tests.unit.bench.test_plan import FLAT, STEEP, request


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


CONFIGURED = 'currency = "EUR"\n[prices.per_hour]\ncpu = 0.07\n"NVIDIA H200" = 3.5\n'


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Those of a `calotype.toml` with prices, and of two measured profiles of one CPU."""
    text = (ROOT / "calotype.toml").read_text(encoding="utf-8")
    before, _, after = text.partition("[prices]")
    config = tmp_path / "calotype.toml"
    config.write_text(f"{before}[prices]\n{CONFIGURED}\n[[workers]]{after.partition('[[workers]]')[2]}")
    for tier in ("sd", "hd"):
        (tmp_path / f"{tier}.x.json").write_text(json.dumps(FLAT.profile.to_dict()), encoding="utf-8")
    return load_settings(data_dir=tmp_path, config=config, profiles_dir=tmp_path)


def offered(settings: Settings, *profile: str, price: float | None = None) -> float:
    """The price of the device of these options."""
    traffic = _one_job(settings.catalogue, profile)
    found: float = _offer(traffic, profile, price, None, settings)["price_per_hour"]
    return found


def test_a_device_costs_what_the_configuration_says_of_its_hardware(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert offered(settings) == 0.07
    told = "a device costs 0.07 EUR an hour, by [prices] of calotype.toml\n"
    assert capsys.readouterr().err == told
    assert offered(settings, "sd=h200-qwen-image-512") == 3.5
    assert offered(settings, "sd=h100-flux-1-dev-1024") == 0, "no price is known"
    assert offered(settings, "sd=measured", price=2.0) == 2.0
    assert offered(settings, price=0.0) == 0


def test_devices_of_different_prices_need_one_on_the_command_line(settings: Settings) -> None:
    mixed = ("sd=h200-qwen-image-512", "hd=measured")
    with pytest.raises(PlanError, match=r"--price: .* different prices \(sd 3.5, hd 0.07\)"):
        offered(settings, *mixed)
    assert offered(settings, *mixed, price=1.0) == 1.0


@pytest.mark.parametrize("num", [0, 5001])
def test_no_more_devices_may_be_had_than_a_plan_can_have(settings: Settings, num: int) -> None:
    with pytest.raises(PlanError, match=f"--max-devices: {num} is not between 1 and 5000"):
        _offer(_one_job(settings.catalogue, None), None, None, num, settings)


def test_more_devices_than_64_are_planned_if_they_may_be_had(tmp_path: Path) -> None:
    """Each serves half an image a second, at 90 % of what it can: 35 images/s need 78."""
    profile = tmp_path / "sd.json"
    profile.write_text(json.dumps(STEEP.profile.to_dict()), encoding="utf-8")
    words = ["plan", "--rate", "35", "--profile", f"sd={profile}", "--data-dir", str(tmp_path / "data")]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 1
    assert "the work alone needs 78, and there are 64" in refused.output
    assert "more devices than --max-devices, 64, might meet them" in refused.output
    done = CliRunner().invoke(app, [*words, "--max-devices", "80", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["recommended"]["devices"] == 78


def test_options_that_a_file_has_are_refused_beside_it(tmp_path: Path) -> None:
    for option, value in (("--price", "0"), ("--max-devices", "9"), ("--profile", "sd=measured")):
        refused = CliRunner().invoke(app, ["plan", str(tmp_path / "plan.toml"), option, value])
        assert refused.exit_code == 2
        assert f"{option}: the file says it" in refused.output


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
