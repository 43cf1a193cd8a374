"""Which question a person gets next: their own, gold questions, repeats, the most wanted, or one at random; how much each is wanted."""

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Row, bindparam, func, insert, select, update

from rather.store import counting, leasing, rows
from rather.store import tables as t
from rather.store.engine import now
from rather.store.judges import writer
from rather.store.rows import Question
from rather.store.store import Store

LEASE_S = 600.0
EVERYBODY = 10**9
APART = 5
"""A question is asked again when at least so many others have been answered since."""
MOST, AT_ONCE = 2000, 100
"""How many questions are put in order at most, and how many in one transaction."""


def next_question(
    store: Store, run: str, judge: str, turns: int, held: Collection[int] = (), invitation: int | None = None
) -> Question | None:
    """Lease the next question for `judge`, who has answered `turns` and has those in `held` at hand; None if there is none for now."""
    asking = store.asking(run)
    turn = turns + len(held)
    found = None
    if _due(judge, turn, "gold", asking.gold) and _has_gold(store, run):
        found = store.lease(run, judge, "gold", EVERYBODY, LEASE_S, held, invitation=invitation)
    elif _due(judge, turn, "repeat", asking.repeats):
        repeat(store, run, judge, invitation)
        found = store.lease(run, judge, "repeat", EVERYBODY, LEASE_S, held, invitation=invitation)
    if found is not None:
        return found
    at_random = _draw(judge, turn, "order") % 2**31 if _due(judge, turn, "random", asking.random) else None
    return store.lease(run, judge, None, asking.overlap, LEASE_S, held, at_random, invitation)


def repeat(store: Store, run: str, judge: str, invitation: int | None = None) -> int | None:
    """Make a question again of one that `judge` answered clearly some time ago; returns the new question, None if there is none such."""
    chosen = _clear(store, run, judge)
    if chosen is None:
        return None
    key = f"again/{chosen.comparison}/{hashlib.sha256(judge.encode()).hexdigest()[:16]}"
    with store.transaction(write=True) as connection:
        who = writer(connection, judge, invitation)
        if connection.execute(select(t.comparison.c.id).filter_by(run=run, key=key)).first() is not None:
            return None
        values = {"run": run, "key": key, "purpose": "repeat", "why": "repeat", "created": now()}
        number = connection.execute(insert(t.comparison).values(values)).inserted_primary_key[0]  # type: ignore[index]
        sides = connection.execute(select(t.side).where(t.side.c.comparison == chosen.comparison)).all()
        connection.execute(insert(t.side), [{**r._mapping, "comparison": number} for r in sides])
        probe = {"comparison": number, "preference": chosen.preference, "judge": who, "original": chosen.comparison}
        connection.execute(insert(t.probe).values(probe))
    return number


def waiting(store: Store, run: str) -> list[Question]:
    """Questions to learn from that want answers still and that nobody has before them, those first that come next; `MOST` at most."""
    values = {"run": run, "overlap": store.asking(run).overlap, "now": now()}
    with store.transaction() as connection:
        return rows.with_sides(connection, connection.execute(leasing.WAITING.limit(MOST), values).all())


def prioritize(store: Store, run: str, wanted: Mapping[int, tuple[float, str]]) -> None:
    """Give `waiting` questions, by number, another score and reason to be asked. Those that wait no longer stay as they are.

    A few at a time, so that whoever answers or asks meanwhile does not wait for all.
    """
    values = {"run": run, "overlap": store.asking(run).overlap}
    changed = update(t.comparison).where(t.comparison.c.id == bindparam("number"))
    for some in counting.parts(wanted, AT_ONCE):
        still = leasing.WAITING.where(t.comparison.c.id.in_(some)).with_only_columns(t.comparison.c.id).order_by(None)
        still = still.order_by(t.comparison.c.id).with_for_update(skip_locked=True)
        with store.transaction(write=True) as connection:
            numbers = list(connection.execute(still, {**values, "now": now()}).scalars())
            new = [{"number": n, "score": wanted[n][0], "rank": -wanted[n][0], "why": wanted[n][1]} for n in numbers]
            if new:
                connection.execute(changed, new)


def _has_gold(store: Store, run: str) -> bool:
    c = t.comparison.c
    known = select(c.id).join(t.probe, t.probe.c.comparison == c.id).where(c.run == run, c.purpose == "gold", t.probe.c.original.is_(None))
    with store.transaction() as connection:
        return connection.execute(known.limit(1)).first() is not None


def _clear(store: Store, run: str, judge: str) -> Row[Any] | None:
    """A clear answer of the judge about two sides that was given some time ago and not asked for again; drawn by their turn."""
    c, turns = t.label.c, store.count(run, judge).turns
    with store.transaction() as connection:
        mine = store.said(connection, run, judge)
        before = list(connection.execute(mine.with_only_columns(c.id).order_by(c.id.desc()).limit(APART + 1)).scalars())
        if len(before) <= APART:
            return None
        first = connection.execute(mine.with_only_columns(c.id).order_by(c.id).limit(1)).scalar() or 0
        known = select(t.probe.c.comparison).where((t.probe.c.comparison == c.comparison) | (t.probe.c.original == c.comparison))
        clear = mine.where(c.id <= before[-1], c.preference.in_((0.0, 1.0)), c.best.is_(None), func.length(c.shown) == 2)
        clear = clear.where(~known.correlate(t.label).exists())
        start = first + _draw(judge, turns, "again") % (before[-1] - first + 1)
        for some in (clear.where(c.id >= start), clear):
            if (row := connection.execute(some.order_by(c.id).limit(1)).first()) is not None:
                return row
    return None


def _due(judge: str, turn: int, what: str, share: float) -> bool:
    """Whether it is the turn of one of those: a share of all turns, in an order of its own for everybody."""
    return _draw(judge, turn, what) % 10_000 < 10_000 * share


def _draw(judge: str, turn: int, what: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{judge}\0{turn}\0{what}".encode()).digest()[:6], "big")
