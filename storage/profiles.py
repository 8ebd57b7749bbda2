"""Published profiles: what work of a tier costs on a kind of device, for readers that have no such device.

A worker writes a row for what it measured or learned from its jobs. Readers find it by the fingerprint that a
live worker shows for the tier, so that numbers of another model, dtype or device are never used for it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from catalogue.profile import Profile, PublishedKey, StepCost
from storage.database import Database


class TierProfile(NamedTuple):
    """A profile, the tier that it belongs to, and the tier's model."""

    tier: str
    model: str
    profile: Profile


def publish(db: Database, profiles: Iterable[TierProfile]) -> None:
    """Write these profiles over those of the same tier and fingerprint."""
    rows = sorted(map(_row, profiles), key=lambda row: (row["tier"], row["fingerprint"]))

    def work(connection: Connection) -> None:
        for row in rows:
            connection.execute(_UPSERT, row)

    db.run(work)


def learn(db: Database, learned: TierProfile) -> None:
    """Write a learned profile; what it has not measured stays as it was learned before, here or elsewhere.

    Does nothing if the tier was measured on devices of this kind.
    """

    def work(connection: Connection) -> None:
        # Insert the row first: a missing row cannot be locked, and two workers may begin at the same time.
        row = _row(learned)
        connection.execute(_INSERT, row)
        known = connection.execute(
            _LEARNED, {name: row[name] for name in ("tier", "fingerprint")}
        ).one_or_none()
        if known is None:
            return
        profile = learned.profile
        steps = {step.num_rows: step for step in (*_steps(known.steps), *profile.steps)}
        merged = replace(
            profile,
            steps=tuple(steps[num_rows] for num_rows in sorted(steps)),
            cached_share=known.cached_share if profile.cached_share == 1 else profile.cached_share,
        )
        connection.execute(_UPSERT, _row(learned._replace(profile=merged)))

    db.run(work)


def profile_of_row(row: Mapping[str, Any]) -> Profile:
    """The profile in a row of the table."""
    return Profile(
        key=PublishedKey(**{name: row[name] for name in PublishedKey._fields}),
        steps=_steps(row["steps"]),
        learned_max_rows=row["max_rows"] if row["is_learned"] else None,
        **{name: row[name] for name in _COSTS},
    )


def _steps(pairs: Iterable[tuple[int, float]]) -> tuple[StepCost, ...]:
    return tuple(StepCost.of_median(num_rows, seconds) for num_rows, seconds in pairs)


def _row(one: TierProfile) -> dict[str, Any]:
    tier, model, profile = one
    return {
        "tier": tier,
        "model": model,
        "steps": json.dumps([(step.num_rows, step.seconds) for step in profile.steps]),
        **{name: getattr(profile.key, name) for name in PublishedKey._fields},
        **{name: getattr(profile, name) for name in (*_COSTS, *_RESULTS)},
    }


_COSTS = ("encode_seconds", "decode_seconds", "num_guided_rows", "cached_share")
_RESULTS = ("knee_rows", "max_rows", "is_worth_batching", "is_learned")
_COLUMNS = ("tier", *PublishedKey._fields, "model", "steps", *_COSTS, *_RESULTS)

_LEARNED = text(
    """
    SELECT steps, cached_share FROM profiles
     WHERE tier = :tier AND fingerprint = :fingerprint AND is_learned FOR UPDATE
    """
)

_NEW_ROW = f"""
    INSERT INTO profiles ({", ".join(_COLUMNS)})
    VALUES ({", ".join("CAST(:steps AS jsonb)" if name == "steps" else f":{name}" for name in _COLUMNS)})
    ON CONFLICT (tier, fingerprint)
    """

_INSERT = text(f"{_NEW_ROW} DO NOTHING")

_UPSERT = text(
    f"""
    {_NEW_ROW} DO UPDATE
       SET published_at = clock_timestamp(), {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[2:])}
     WHERE profiles.is_learned OR NOT excluded.is_learned
    """
)
