"""A profile follows from its numbers: the knee, the cap, the seconds of a step, and its fingerprint."""

import json
from dataclasses import replace

import pytest

from catalogue.profile import Profile, ProfileKey, StepCost
from engine.policy.policy import BatchKey
from engine.policy.profiles import EngineProfiles

KEY = ProfileKey("0123", "float32", "a processor", 1, "2.0", width=128, height=128)


def profile_of(seconds: dict[int, float], key: ProfileKey = KEY) -> Profile:
    steps = tuple(StepCost.of_median(rows, one) for rows, one in seconds.items())
    return Profile(key, steps, encode_seconds=0.01, decode_seconds=0.02, num_guided_rows=2)


def test_the_knee_is_where_the_last_gain_of_a_twentieth_ends() -> None:
    # Rows a second: 40, 60, 70, 70.5.
    profile = profile_of({4: 4 / 40, 8: 8 / 60, 12: 12 / 70, 16: 16 / 70.5})
    assert profile.knee_rows == 12
    assert profile.is_worth_batching
    assert profile.max_rows == 12  # 70.5 is no more than the noise above 70


def test_small_gains_that_add_up_move_the_knee() -> None:
    profile = profile_of({rows: rows / (100 + rows) for rows in range(4, 33, 4)})
    assert profile.knee_rows == 28  # 104 a second, 112 (8), 120 (20), 128 (28); 132 is 3 % more


def test_rows_beyond_the_fastest_bucket_are_capped() -> None:
    profile = profile_of({4: 4 / 40, 8: 8 / 60, 12: 12 / 50, 16: 16 / 45})
    assert (profile.knee_rows, profile.max_rows) == (8, 8)


def test_rows_that_still_gain_a_little_are_kept() -> None:
    profile = profile_of({4: 4 / 40, 8: 8 / 60, 12: 12 / 62})
    assert (profile.knee_rows, profile.max_rows) == (8, 12)


def test_a_tier_that_is_not_worth_batching_is_capped() -> None:
    profile = profile_of({4: 0.4, 8: 0.79, 12: 1.19})
    assert not profile.is_worth_batching
    assert (profile.knee_rows, profile.max_rows) == (4, 4)


def test_a_step_costs_what_its_bucket_costs() -> None:
    profile = profile_of({4: 0.4, 8: 0.6})
    assert [profile.step_seconds(rows) for rows in (1, 4, 5, 8)] == [0.4, 0.4, 0.6, 0.6]
    assert profile.step_seconds(16) == pytest.approx(1.2)


def test_a_profile_comes_back_from_json_as_it_went() -> None:
    profile = replace(profile_of({4: 0.4, 8: 0.6}), out_of_memory_rows=12, decode_memory_bytes=1)
    assert Profile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"version": None},
        {"steps": []},
        {"steps": [{"num_rows": 4}]},
        {"steps": None},
        {"key": {"dtype": "float32"}},
        {"fingerprint": "0"},
    ],
)
def test_what_is_no_profile_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"profile|version|fingerprint"):
        Profile.from_dict({**profile_of({4: 0.4}).to_dict(), **change})


def test_rows_that_do_not_rise_and_steps_that_take_no_time_are_refused() -> None:
    for seconds in ({8: 0.4, 4: 0.2}, {}, {4: 0.0}):
        with pytest.raises(ValueError, match="invalid profile"):
            profile_of(seconds)


def test_all_that_changes_the_speed_changes_the_fingerprint() -> None:
    changes: list[dict[str, object]] = [
        {"model_digest": "4567"},
        {"dtype": "bfloat16"},
        {"device_name": "another"},
        {"num_threads": 2},
        {"torch_version": "3.0"},
        {"width": 64},
        {"height": 64},
    ]
    changed = {replace(KEY, **change).fingerprint for change in changes}  # type: ignore[arg-type]
    assert len(changed | {KEY.fingerprint}) == len(changes) + 1


def test_a_device_is_named_with_its_threads_unless_it_is_a_gpu() -> None:
    assert KEY.device_kind == "a processor, 1 thread"
    assert replace(KEY, num_threads=4).device_kind == "a processor, 4 threads"
    assert replace(KEY, num_threads=0, device_name="a GPU").device_kind == "a GPU"


PROFILES = EngineProfiles({"tiny": {16384: profile_of({4: 0.4, 8: 0.79})}}, {"tiny": 8, "other": 8})


def test_row_limits_are_lowered_to_what_pays_and_never_raised() -> None:
    limits = {"tiny": {16384: 16, 36864: 8}, "other": {16384: 16}}
    assert PROFILES.capped(limits) == {"tiny": {16384: 4, 36864: 8}, "other": {16384: 16}}
    assert PROFILES.capped({"tiny": {16384: 2}}) == {"tiny": {16384: 2}}


def test_seconds_of_a_step_are_in_proportion_to_the_pixels_of_what_was_measured() -> None:
    assert PROFILES.step_seconds(BatchKey("tiny", 16, 16), 6) == 0.79
    assert PROFILES.step_seconds(BatchKey("tiny", 8, 16), 6) == pytest.approx(0.79 / 2)
    assert PROFILES.step_seconds(BatchKey("tiny", 24, 24), 6) is None
    assert PROFILES.step_seconds(BatchKey("other", 16, 16), 6) is None
    # Its class goes up to twice the measured side.
    class_profile = EngineProfiles({"tiny": {4 * 16384: profile_of({4: 0.4})}}, {"tiny": 8})
    assert class_profile.step_seconds(BatchKey("tiny", 32, 32), 4) == pytest.approx(4 * 0.4)
