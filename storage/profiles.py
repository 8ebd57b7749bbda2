"""Published profiles: what a step of a tier costs on a kind of device, for whoever has no device.

A row is written by the worker that loaded what was measured, or learned it from its jobs, and found by the
fingerprint that a live worker shows for the tier; so the numbers of another model, dtype or device are never
taken for a worker's.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, text

from storage.database import Database


@dataclass(frozen=True)
class StoredProfile:
    """One tier on one kind of device; `steps` pairs rows with the seconds of such a step, few rows first."""

    tier: str
    fingerprint: str
    model: str
    device_kind: str
    width: int
    height: int
    steps: tuple[tuple[int, float], ...]
    encode_seconds: float  # one prompt
    decode_seconds: float  # one image
    num_guided_rows: int  # of a generation with guidance
    knee_rows: int
    max_rows: int
    is_worth_batching: bool
    cached_share: float = 1.0  # seconds of a step that is shallow for all its rows, of a full one's
    is_learned: bool = False  # seen of jobs as they ran, not measured

    @property
    def num_pixels(self) -> int:
        """Of the size that was measured."""
        return self.width * self.height

    def step_seconds(self, num_rows: float) -> float:
        """Seconds of a step of `num_rows`, at the smallest measured number that holds them."""
        most, seconds = self.steps[-1]
        found = next((seconds for rows, seconds in self.steps if rows >= num_rows), None)
        return seconds * num_rows / most if found is None else found


COLUMNS = tuple(StoredProfile.__dataclass_fields__)


def publish(db: Database, profiles: Iterable[StoredProfile]) -> None:
    """Write these profiles, over what was known of the same tier and fingerprint."""
    rows = [_row(one) for one in profiles]

    def work(connection: Connection) -> None:
        for row in sorted(rows, key=lambda row: (row["tier"], row["fingerprint"])):
            connection.execute(_UPSERT, row)

    db.run(work)


def learn(db: Database, profile: StoredProfile, with_knee: Callable[[StoredProfile], StoredProfile]) -> None:
    """Write a learned profile; what it has not seen stays as it was learned before, here or elsewhere.

    `with_knee` gives a profile the knee of its steps, here of all that were learned. Does nothing where the
    tier was measured on devices of this kind.
    """

    def work(connection: Connection) -> None:
        # First there must be a row: one that is not there cannot be locked, and two workers begin at once.
        connection.execute(_INSERT, _row(profile))
        place = {"tier": profile.tier, "fingerprint": profile.fingerprint}
        known = connection.execute(_STEPS, place).one_or_none()
        if known is None:
            return
        merged = replace(
            profile,
            steps=tuple(sorted({**dict(known.steps), **dict(profile.steps)}.items())),
            cached_share=known.cached_share if profile.cached_share == 1 else profile.cached_share,
        )
        connection.execute(_UPSERT, _row(with_knee(merged)))

    db.run(work)


def _row(profile: StoredProfile) -> dict[str, Any]:
    return {**{name: getattr(profile, name) for name in COLUMNS}, "steps": json.dumps(profile.steps)}


_STEPS = text(
    """
    SELECT steps, cached_share FROM profiles
     WHERE tier = :tier AND fingerprint = :fingerprint AND is_learned FOR UPDATE
    """
)

_NEW_ROW = f"""
    INSERT INTO profiles ({", ".join(COLUMNS)})
    VALUES ({", ".join("CAST(:steps AS jsonb)" if name == "steps" else f":{name}" for name in COLUMNS)})
    ON CONFLICT (tier, fingerprint)
    """

_INSERT = text(f"{_NEW_ROW} DO NOTHING")

_UPSERT = text(
    f"""
    {_NEW_ROW} DO UPDATE
       SET published_at = clock_timestamp(), {", ".join(f"{name} = excluded.{name}" for name in COLUMNS[2:])}
     WHERE profiles.is_learned OR NOT excluded.is_learned
    """
)
