"""A run's questions and answers, read a thousand at a time: what the store holds need not fit into memory."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, select

from rather.core import Comparison
from rather.store import rows
from rather.store import tables as t
from rather.store.store import Store

CHUNK = 1000


def history(store: Store, run: str) -> Iterator[list[dict[str, Any]]]:
    """Every row that was ever written about the run's questions, undone ones too, oldest first.

    With it stand what was asked and, of each side, the texts and policies of its trajectories: `a_text`, `a_policy` and so on.
    """
    suspicious = store.flagged(run)
    with store.transaction() as connection:
        written = rows.HISTORY.add_columns(t.comparison.c.run, t.comparison.c.why).where(t.comparison.c.run == run)
        for page in connection.execute(written.execution_options(yield_per=CHUNK)).partitions():
            sides = _sides(connection, {r.comparison for r in page})
            yield [_row(dict(zip(r._fields, r, strict=True)), suspicious.get(r.id, ()), sides[r.comparison]) for r in page]


def _row(row: dict[str, Any], flags: tuple[str, ...], sides: dict[str, Any]) -> dict[str, Any]:
    del row["comparison"]
    return row | {"flags": [*row["flags"], *flags]} | sides


def _sides(connection: Connection, questions: set[int]) -> dict[int, dict[str, Any]]:
    c, found = t.trajectory.c, dict[int, dict[str, Any]]()
    wanted = select(t.side.c.comparison, t.side.c.side, c.text, c.policy, c.task, c.source, c.prompt).join(t.trajectory)
    wanted = wanted.where(t.side.c.comparison.in_(questions)).order_by(t.side.c.comparison, t.side.c.side, t.side.c.place)
    for question, letter, text, policy, task, source, prompt in connection.execute(wanted).all():
        sides = found.setdefault(question, {"task": task, "source": source, "prompt": prompt})
        sides.setdefault(f"{letter}_text", []).append(text)
        sides.setdefault(f"{letter}_policy", []).append(policy)
    return found


def answered(store: Store, run: str) -> Iterator[list[Comparison]]:
    """The run's comparisons that are trained on, with their mean preferences, in the order in which they were asked.

    Pages without any are empty. Known answers, repeats, and what an evaluation or a check asked are none of them.
    """
    questions = select(t.comparison).where(t.comparison.c.run == run, t.comparison.c.purpose == "train").order_by(t.comparison.c.id)
    with store.transaction() as connection:
        for page in connection.execute(questions.execution_options(yield_per=CHUNK)).partitions():
            some = {q.id: q for q in rows.with_sides(connection, page, steps=False)}
            answers = rows.CURRENT.where(t.label.c.comparison.in_(some), t.label.c.kind == "answer").join(t.judge)
            labels = connection.execute(answers.add_columns(t.judge.c.name.label("name")).order_by(t.label.c.id))
            yield rows.judged(some, [rows.label_of(r, r.name) for r in labels])
