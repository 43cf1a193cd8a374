"""What a page for several people needs: clips, questions with known answers, how questions are given out, and who changed what."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the new tables."""
    op.create_table(
        "clip",
        sa.Column("trajectory", sa.Integer(), nullable=False),
        sa.Column("webp", sa.LargeBinary(), nullable=True),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["trajectory"], ["trajectory.id"]),
        sa.PrimaryKeyConstraint("trajectory"),
    )
    op.create_table(
        "probe",
        sa.Column("comparison", sa.Integer(), nullable=False),
        sa.Column("preference", sa.Float(), nullable=False),
        sa.Column("judge", sa.Integer(), nullable=True),
        sa.Column("original", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["comparison"], ["comparison.id"]),
        sa.ForeignKeyConstraint(["judge"], ["judge.id"]),
        sa.ForeignKeyConstraint(["original"], ["comparison.id"]),
        sa.PrimaryKeyConstraint("comparison"),
    )
    op.create_table(
        "asking",
        sa.Column("run", sa.String(length=200), nullable=False),
        sa.Column("values", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("run"),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("who", sa.String(length=200), nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
