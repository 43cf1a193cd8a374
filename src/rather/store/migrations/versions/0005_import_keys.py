"""Imported questions are called after what they ask, no more after the line of a file."""

from collections import Counter
from itertools import groupby

import sqlalchemy as sa
from alembic import op

from rather.store.imports import digest, key

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Give them new keys; where one was asked several times, from several rows, each stays a question."""
    comparison = sa.table("comparison", sa.column("id"), sa.column("run"), sa.column("key"), sa.column("why"))
    side = sa.table("side", sa.column("comparison"), sa.column("side"), sa.column("place"), sa.column("trajectory"))
    trajectory = sa.table("trajectory", sa.column("id"), sa.column("prompt", sa.JSON), sa.column("text"))
    sides = comparison.join(side, side.c.comparison == comparison.c.id).join(trajectory, trajectory.c.id == side.c.trajectory)
    wanted = sa.select(comparison.c.id, comparison.c.run, comparison.c.key, side.c.side, trajectory.c.prompt, trajectory.c.text)
    wanted = wanted.select_from(sides).where(comparison.c.why == "import").order_by(comparison.c.id, side.c.side, side.c.place)
    renamed, seen = [], Counter[tuple[str, str, str]]()
    for number, rows in groupby(op.get_bind().execute(wanted), lambda row: row.id):
        found = list(rows)
        purpose = "gold" if found[0].key.startswith("gold/") else "train"
        asked = digest(found[0].prompt, [[row.text for row in of_side] for _, of_side in groupby(found, lambda row: row.side)])
        place = found[0].run, purpose, asked
        renamed.append({"number": number, "new": key(asked, purpose, seen[place])})
        seen[place] += 1
    if renamed:
        new = sa.update(comparison).where(comparison.c.id == sa.bindparam("number")).values(key=sa.bindparam("new"))
        op.get_bind().execute(new, renamed)
