"""What the owner of a run wants to know of the people who answer: progress, agreement, speed, and what is suspicious.

The database counts, and no more comes here than is shown. How far questions are is known at once (`progress`); the rest takes seconds where
there are hundreds of thousands of answers (`figures`).
"""

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Column, Connection, Integer, MetaData, Select, Table, Text, and_, case, cast, func, insert, or_, select, union

from rather.store import rows
from rather.store import tables as t
from rather.store.agreement import bias, of_counts
from rather.store.engine import now
from rather.store.people import everybody, numbered
from rather.store.quality import FLAGS, Asking, suspicious
from rather.store.store import Store

SHOWN = 20
"""How many contested questions and flagged answers are listed."""
CATEGORIES = range(-1, len(rows.LETTERS) + 1)
"""What an answer may say: b, a tie, a, or which of several, as in `agreement.rated`."""
_C, _X, _P = t.comparison.c, t.label.c, t.probe.c
_ANSWER = _X.kind == "answer"
_CLEAR = and_(_ANSWER, _X.best.is_(None), _X.preference != 0.5, func.length(_X.shown) > 1)
_LEFT = and_(_CLEAR, (_X.preference > 0.5) == (func.substr(_X.shown, 1, 1) == "a"))
_RIGHT = (_X.preference - 0.5) * (_P.preference - 0.5) >= 0


@dataclass(frozen=True)
class Figures:
    """What had been counted at a time: agreement, position, people by name, contested questions and flagged answers; and in how long."""

    as_of: float
    took_s: float
    counted: dict[str, Any]
    people: dict[str, dict[str, Any]]


def overview(store: Store, run: str, counted: Figures | None) -> dict[str, Any]:
    """All of it, as JSON takes it (NaN becomes None); None where it was not `counted` yet."""
    invited, kinds, numbers = {p.name: p for p in everybody(store, run)}, store.judges(), numbered(store)
    each: dict[str, dict[str, Any]] = {} if counted is None else counted.people
    nothing: dict[str, Any] = _NOTHING if counted is not None else dict.fromkeys(_NOTHING)
    people = [
        {
            "id": numbers[name], "name": name, "role": p.role if (p := invited.get(name)) else "", "simulated": kinds[name] == "simulated",
            "expires": p.expires if p else None,
        }
        | each.get(name, nothing)
        for name in sorted({*invited, *each} & kinds.keys(), key=str.lower)
    ]  # fmt: skip
    rest: dict[str, Any] = dict.fromkeys(("agreement", "position", "contested", "flagged")) if counted is None else counted.counted
    return progress(store, run) | {"people": people, **rest, "as_of": counted and counted.as_of}


def progress(store: Store, run: str) -> dict[str, Any]:
    """How many questions there are, how many have the answers that are wanted, and how many answers there are, at this moment."""
    asking = store.asking(run)
    count = func.sum(case((_C.answers >= asking.overlap, 1), else_=0))
    wanted = select(func.count(), count, func.sum(_C.answers)).where(_C.run == run, rows.of_purpose(None))
    decided = rows.DECIDED.join(t.comparison, _C.id == _X.comparison).where(
        _C.run == run, rows.of_purpose(None), _C.answers < asking.overlap
    )
    with store.transaction() as connection:
        questions, complete, answers = connection.execute(wanted).one()
        complete = (complete or 0) + (connection.execute(decided.with_only_columns(func.count())).scalar() or 0)
    return {"questions": questions, "complete": complete, "answers": answers or 0, "asking": vars(asking)}


def figures(store: Store, run: str) -> Figures:
    """Count all that takes time."""
    began, since, asking = now(), time.monotonic(), store.asking(run)
    with store.transaction() as connection, _suspicious(connection, run, asking.fastest_s) as dubious:
        people, position = _people(connection, run, dubious)
        counted = {
            "agreement": _agreement(connection, run, asking), "position": position,
            "contested": _contested(connection, run), "flagged": _flagged(connection, run, asking, dubious),
        }  # fmt: skip
    for question in counted["contested"]:
        question["words"] = _words(store, run, question["question"])
    return Figures(began, time.monotonic() - since, counted, people)


def _rows(connection: Connection, wanted: Any) -> Sequence[Any]:
    return connection.execute(wanted).all()


def _sum(condition: Any) -> Any:
    return func.sum(case((condition, 1), else_=0))


def _current(run: str) -> Select[Any]:
    return rows.CURRENT.join(t.comparison, _C.id == _X.comparison).where(_C.run == run)


@contextmanager
def _suspicious(connection: Connection, run: str, fastest_s: float, only: Collection[str] = FLAGS) -> Iterator[Table]:
    """A passing table of the labels with one of these flags, those too that whoever wrote them gave it."""
    name = "suspicious" if only is FLAGS else "left_out"
    table = Table(name, MetaData(), Column("id", Integer, primary_key=True), prefixes=["TEMPORARY"])
    has_one = or_(*(cast(_X.flags, Text).contains(f'"{flag}"') for flag in only))
    written = _current(run).where(has_one).with_only_columns(_X.id)
    table.create(connection)
    connection.execute(insert(table).from_select(["id"], union(written, select(suspicious(run, fastest_s, only).subquery().c.id))))
    yield table
    table.drop(connection)


_NOTHING: dict[str, Any] = {
    "answers": 0, "skipped": 0, "seconds": None, "left": [0, 0], "gold": [0, 0], "repeats": [0, 0], "flagged": 0,
}  # fmt: skip


def _people(connection: Connection, run: str, dubious: Table) -> tuple[dict[str, dict[str, Any]], dict[str, Any] | None]:
    """Figures of each person by name, and how often people preferred the side on the left."""
    names = {r.id: r for r in connection.execute(select(t.judge.c.id, t.judge.c.name, t.judge.c.kind))}
    found: dict[int, dict[str, Any]] = {}
    place = [0, 0]
    ordinary = rows.of_purpose(None).label("ordinary")
    given = _current(run).with_only_columns(_X.judge, ordinary, _sum(_ANSWER), func.count(), _sum(_LEFT), _sum(_CLEAR))
    for judge, anybodys, answers, count, left, clear in _rows(connection, given.group_by(_X.judge, ordinary)):
        one = found.setdefault(judge, _NOTHING | {"left": [0, 0]})
        one["answers"] += answers
        one["skipped"] += count - answers
        one["left"] = [one["left"][0] + left, one["left"][1] + clear]
        if anybodys and names[judge].kind == "person":
            place = [place[0] + left, place[1] + clear]
    again = _P.original.is_not(None).label("again")
    probed = _current(run).join(t.probe, _P.comparison == _X.comparison).where(_ANSWER)
    probed = probed.with_only_columns(_X.judge, again, _sum(_RIGHT), func.count()).group_by(_X.judge, again)
    for judge, repeats, right, count in _rows(connection, probed):
        found[judge]["repeats" if repeats else "gold"] = [right, count]
    for judge, seconds in _rows(connection, _medians(run)):
        found[judge]["seconds"] = float(seconds)
    flagged = select(_X.judge, func.count()).join(dubious, dubious.c.id == _X.id).group_by(_X.judge)
    for judge, count in _rows(connection, flagged):
        found[judge]["flagged"] = count
    position = vars(bias(*place)) if place[1] else None
    return {names[judge].name: one for judge, one in found.items()}, position


def _medians(run: str) -> Any:
    """The median of everybody's seconds."""
    place = func.row_number().over(partition_by=_X.judge, order_by=_X.seconds).label("place")
    count = func.count().over(partition_by=_X.judge).label("count")
    timed = _current(run).where(_X.seconds.is_not(None)).with_only_columns(_X.judge, _X.seconds, place, count).subquery().c
    middle = timed.place.in_(((timed.count + 1) // 2, (timed.count + 2) // 2))
    return select(timed.judge, func.avg(timed.seconds)).where(middle).group_by(timed.judge)


def _votes(run: str) -> Select[Any]:
    """Answers to the questions that have several."""
    return _current(run).where(rows.of_purpose(None), _C.answers > 1, _ANSWER).group_by(_X.comparison)


def _agreement(connection: Connection, run: str, asking: Asking) -> dict[str, Any]:
    """How far people agree, by the answers that are learnt from."""
    said = case((_X.best.is_not(None), 1 + _X.best), (_X.preference > 0.5, 1), (_X.preference < 0.5, -1), else_=0)
    votes = _votes(run).with_only_columns(*(_sum(said == category).label(f"c{category + 1}") for category in CATEGORIES))
    with _suspicious(connection, run, asking.fastest_s, asking.leave_out) if asking.leave_out else nullcontext() as but:
        if but is not None:
            votes = votes.where(_X.id.not_in(select(but.c.id)))
        sorts = votes.having(func.count() > 1).subquery()
        found = connection.execute(select(*sorts.c, func.count()).group_by(*sorts.c)).all()
    counts = np.array(found, int).reshape(-1, len(CATEGORIES) + 1)
    raw, alpha, (low, high) = of_counts(counts[:, :-1], counts[:, -1], seed=0, resamples=200)
    numbers = {"raw": raw, "alpha": alpha, "low": low, "high": high}
    return {"questions": int(counts[:, -1].sum()), **{k: v if v == v else None for k, v in numbers.items()}}


def _contested(connection: Connection, run: str) -> list[dict[str, Any]]:
    """The questions that people disagree about most: the larger the smaller camp, the earlier."""
    a, count = func.sum(_X.preference), func.count()
    split = case((2 * a > count, count - a), else_=a) / count
    wanted = _votes(run).with_only_columns(_X.comparison).having((a > 0) & (a < count))
    numbers = list(connection.execute(wanted.order_by(split.desc(), func.min(_X.id)).limit(SHOWN)).scalars())
    given = rows.CURRENT.join(t.judge, t.judge.c.id == _X.judge).where(_ANSWER, _X.comparison.in_(numbers)).order_by(_X.id)
    answers: dict[int, list[list[Any]]] = {number: [] for number in numbers}
    for number, name, preference in connection.execute(given.with_only_columns(_X.comparison, t.judge.c.name, _X.preference)):
        answers[number].append([name, preference])
    return [{"question": number, "words": "", "answers": said} for number, said in answers.items()]


def _words(store: Store, run: str, number: int) -> str:
    """How a question begins."""
    question = store.question(number, run)
    assert question is not None
    prompt = question.comparison.a[0].task.prompt
    return (prompt if isinstance(prompt, str) else prompt[-1]["content"] if prompt else question.comparison.key)[:120]


def _flagged(connection: Connection, run: str, asking: Asking, dubious: Table) -> list[dict[str, Any]]:
    """The last suspicious answers, the latest first."""
    reasons = suspicious(run, asking.fastest_s).subquery().c
    wanted = select(_X.id, _X.comparison, t.judge.c.name, _X.seconds, _X.flags).join(dubious, dubious.c.id == _X.id)
    found = _rows(connection, wanted.join(t.judge, t.judge.c.id == _X.judge).order_by(_X.id.desc()).limit(SHOWN))
    why = select(reasons.id, reasons.reason).where(reasons.id.in_([r.id for r in found])).order_by(reasons.by, reasons.place)
    said: dict[int, list[str]] = {r.id: list(r.flags) for r in found}
    for number, reason in connection.execute(why):
        said[number].append(reason)
    return [{"question": r.comparison, "judge": r.name, "reasons": said[r.id], "seconds": r.seconds} for r in found]
