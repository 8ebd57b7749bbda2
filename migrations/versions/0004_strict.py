"""Jobs whose bytes may not depend on their company at all."""

from alembic import op

revision = "0004_strict"
down_revision = "0003_webhook_receivers"


def upgrade() -> None:
    op.execute("ALTER TABLE jobs ADD COLUMN strict boolean NOT NULL DEFAULT false")


def downgrade() -> None:
    op.execute("ALTER TABLE jobs DROP COLUMN strict")
