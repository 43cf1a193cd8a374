"""Finding the question that a judge gets next, without reading those that are not: see `search` and `claim`; and giving it to them.

The search holds no lock, so that nobody waits for it; what it finds is looked at again under the lock. The statements are made once: making
them takes longer than running them.
"""

import hashlib
import math
import secrets
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from sqlalchemy import BindParameter, Connection, Float, Integer, Row, Select, bindparam, func, insert, select, tuple_, update

from rather.store import counting, rows
from rather.store import tables as t
from rather.store.engine import now as current_time
from rather.store.rows import Lease, Question

MANY, REMEMBERED_S = 1000, 30.0
"""Who has answered so many questions that come first and are still open is not led past them again, for so long."""
FEW = 8
"""How many are looked at again: others may be faster with the first ones."""


def _value(name: str) -> BindParameter[Any]:
    return bindparam(name)


Starts = dict[tuple[str, int, str | None, int], tuple[float, int, float]]
"""Where the search for a judge begins, by run, judge, purpose and number of answers: at a rank and a question, until a time."""

FIRST = (-math.inf, 0, 0.0)

_C = t.comparison.c
_RUN, _WHO, _NOW, _OVERLAP = (_value(name) for name in ("run", "who", "now", "overlap"))
_MAY_GET = (~rows.answered_by(_WHO), rows.meant_for(_WHO), rows.READY)
_OPEN = _C.rank.is_(None) | ~rows.decided()
"""Whether answers are wanted still; those whose answers are known want them whatever an owner has decided."""


_GIVEN = rows.CURRENT.where(t.label.c.judge == t.lease.c.judge, t.label.c.comparison == t.lease.c.comparison)
HOLDS = (t.lease.c.expires > _NOW) & ~_GIVEN.with_only_columns(t.label.c.id).correlate(t.lease).exists()
"""Whether a lease holds: it has not expired, and whoever has it has not answered."""
LEASES = select(t.lease.c.comparison, t.lease.c.judge).where(HOLDS).order_by(t.lease.c.expires)

_HERE = select(t.lease.c.judge).where(t.lease.c.comparison == _C.id, HOLDS).correlate(t.comparison)
_OTHERS = _HERE.where(t.lease.c.judge != _WHO).with_only_columns(func.count()).scalar_subquery()
CLAIMED = select(t.comparison).where(_C.id == bindparam("number"), ~rows.answered_by(_WHO), _OPEN)
CLAIMED = CLAIMED.where(_HERE.where(t.lease.c.judge == _WHO).exists() | (_C.answers + _OTHERS < _OVERLAP))
LOCKED = CLAIMED.with_for_update(of=t.comparison, skip_locked=True)

WAITING = select(t.comparison).where(_C.run == _RUN, _C.purpose == "train", _C.rank.is_not(None), _C.answers < _OVERLAP)
WAITING = WAITING.where(~rows.decided(), ~_HERE.exists()).order_by(_C.rank, _C.id)
"""Questions to learn from that want answers still and that nobody has before them, those first that come next."""

LEVELS = select(func.min(_C.answers)).where(_C.run == _RUN, _C.answers > bindparam("above"), _C.answers < _OVERLAP)
"""The next number of answers that questions have: those with equally many are found in order."""


THOSE = select(_C.id, _C.run, _C.purpose).where(_C.id.in_(bindparam("some", expanding=True)))
"""Where some questions belong. Run and purpose are looked at here: SQLite would go through all questions of the run instead."""


_START = tuple_(bindparam("rank", type_=Float), bindparam("number", type_=Integer))
_BEFORE = select(_C.id).where(_C.run == _RUN, _C.answers == bindparam("level"), tuple_(_C.rank, _C.id) < _START)
PASSED = select(func.count()).select_from(_BEFORE.limit(bindparam("many")).subquery())
"""How many questions with so many answers come before one, so many at most."""


@cache
def at_level(purpose: str | None, shift: bool, wrapped: bool) -> Select[Any, Any]:
    """The first questions with so many answers that the judge may get, by score or at random from `shift` on, and where they stand."""
    order = _C.draw if shift else _C.rank
    wanted = select(order, _C.id).where(_C.run == _RUN, _C.answers == bindparam("level"), *_MAY_GET, ~rows.decided())
    if purpose is not None:
        wanted = wanted.where(_C.purpose == purpose)
    if shift:
        wanted = wanted.where(order < bindparam("shift") if wrapped else order >= bindparam("shift"))
    else:
        wanted = wanted.where(tuple_(_C.rank, _C.id) >= _START)
    return wanted.order_by(order, _C.id).limit(bindparam("size"))


@cache
def known(purpose: str) -> Select[Any, Any]:
    """The first of the questions whose answers are known; of repeats, the judge's own."""
    # Of the indexes that by purpose is to be taken, so that by answers must not fit.
    wanted = select(_C.id, _C.answers).where(_C.run == _RUN, _C.purpose == purpose, _C.answers + 0 < _OVERLAP, *_MAY_GET)
    if purpose == "repeat":
        wanted = wanted.where(_C.id.in_(select(t.probe.c.comparison).where(t.probe.c.judge == _WHO)))
    return wanted.order_by(_C.score.desc().nulls_last(), _C.id).limit(bindparam("size"))


def search(
    connection: Connection, run: str, who: int, purpose: str | None, overlap: int, but: Collection[int], shift: int | None, now: float,
    starts: Starts,
) -> list[int]:  # fmt: skip
    """Numbers of questions that the judge may get, in the order in which to try them: first those that were given to them before.

    `but` is left out. With a `shift` the others come in the order at random. What comes back before one of the `starts`, or is asked anew
    with a higher score, is found when that has been forgotten, or when there is nothing else.
    """
    values = {"run": run, "who": who, "overlap": overlap, "now": now, "shift": shift, "above": -1}
    leases: Sequence[Any] = connection.execute(LEASES, values).all()
    before_them = [lease.comparison for lease in leases if lease.judge == who and lease.comparison not in but]
    for some in counting.parts(before_them):
        purposes = {number: what for number, of, what in connection.execute(THOSE, {"some": some}) if of == run}
        fit = {n for n, what in purposes.items() if what == purpose or (purpose is None and what not in counting.KNOWN)}
        if mine := [n for n in some if n in fit]:
            return mine
    leased = Counter(lease.comparison for lease in leases if lease.judge != who)
    values["size"] = FEW + len(but) + len(leased)
    found = list[tuple[Any, ...]]()

    def free(number: int, answers: int) -> bool:
        return number not in but and answers + leased[number] < overlap

    if purpose in counting.KNOWN:
        return [row.id for row in connection.execute(known(purpose), values) if free(row.id, row.answers)][:FEW]
    began_late = False
    while (level := connection.execute(LEVELS, values).scalar()) is not None:
        values |= {"above": level, "level": level, "rank": -math.inf, "number": 0}
        if shift is None:
            rank, number, until = starts.get((run, who, purpose, level), FIRST)
            if now < until <= now + REMEMBERED_S:  # a clock may have been set back
                values |= {"rank": rank, "number": number}
                began_late = True
        for wrapped in (False, True) if shift is not None else (False,):
            stand: Sequence[Any] = connection.execute(at_level(purpose, shift is not None, wrapped), values).all()
            found += [(wrapped, *row) for row in stand if free(row.id, level)]
            if len(stand) == values["size"]:
                break
        if shift is None and stand and values["rank"] == -math.inf:
            passed = {**values, "rank": stand[0].rank, "number": stand[0].id, "many": MANY}
            if connection.execute(PASSED, passed).scalar() == MANY:
                starts[run, who, purpose, level] = (stand[0].rank, stand[0].id, now + REMEMBERED_S)
    if began_late and not found:
        starts.clear()
        return search(connection, run, who, purpose, overlap, but, shift, now, starts)
    return [number for *_, number in sorted(found)[:FEW]]


def claim(connection: Connection, some: list[int], who: int, overlap: int, now: float) -> Row[Any] | None:
    """The row of the first of these that the judge may still get, locked."""
    values = {"who": who, "overlap": overlap, "now": now}
    for number in some:
        locked = connection.execute(LOCKED, {**values, "number": number}).first()
        # Under PostgreSQL another lease may have been committed between that statement's snapshot and the lock.
        if locked is not None and (row := connection.execute(CLAIMED, {**values, "number": number}).first()) is not None:
            return row
    return None


def give(connection: Connection, question: Question, who: int, judge: str, seconds: float, invitation: int | None) -> Lease:
    """Write down that the judge has the question before them for some seconds; given once more it is as it was, but for its end."""
    time, before = current_time(), given(connection, question.id, who)
    if before is not None:
        connection.execute(update(t.lease).filter_by(comparison=question.id, judge=who).values(expires=time + seconds))
        return replace(before, expires=time + seconds)
    lease = Lease(secrets.token_urlsafe(16), invitation, _order(connection, question, who, judge), time, time + seconds)
    connection.execute(insert(t.lease).values(comparison=question.id, judge=who, **vars(lease)))
    return lease


def end(connection: Connection, question: int, who: int) -> None:
    """The judge has the question before them no longer."""
    connection.execute(update(t.lease).filter_by(comparison=question, judge=who).values(expires=0.0))


def given(connection: Connection, question: int, who: int) -> Lease | None:
    """What the judge was given, whether they still have it or not."""
    wanted = select(t.lease).where(t.lease.c.comparison == question, t.lease.c.judge == who)
    row = connection.execute(wanted).first()
    return None if row is None else Lease(row.token, row.invitation, row.shown, row.given, row.expires)


def _shown_before(connection: Connection, question: int, who: int) -> str | None:
    """How the judge saw a question that they have answered."""
    lease = given(connection, question, who)
    said = rows.CURRENT.where(t.label.c.comparison == question, t.label.c.judge == who).with_only_columns(t.label.c.shown)
    return connection.execute(said).scalar() if lease is None else lease.shown


def _order(connection: Connection, question: Question, who: int, judge: str) -> str:
    """The letters of a question's sides in an order drawn for this judge; where it is asked again, the opposite of the one before."""
    before = None if question.original is None else _shown_before(connection, question.original, who)
    letters = rows.LETTERS[: len(question.comparison.sides)]
    drawn = [hashlib.sha256(f"{question.original or question.id}\0{judge}\0{letter}".encode()).digest() for letter in letters]
    order = before if before is not None else "".join(letter for _, letter in sorted(zip(drawn, letters, strict=True)))
    return order if question.original is None else order[::-1]
