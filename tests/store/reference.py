"""What a store comes to, computed slowly from every row that was ever written: what the store says must be the same."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from rather.core import Label
from rather.store import Store
from rather.store import tables as t
from rather.store.agreement import Agreement, PositionBias, agreement, bias
from rather.store.opened import said
from rather.store.people import numbered

KNOWN = ("gold", "repeat", "same")


def measure(labels: Sequence[Label], seed: int = 0, resamples: int = 1000) -> Agreement:
    """Agreement among the answers in `labels`, read as a better, tie or b better, or which of several sides is best."""
    return agreement(*table(labels), seed, resamples)


def table(labels: Sequence[Label]) -> tuple[list[str], np.ndarray]:
    """Judges, by name, and their answers as ratings; abstentions are left out."""
    kept = [x for x in labels if x.preference is not None]
    judges = sorted({x.judge for x in kept})
    numbers = {name: i for i, name in enumerate(judges)}
    columns = [(x.comparison, numbers[x.judge], x.preference, math.nan if x.best is None else x.best) for x in kept]
    return judges, rated(np.array(columns, float).reshape(-1, 4), len(judges))


def rated(answers: np.ndarray, judges: int) -> np.ndarray:
    """np.ndarray of so many judges from (N, 4) answers: question, number of the judge, preference, and which side is best (NaN of two).

    A rating is 1 for a better, 0 for a tie, -1 for b better; 1 + the number of the side that is the best of several.
    """
    comparison, judge, preference, best = answers.T
    questions, place = np.unique(comparison, return_inverse=True)
    ratings = np.full((judges, len(questions)), np.nan)
    ratings[judge.astype(int), place] = np.where(np.isnan(best), np.sign(preference - 0.5), 1 + best)
    return ratings


def position_bias(labels: Sequence[Label]) -> PositionBias | None:
    """The two-sided binomial test of "left and right are liked equally often"; None without a clear answer about two sides."""
    clear = [x for x in labels if x.preference is not None and x.preference != 0.5 and x.best is None]
    if not clear:
        return None
    return bias(sum((x.preference > 0.5) == (x.shown[0] == "a") for x in clear), len(clear))  # type: ignore[operator]


def labels(store: Store, run: str) -> list[Label]:
    """The labels that count, oldest first."""
    with store.transaction() as connection:
        names = {r.id: r.name for r in connection.execute(t.judge.select())}
        asked = {r.id for r in connection.execute(t.comparison.select().where(t.comparison.c.run == run))}
        written = connection.execute(t.label.select().order_by(t.label.c.id)).all()
    last = {(r.comparison, r.judge): r for r in written if r.comparison in asked and r.kind != "decision"}
    return [
        Label(r.comparison, names[r.judge], r.preference, r.reason, r.seconds, r.shown, tuple(r.flags), r.id, r.best)
        for r in sorted(last.values(), key=lambda r: r.id)
        if r.kind != "undo"
    ]


def decided(store: Store, run: str) -> dict[int, int]:
    """Of each question that owners have decided, the label that says so."""
    with store.transaction() as connection:
        asked = {r.id for r in connection.execute(t.comparison.select().where(t.comparison.c.run == run))}
        written = connection.execute(t.label.select().where(t.label.c.kind == "decision").order_by(t.label.c.id)).all()
    last = {r.comparison: r for r in written if r.comparison in asked}
    return {number: r.id for number, r in last.items() if r.preference is not None}


def contradicts(given: float | None, known: float) -> bool:
    return given is not None and (given - 0.5) * (known - 0.5) < 0


def flags(
    given: list[Label], probes: dict[int, tuple[float, int | None]], fastest_s: float, people: set[str]
) -> dict[int, tuple[str, ...]]:
    """Why answers are suspicious, by going through them in their order."""
    found: dict[int, list[str]] = {}
    since_gold: dict[str, list[int]] = {}
    latest = {(x.judge, x.comparison): x.id for x in given}
    for x in given:
        assert x.id is not None
        since = since_gold.setdefault(x.judge, [])
        since.append(x.id)
        if x.judge in people and x.seconds is not None and x.preference is not None and x.seconds < fastest_s:
            found.setdefault(x.id, []).append("fast")
        if x.comparison not in probes:
            continue
        known, original = probes[x.comparison]
        if original is not None:
            for number in (x.id, latest.get((x.judge, original))) if contradicts(x.preference, known) else ():
                if number is not None:
                    found.setdefault(number, []).append("inconsistent")
            continue
        for number in since if contradicts(x.preference, known) else ():
            found.setdefault(number, []).append("gold")
        since.clear()
    return {number: tuple(reasons) for number, reasons in found.items()}


def counted(store: Store, run: str) -> dict[str, Any]:
    """What `counting` keeps: answers of each question, and of each judge how many are ordinary and how many there are."""
    purposes = {q.id: q.purpose for q in store.questions(run)}
    given = labels(store, run)
    answers = Counter(x.comparison for x in given if x.preference is not None)
    turns = Counter(x.judge for x in given)
    return {
        "answers": {number: answers[number] for number in purposes},
        "turns": {j: (turns[j], sum(x.judge == j and purposes[x.comparison] not in KNOWN for x in given)) for j in store.judges()},
        "questions": sum(purpose not in KNOWN for purpose in purposes.values()),
    }


def over_time(store: Store, run: str, start: int, span_s: int, count: int) -> dict[str, Any]:
    """What happened in each of so many spans of time, by going through all answers."""
    with store.transaction() as connection:
        created = {r.id: r.created for r in connection.execute(t.label.select())}
    kinds, purposes, asking = store.judges(), {q.id: q.purpose for q in store.questions(run)}, store.asking(run)
    said = [x for x in labels(store, run) if x.preference is not None]
    why = flags(labels(store, run), store.probes(run), asking.fastest_s, {name for name, kind in kinds.items() if kind == "person"})
    place = {x.id: int(created[x.id or 0] - start) // span_s for x in said}
    most = sorted({x.judge for x in said}, key=lambda name: (-sum(x.judge == name for x in said), name))[:8]
    votes: dict[int, list[Label]] = {}
    for x in said:
        if purposes[x.comparison] not in KNOWN:
            votes.setdefault(x.comparison, []).append(x)
    honest = {
        number: [x for x in answers if not {*asking.leave_out} & {*x.flags, *why.get(x.id or 0, ())}] for number, answers in votes.items()
    }

    def last(answers: list[Label]) -> int:
        return max(place[x.id] for x in answers)

    agreement = []
    for span in range(count):
        here = [x for answers in honest.values() if len(answers) > 1 and last(answers) == span for x in answers]
        raw = measure(here, resamples=1).raw if here else float("nan")
        agreement.append(raw if raw == raw else None)
    done = Counter(last(answers) for answers in votes.values() if len(answers) >= asking.overlap)
    for number, label in decided(store, run).items():
        if purposes[number] not in KNOWN and len(votes.get(number, ())) < asking.overlap:
            done[int(created[label] - start) // span_s] += 1
    by_judge = Counter((x.judge, place[x.id]) for x in said)
    return {
        "start": start, "span_s": span_s, "count": count, "agreement": agreement, "completed": [done[i] for i in range(count)],
        "people": [{"name": name, "answers": [by_judge[name, i] for i in range(count)]} for name in most],
        "others": [sum(by_judge[x, i] for x in {x.judge for x in said} - {*most}) for i in range(count)],
    }  # fmt: skip


def overview(store: Store, run: str) -> dict[str, Any]:
    """The owner's figures."""
    asking, probes, kinds = store.asking(run), store.probes(run), store.judges()
    given, purposes = labels(store, run), {q.id: q.purpose for q in store.questions(run)}
    why = flags(given, probes, asking.fastest_s, {name for name, kind in kinds.items() if kind == "person"})
    reasons = {x.id: [*x.flags, *why.get(x.id or 0, ())] for x in given}
    ordinary = [x for x in given if purposes[x.comparison] not in KNOWN]
    found = measure([x for x in ordinary if not {*asking.leave_out} & {*reasons[x.id]}], resamples=200)
    votes: dict[int, list[Label]] = {}
    for x in ordinary:
        if x.preference is not None:
            votes.setdefault(x.comparison, []).append(x)
    bias = position_bias([x for x in ordinary if kinds[x.judge] == "person"])

    def split(answers: list[Label]) -> float:
        a = sum(x.preference or 0.0 for x in answers)
        return min(a, len(answers) - a) / len(answers)

    contested = [number for number, answers in votes.items() if len(answers) > 1 and split(answers) > 0]
    contested.sort(key=lambda number: -split(votes[number]))
    people = {}
    for judge in {x.judge for x in given}:
        mine = [x for x in given if x.judge == judge]
        place = position_bias(mine)
        seconds = [x.seconds for x in mine if x.seconds is not None]
        probed = [(x, *probes[x.comparison]) for x in mine if x.comparison in probes and x.preference is not None]
        right = {
            again: [not contradicts(x.preference, known) for x, known, original in probed if (original is not None) == again]
            for again in (False, True)
        }
        people[judge] = {
            "id": numbered(store)[judge],
            "answers": sum(x.preference is not None for x in mine), "skipped": sum(x.preference is None for x in mine),
            "seconds": median(seconds) if seconds else None, "left": [place.left, place.total] if place else [0, 0],
            "left_interval": [place.low, place.high] if place else None,
            "gold": [sum(right[False]), len(right[False])], "repeats": [sum(right[True]), len(right[True])],
            "flagged": sum(bool(reasons[x.id]) for x in mine),
        }  # fmt: skip
    figures = {k: getattr(found, k) for k in ("raw", "alpha", "low", "high")}
    return {
        "questions": sum(purpose not in KNOWN for purpose in purposes.values()),
        "complete": len(
            {number for number, answers in votes.items() if len(answers) >= asking.overlap}
            | {number for number in decided(store, run) if purposes[number] not in KNOWN}
        ),
        "answers": sum(map(len, votes.values())),
        "agreement": {"questions": found.questions, **{k: v if v == v else None for k, v in figures.items()}},
        "flags": {
            "counts": {flag: sum(flag in why for why in reasons.values()) for flag in ("fast", "gold", "inconsistent", "late")},
            "left_out": sum(bool({*asking.leave_out} & {*why}) for why in reasons.values()),
        },
        "position": None if bias is None else vars(bias), "people": people,
        "contested": [(number, [[x.judge, said("answer", x.preference, x.best)] for x in votes[number]]) for number in contested[:20]],
        "flagged": [(x.comparison, x.judge, reasons[x.id], x.seconds) for x in given if reasons[x.id]][-20:][::-1],
    }  # fmt: skip
