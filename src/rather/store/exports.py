"""A run's questions and answers, read some at a time: what the store holds need not fit into memory."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Row, select

from rather.core import Comparison
from rather.store import reading, rows
from rather.store import tables as t
from rather.store.counting import PART
from rather.store.store import Store


def history(store: Store, run: str) -> Iterator[list[dict[str, Any]]]:
    """Every row that was ever written about the run's questions, undone ones too, oldest first.

    With it stand what was asked and, of each side, the texts and policies of its trajectories: `a_text`, `a_policy` and so on.
    """
    suspicious = store.flagged(run)
    with store.transaction() as connection:
        written = rows.HISTORY.add_columns(t.comparison.c.run, t.comparison.c.why).where(t.comparison.c.run == run)
        for page in connection.execute(written.execution_options(yield_per=PART)).partitions():
            sides, criteria = _sides(connection, {r.comparison for r in page}), rows.criteria(connection, (r.id for r in page))
            yield [_row(r, criteria.get(r.id, {}), suspicious.get(r.id, ()), sides[r.comparison]) for r in page]


def _row(r: Row[Any], criteria: dict[str, float], flags: tuple[str, ...], sides: dict[str, Any]) -> dict[str, Any]:
    row = dict(zip(r._fields, r, strict=True))
    del row["comparison"]
    return row | {"criteria": criteria, "flags": [*row["flags"], *flags]} | sides


def _sides(connection: Connection, questions: set[int]) -> dict[int, dict[str, Any]]:
    c, found = t.trajectory.c, dict[int, dict[str, Any]]()
    wanted = select(t.side.c.comparison, t.side.c.side, c.text, c.policy, c.task, c.source, c.prompt).join(t.trajectory)
    wanted = wanted.where(t.side.c.comparison.in_(questions)).order_by(t.side.c.comparison, t.side.c.side, t.side.c.place)
    for question, letter, text, policy, task, source, prompt in connection.execute(wanted).all():
        sides = found.setdefault(question, {"task": task, "source": source, "prompt": prompt})
        sides.setdefault(f"{letter}_text", []).append(text)
        sides.setdefault(f"{letter}_policy", []).append(policy)
    return found


def answered(store: Store, run: str, purpose: str = "train", criterion: str = "") -> Iterator[list[Comparison]]:
    """The run's comparisons of a purpose with their mean preferences, in the order in which they were asked.

    Pages without any are empty. With a `criterion`, preferences are those on that one. Known answers, repeats, and what an evaluation or
    a check asked are not trained on.
    """
    with store.transaction() as connection:
        for some in reading.judged(connection, rows.asked(run, purpose), rows.COUNTED, steps=False, criterion=criterion):
            yield some.comparisons
