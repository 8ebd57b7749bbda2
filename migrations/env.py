"""Alembic's entry point: migrates the database `CALOTYPE_DATABASE_URL`, whose user owns the tables.

An advisory lock makes it safe to start on several hosts at once. It creates the roles that migrations name
before them, and grants every role's rights after the newest one.
"""

from alembic import context
from alembic.util import CommandError
from sqlalchemy import create_engine, pool, text

from settings import load_settings
from storage.connections import tls_options
from storage.errors import RolesNotSet
from storage.grants import grant_all
from storage.roles import create_groups
from storage.tables import metadata

MIGRATION_LOCK = 0x63616C6F  # "calo"
LOCK_SECONDS = 10


def run() -> None:
    """Run the migrations online; there is no offline mode."""
    settings = load_settings()
    settings.require("database_url")
    url = settings.database_url.get_secret_value().replace("postgresql://", "postgresql+psycopg2://", 1)
    tls = tls_options(url, settings.ca_file)
    limits = {"connect_timeout": 10, "tcp_user_timeout": 30_000, "keepalives_idle": 5}  # s, ms, s
    engine = create_engine(url, poolclass=pool.NullPool, connect_args={**limits, **tls})
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        # A statement that waits for a table lock blocks all requests behind it: rather fail and be retried.
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
