"""The schema goes up, down and up again, and is what the code believes it to be."""

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text

from local.endpoints import Embedded
from storage.tables import metadata


def test_migrations_go_up_down_and_up_again(services: Embedded, alembic_config: Config, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    url = services.database_url.replace("postgresql://", "postgresql+psycopg2://", 1)
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("CREATE DATABASE migrations_test"))
    admin.dispose()
    other_url = services.database_url.rpartition("/")[0] + "/migrations_test"
    monkeypatch.setenv("CALOTYPE_DATABASE_URL", other_url)
    command.upgrade(alembic_config, "head")
    engine = create_engine(other_url.replace("postgresql://", "postgresql+psycopg2://", 1))
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), metadata)
        # Indexes and constraints are the migrations' alone: the code names none of them.
        assert [change for change in found if not str(change[0]).endswith(("_index", "_constraint"))] == []
    command.downgrade(alembic_config, "base")
    with engine.connect() as connection:
        left = connection.execute(
            text(
                "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace "
                "WHERE n.nspname = 'public' AND relkind IN ('r', 'S', 'v')"
            )
        ).scalars()
        assert set(left) == {"alembic_version"}
    command.upgrade(alembic_config, "head")
    engine.dispose()
