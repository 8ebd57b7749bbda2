"""What `calotype up` starts has the time that its settings let it take."""

from pathlib import Path

import pytest

from local.endpoints import addresses
from local.plan import ENGINE_START_SECONDS, Plan
from local.state import State
from settings import Settings


@pytest.mark.parametrize("seconds", [1.0, 600.0, 7200.0])
def test_a_worker_that_spends_all_of_its_self_tests_budget_has_the_time_to_load_besides(
    tmp_path: Path, seconds: float
) -> None:
    with State.open(tmp_path) as state:
        services = Plan(state, Settings(self_test_seconds=seconds), addresses(state), {}).services(
            lambda _: None
        )
    workers = [one for one in services if one.name.startswith("worker-")]
    assert workers
    assert {one.start_seconds for one in workers} == {ENGINE_START_SECONDS + seconds}
