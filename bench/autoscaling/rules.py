"""The rules by which workers are added and removed, as a `ScaledObject` of KEDA states them.

Owns the fields that the simulation obeys, their defaults, and their reading from a manifest: what is deployed
is what is simulated. It does not know what a metric measures, nor when a rule is applied.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

Select = Literal["Max", "Min", "Disabled"]
Fallback = Literal["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"]


@dataclass(frozen=True)
class Limit:
    """The most workers that one direction may change by within a period."""

    kind: Literal["Pods", "Percent"]
    value: int
    period_seconds: float

    def of(self, num_workers: int) -> float:
        """The workers of this limit, of so many at the start of the period."""
        return self.value if self.kind == "Pods" else num_workers * self.value / 100


@dataclass(frozen=True)
class Direction:
    """How fast the number of workers may grow, or shrink."""

    stabilization_seconds: float
    limits: tuple[Limit, ...]
    select: Select = "Max"
    tolerance: float = 0.1


@dataclass(frozen=True)
class Trigger:
    """One metric: `threshold` of it is the work of one worker; above `activation` there is work at all."""

    name: str
    query: str
    threshold: float
    activation: float = 0.0


@dataclass(frozen=True)
class Rules:
    """One `ScaledObject`, with the settings of the cluster that it depends on.

    `sync_seconds` is `--horizontal-pod-autoscaler-sync-period`, and the tolerance of both directions is
    `--horizontal-pod-autoscaler-tolerance` (Kubernetes, "Horizontal Pod Autoscaling", read 2026-11-30).
    """

    triggers: tuple[Trigger, ...]
    min_workers: int = 0
    max_workers: int = 100
    polling_seconds: float = 30.0
    cooldown_seconds: float = 300.0
    up: Direction = Direction(0.0, (Limit("Percent", 100, 15.0), Limit("Pods", 4, 15.0)))
    down: Direction = Direction(300.0, (Limit("Percent", 100, 15.0),))
    max_failures: int | None = None
    fallback_workers: int = 0
    fallback: Fallback = "static"
    sync_seconds: float = 15.0


def rules_of(scaled_object: Mapping[str, Any]) -> Rules:
    """Read a `ScaledObject`; absent fields have the defaults of KEDA and of Kubernetes.

    Raises `ValueError` for a trigger that is not a query of Prometheus.
    """
    spec = scaled_object["spec"]
    behavior = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("behavior", {})
    fallback = spec.get("fallback", {})
    return Rules(
        triggers=tuple(_trigger(one) for one in spec["triggers"]),
        min_workers=spec.get("minReplicaCount", Rules.min_workers),
        max_workers=spec.get("maxReplicaCount", Rules.max_workers),
        polling_seconds=spec.get("pollingInterval", Rules.polling_seconds),
        cooldown_seconds=spec.get("cooldownPeriod", Rules.cooldown_seconds),
        up=_direction(behavior.get("scaleUp", {}), Rules.up),
        down=_direction(behavior.get("scaleDown", {}), Rules.down),
        max_failures=fallback.get("failureThreshold"),
        fallback_workers=fallback.get("replicas", 0),
        fallback=cast(Fallback, fallback.get("behavior", "static")),
    )


def _trigger(entry: Mapping[str, Any]) -> Trigger:
    if entry["type"] != "prometheus" or entry.get("metricType", "AverageValue") != "AverageValue":
        raise ValueError(
            f"the trigger {entry.get('name', entry['type'])} is no average of a query of Prometheus"
        )
    fields = entry["metadata"]
    activation = float(fields.get("activationThreshold", 0))
    return Trigger(entry["name"], fields["query"], float(fields["threshold"]), activation)


def _direction(entry: Mapping[str, Any], default: Direction) -> Direction:
    limits = tuple(
        Limit(one["type"], one["value"], one["periodSeconds"]) for one in entry.get("policies", ())
    )
    return Direction(
        entry.get("stabilizationWindowSeconds", default.stabilization_seconds),
        limits or default.limits,
        cast(Select, entry.get("selectPolicy", default.select)),
        entry.get("tolerance", default.tolerance),
    )
