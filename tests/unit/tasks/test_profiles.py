"""Profiles lie in files that are found by what they were measured on, and by nothing else."""

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import structlog

from catalogue.accounting import DevicePrice, Prices
from catalogue.catalogue import load_catalogue
from catalogue.profile import Profile, ProfileKey
from engine.loading.load import LoadedModels
from engine.policy.profiles import EngineProfiles
from settings import ROOT
from tasks.profiles import (
    ProfileFolder,
    WorkerProfiles,
    cpu_name,
    key_of,
    measure_tier,
    worker_profiles,
)
from tests.unit.engine.fakes import FakeModel
from tests.unit.engine.test_profile import KEY, profile_of

TIERS = load_catalogue(ROOT / "calotype.toml").tiers
SD, HD = TIERS


def loaded() -> LoadedModels:
    return LoadedModels({"tiny": FakeModel()}, {"tiny": {16384: 8, 36864: 8}}, "exact")


def measured(seconds: dict[int, float]) -> Profile:
    """A profile of this machine's own key for `sd`, with these numbers."""
    return replace(profile_of(seconds), key=key_of(SD, loaded()))


def test_a_profile_is_read_back_for_its_tier_and_key_alone(tmp_path: Path) -> None:
    folder = ProfileFolder(tmp_path / "made" / "when needed")
    profile = profile_of({4: 0.4, 8: 0.6})
    assert folder.read("sd", KEY) is None
    file = folder.write("sd", profile)
    assert folder.read("sd", KEY) == profile
    assert folder.read("hd", KEY) is None
    assert folder.read("sd", replace(KEY, torch_version="3.0")) is None
    assert list(file.parent.iterdir()) == [file]


def test_a_newer_profile_of_the_same_key_takes_the_place_of_the_older(tmp_path: Path) -> None:
    folder = ProfileFolder(tmp_path)
    folder.write("sd", profile_of({4: 0.4}))
    folder.write("sd", profile_of({4: 0.5}))
    assert folder.read("sd", KEY) == profile_of({4: 0.5})


def test_a_file_that_is_no_profile_counts_as_none(tmp_path: Path) -> None:
    folder = ProfileFolder(tmp_path)
    file = folder.write("sd", profile_of({4: 0.4}))
    other = folder.write("sd", profile_of({4: 0.4}, replace(KEY, dtype="bfloat16")))
    for text in ("", "[]", "{", json.dumps({"version": 99}), other.read_text() + "x"):
        file.write_text(text)
        assert folder.read("sd", KEY) is None, text


def test_a_worker_finds_what_was_measured_on_its_device_and_caps_what_does_not_pay(
    tmp_path: Path,
) -> None:
    folder = ProfileFolder(tmp_path)
    folder.write("sd", measured({4: 0.4, 8: 0.8}))
    profiles = worker_profiles(folder, TIERS, loaded())
    assert profiles.found.keys() == {"sd"}
    assert profiles.engine.capped(loaded().row_limits) == {"tiny": {16384: 4, 36864: 8}}
    assert profiles.fingerprints.keys() == {"sd", "hd"}
    (published,) = profiles.published
    assert (published.tier, published.model) == ("sd", "tiny")
    assert published.profile == profiles.found["sd"]
    assert published.profile.key.fingerprint == profiles.fingerprints["sd"]
    assert (published.profile.max_rows, published.profile.is_worth_batching) == (4, False)


def test_a_learned_profile_has_the_knee_of_its_steps_and_the_configured_cap() -> None:
    few = replace(profile_of({4: 0.4}), learned_max_rows=16)
    assert (few.is_learned, few.knee_rows, few.is_worth_batching, few.max_rows) == (True, 4, False, 16)
    more = replace(few, steps=profile_of({4: 0.4, 8: 0.5, 12: 0.75}).steps)
    assert (more.knee_rows, more.is_worth_batching, more.max_rows) == (8, True, 16)


def test_a_worker_without_profiles_runs_as_configured(tmp_path: Path) -> None:
    profiles = worker_profiles(ProfileFolder(tmp_path / "nothing"), TIERS, loaded())
    assert profiles.engine.capped(loaded().row_limits) == loaded().row_limits
    assert not profiles.published


def test_what_is_measured_is_what_the_worker_looks_for(tmp_path: Path) -> None:
    folder = ProfileFolder(tmp_path)
    profile = measure_tier(HD, loaded(), scheduler="ddim", seconds=0)
    folder.write("hd", profile)
    assert [step.num_rows for step in profile.steps] == [4, 8]
    assert worker_profiles(folder, TIERS, loaded()).found == {"hd": profile}


def test_a_processor_is_called_what_it_calls_itself(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: An Abacus @ 3 beads\nmodel name\t: Another\n")
    assert cpu_name(cpuinfo) == "An Abacus @ 3 beads"
    cpuinfo.write_text("processor\t: 0\n")
    assert cpu_name(cpuinfo) == cpu_name(tmp_path / "nothing") != ""


def of_device(key: ProfileKey) -> WorkerProfiles:
    return WorkerProfiles({"sd": key, "hd": key}, {}, EngineProfiles({}, {}), [])


def test_a_worker_charges_the_price_of_its_gpu_or_that_of_cpus() -> None:
    prices = Prices(currency="EUR", per_hour={"NVIDIA H200": 3.6, "cpu": 0.05})
    cpu, gpu = KEY, replace(KEY, device_name="NVIDIA H200", num_threads=0)
    assert of_device(gpu).price_of_device(prices) == DevicePrice(Decimal("3.6"), "EUR")
    assert of_device(cpu).price_of_device(prices) == DevicePrice(Decimal("0.05"), "EUR")


def test_a_device_without_a_price_is_logged_unless_none_has_one() -> None:
    gpu = of_device(replace(KEY, device_name="NVIDIA A100", num_threads=0))
    with structlog.testing.capture_logs() as logged:
        assert gpu.price_of_device(Prices(per_hour={"cpu": 0.05})) is None, "a GPU has no price of a CPU"
        assert gpu.price_of_device(Prices()) is None
    assert [(one["event"], one["device"]) for one in logged] == [("device_without_price", "NVIDIA A100")]
