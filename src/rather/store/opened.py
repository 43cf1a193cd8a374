"""One question with all that was ever said about it, as the owner opens it."""

from typing import Any

from sqlalchemy import func, select

from rather.store import rows
from rather.store import tables as t
from rather.store.quality import suspicious
from rather.store.rows import LETTERS, Question
from rather.store.store import Store

_C, _X, _P = t.comparison.c, t.label.c, t.probe.c


def opened(store: Store, question: Question) -> dict[str, Any]:
    """Why it is asked; its known answer; which question it repeats, which repeat it, and in which an answer was written in place of its
    own; and every row about it, oldest first.
    """
    fastest_s = store.asking(question.run).fastest_s
    written = rows.HISTORY.add_columns(_X.counts, t.judge.c.kind.label("judge_kind")).where(_X.comparison == question.id)
    again = select(_P.comparison).where(_P.original == question.id).order_by(_P.comparison)
    with store.transaction() as connection:
        found = connection.execute(written).all()
        known = connection.execute(select(_P.preference).where(_P.comparison == question.id)).scalar()
        repeats = list(connection.execute(again).scalars())
        why = suspicious(question.run, fastest_s).subquery().c
        reasons = select(why.id, why.reason).where(why.id.in_([r.id for r in found if r.counts])).order_by(why.by, why.place)
        flags = {r.id: list(r.flags) for r in found}
        for number, reason in connection.execute(reasons):
            flags[number].append(reason)
        criteria = rows.criteria(connection, flags)
        instead = list(connection.execute(select(t.written.c.comparison).filter_by(original=question.id)).scalars())
    alone = len(question.comparison.sides) == 1
    answers = [
        {
            "label": r.id, "judge": r.judge, "simulated": r.judge_kind != "person", "created": r.created, "kind": r.kind,
            "said": said(r.kind, r.preference, r.best, alone), "order": r.shown if r.kind in ("answer", "abstention") else "",
            "criteria": {name: said("answer", p, None, alone) for name, p in criteria.get(r.id, {}).items()},
            "seconds": r.seconds, "flags": flags[r.id], "reason": r.reason, "counts": bool(r.counts),
        }
        for r in found
    ]  # fmt: skip
    return {
        "purpose": question.purpose, "why": question.why, "known": None if known is None else said("answer", known, None, alone),
        "original": question.original, "repeats": repeats, "written": instead, "answers": answers,
    }  # fmt: skip


def any_answered(store: Store, run: str) -> int | None:
    """The number of a question that somebody has answered, drawn at random; None where there is none."""
    with store.transaction() as connection:
        wanted = select(_C.id).where(_C.run == run, _C.answers > 0).order_by(func.random()).limit(1)
        return connection.execute(wanted).scalar()


def said(kind: str, preference: float | None, best: int | None, alone: bool = False) -> str:
    """A label in words, its sides named by their letters; `alone`, whether there is one side and the preference is P(good)."""
    if kind == "decision":
        return "took the decision back" if preference is None else f"decided: {said('answer', preference, best, alone)}"
    if kind == "undo":
        return "took it back"
    if preference is None:
        return "skipped"
    if best is not None:
        return f"{LETTERS[best]} is best"
    if preference == 0.5:
        return "neither good nor bad" if alone else "tie"
    better, sure = preference > 0.5, max(preference, 1 - preference)
    if alone:
        return ("good" if better else "bad") + ("" if sure == 1 else f" ({100 * sure:.4g} %)")
    letter = "a" if better else "b"
    return f"{letter} is a little better" if sure == 0.75 else f"{letter} is better" + ("" if sure == 1 else f" ({100 * sure:.4g} %)")
