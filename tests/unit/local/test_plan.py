"""What `calotype up` starts has the time that its settings let it take."""

from pathlib import Path

import pytest

from local.endpoints import addresses
from local.plan import ENGINE_START_SECONDS, Plan
from local.roles import S3_ROLES
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


def test_S35_a_process_is_given_the_secrets_of_its_role_and_nobody_elses(tmp_path: Path) -> None:
    role_of = {"web": "api", "webhooks": "sender", "sweep": "sweeper", "flower": "flower"}
    with State.open(tmp_path) as state:
        services = Plan(state, Settings(), addresses(state), {}).services(lambda _: None)
        for service in services:
            role = role_of.get(service.name, "worker")
            values = " ".join(service.environment().values())
            given = {name for name, secret in state.secrets.items() if secret in values}
            mine = {f"valkey_password_{role}"}
            mine |= {f"s3_access_key_{role}", f"s3_secret_key_{role}"} if role in S3_ROLES else set()
            mine |= (
                {f"postgres_{role}_password"} if role != "flower" else {"flower_password", "flower_cookie"}
            )
            assert given == mine, service.name


def test_what_imports_ahead_for_all_services_is_given_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []

    def starts(*_: object, environment: dict[str, str], **__: object) -> None:
        given.extend(environment.values())

    monkeypatch.setattr("local.plan.Standbys", starts)
    with State.open(tmp_path) as state:
        Plan(state, Settings(), addresses(state), {}).standbys()
        values = " ".join(given)
        assert values
        assert not [name for name, secret in state.secrets.items() if secret in values]
