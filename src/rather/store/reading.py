"""Questions with their answers as comparisons to learn from, read some at a time."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from sys import intern
from typing import Any

from sqlalchemy import Connection, Row, Select

from rather.core import Comparison
from rather.store import rows
from rather.store import tables as t
from rather.store.counting import PART


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
            learned = [label for label in everybodys if label.kind == "decision"] or everybodys
            found += _judged(asked[number], learned, each)
            numbers += [label.id for label in learned]
        yield Judged(found, numbers)


def _judged(q: Comparison, answers: Sequence[Row[Any]], each: bool) -> list[Comparison]:
    if each or q.others:
        return [p for x in answers for p in replace(q, preference=x.preference, judge=intern(x.name), best=x.best, label=x.id).pairs()]
    mean = sum(x.preference or 0.0 for x in answers) / len(answers)
    return [Comparison(q.a, q.b, mean, q.key, intern(answers[0].name) if len(answers) == 1 else "")]
