"""A run's questions and answers, read some at a time: what the store holds need not fit into memory."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from sys import intern
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, Select, select

from rather.core import Comparison
from rather.store import rows
from rather.store import tables as t
from rather.store.counting import PART

if TYPE_CHECKING:
    from rather.store.store import Store


@contextmanager
def unwatched() -> Iterator[None]:
    """Without Python's collector of cycles, which looks at all that was read again and again as it becomes more; rows have no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def history(store: "Store", run: str) -> Iterator[list[dict[str, Any]]]:
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


@dataclass(frozen=True)
class Judged:
    """Comparisons with their preferences, and the numbers of the labels that say so."""

    comparisons: list[Comparison]
    labels: list[int]


def judged(
    connection: Connection,
    questions: Select[Any],
    labels: Select[Any],
    counts: Callable[[Row[Any]], bool] = lambda label: True,
    only: Callable[[Comparison], bool] = lambda comparison: True,
    each: bool = False,
    steps: bool = True,
    criterion: str = "",
) -> Iterator[Judged]:
    """Questions with their answers, in the order in which they were asked; pages without any are empty.

    `counts` and `only` choose labels, which have their judge's `name`, and questions. One comparison a question with the mean of its
    answers, or with `each` one an answer. An answer to more than two sides is several comparisons. Where an owner has decided, that is
    all that is said. With a `criterion`, what answers say on that one instead of on the whole.
    """
    c, on, name = t.label.c, t.criterion.c, t.judge.c.name
    said = on.preference if criterion else c.preference
    columns = c.id, c.comparison, c.kind, said.label("preference"), c.best, c.flags, name
    answers = labels.where(c.kind.in_(("answer", "decision")), c.preference.is_not(None)).join(t.judge, t.judge.c.id == c.judge)
    if criterion:
        answers = answers.join(t.criterion, (on.label == c.id) & (on.name == criterion))
    answers = answers.with_only_columns(*columns).order_by(c.comparison, c.id)
    for page in connection.execute(questions.execution_options(yield_per=PART)).partitions():
        asked = {q.id: q.comparison for q in rows.with_sides(connection, page, steps) if only(q.comparison)}
        written: Sequence[Any] = connection.execute(answers.where(c.comparison.in_(asked))).all()
        given = [label for label in written if counts(label)]
        found, numbers = list[Comparison](), list[int]()
        for number, some in groupby(given, lambda label: label.comparison):
            everybodys = list(some)
            learnt = [label for label in everybodys if label.kind == "decision"] or everybodys
            found += _judged(asked[number], learnt, each)
            numbers += [label.id for label in learnt]
        yield Judged(found, numbers)


def _judged(q: Comparison, answers: Sequence[Row[Any]], each: bool) -> list[Comparison]:
    if each or q.others:
        return [p for x in answers for p in replace(q, preference=x.preference, judge=intern(x.name), best=x.best).pairs()]
    mean = sum(x.preference or 0.0 for x in answers) / len(answers)
    return [Comparison(q.a, q.b, mean, q.key, intern(answers[0].name) if len(answers) == 1 else "")]


def answered(store: "Store", run: str, purpose: str = "train", criterion: str = "") -> Iterator[list[Comparison]]:
    """The run's comparisons of a purpose with their mean preferences, in the order in which they were asked.

    Pages without any are empty. With a `criterion`, preferences are those on that one. Known answers, repeats, and what an evaluation or
    a check asked are not trained on.
    """
    with store.transaction() as connection:
        for some in judged(connection, rows.asked(run, purpose), rows.COUNTED, steps=False, criterion=criterion):
            yield some.comparisons
