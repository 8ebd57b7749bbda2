"""Names columns as code and documents do: quarantined, isolated, dispatched, determinism, cached steps."""

from alembic import op

revision = "0019_plain_words"
down_revision = "0018_input_images_and_loras"

COLUMNS = (
    ("TABLE jobs", "suspect", "quarantined"),
    ("TABLE jobs", "solo", "isolated"),
    ("TABLE jobs", "ring_number", "dispatch_number"),
    ("VIEW open_jobs", "ring_number", "dispatch_number"),
    ("TABLE webhook_deliveries", "rung_at", "dispatched_at"),
    ("TABLE workers", "promise", "determinism"),
    ("TABLE profiles", "batching_pays", "is_worth_batching"),
    ("TABLE profiles", "shallow_share", "cached_share"),
)
OTHERS = (
    ("TABLE jobs RENAME CONSTRAINT", "solo_while_suspect", "isolated_while_quarantined"),
    ("SEQUENCE", "ring_numbers", "dispatch_numbers"),
    ("INDEX", "jobs_rung", "jobs_dispatched"),
    ("INDEX", "jobs_suspected", "jobs_quarantined"),
)


def upgrade() -> None:
    # Only the catalogue of Postgres changes; no row is written and no index is built.
    for relation, old, new in COLUMNS:
        op.execute(f"ALTER {relation} RENAME COLUMN {old} TO {new}")
    for relation, old, new in OTHERS:
        op.execute(_renamed(relation, old, new))


def downgrade() -> None:
    for relation, old, new in reversed(OTHERS):
        op.execute(_renamed(relation, new, old))
    for relation, old, new in reversed(COLUMNS):
        op.execute(f"ALTER {relation} RENAME COLUMN {new} TO {old}")


def _renamed(relation: str, old: str, new: str) -> str:
    if relation.startswith("TABLE"):
        return f"ALTER {relation} {old} TO {new}"
    return f"ALTER {relation} {old} RENAME TO {new}"
