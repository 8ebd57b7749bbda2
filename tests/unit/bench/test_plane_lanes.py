"""Interactive work beside bulk work on simulated devices: the bars hold, by the policy alone."""

import pytest

from bench.plane.lanes import SHARED_CORE, WITH_A_KNEE, Costs, simulated


@pytest.mark.parametrize("costs", [SHARED_CORE, WITH_A_KNEE], ids=["shared core", "knee"])
def test_bulk_work_neither_slows_interactive_work_nor_starves(costs: Costs) -> None:
    figures = {one.figure: one for one in simulated(costs, "", rate=0.7, num_requests=40, seeds=(1,))}
    judged = [one for one in figures.values() if one.bar is not None]
    assert [one.figure for one in judged if not one.holds] == []
    assert {one.figure for one in judged} == {
        "interactive_beside_bulk",
        "bulk_beside_interactive",
        "bulk_wait_seconds",
        "bulk_rows",
    }
