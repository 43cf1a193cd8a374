"""What is counted beforehand: which labels count, how many answers a question has, how far each judge is.

Whoever writes calls one of these, in the same transaction, so that nobody counts who asks for a question or looks at the owner's page.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, func, select

from rather.store import tables as t

PART = 500
"""No statement gets more values of one kind: databases have their limits, of parameters and of patience."""
KNOWN = ("gold", "repeat", "same")
"""Purposes of questions whose answers are known, or that need none."""
OWNERS = 0
"""No judge has this number."""

T = TypeVar("T")


def parts(items: Iterable[T], size: int = PART) -> Iterator[list[T]]:
    """So many of them at a time."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def place(number: int, purpose: str, score: float | None) -> dict[str, Any]:
    """Where a new question stands in the order by score, and in the one at random."""
    if purpose in KNOWN:
        return {"rank": None, "draw": None}
    # Multiples of the golden ratio lie apart evenly: from wherever one starts, all are equally likely to be the next (Knuth 1998, 6.4).
    return {"rank": math.inf if score is None or math.isnan(score) else -score, "draw": number * 2654435769 % 2**32 // 2}


def asked(connection: Connection, run: str, questions: int) -> None:
    """So many new questions may be asked of anybody."""
    if questions:
        _add(connection, t.asked, {"run": run}, {"questions": questions})


def turn(connection: Connection, run: str) -> None:
    """Let programs that ask questions of a run take turns: two that ask the same one would both find that it is not there."""
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(run, 7281))))


def lock(connection: Connection, questions: Collection[int]) -> None:
    """Let nobody else write about these questions until the transaction ends."""
    for some in parts(sorted(set(questions))):
        mine = select(t.comparison.c.id).where(t.comparison.c.id.in_(some)).order_by(t.comparison.c.id)
        connection.execute(mine.with_for_update(key_share=True)).all()


def answered(connection: Connection, questions: Collection[int]) -> None:
    """Rows were written about these questions: the last one of each judge counts, unless it is an undo, and the last decision.

    Those who write about one question at once wait for each other here.
    """
    turns, ordinary = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
    for some in parts(sorted(set(questions))):
        _recount(connection, some, turns, ordinary)
    for run, judge in sorted(who for who in turns if turns[who] or ordinary[who]):  # the last that is locked, always
        _add(connection, t.standing, {"run": run, "judge": judge}, {"answered": ordinary[run, judge], "turns": turns[run, judge]})


def _recount(connection: Connection, questions: list[int], turns: Counter[tuple[str, int]], ordinary: Counter[tuple[str, int]]) -> None:
    c, x = t.comparison.c, t.label.c
    locked = select(c.id, c.run, c.rank, c.answers).where(c.id.in_(questions)).order_by(c.id).with_for_update(key_share=True)
    about = {number: stands for number, *stands in connection.execute(locked)}
    # Decisions are nobody's answers: whoever made them, the last one holds, until one without preference withdraws it.
    judge = sa.case((x.kind == "decision", OWNERS), else_=x.judge)
    kind = sa.case(((x.kind == "decision") & x.preference.is_(None), "undo"), else_=x.kind)
    written = select(x.id, x.comparison, judge, kind, x.counts).where(x.comparison.in_(questions)).order_by(x.id)
    rows = [((question, who), label, kind, counted) for label, question, who, kind, counted in connection.execute(written)]
    last = {pair: (label, kind) for pair, label, kind, _ in rows}
    changed, counted_before = dict[bool, list[int]]({True: [], False: []}), set[tuple[int, int]]()
    for pair, label, kind, counted in rows:
        counts = kind != "undo" and last[pair][0] == label
        if counts is not counted:
            changed[counts].append(label)
        if counted:
            counted_before.add(pair)
    for counts, numbers in changed.items():
        for some in parts(numbers):
            connection.execute(sa.update(t.label).where(x.id.in_(some)).values(counts=counts))
    answers = Counter(question for (question, _), (_, kind) in last.items() if kind == "answer")
    others = defaultdict[int, list[int]](list)
    for question, (_, _, known) in about.items():
        if answers[question] != known:
            others[answers[question]].append(question)
    for count, numbers in others.items():
        connection.execute(sa.update(t.comparison).where(c.id.in_(numbers)).values(answers=count))
    for pair, (_, kind) in last.items():
        if pair[1] != OWNERS and (change := (kind != "undo") - (pair in counted_before)):
            run, rank, _ = about[pair[0]]
            turns[run, pair[1]] += change
            ordinary[run, pair[1]] += change * (rank is not None)


def _add(connection: Connection, table: sa.Table, which: dict[str, Any], counts: dict[str, int]) -> None:
    """Add to the counts of a row, or begin it with them."""
    names = [*which, *counts]
    changes = ", ".join(f"{name} = {table.name}.{name} + excluded.{name}" for name in counts)
    values = f"insert into {table.name} ({', '.join(names)}) values ({', '.join(f':{name}' for name in names)})"
    connection.execute(sa.text(f"{values} on conflict ({', '.join(which)}) do update set {changes}"), which | counts)


def forget(connection: Connection, judge: int, run: str | None = None) -> None:
    """All that this judge has said in a run, or in every run, is about to be deleted."""
    x, c = t.label.c, t.comparison.c
    given = select(x.comparison).join(t.comparison, c.id == x.comparison).where(x.judge == judge, x.counts, x.kind == "answer")
    standing = sa.delete(t.standing).where(t.standing.c.judge == judge)
    if run is not None:
        given, standing = given.where(c.run == run), standing.where(t.standing.c.run == run)
    connection.execute(select(c.id).where(c.id.in_(given)).order_by(c.id).with_for_update(key_share=True)).all()  # as `_recount` does
    connection.execute(sa.update(t.comparison).where(t.comparison.c.id.in_(given)).values(answers=t.comparison.c.answers - 1))
    connection.execute(standing)


def retire(connection: Connection, questions: Collection[int]) -> None:
    """These questions, which are locked, are asked of nobody and learned from no longer: they become some that need no answer."""
    _leave(connection, questions, turns=False)
    for some in parts(questions):
        connection.execute(sa.update(t.comparison).where(t.comparison.c.id.in_(some)).values(purpose="same", rank=None, draw=None))


def deleted(connection: Connection, questions: Collection[int]) -> None:
    """These questions, which are locked, are about to be deleted."""
    _leave(connection, questions, turns=True)


def _leave(connection: Connection, questions: Collection[int], turns: bool) -> None:
    """Take questions out of how many there are, and out of how many everybody has answered; with `turns` of those of all kinds."""
    c, x, asked, change = t.comparison.c, t.label.c, Counter[str](), Counter[tuple[str, int, bool]]()
    for some in parts(questions):
        asked.update(connection.execute(select(c.run).where(c.id.in_(some), c.rank.is_not(None))).scalars())
        given = select(c.run, x.judge, c.rank.is_not(None)).join(t.label, x.comparison == c.id)
        given = given.where(c.id.in_(some), x.counts, x.kind != "decision")
        change.update((run, judge, bool(anybodys)) for run, judge, anybodys in connection.execute(given))
    for run, count in sorted(asked.items()):
        _add(connection, t.asked, {"run": run}, {"questions": -count})
    for run, judge in sorted({(run, judge) for run, judge, _ in change}):
        ordinary, known = change[run, judge, True], change[run, judge, False]
        counts = {"answered": -ordinary, "turns": -(ordinary + known) * turns}
        _add(connection, t.standing, {"run": run, "judge": judge}, counts)
