"""What the owner of a run wants to know of the people who answer: progress, agreement, speed, and what is suspicious.

The database counts, and no more comes here than is shown. How far questions are is known at once (`progress`); the rest takes seconds where
there are hundreds of thousands of answers (`figures`).
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection, Select, Table, Text, and_, case, cast, distinct, func, insert, literal, select

from rather.store import rows
from rather.store import tables as t
from rather.store.agreement import bias, of_counts, same_pairs
from rather.store.engine import now
from rather.store.opened import said
from rather.store.people import everybody, numbered
from rather.store.quality import FLAGS, Asking, suspicious
from rather.store.store import Store

SHOWN = 20
"""How many contested questions and flagged answers are listed."""
DRAWN = 8
"""How many people's answers are counted apart over time: those who gave most."""
MOST_SPANS = 60
SPANS_S = (60, 300, 900, 3600, 6 * 3600, 86_400, 7 * 86_400, 28 * 86_400, 364 * 86_400)
"""Of these spans of time the first is taken of which no more than `MOST_SPANS` are needed."""
COUNTED = ("agreement", "position", "flags", "contested", "flagged", "over_time")
CATEGORIES = range(-1, len(rows.LETTERS) + 1)
"""What an answer may say: b, a tie, a, or which of several, as in `tally.count`."""
_C, _X, _P = t.comparison.c, t.label.c, t.probe.c
_ANSWER = _X.kind == "answer"
_CLEAR = and_(_ANSWER, _X.best.is_(None), _X.preference != 0.5, func.length(_X.shown) > 1)
_LEFT = and_(_CLEAR, (_X.preference > 0.5) == (func.substr(_X.shown, 1, 1) == "a"))
_RIGHT = (_X.preference - 0.5) * (_P.preference - 0.5) >= 0


@dataclass(frozen=True)
class Spans:
    """So many spans of `span_s` seconds from `start` on, into which all of a run's answers fall."""

    start: int
    span_s: int
    count: int

    def place(self, created: ColumnElement[float]) -> ColumnElement[int]:
        """The number of the span into which a time falls, in SQL; to a millisecond, since PostgreSQL rounds and SQLite truncates."""
        return (cast(1000 * created, sa.BigInteger) - 1000 * self.start) // (1000 * self.span_s)


@dataclass(frozen=True)
class Figures:
    """What had been counted at a time: people by name, and the rest, such as agreement and contested questions; and in how long."""

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
    rest: dict[str, Any] = dict.fromkeys(COUNTED) if counted is None else counted.counted
    return progress(store, run) | {"people": people, **rest, "as_of": counted and counted.as_of}


def progress(store: Store, run: str) -> dict[str, Any]:
    """How many questions there are, how many have the answers that are wanted, and how many answers there are, at this moment."""
    asking = store.asking(run)
    count = func.sum(case((_C.answers >= asking.overlap, 1), else_=0))
    wanted = select(func.count(), count, func.sum(_C.answers)).where(_C.run == run, rows.of_purpose(None))
    with store.transaction() as connection:
        questions, complete, answers = connection.execute(wanted).one()
        complete = (complete or 0) + (connection.execute(_decided(run, asking).with_only_columns(func.count())).scalar() or 0)
    return {"questions": questions, "complete": complete, "answers": answers or 0, "asking": vars(asking)}


def _decided(run: str, asking: Asking) -> Select[Any]:
    """The decisions that complete a question."""
    of_run = rows.DECIDED.join(t.comparison, _C.id == _X.comparison).where(_C.run == run, rows.of_purpose(None))
    return of_run.where(_C.answers < asking.overlap)


def figures(store: Store, run: str) -> Figures:
    """Count all that takes time."""
    began, since, asking = now(), time.monotonic(), store.asking(run)
    with store.transaction() as connection, _suspicious(connection, run, asking.fastest_s) as dubious:
        people, position = _people(connection, run, dubious)
        spans = _spans(connection, run)
        agreement, by_span = _agreement(connection, run, asking, dubious, spans)
        counted = {
            "agreement": agreement, "position": position, "flags": _flags(connection, asking, dubious),
            "contested": _contested(connection, run), "flagged": _flagged(connection, dubious),
            "over_time": spans and vars(spans) | {"agreement": by_span} | _over_time(connection, run, asking, spans, people),
        }  # fmt: skip
    for question in counted["contested"]:
        question["words"] = _words(store, run, question["question"])
    return Figures(began, time.monotonic() - since, counted, people)


def _rows(connection: Connection, wanted: sa.Executable) -> Sequence[Any]:
    return connection.execute(wanted).all()


def _sum(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.sum(case((condition, 1), else_=0))


def _current(run: str) -> Select[Any]:
    return rows.CURRENT.join(t.comparison, _C.id == _X.comparison).where(_C.run == run)


@contextmanager
def _suspicious(connection: Connection, run: str, fastest_s: float) -> Iterator[Table]:
    """A passing table of the flags of labels: those of `suspicious`, and those that whoever wrote a label gave it, `by` 0."""
    columns = [sa.Column(name, sa.Integer) for name in ("id", "by", "place")]
    table = Table("suspicious", sa.MetaData(), *columns, sa.Column("reason", sa.String(20)), prefixes=["TEMPORARY"])
    some = _current(run).where(cast(_X.flags, Text) != "[]").with_only_columns(_X.id, cast(_X.flags, Text).label("flags")).cte("written")
    zero = literal(0)
    written = [select(some.c.id, zero, zero, literal(flag)).where(some.c.flags.contains(f'"{flag}"')) for flag in FLAGS]
    why = suspicious(run, fastest_s).subquery().c
    table.create(connection)
    given = sa.union_all(*written, select(why.id, why.by, why.place, why.reason))
    connection.execute(insert(table).from_select(["id", "by", "place", "reason"], given))
    yield table
    table.drop(connection)


def _flags(connection: Connection, asking: Asking, dubious: Table) -> dict[str, Any]:
    """How many answers have each flag, and how many are not learned from because of theirs."""
    id, reason = dubious.c.id, dubious.c.reason
    counts = dict(_rows(connection, select(reason, func.count(distinct(id))).group_by(reason)))
    left_out = select(func.count(distinct(id))).where(reason.in_(asking.leave_out))
    return {"counts": {flag: counts.get(flag, 0) for flag in FLAGS}, "left_out": connection.execute(left_out).scalar()}


_NOTHING: dict[str, Any] = {
    "answers": 0, "skipped": 0, "seconds": None, "left": [0, 0], "left_interval": None, "gold": [0, 0], "repeats": [0, 0], "flagged": 0,
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
    for one in found.values():
        if one["left"][1]:
            share = bias(*one["left"])
            one["left_interval"] = [share.low, share.high]
    flagged = select(_X.judge, func.count(distinct(_X.id))).join(dubious, dubious.c.id == _X.id).group_by(_X.judge)
    for judge, count in _rows(connection, flagged):
        found[judge]["flagged"] = count
    position = vars(bias(*place)) if place[1] else None
    return {names[judge].name: one for judge, one in found.items()}, position


def _medians(run: str) -> Select[Any, Any]:
    """The median of everybody's seconds."""
    place = func.row_number().over(partition_by=_X.judge, order_by=_X.seconds).label("place")
    count = func.count().over(partition_by=_X.judge).label("count")
    timed = _current(run).where(_X.seconds.is_not(None)).with_only_columns(_X.judge, _X.seconds, place, count).subquery().c
    middle = timed.place.in_(((timed.count + 1) // 2, (timed.count + 2) // 2))
    return select(timed.judge, func.avg(timed.seconds)).where(middle).group_by(timed.judge)


def _votes(run: str) -> Select[Any]:
    """Answers to the questions that have several."""
    return _current(run).where(rows.of_purpose(None), _C.answers > 1, _ANSWER).group_by(_X.comparison)


def _agreement(
    connection: Connection, run: str, asking: Asking, dubious: Table, spans: Spans | None
) -> tuple[dict[str, Any], list[float | None]]:
    """How far people agree, by the answers that are learned from; and on the questions whose last one falls into each span."""
    category_of = case((_X.best.is_not(None), 1 + _X.best), (_X.preference > 0.5, 1), (_X.preference < 0.5, -1), else_=0)
    sorts = [_sum(category_of == category).label(f"c{category + 1}") for category in CATEGORIES]
    place = literal(0) if spans is None else spans.place(func.max(_X.created))
    votes = _votes(run).with_only_columns(place.label("place"), *sorts).having(func.count() > 1)
    if asking.leave_out:
        votes = votes.where(_X.id.not_in(select(dubious.c.id).where(dubious.c.reason.in_(asking.leave_out))))
    found = votes.subquery()
    counts = np.array(_rows(connection, select(*found.c, func.count()).group_by(*found.c)), int).reshape(-1, len(CATEGORIES) + 2)
    places, counts, often = counts[:, 0], counts[:, 1:-1], counts[:, -1]
    raw, alpha, (low, high) = of_counts(counts, often, seed=0, resamples=200)
    numbers = {"raw": raw, "alpha": alpha, "low": low, "high": high}
    each = [same_pairs(counts[places == i], often[places == i]) for i in range(0 if spans is None else spans.count)]
    return {"questions": int(often.sum()), **{k: _known(v) for k, v in numbers.items()}}, [_known(share) for share in each]


def _known(number: float) -> float | None:
    return None if number != number else number


def _spans(connection: Connection, run: str) -> Spans | None:
    """The spans in which the answers that count and the decisions that hold were given; None where there are none."""
    counted = rows.COUNTED.join(t.comparison, _C.id == _X.comparison).where(_C.run == run, _X.kind != "abstention")
    ends = counted.with_only_columns(func.min(_X.created), func.max(_X.created))
    first, last = connection.execute(ends).one()
    if first is None:
        return None
    first, last = math.floor(first), math.ceil(last)
    span = next((s for s in SPANS_S if last // s - first // s < MOST_SPANS), (last - first) // (MOST_SPANS - 2) + 1)
    return Spans(first // span * span, span, last // span - first // span + 1)


def _over_time(connection: Connection, run: str, asking: Asking, spans: Spans, people: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Answers of those who gave most and of all others, and how many questions were complete, span by span.

    A question is complete, by what is wanted today, from its last answer on, or once an owner has decided it.
    """
    most = sorted((name for name in people if people[name]["answers"]), key=lambda name: (-people[name]["answers"], name))[:DRAWN]
    numbers = {r.id: r.name for r in connection.execute(select(t.judge.c.id, t.judge.c.name).where(t.judge.c.name.in_(most)))}
    who = case((_X.judge.in_(numbers), _X.judge), else_=0).label("who")
    given = _current(run).where(_ANSWER).with_only_columns(spans.place(_X.created).label("place"), who, func.count())
    answers = {name: [0] * spans.count for name in most}
    others = [0] * spans.count
    for place, judge, count in _rows(connection, given.group_by("place", "who")):
        (answers[numbers[judge]] if judge else others)[place] = count
    done = _current(run).where(_ANSWER, rows.of_purpose(None), _C.answers >= asking.overlap).group_by(_X.comparison)
    last = done.with_only_columns(spans.place(func.max(_X.created)).label("place")).subquery().c
    decided = _decided(run, asking).with_only_columns(spans.place(_X.created).label("place")).subquery().c
    completed = [0] * spans.count
    for place, count in [row for c in (last, decided) for row in _rows(connection, select(c.place, func.count()).group_by(c.place))]:
        completed[place] += count
    return {
        "people": [{"name": name, "answers": answers[name]} for name in most], "others": others,
        "completed": completed,
    }  # fmt: skip


def _contested(connection: Connection, run: str) -> list[dict[str, Any]]:
    """The questions that people disagree about most: the larger the smaller camp, the earlier."""
    a, count = func.sum(_X.preference), func.count()
    split = case((2 * a > count, count - a), else_=a) / count
    wanted = _votes(run).with_only_columns(_X.comparison).having((a > 0) & (a < count))
    numbers = list(connection.execute(wanted.order_by(split.desc(), func.min(_X.id)).limit(SHOWN)).scalars())
    given = rows.CURRENT.join(t.judge, t.judge.c.id == _X.judge).where(_ANSWER, _X.comparison.in_(numbers)).order_by(_X.id)
    answers: dict[int, list[list[Any]]] = {number: [] for number in numbers}
    columns = _X.comparison, t.judge.c.name, _X.preference, _X.best, func.length(_X.shown)
    for number, name, preference, best, sides in connection.execute(given.with_only_columns(*columns)):
        answers[number].append([name, said("answer", preference, best, sides == 1)])
    return [{"question": number, "words": "", "answers": given} for number, given in answers.items()]


def _words(store: Store, run: str, number: int) -> str:
    """How a question begins."""
    question = store.question(number, run)
    assert question is not None
    prompt = question.comparison.a[0].task.prompt
    return (prompt if isinstance(prompt, str) else prompt[-1]["content"] if prompt else question.comparison.key)[:120]


def _flagged(connection: Connection, dubious: Table) -> list[dict[str, Any]]:
    """The last suspicious answers, the latest first."""
    d = dubious.c
    last = list(connection.execute(select(d.id).distinct().order_by(d.id.desc()).limit(SHOWN)).scalars())
    wanted = select(_X.id, _X.comparison, t.judge.c.name, _X.seconds, _X.flags).where(_X.id.in_(last))
    found = _rows(connection, wanted.join(t.judge, t.judge.c.id == _X.judge).order_by(_X.id.desc()))
    reasons: dict[int, list[str]] = {r.id: list(r.flags) for r in found}
    why = select(d.id, d.reason).where(d.id.in_(last), d.by > 0).order_by(d.by, d.place)
    for number, reason in connection.execute(why):
        reasons[number].append(reason)
    return [{"question": r.comparison, "judge": r.name, "reasons": reasons[r.id], "seconds": r.seconds} for r in found]
