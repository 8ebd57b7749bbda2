"""An equal digest means that a migration would change nothing."""

from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import text

from storage import accounts
from storage.database import Database
from storage.schema_digest import schema_digest

CHANGES = (
    "UPDATE alembic_version SET version_num = '0001'",
    "GRANT SELECT (prompt) ON jobs TO calotype_sender",
    "REVOKE SELECT ON open_jobs FROM calotype_api",
    "REVOKE USAGE ON SEQUENCE dispatch_numbers FROM calotype_api",
    "GRANT EXECUTE ON FUNCTION job_states TO calotype_worker",
    "ALTER TABLE jobs DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE jobs ALTER COLUMN attempt SET DEFAULT 7",
    "ALTER TABLE jobs ADD COLUMN more integer",
    "CREATE INDEX more ON jobs (attempt)",
    "ALTER TABLE images ADD CONSTRAINT more CHECK (width <> 7)",
    "CREATE POLICY more ON jobs TO calotype_worker USING (true)",
    "CREATE VIEW more AS SELECT 1",
    "CREATE FUNCTION more() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    "ALTER TABLE jobs DISABLE TRIGGER USER",
    "DROP TABLE alembic_version",
)


def test_the_same_schema_and_code_have_the_same_digest(database: Database, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("one")
    first = schema_digest(database, [tmp_path])
    accounts.create_account(database, "digest")
    assert first is not None
    assert schema_digest(database, [tmp_path]) == first
    (tmp_path / "code.py").write_text("two")
    assert schema_digest(database, [tmp_path]) != first


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_by_hand_has_another_digest(database: Database, change: str) -> None:
    """In a transaction that is rolled back."""
    first = schema_digest(database, [])
    assert first is not None
    with suppress(Undone), database.transaction() as connection:
        connection.execute(text(change))
        assert schema_digest(SameConnection(connection), []) != first  # type: ignore[arg-type]
        raise Undone
    assert schema_digest(database, []) == first


class Undone(Exception):
    """Rolls a transaction back."""


class SameConnection:
    """A database whose transactions are part of one that has begun."""

    def __init__(self, connection: object) -> None:
        self._connection = connection

    def transaction(self) -> "SameConnection":
        return self

    def __enter__(self) -> object:
        return self._connection

    def __exit__(self, *_: object) -> None:
        return
