"""Invitations of their own, what was given to whom and how it was shown, and an audit that names nobody who has been erased."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

LETTERS = "abcdefgh"


def upgrade() -> None:
    """Links of before let in to every run; what is being answered now is given out anew."""
    op.create_table(
        "invitation",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("judge", sa.Integer(), nullable=False),
        sa.Column("run", sa.String(length=200), nullable=True),
        sa.Column("role", sa.String(length=40), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("expires", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["judge"], ["judge.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("hash"),
        sqlite_autoincrement=True,
    )
    op.create_index("invitation_by_judge", "invitation", ["judge"])
    _invitations()
    _audit()
    _asking()
    _leases()
    _labels()


def _invitations() -> None:
    judge = sa.table("judge", sa.column("id"), sa.column("role"), sa.column("invite_hash"), sa.column("details", sa.JSON))
    invitation = sa.table("invitation", *map(sa.column, ("judge", "role", "hash", "created", "expires")))
    invited = op.get_bind().execute(sa.select(judge).where(judge.c.invite_hash.is_not(None))).all()
    for r in invited:
        values = {"judge": r.id, "role": r.role, "hash": r.invite_hash, "created": 0.0, "expires": r.details.get("expires", 0.0)}
        op.get_bind().execute(sa.insert(invitation).values(values))
    op.drop_column("judge", "role")
    op.drop_column("judge", "invite_hash")


def _audit() -> None:
    """Take the names of people out of what owners did to them."""
    op.add_column("audit", sa.Column("judge", sa.Integer(), nullable=True))
    judge = sa.table("judge", sa.column("id"), sa.column("name"))
    audit = sa.table("audit", sa.column("id"), sa.column("what"), sa.column("judge"))
    known = {r.name: r.id for r in op.get_bind().execute(sa.select(judge))}
    for r in op.get_bind().execute(sa.select(audit.c.id, audit.c.what)).all():
        verb, _, rest = r.what.partition(" ")
        if verb not in ("invited", "revoked"):
            continue
        name, _, days = rest.rpartition(" for ") if verb == "invited" else (rest, "", "")
        what = f"invited for {days}" if days else verb
        op.get_bind().execute(sa.update(audit).where(audit.c.id == r.id).values(what=what, judge=known.get(name)))


def _asking() -> None:
    """Which flags are left out of learning, instead of whether all are."""
    asking = sa.table("asking", sa.column("run"), sa.column("values", sa.JSON))
    for r in op.get_bind().execute(sa.select(asking)).all():
        values = {k: v for k, v in r[1].items() if k != "flagged"}
        if r[1].get("flagged") is False:
            values["leave_out"] = ["fast", "gold", "inconsistent", "late"]
        op.get_bind().execute(sa.update(asking).where(asking.c.run == r.run).values(values=values))


def _leases() -> None:
    op.drop_table("lease")
    op.create_table(
        "lease",
        sa.Column("comparison", sa.Integer(), nullable=False),
        sa.Column("judge", sa.Integer(), nullable=False),
        sa.Column("token", sa.String(length=40), nullable=False),
        sa.Column("invitation", sa.Integer(), nullable=True),
        sa.Column("shown", sa.String(length=8), nullable=False),
        sa.Column("given", sa.Float(), nullable=False),
        sa.Column("expires", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["comparison"], ["comparison.id"]),
        sa.ForeignKeyConstraint(["judge"], ["judge.id"]),
        sa.PrimaryKeyConstraint("comparison", "judge"),
    )


def _labels() -> None:
    """From which side stood on the left to how all of them stood: in their order, or in the opposite one."""
    op.add_column("label", sa.Column("shown", sa.String(length=8), nullable=False, server_default="ab"))
    sides = "(select count(distinct side.side) from side where side.comparison = label.comparison)"
    for n in range(2, len(LETTERS) + 1):
        for left, shown in (("a", LETTERS[:n]), ("b", LETTERS[:n][::-1])):
            if (n, left) != (2, "a"):
                where = "shown_left = :a" if n == 2 else f"shown_left = :a and {sides} = :n"
                change = sa.text(f"update label set shown = :shown where {where}")
                op.get_bind().execute(change, {"shown": shown, "a": left} | ({"n": n} if n > 2 else {}))
    checks = (
        sa.CheckConstraint("kind in ('answer', 'abstention', 'undo')"),
        sa.CheckConstraint("(kind = 'answer') = (preference is not null)"),
        sa.CheckConstraint("preference is null or (preference >= 0 and preference <= 1)"),
    )
    if op.get_bind().dialect.name == "sqlite":  # which cannot drop a column that a constraint names: the table is copied without it
        with op.batch_alter_table("label", recreate="always", table_args=checks, table_kwargs={"sqlite_autoincrement": True}) as table:
            table.drop_column("shown_left")
            table.alter_column("shown", server_default=None)
    else:
        op.drop_column("label", "shown_left")
        op.alter_column("label", "shown", server_default=None)
