"""Answers that judges write themselves where no side of a question is good enough.

Each becomes a question, whose side a it is and whose other sides are those of the question before it, with the label of whoever wrote it
that it is the best. It stands as long as their answer to the question before it does.
"""

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, insert, select

from rather.store import counting, rows
from rather.store import tables as t
from rather.store.engine import now

WHY = "written"
"""Why such a question is asked."""


def withdraw(connection: Connection, answered: Collection[tuple[int, int]]) -> None:
    """These judges have said something else of these questions: what they wrote to them before is theirs no longer.

    Nobody is asked about it any more, and nothing learned from it, unless somebody else has answered or decided meanwhile: then it is a
    question like any other, for everybody but whoever wrote it.
    """
    found = [r for r in _standing(connection, {question for question, _ in answered}) if (r.original, r.judge) in answered]
    if not found:
        return
    x = t.label.c
    written = {r.comparison: r.judge for r in found}
    counting.lock(connection, {*written, *(r.original for r in found)})
    counted = rows.COUNTED.where(x.comparison.in_(written), x.kind.in_(("answer", "decision")))
    others = {r.comparison for r in connection.execute(counted) if r.kind == "decision" or r.judge != written[r.comparison]}
    fixed = {"kind": "undo", "reason": "", "shown": "ab", "flags": [], "created": now()}
    connection.execute(insert(t.label), [{"comparison": number, "judge": judge, **fixed} for number, judge in written.items()])
    counting.retire(connection, sorted(written.keys() - others))  # which locks what a run is asked, before anybody's standing
    counting.answered(connection, written)


def _standing(connection: Connection, questions: Collection[int], judge: int | None = None) -> list[Any]:
    """What was written to these questions, by anybody or by a judge, and has not been withdrawn."""
    w, x, found = t.written.c, t.label.c, list[Any]()
    on = (x.comparison == w.comparison) & (x.judge == w.judge) & x.counts & (x.kind == "answer")
    for some in counting.parts(sorted(questions)):
        standing = select(t.written).join(t.label, on).where(w.original.in_(some))
        found += connection.execute(standing if judge is None else standing.where(w.judge == judge)).all()
    return found


def texts(connection: Connection, questions: Collection[int], judge: int) -> dict[int, str]:
    """The answers that a judge has written to these questions, by question; those that were withdrawn are left out."""
    originals = {r.comparison: r.original for r in _standing(connection, questions, judge)}
    first = select(t.side.c.comparison, t.trajectory.c.text).join(t.trajectory).where(t.side.c.side == "a")
    found = connection.execute(first.where(t.side.c.comparison.in_(originals)))
    return {originals[number]: text for number, text in found}


def erase(connection: Connection, judge: int, run: str | None) -> int:
    """Delete what a judge has written in a run, or in all of them, with every question that shows it; returns how many labels went, too.

    What others wrote because that was not good enough either goes with it: those questions show it beside their own side.
    """
    w, s = t.written.c, t.side.c
    mine = select(w.comparison).join(t.comparison, t.comparison.c.id == w.comparison).where(w.judge == judge)
    mine = mine if run is None else mine.where(t.comparison.c.run == run)
    own = list(connection.execute(select(s.trajectory).where(s.comparison.in_(mine), s.side == "a")).scalars())
    locked, show = set[int](), set[int]()
    while True:  # until all are locked, so that nobody writes another one to them meanwhile
        for some in counting.parts(own):
            show |= set(connection.execute(select(s.comparison).where(s.trajectory.in_(some))).scalars())
        if show == locked:
            break
        for some in counting.parts(sorted(show - locked)):
            lock = select(t.comparison.c.id).where(t.comparison.c.id.in_(some)).order_by(t.comparison.c.id).with_for_update()
            connection.execute(lock).all()
        locked |= show
    return rows.delete_questions(connection, sorted(locked))
