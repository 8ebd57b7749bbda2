"""Alembic's entry point: runs the migrations over `CALOTYPE_DATABASE_URL`, one at a time.

An advisory lock makes it safe to start it from several hosts at once.
"""

from alembic import context
from sqlalchemy import create_engine, pool, text

from settings import load_settings
from storage.database import tls_options
from storage.tables import metadata

MIGRATION_LOCK = 0x63616C6F  # "calo"


def run() -> None:
    """Migrate online; there is no offline mode."""
    settings = load_settings()
    settings.require("database_url")
    url = settings.database_url.get_secret_value().replace("postgresql://", "postgresql+psycopg2://", 1)
    tls = tls_options(url, settings.ca_file)
    engine = create_engine(url, poolclass=pool.NullPool, connect_args={"connect_timeout": 10, **tls})
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
        context.run_migrations()
    engine.dispose()


run()
