"""Alembic's entry point: runs the migrations over `CALOTYPE_DATABASE_URL`, one at a time.

An advisory lock makes it safe to start it from several hosts at once. The user of that URL owns the tables.
Before them come the roles that the migrations name, and after the newest one every role's rights.
"""

from alembic import context
from alembic.util import CommandError
from sqlalchemy import create_engine, pool, text

from settings import load_settings
from storage.database import tls_options
from storage.errors import RolesNotSet
from storage.grants import grant_all
from storage.roles import create_groups
from storage.tables import metadata

MIGRATION_LOCK = 0x63616C6F  # "calo"
LOCK_SECONDS = 10


def run() -> None:
    """Migrate online; there is no offline mode."""
    settings = load_settings()
    settings.require("database_url")
    url = settings.database_url.get_secret_value().replace("postgresql://", "postgresql+psycopg2://", 1)
    tls = tls_options(url, settings.ca_file)
    limits = {"connect_timeout": 10, "tcp_user_timeout": 30_000, "keepalives_idle": 5}  # s, ms, s
    engine = create_engine(url, poolclass=pool.NullPool, connect_args={**limits, **tls})
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        # All requests wait behind whoever waits for a table's lock: better to fail and be tried again.
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
        try:
            create_groups(connection)
        except RolesNotSet as error:
            raise CommandError(str(error)) from error
        context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
        context.run_migrations()
        if context.get_context().get_current_revision() == context.script.get_current_head():
            grant_all(connection)
    engine.dispose()


run()
