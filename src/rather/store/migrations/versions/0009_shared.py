"""What all servers of a store share: the key that signs sessions, and how often somebody has been erased."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the row; the key is made here, once, before any server can read it."""
    made = op.create_table(
        "shared",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("key", sa.String(80), nullable=False),
        sa.Column("erasures", sa.Integer(), nullable=False),
    )
    op.bulk_insert(made, [{"id": 1, "key": secrets.token_urlsafe(32), "erasures": 0}])
