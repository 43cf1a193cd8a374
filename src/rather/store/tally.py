"""What a run's answers come to, counted without reading questions: who answered how often, how far judges agree, left or right."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import String, bindparam, case, cast, func, select

from rather.store import rows
from rather.store import tables as t
from rather.store.agreement import Agreement, PositionBias, agreement, bias
from rather.store.store import Store

CHUNK = 50_000
"""Questions whose answers are counted at a time."""
SOME = 5_000
"""Labels that are asked for by their numbers at a time."""


class Tally(NamedTuple):
    """A judge's name and kind, and how many answers and abstentions of theirs count."""

    judge: str
    kind: str
    answers: int
    abstentions: int


class Counted(NamedTuple):
    """What judges have answered, and how far they agree."""

    tallies: list[Tally]
    agreement: Agreement


def questions(store: Store, run: str, purpose: str | Sequence[str] | None = None) -> int:
    """How many questions of a purpose or several there are, or how many in all."""
    wanted = select(func.count(t.comparison.c.id)).where(t.comparison.c.run == run)
    with store.transaction() as connection:
        return connection.execute(wanted if purpose is None else wanted.where(rows.of_purpose(purpose))).scalar() or 0


def written(store: Store, run: str) -> int:
    """How many rows were ever written about the run's questions, changed and undone answers too."""
    with store.transaction() as connection:
        return connection.execute(select(func.count(t.label.c.id)).join(t.comparison).where(t.comparison.c.run == run)).scalar() or 0


def count(
    store: Store, run: str, purpose: str | Sequence[str], advance: Callable[[int], object] = lambda questions: None, resamples: int = 1000
) -> Counted:
    """The answers of every judge in the store, in the order they came, and how far they agree; `advance` gets numbers of questions.

    The database says how often judges gave the same answers together, such as "1:-1,2:0" or, with an abstention, "1:nan,2:0".
    """
    c, asked = t.label.c, t.comparison.c
    answer = case((c.best.is_not(None), cast(1 + c.best, String)), (c.preference > 0.5, "1"), (c.preference < 0.5, "-1"), else_="0")
    entry = cast(c.judge, String) + ":" + case((c.kind == "answer", answer), else_="nan")
    given = rows.CURRENT.join(t.comparison).where(asked.run == run, rows.of_purpose(purpose))
    given = given.with_only_columns(func.aggregate_strings(entry, ",").label("together")).group_by(asked.id)
    following = (
        select(asked.id).where(asked.run == run, rows.of_purpose(purpose), asked.id > bindparam("last")).order_by(asked.id).limit(CHUNK)
    )
    chunk = select(func.count(), func.max(following.subquery().c.id))
    often, last = Counter[tuple[str, ...]](), 0
    with store.transaction() as connection:
        judges = connection.execute(select(t.judge.c.id, t.judge.c.name, t.judge.c.kind).order_by(t.judge.c.id)).all()
        while True:
            count, end = connection.execute(chunk, {"last": last}).one()
            if not count:
                break
            page = given.where(c.comparison > last, c.comparison <= end, asked.id > last, asked.id <= end).subquery()
            pairs: Sequence[Any] = connection.execute(select(page.c.together, func.count()).group_by(page.c.together)).all()
            for together, n in pairs:  # in whichever order the database has put them
                often[tuple(sorted(together.split(",")))] += n
            last = end
            advance(count)
    sorts = [(dict(x.split(":") for x in together), n) for together, n in often.items()]
    counts = Counter[tuple[str, bool]]()
    for said, n in sorts:
        for judge, value in said.items():
            counts[judge, value == "nan"] += n
    tallies = [Tally(name, kind, counts[str(number), False], counts[str(number), True]) for number, name, kind in judges]
    names = sorted((name, str(number)) for number, name, _ in judges if counts[str(number), False])
    places = {number: place for place, (_, number) in enumerate(names)}
    ratings = np.full((len(names), len(sorts)), np.nan)
    for column, (said, _) in enumerate(sorts):
        for number, value in said.items():
            if number in places:  # or all that they said is abstentions
                ratings[places[number], column] = float(value)
    ratings = ratings.repeat([n for _, n in sorts], axis=1)
    return Counted(tallies, agreement([name for name, _ in names], ratings, resamples=resamples))


def position(store: Store, run: str, purpose: str) -> PositionBias | None:
    """How often people preferred the side on the left, of two of which they preferred one; None if they never did."""
    c = t.label.c
    of = rows.CURRENT.join(t.comparison).join(t.judge).where(t.comparison.c.run == run, t.comparison.c.purpose == purpose)
    clear = of.where(t.judge.c.kind == "person", c.kind == "answer", c.preference != 0.5, c.best.is_(None))
    left = case(((c.preference > 0.5) == (func.substr(c.shown, 1, 1) == "a"), 1), else_=0)
    with store.transaction() as connection:
        liked, total = connection.execute(clear.with_only_columns(func.sum(left), func.count())).one()
    return bias(liked, total) if total else None


def learned(store: Store, labels: Sequence[int]) -> tuple[int, list[Tally]]:
    """How many questions the labels of these numbers answer, and who gave them: what a checkpoint says that it was made of."""
    c, asked, counts = t.label.c, set[int](), Counter[tuple[str, str]]()
    with store.transaction() as connection:
        for start in range(0, len(labels), SOME):
            wanted = select(c.comparison, t.judge.c.name, t.judge.c.kind).join_from(t.label, t.judge)
            for comparison, name, kind in connection.execute(wanted.where(c.id.in_(labels[start : start + SOME]))):
                asked.add(comparison)
                counts[name, kind] += 1
    return len(asked), [Tally(name, kind, count, 0) for (name, kind), count in sorted(counts.items())]
