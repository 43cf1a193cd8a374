"""A run's questions and answers, read a thousand at a time: what the store holds need not fit into memory."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import select

from rather.core import Comparison
from rather.store import rows
from rather.store import tables as t
from rather.store.rows import Question
from rather.store.store import Store

CHUNK = 1000


def history(store: Store, run: str) -> Iterator[list[tuple[dict[str, Any], Question]]]:
    """Every row that was ever written about the run's questions, undone ones too, oldest first, each with its question."""
    found = store.flagged(run)
    with store.transaction() as connection:
        written = rows.HISTORY.where(t.comparison.c.run == run).execution_options(yield_per=CHUNK)
        for page in connection.execute(written).partitions():
            numbers = {r.comparison for r in page}
            asked = connection.execute(select(t.comparison).where(t.comparison.c.id.in_(numbers))).all()
            questions = {q.id: q for q in rows.with_sides(connection, asked, steps=False)}
            yield [(_row(r._mapping, found.get(r.id, ())), questions[r.comparison]) for r in page]


def _row(mapping: Any, flags: tuple[str, ...]) -> dict[str, Any]:
    return {k: v for k, v in mapping.items() if k != "comparison"} | {"flags": [*mapping["flags"], *flags]}


def answered(store: Store, run: str) -> Iterator[list[Comparison]]:
    """The run's comparisons with their mean preferences, in the order in which they were asked; pages without any are empty."""
    questions = select(t.comparison).where(t.comparison.c.run == run).order_by(t.comparison.c.id)
    with store.transaction() as connection:
        for page in connection.execute(questions.execution_options(yield_per=CHUNK)).partitions():
            some = {q.id: q for q in rows.with_sides(connection, page, steps=False)}
            answers = rows.CURRENT.where(t.label.c.comparison.in_(some), t.label.c.kind == "answer").join(t.judge)
            labels = connection.execute(answers.add_columns(t.judge.c.name.label("name")).order_by(t.label.c.id))
            yield rows.judged(some, [rows.label_of(r, r.name) for r in labels])
