"""What a run's answers come to, counted without reading questions: who answered how often, how far judges agree, left or right."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Select, func, select

from rather.store import rows
from rather.store import tables as t
from rather.store.agreement import Agreement, PositionBias, agreement, bias, rated
from rather.store.store import Store

CHUNK = 10_000


class Tally(NamedTuple):
    """A judge's name and kind, and how many answers and abstentions of theirs count."""

    judge: str
    kind: str
    answers: int
    abstentions: int


def _of(run: str, purpose: str) -> Select[Any]:
    """The labels that count."""
    return rows.CURRENT.join(t.comparison).join(t.judge).where(t.comparison.c.run == run, t.comparison.c.purpose == purpose)


def questions(store: Store, run: str, purpose: str | None = None) -> int:
    """How many questions of a purpose there are, or how many in all."""
    wanted = select(func.count(t.comparison.c.id)).where(t.comparison.c.run == run)
    with store.transaction() as connection:
        return connection.execute(wanted if purpose is None else wanted.where(t.comparison.c.purpose == purpose)).scalar() or 0


def written(store: Store, run: str) -> int:
    """How many rows were ever written about the run's questions, changed and undone answers too."""
    with store.transaction() as connection:
        return connection.execute(select(func.count(t.label.c.id)).join(t.comparison).where(t.comparison.c.run == run)).scalar() or 0


def tally(store: Store, run: str, purpose: str) -> list[Tally]:
    """The answers of every judge in the store, in the order they came."""
    c = t.label.c
    wanted = _of(run, purpose).with_only_columns(c.judge, c.kind, func.count(c.id)).group_by(c.judge, c.kind)
    with store.transaction() as connection:
        counts = {(judge, kind): count for judge, kind, count in connection.execute(wanted)}
        judges = connection.execute(select(t.judge.c.id, t.judge.c.name, t.judge.c.kind).order_by(t.judge.c.id)).all()
    return [Tally(name, kind, *(counts.get((number, x), 0) for x in ("answer", "abstention"))) for number, name, kind in judges]


def agree(store: Store, run: str, purpose: str, advance: Callable[[int], object] = lambda answers: None) -> Agreement:
    """How far judges agree; `advance` is called with the numbers of answers that were read."""
    c = t.label.c
    wanted = _of(run, purpose).where(c.kind == "answer").with_only_columns(c.comparison, t.judge.c.name, c.preference, c.best)
    numbers: dict[str, int] = {}
    read = [np.empty((0, 4))]
    with store.transaction() as connection:
        for some in connection.execute(wanted).partitions(CHUNK):
            read.append(np.array([(q, numbers.setdefault(name, len(numbers)), p, best) for q, name, p, best in some], float))
            advance(len(some))
    order = sorted(numbers)
    return agreement(order, rated(np.concatenate(read), len(numbers))[[numbers[name] for name in order]])


def position(store: Store, run: str, purpose: str) -> PositionBias | None:
    """How often people preferred the side on the left, of two of which they preferred one; None if they never did."""
    c = t.label.c
    clear = _of(run, purpose).where(t.judge.c.kind == "person", c.kind == "answer", c.preference != 0.5, c.best.is_(None))
    wanted = clear.with_only_columns(c.preference, c.shown_left, func.count(c.id)).group_by(c.preference, c.shown_left)
    with store.transaction() as connection:
        counts = [((p > 0.5) == (left == "a"), count) for p, left, count in connection.execute(wanted)]
    total = sum(count for _, count in counts)
    return bias(sum(count for left, count in counts if left), total) if total else None
