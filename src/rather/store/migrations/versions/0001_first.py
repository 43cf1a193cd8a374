"""The first layout."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "comparison",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run", sa.String(length=200), nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("purpose", sa.String(length=40), nullable=False),
        sa.Column("why", sa.String(length=40), nullable=False),
        sa.Column("score", sa.Float(), nullable=True),
        sa.Column("created", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("run", "key"),
    )
    op.create_index("comparison_by_purpose", "comparison", ["run", "purpose", "id"], unique=False)
    op.create_table(
        "judge",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("role", sa.String(length=40), server_default="annotator", nullable=False),
        sa.Column("invite_hash", sa.String(length=64), nullable=True),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "trajectory",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(length=400), nullable=False),
        sa.Column("task", sa.String(length=400), nullable=False),
        sa.Column("prompt", sa.JSON(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("policy", sa.String(length=400), nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("terminated", sa.Boolean(), nullable=False),
        sa.Column("steps", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "label",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("comparison", sa.Integer(), nullable=False),
        sa.Column("judge", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("preference", sa.Float(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=True),
        sa.Column("shown_left", sa.String(length=1), nullable=False),
        sa.Column("flags", sa.JSON(), nullable=False),
        sa.Column("token", sa.String(length=100), nullable=True),
        sa.Column("created", sa.Float(), nullable=False),
        sa.CheckConstraint("(kind = 'answer') = (preference is not null)"),
        sa.CheckConstraint("kind in ('answer', 'abstention', 'undo')"),
        sa.CheckConstraint("shown_left in ('a', 'b')"),
        sa.CheckConstraint("preference is null or (preference >= 0 and preference <= 1)"),
        sa.ForeignKeyConstraint(
            ["comparison"],
            ["comparison.id"],
        ),
        sa.ForeignKeyConstraint(
            ["judge"],
            ["judge.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("token"),
        sqlite_autoincrement=True,
    )
    op.create_index("label_by_comparison", "label", ["comparison", "judge", "id"], unique=False)
    op.create_table(
        "lease",
        sa.Column("comparison", sa.Integer(), nullable=False),
        sa.Column("judge", sa.Integer(), nullable=False),
        sa.Column("expires", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["comparison"],
            ["comparison.id"],
        ),
        sa.ForeignKeyConstraint(
            ["judge"],
            ["judge.id"],
        ),
        sa.PrimaryKeyConstraint("comparison", "judge"),
    )
    op.create_table(
        "side",
        sa.Column("comparison", sa.Integer(), nullable=False),
        sa.Column("side", sa.String(length=1), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("trajectory", sa.Integer(), nullable=False),
        sa.CheckConstraint("side in ('a', 'b')"),
        sa.ForeignKeyConstraint(
            ["comparison"],
            ["comparison.id"],
        ),
        sa.ForeignKeyConstraint(
            ["trajectory"],
            ["trajectory.id"],
        ),
        sa.PrimaryKeyConstraint("comparison", "side", "place"),
    )
    op.create_index("side_by_trajectory", "side", ["trajectory"], unique=False)
