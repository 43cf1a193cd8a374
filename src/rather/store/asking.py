"""Which question a person gets next: their own, gold questions, repeats, the most wanted, or one at random."""

import hashlib
from collections.abc import Collection

from sqlalchemy import insert, select

from rather.store import tables as t
from rather.store.engine import now
from rather.store.people import Person
from rather.store.rows import Question
from rather.store.store import Store

LEASE_S = 600.0
EVERYBODY = 10**9
APART = 5
"""A question is asked again when at least so many others have been answered since."""


def next_question(store: Store, run: str, who: Person, turns: int, held: Collection[int] = ()) -> Question | None:
    """Lease the next question for somebody who has answered `turns` and has those in `held` at hand; None if there is none for now."""
    asking, judge, invitation = store.asking(run), who.name, who.invitation
    turn = turns + len(held)
    found = None
    if _due(judge, turn, "gold", asking.gold) and any(original is None for _, original in store.probes(run).values()):
        found = store.lease(run, judge, "gold", EVERYBODY, LEASE_S, held, invitation=invitation)
    elif _due(judge, turn, "repeat", asking.repeats):
        repeat(store, run, judge)
        found = store.lease(run, judge, "repeat", EVERYBODY, LEASE_S, held, invitation=invitation)
    if found is not None:
        return found
    at_random = _draw(judge, turn, "order") % 10007 if _due(judge, turn, "random", asking.random) else None
    return store.lease(run, judge, None, asking.overlap, LEASE_S, held, at_random, invitation)


def repeat(store: Store, run: str, judge: str) -> int | None:
    """Make a question again of one that `judge` answered clearly some time ago; returns the new question, None if there is none such."""
    labels = store.judged(run, judge)
    known = {original for _, original in store.probes(run).values()} | set(store.probes(run))
    clear = [x for x in labels[: -APART or None] if x.preference in (0.0, 1.0) and x.best is None and x.comparison not in known]
    if not clear:
        return None
    chosen = clear[_draw(judge, len(labels), "again") % len(clear)]
    key = f"again/{chosen.comparison}/{hashlib.sha256(judge.encode()).hexdigest()[:16]}"
    with store.transaction(write=True) as connection:
        if connection.execute(select(t.comparison.c.id).filter_by(run=run, key=key)).first() is not None:
            return None
        values = {"run": run, "key": key, "purpose": "repeat", "why": "repeat", "created": now()}
        number = connection.execute(insert(t.comparison).values(values)).inserted_primary_key[0]  # type: ignore[index]
        sides = connection.execute(select(t.side).where(t.side.c.comparison == chosen.comparison)).all()
        connection.execute(insert(t.side), [{**r._mapping, "comparison": number} for r in sides])
        who = select(t.judge.c.id).where(t.judge.c.name == judge).scalar_subquery()
        probe = {"comparison": number, "preference": chosen.preference, "judge": who, "original": chosen.comparison}
        connection.execute(insert(t.probe).values(probe))
    return number


def _due(judge: str, turn: int, what: str, share: float) -> bool:
    """Whether it is the turn of one of those: a share of all turns, in an order of its own for everybody."""
    return _draw(judge, turn, what) % 10_000 < 10_000 * share


def _draw(judge: str, turn: int, what: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{judge}\0{turn}\0{what}".encode()).digest()[:6], "big")
