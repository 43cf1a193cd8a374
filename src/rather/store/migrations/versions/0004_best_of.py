"""Questions with more than two sides, of which one is picked."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Let sides go on to h, and answers name the one that was picked."""
    op.add_column("label", sa.Column("best", sa.Integer(), nullable=True))
    letters = sa.CheckConstraint("side >= 'a' and side <= 'h'", name="side_letter")
    if op.get_bind().dialect.name == "sqlite":  # which cannot change a constraint: the table is copied without it
        with op.batch_alter_table("side", recreate="always", table_args=(letters,)):
            pass
    else:
        op.drop_constraint("side_side_check", "side")
        op.create_check_constraint("side_letter", "side", letters.sqltext)
