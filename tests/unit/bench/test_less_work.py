"""What the measurement of less work rests on: fair requests, an error in decibels, presets as they ship."""

from collections import Counter

import numpy as np
import pytest

from bench.bare import BarePrices
from bench.less_work import (
    CACHE,
    CUTOFF,
    Option,
    Quality,
    captions,
    gains,
    most_gain,
    presets,
    psnr,
    requests,
)
from catalogue.catalogue import load_catalogue
from engine.loading.load import LoadedModels
from settings import ROOT
from tests.unit.engine.fakes import FakeCachingModel


def test_requests_have_the_shipped_mix_of_steps_in_an_order_of_the_seed() -> None:
    asked = requests(20, 1, {})
    counts = Counter(one.num_inference_steps for one in asked)
    assert counts == {4: 4, 12: 4, 20: 6, 30: 4, 50: 2}
    assert asked == requests(20, 1, {})
    other = [one.num_inference_steps for one in requests(20, 2, {})]
    assert [one.num_inference_steps for one in asked] != other
    assert {one.guidance_scale for one in asked} == {4.0}
    assert len({one.seed for one in asked}) == 20


def test_what_the_full_run_is_given_goes_before_the_mix() -> None:
    asked = requests(10, 0, {"num_inference_steps": 20, "guidance_scale": 2.0})
    assert {(one.num_inference_steps, one.guidance_scale) for one in asked} == {(20, 2.0)}


def test_captions_are_of_one_thing_and_of_two_in_turn() -> None:
    scenes = captions(8)
    assert [scene.second is not None for scene in scenes] == [False, True] * 4
    assert len({scene.caption() for scene in scenes}) == 8


def test_decibels_are_those_of_the_definition_and_equal_images_count_as_99() -> None:
    image = np.full((4, 4, 3), 100, dtype=np.uint8)
    assert psnr(image, image) == 99
    assert psnr(image, image + np.uint8(10)) == pytest.approx(28.13, abs=0.01)  # 10 log10(255² / 100)
    assert psnr(np.zeros_like(image), np.full_like(image, 255)) == 0


STEPS_ALONE = BarePrices(row_seconds=1.0, encode_seconds=0.0, decode_seconds=0.0)


def test_what_an_option_could_gain_is_what_it_leaves_out() -> None:
    assert most_gain(CUTOFF, STEPS_ALONE, 1.0) == pytest.approx(4 / 3), "two rows, then one"
    assert most_gain(CACHE, STEPS_ALONE, 1.0) == 1.0
    # Full of 4, 12, 20, 30 and 50 steps are 4, 7, 10, 13 and 20: of 20.2 steps in the mean, 9.8.
    assert most_gain(CACHE, STEPS_ALONE, 0.0) == pytest.approx(20.2 / 9.8)
    both = Option("both", {**CUTOFF.changes, **CACHE.changes})
    assert most_gain(both, STEPS_ALONE, 0.0) > most_gain(CACHE, STEPS_ALONE, 0.0)


def test_texts_and_images_lower_what_an_option_could_gain() -> None:
    dear = BarePrices(row_seconds=1.0, encode_seconds=2.0, decode_seconds=6.0)
    assert most_gain(CUTOFF, dear, 1.0) == pytest.approx((2 * 20.2 + 10) / (1.5 * 20.2 + 10))


def test_gains_have_a_sample_a_seed_of_requests_that_ran_as_the_option_says() -> None:
    model = FakeCachingModel()
    loaded = LoadedModels({"tiny": model}, {"tiny": {128 * 128: 16}}, "exact")
    found = gains(loaded, (CUTOFF, CACHE), (1,), {"num_inference_steps": 8})
    assert set(found) == {CUTOFF.name, CACHE.name}
    for value, low, high, samples in found.values():
        assert samples == [value] == [low] == [high]
        assert value > 0
    assert model.inner_sizes, "some steps had a cache"
    assert 0 in model.inner_sizes or min(model.inner_sizes) < max(model.inner_sizes)


def test_points_lost_are_negative_where_more_obey() -> None:
    assert Quality(30, 20, obeyed=98.0, full_obeyed=92.0).points_lost == -6


def test_the_presets_measured_are_those_that_ship() -> None:
    (model,) = load_catalogue(ROOT / "calotype.toml").models
    assert [option.name for option in presets()] == [f"preset `{one.name}`" for one in model.presets]
    for option, one in zip(presets(), model.presets, strict=True):
        assert option.changes == one.model_dump(exclude={"name"}, exclude_defaults=True)
