"""Finding the question that a judge gets next. The statements are made once: making them takes longer than running them."""

from collections.abc import Collection
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, bindparam, select

from rather.store import rows
from rather.store import tables as t

FEW = 8
_WHO: Any = bindparam("who")
_OPEN = bindparam("overlap") > rows.ANSWERS + rows.LEASES


class Statements(NamedTuple):
    """Which question the judge has before them already, which are left to them in the order they come, and which of some are free."""

    mine: Select[Any]
    waiting: Select[Any]
    free: Select[Any]


STILL_OPEN = select(_OPEN).where(t.comparison.c.id == bindparam("number"))


@cache
def statements(purpose: str | None, at_random: bool) -> Statements:
    """For questions of a purpose, by score or in an order that `shift` draws."""
    c = t.comparison.c
    held = bindparam("held", expanding=True)
    wanted = select(t.comparison).where(c.run == bindparam("run"), rows.of_purpose(purpose), c.id.not_in(held))
    # Neighbouring numbers times a large odd one are spread over all remainders.
    order = ((c.id * 7919 + bindparam("shift")) % 10007, c.id) if at_random else (c.score.desc().nulls_last(), c.id)
    mine = wanted.join(t.lease, t.lease.c.comparison == c.id).where(t.lease.c.judge == _WHO)
    waiting = wanted.where(~rows.answered_by(_WHO)).with_only_columns(c.id).order_by(*order)
    free = wanted.where(c.id.in_(bindparam("some", expanding=True)), _OPEN, rows.meant_for(_WHO), rows.READY)
    free = free.order_by(*order).limit(1).with_for_update(of=t.comparison, skip_locked=True)
    return Statements(mine, waiting.offset(bindparam("seen")).limit(bindparam("size")), free)


def find(
    connection: Connection, run: str, who: int, purpose: str | None, overlap: int, held: Collection[int], shift: int | None
) -> tuple[Row[Any] | None, bool]:
    """The row of the judge's next question, locked, and whether they have it before them already."""
    mine, waiting, free = statements(purpose, shift is not None)
    known = {"run": run, "who": who, "overlap": overlap, "held": [0, *held], "shift": shift}
    if (row := connection.execute(mine, known).first()) is not None:
        return row, True
    # What makes a question free is costly to find out, so it is asked of a few at a time.
    seen, size = 0, FEW
    while some := list(connection.execute(waiting, {**known, "seen": seen, "size": size}).scalars()):
        seen, size = seen + size, 2 * size
        while some and (row := connection.execute(free, {**known, "some": some}).first()) is not None:
            # Under PostgreSQL another lease may have been committed between this statement's snapshot and the lock.
            if connection.execute(STILL_OPEN, {"overlap": overlap, "number": row.id}).scalar():
                return row, False
            some.remove(row.id)
    return None, False
