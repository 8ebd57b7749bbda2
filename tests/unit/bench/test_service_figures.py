"""The figures of `make bench`: a wait is counted in ticks of its own moment."""

import pytest

from bench.service.join import Joined, figure, tick_seconds


def test_a_wait_is_counted_in_the_tick_during_which_it_began() -> None:
    starts = [0.0, 0.1, 0.4, 0.5]
    assert [tick_seconds(starts, at) for at in (0.05, 0.1, 0.39, 0.45)] == pytest.approx([0.1, 0.3, 0.3, 0.1])


def test_the_slowest_twentieth_decides() -> None:
    run = [Joined(0.5, 1)] * 18 + [Joined(1.2, 1)] * 2
    found = figure([run, [Joined(0.5, 1)] * 20])
    assert (found.value, found.holds) == (0.5, True)
    assert found.samples == (1.2, 0.5)
    assert figure([run]).holds is False
