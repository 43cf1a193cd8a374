"""What counts is kept with each answer, so that nothing has to be counted while people wait."""

import math

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

KNOWN = ("gold", "repeat", "same")


def upgrade() -> None:
    """Add columns and tables, and fill them from the answers that are there."""
    op.add_column("comparison", sa.Column("rank", sa.Float(), nullable=True))
    op.add_column("comparison", sa.Column("draw", sa.Integer(), nullable=True))
    op.add_column("comparison", sa.Column("answers", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("label", sa.Column("counts", sa.Boolean(), nullable=True))
    who = sa.Column("judge", sa.Integer(), sa.ForeignKey("judge.id"), primary_key=True)
    numbers = [sa.Column(name, sa.Integer(), nullable=False) for name in ("answered", "turns")]
    op.create_table("standing", sa.Column("run", sa.String(200), primary_key=True), who, *numbers)
    op.create_table("asked", sa.Column("run", sa.String(200), primary_key=True), sa.Column("questions", sa.Integer(), nullable=False))
    _fill()
    op.drop_index("label_by_comparison", "label")
    counted = ["comparison", "judge", "id", "counts", "kind", "preference", "best", "seconds", "shown"]
    op.create_index("label_by_comparison", "label", counted)
    op.create_index("comparison_by_rank", "comparison", ["run", "answers", "rank", "id"])
    op.create_index("comparison_by_draw", "comparison", ["run", "answers", "draw", "id"])
    op.create_index("lease_by_expiry", "lease", ["expires", "judge", "comparison"])
    failed = sa.text("problem != ''")
    op.create_index("clip_failed", "clip", ["trajectory"], sqlite_where=failed, postgresql_where=failed)
    op.create_index("probe_by_judge", "probe", ["judge"])
    op.create_index("probe_by_original", "probe", ["original"])


def _fill() -> None:
    columns = ("id", "run", "purpose", "score", "rank", "draw", "answers")
    comparison = sa.table("comparison", *map(sa.column, columns))
    label = sa.table("label", *map(sa.column, ("id", "comparison", "judge", "kind")), sa.column("counts", sa.Boolean()))
    standing = sa.table("standing", *map(sa.column, ("run", "judge", "answered", "turns")))
    asked = sa.table("asked", *map(sa.column, ("run", "questions")))
    later, connection = label.alias(), op.get_bind()
    last = sa.select(sa.func.max(later.c.id)).where(later.c.comparison == label.c.comparison, later.c.judge == label.c.judge)
    connection.execute(sa.update(label).values(counts=(label.c.kind != "undo") & (label.c.id == last.scalar_subquery())))
    given = sa.select(sa.func.count()).where(label.c.comparison == comparison.c.id, label.c.counts, label.c.kind == "answer")
    connection.execute(sa.update(comparison).values(answers=given.correlate(comparison).scalar_subquery()))
    rank = sa.func.coalesce(-sa.func.nullif(comparison.c.score, sa.text("'NaN'")), sa.literal(math.inf, sa.Float()))
    spread = sa.cast(comparison.c.id, sa.BigInteger()) * 2654435769 % 4294967296 // 2
    ordinary = comparison.c.purpose.not_in(KNOWN)
    connection.execute(sa.update(comparison).where(ordinary).values(rank=rank, draw=sa.cast(spread, sa.Integer())))
    count = sa.select(comparison.c.run, sa.func.count()).where(ordinary).group_by(comparison.c.run)
    connection.execute(sa.insert(asked).from_select(["run", "questions"], count))
    turns = sa.select(comparison.c.run, label.c.judge, sa.func.count(comparison.c.rank), sa.func.count())
    turns = turns.select_from(label.join(comparison, comparison.c.id == label.c.comparison)).where(label.c.counts)
    turns = turns.group_by(comparison.c.run, label.c.judge)
    connection.execute(sa.insert(standing).from_select(["run", "judge", "answered", "turns"], turns))
