"""The autoscaler decides as the documents of Kubernetes and KEDA say, field by field."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from bench.autoscaling.autoscaler import Autoscaler
from bench.autoscaling.rules import Direction, Limit, Rules, Trigger, rules_of

WORK = Trigger("work", "sum(work)", threshold=10)
AT_ONCE = Direction(0.0, (Limit("Percent", 10_000, 15.0),))


def after(scaler: Autoscaler, work: Sequence[float | None], num_workers: int) -> list[int]:
    """The workers after each decision of the HPA, one value of the trigger for each."""
    found = []
    for value in work:
        at = scaler.next_at
        num_workers = scaler.decide(lambda value=value: {"work": value}, num_workers, at)  # type: ignore[misc]
        found.append(num_workers)
    return found


def rules(**fields: Any) -> Rules:
    """Rules without windows and limits, which poll as often as they decide."""
    known: dict[str, Any] = {"triggers": (WORK,), "up": AT_ONCE, "down": AT_ONCE, "max_workers": 1000}
    return Rules(**{**known, "polling_seconds": 15.0, **fields})


def test_it_wants_the_metric_divided_by_the_threshold_rounded_up() -> None:
    assert after(Autoscaler(rules()), [101, 250, 31], 5) == [11, 25, 4]


@pytest.mark.parametrize(("work", "workers"), [(90, 10), (109, 10), (89, 9), (111, 12)])
def test_within_a_tenth_of_the_threshold_nothing_changes(work: float, workers: int) -> None:
    assert after(Autoscaler(rules()), [work], 10) == [workers]


def test_it_shrinks_to_the_most_that_was_wanted_within_the_window() -> None:
    scaler = Autoscaler(rules(down=Direction(45.0, AT_ONCE.limits)))
    assert after(scaler, [400, 200, 100, 100, 100, 100], 40) == [40, 40, 40, 40, 20, 10]


def test_it_grows_to_the_least_that_was_wanted_within_the_window() -> None:
    scaler = Autoscaler(rules(up=Direction(30.0, AT_ONCE.limits)))
    assert after(scaler, [100, 300, 200, 300, 300], 10) == [10, 10, 10, 20, 20]


def test_a_limit_counts_what_was_added_within_its_period() -> None:
    scaler = Autoscaler(rules(up=Direction(0.0, (Limit("Percent", 50, 60.0),))))
    assert after(scaler, [1000] * 6, 10) == [15, 15, 15, 15, 23, 23]


def test_of_two_limits_the_greater_counts_unless_the_least_is_selected() -> None:
    limits = (Limit("Percent", 10, 15.0), Limit("Pods", 4, 15.0))
    greatest = Autoscaler(rules(up=Direction(0.0, limits)))
    least = Autoscaler(rules(up=Direction(0.0, limits, "Min")))
    none = Autoscaler(rules(up=Direction(0.0, limits, "Disabled")))
    assert [after(one, [1000], 20) for one in (greatest, least, none)] == [[24], [22], [20]]


def test_a_limit_of_shrinking_is_rounded_towards_fewer_workers() -> None:
    scaler = Autoscaler(rules(down=Direction(0.0, (Limit("Percent", 10, 15.0),))))
    assert after(scaler, [10, 10], 25) == [22, 19]


def test_the_trigger_that_wants_most_decides() -> None:
    scaler = Autoscaler(rules(triggers=(WORK, Trigger("jobs", "sum(jobs)", threshold=1))))
    assert scaler.decide(lambda: {"work": 50, "jobs": 7}, 5, 0.0) == 7


def test_the_first_job_starts_one_worker_and_the_rest_follow_from_the_next_decision() -> None:
    assert after(Autoscaler(rules()), [0, 500, 500], 0) == [0, 1, 50]


def test_all_workers_go_once_no_trigger_was_active_for_the_cooldown() -> None:
    scaler = Autoscaler(rules(cooldown_seconds=45.0))
    assert after(scaler, [20, 0, 0, 0, 0, 0], 2) == [2, 1, 1, 1, 0, 0]


def test_work_below_the_activation_starts_no_worker() -> None:
    scaler = Autoscaler(rules(triggers=(Trigger("work", "sum(work)", threshold=10, activation=5),)))
    assert after(scaler, [5, 6], 0) == [0, 1]


def test_workers_stay_within_their_bounds() -> None:
    scaler = Autoscaler(rules(min_workers=2, max_workers=8))
    assert after(scaler, [0, 10_000, 0], 3) == [2, 8, 2]


def test_nothing_is_removed_while_prometheus_does_not_answer() -> None:
    scaler = Autoscaler(rules(cooldown_seconds=15.0))
    assert after(scaler, [200, None, None, None, 60], 20) == [20, 20, 20, 20, 6]


def test_workers_are_added_and_not_removed_while_one_of_two_metrics_is_missing() -> None:
    triggers = (WORK, Trigger("jobs", "sum(jobs)", threshold=1))
    for work, workers in ((10.0, 20), (400.0, 40)):
        scaler = Autoscaler(rules(triggers=triggers))
        assert scaler.decide(lambda work=work: {"work": work, "jobs": None}, 20, 0.0) == workers  # type: ignore[misc]


@pytest.mark.parametrize(
    ("behavior", "workers"),
    [("static", 6), ("currentReplicas", 3), ("currentReplicasIfHigher", 6), ("currentReplicasIfLower", 3)],
)
def test_after_enough_failures_the_fallback_decides(behavior: Any, workers: int) -> None:
    scaler = Autoscaler(rules(max_failures=2, fallback_workers=6, fallback=behavior))
    assert after(scaler, [30, None, None, None], 3) == [3, 3, 3, workers]


def test_a_manifest_without_behavior_has_the_defaults_of_kubernetes_and_keda() -> None:
    found = rules_of({"spec": {"triggers": [prometheus("a", threshold="2.5")]}})
    assert found == Rules((Trigger("a", "sum(a)", 2.5),))
    assert (found.polling_seconds, found.cooldown_seconds) == (30, 300)
    assert found.up.limits == (Limit("Percent", 100, 15), Limit("Pods", 4, 15))


def test_the_behavior_of_a_manifest_is_read_field_by_field() -> None:
    down = {
        "stabilizationWindowSeconds": 1200,
        "policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}],
        "selectPolicy": "Min",
        "tolerance": 0.2,
    }
    config = {"horizontalPodAutoscalerConfig": {"behavior": {"scaleDown": down}}}
    spec = {"triggers": [prometheus("a")], "advanced": config, "minReplicaCount": 3, "cooldownPeriod": 60}
    found = rules_of({"spec": spec})
    assert found.down == Direction(1200, (Limit("Pods", 2, 60),), "Min", 0.2)
    assert found.up == Rules.up
    assert (found.min_workers, found.cooldown_seconds) == (3, 60)


def test_a_trigger_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="the trigger b is no average"):
        rules_of({"spec": {"triggers": [{**prometheus("b"), "metricType": "Value"}]}})


def prometheus(name: str, **metadata: str) -> Mapping[str, Any]:
    """A trigger of a manifest."""
    return {
        "type": "prometheus",
        "name": name,
        "metadata": {"query": f"sum({name})", "threshold": "1", **metadata},
    }
