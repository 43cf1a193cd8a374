"""Decisions of owners, preferences on each criterion, and questions with an answer that somebody wrote themselves."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Let labels be decisions, and make the new tables."""
    checks = {
        "label_kind": "kind in ('answer', 'abstention', 'undo', 'decision')",
        "label_preference": "kind = 'decision' or (kind = 'answer') = (preference is not null)",
    }
    if op.get_bind().dialect.name == "sqlite":  # which cannot change a constraint: the table is copied without it
        kept = sa.CheckConstraint("preference is null or (preference >= 0 and preference <= 1)")
        every = (*(sa.CheckConstraint(check, name=name) for name, check in checks.items()), kept)
        with op.batch_alter_table("label", recreate="always", table_args=every, table_kwargs={"sqlite_autoincrement": True}):
            pass
    else:
        op.drop_constraint("label_kind_check", "label")
        op.drop_constraint("label_check", "label")
        for name, check in checks.items():
            op.create_check_constraint(name, "label", check)
    decision = sa.text("kind = 'decision'")
    op.create_index("label_decision", "label", ["comparison"], sqlite_where=decision, postgresql_where=decision)
    op.create_table(
        "criterion",
        sa.Column("label", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("preference", sa.Float(), nullable=False),
        sa.CheckConstraint("preference >= 0 and preference <= 1"),
        sa.ForeignKeyConstraint(["label"], ["label.id"]),
        sa.PrimaryKeyConstraint("label", "name"),
    )
    op.create_table(
        "written",
        sa.Column("comparison", sa.Integer(), nullable=False),
        sa.Column("original", sa.Integer(), nullable=False),
        sa.Column("judge", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["comparison"], ["comparison.id"]),
        sa.ForeignKeyConstraint(["original"], ["comparison.id"]),
        sa.ForeignKeyConstraint(["judge"], ["judge.id"]),
        sa.PrimaryKeyConstraint("comparison"),
    )
    op.create_index("written_by_original", "written", ["original"])
    op.create_index("written_by_judge", "written", ["judge"])
