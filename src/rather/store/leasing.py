"""Finding the question that a judge gets next, and in which order its sides are shown.

The statements are made once: making them takes longer than running them.
"""

import hashlib
import secrets
from collections.abc import Collection
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, bindparam, insert, select, update

from rather.store import rows
from rather.store import tables as t
from rather.store.engine import now
from rather.store.rows import Lease, Question

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
    mine = wanted.join(t.lease, t.lease.c.comparison == c.id).where(t.lease.c.judge == _WHO, t.lease.c.expires > bindparam("now"))
    waiting = wanted.where(~rows.answered_by(_WHO)).with_only_columns(c.id).order_by(*order)
    free = wanted.where(c.id.in_(bindparam("some", expanding=True)), _OPEN, rows.meant_for(_WHO), rows.READY)
    free = free.order_by(*order).limit(1).with_for_update(of=t.comparison, skip_locked=True)
    return Statements(mine, waiting.offset(bindparam("seen")).limit(bindparam("size")), free)


def find(
    connection: Connection, run: str, who: int, purpose: str | None, overlap: int, held: Collection[int], shift: int | None
) -> Row[Any] | None:
    """The row of the judge's next question, locked: the one that they have before them already, or a free one."""
    mine, waiting, free = statements(purpose, shift is not None)
    known = {"run": run, "who": who, "overlap": overlap, "held": [0, *held], "shift": shift, "now": now()}
    if (row := connection.execute(mine, known).first()) is not None:
        return row
    # What makes a question free is costly to find out, so it is asked of a few at a time.
    seen, size = 0, FEW
    while some := list(connection.execute(waiting, {**known, "seen": seen, "size": size}).scalars()):
        seen, size = seen + size, 2 * size
        while some and (row := connection.execute(free, {**known, "some": some}).first()) is not None:
            # Under PostgreSQL another lease may have been committed between this statement's snapshot and the lock.
            if connection.execute(STILL_OPEN, {"overlap": overlap, "number": row.id, "now": known["now"]}).scalar():
                return row
            some.remove(row.id)
    return None


def give(connection: Connection, question: Question, who: int, judge: str, seconds: float, invitation: int | None) -> Lease:
    """Write down that the judge has the question before them for some seconds; given once more it is as it was, but for its end."""
    time, mine = now(), (t.lease.c.comparison == question.id) & (t.lease.c.judge == who)
    row = connection.execute(select(t.lease).where(mine)).first()
    if row is not None:
        connection.execute(update(t.lease).where(mine).values(expires=time + seconds))
        return Lease(row.token, row.invitation, row.shown, row.given, time + seconds)
    lease = Lease(secrets.token_urlsafe(16), invitation, _order(connection, question, who, judge), time, time + seconds)
    connection.execute(insert(t.lease).values(comparison=question.id, judge=who, **vars(lease)))
    return lease


def given(connection: Connection, question: int, who: int) -> Lease | None:
    """What the judge was given, whether they still have it or not."""
    wanted = select(t.lease).where(t.lease.c.comparison == question, t.lease.c.judge == who)
    row = connection.execute(wanted).first()
    return None if row is None else Lease(row.token, row.invitation, row.shown, row.given, row.expires)


def _order(connection: Connection, question: Question, who: int, judge: str) -> str:
    """The letters of a question's sides in an order drawn for this judge; where it is asked again, the opposite of the one before."""
    before = None if question.original is None else given(connection, question.original, who)
    letters = rows.LETTERS[: len(question.comparison.sides)]
    drawn = [hashlib.sha256(f"{question.original or question.id}\0{judge}\0{letter}".encode()).digest() for letter in letters]
    order = before.shown if before is not None else "".join(letter for _, letter in sorted(zip(drawn, letters, strict=True)))
    return order if question.original is None else order[::-1]
