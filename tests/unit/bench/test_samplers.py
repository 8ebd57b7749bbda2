"""The benchmark of the samplers compares like with like, and its mean is over all of them."""

import pytest
import torch

from bench.samplers import Cost, geometric_means, least, measure, spread
from engine.request import SchedulerName
from engine.sampling import EXPANDED

# diffusers' Euler scheduler calls numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("name", EXPANDED)
def test_all_arms_take_the_same_steps(name: SchedulerName) -> None:
    """`measure` compares every last latent of the arms, and fails where one differs."""
    with torch.inference_mode():
        cost = measure(name, seed=1, num_repeats=1)
    assert cost.theirs > 0
    assert cost.ours > 0
    assert cost.reformed > 0
    assert cost.least > 0
    assert (cost.noise > 0) == (name in ("euler_ancestral", "lcm"))


def test_noise_counts_for_both_arms_and_is_shown_apart() -> None:
    cost = Cost(theirs=160.0, ours=70.0, reformed=80.0, least=64.0, noise=60.0)
    assert cost.gain == pytest.approx(160 / 70)
    assert cost.gain_reformed == pytest.approx(2)
    assert cost.gain_least == pytest.approx(2.5)
    assert cost.gain_without_noise == pytest.approx(10)


def test_mean_is_geometric_over_samplers_and_the_value_a_median_over_seeds() -> None:
    costs = {
        "a": [Cost(2.0, 1.0, 2.0, 0.5, 0.0), Cost(4.0, 1.0, 2.0, 0.5, 0.0), Cost(8.0, 1.0, 2.0, 0.5, 0.0)],
        "b": [Cost(8.0, 1.0, 2.0, 0.5, 0.0), Cost(4.0, 1.0, 2.0, 0.5, 0.0), Cost(32.0, 1.0, 2.0, 0.5, 0.0)],
    }
    assert geometric_means(costs) == pytest.approx([4.0, 4.0, 16.0])
    assert geometric_means(costs, "gain_reformed") == pytest.approx([2.0, 2.0, 8.0])
    assert least(costs) == pytest.approx([2.0, 4.0, 8.0])
    assert spread(geometric_means(costs)) == pytest.approx((4.0, 4.0, 16.0))
