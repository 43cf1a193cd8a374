"""What the owner of a run wants to know of the people who answer: progress, agreement, speed, and what is suspicious."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from sqlalchemy import select

from rather.core import Label
from rather.store import rows
from rather.store import tables as t
from rather.store.agreement import measure, position_bias
from rather.store.people import everybody
from rather.store.quality import contradicts
from rather.store.store import Store

SHOWN = 20
"""How many contested questions and flagged answers are listed."""


def overview(store: Store, run: str) -> dict[str, Any]:
    """Numbers about all of a run's questions that people answer, as JSON takes them (NaN becomes None)."""
    labels, probes, asking = store.labels(run), store.probes(run), store.asking(run)
    known = store.judges()
    ordinary = [x for x in labels if x.comparison not in probes]
    counted = [x for x in ordinary if asking.flagged or not x.flags]
    found = measure(counted, resamples=200)
    votes: dict[int, list[Label]] = {}
    for x in ordinary:
        if x.preference is not None:
            votes.setdefault(x.comparison, []).append(x)
    with store.transaction() as connection:
        wanted = select(t.comparison.c.id).where(t.comparison.c.run == run, rows.of_purpose(None))
        questions = set(connection.execute(wanted).scalars())
    complete = sum(len(votes.get(number, ())) >= asking.overlap for number in questions)
    bias = position_bias([x for x in ordinary if known[x.judge] == "person"])
    return {
        "questions": len(questions), "complete": complete, "answers": sum(map(len, votes.values())), "asking": vars(asking),
        "agreement": {"questions": found.questions, **{k: _number(getattr(found, k)) for k in ("raw", "alpha", "low", "high")}},
        "position": None if bias is None else vars(bias),
        "people": _people(store, run, labels, probes),
        "contested": _contested(store, run, votes),
        "flagged": [
            {"question": x.comparison, "judge": x.judge, "reasons": list(x.flags), "seconds": x.seconds} for x in labels if x.flags
        ][-SHOWN:][::-1],
    }  # fmt: skip


def _people(store: Store, run: str, labels: Sequence[Label], probes: dict[int, tuple[float, int | None]]) -> list[dict[str, Any]]:
    invited = {p.name: p for p in everybody(store, run)}
    judges = store.judges()
    with store.transaction() as connection:
        numbers = {r.name: r.id for r in connection.execute(select(t.judge.c.name, t.judge.c.id))}
    found = []
    for name in sorted({*invited, *(x.judge for x in labels)}, key=str.lower):
        mine = [x for x in labels if x.judge == name]
        asked = [x for x in mine if x.comparison in probes and x.preference is not None]
        gold, again = ([x for x in asked if (probes[x.comparison][1] is None) == first] for first in (True, False))
        seconds = [x.seconds for x in mine if x.seconds is not None]
        bias = position_bias(mine)
        p = invited.get(name)
        found.append({
            "id": numbers[name], "name": name, "role": p.role if p else "", "simulated": judges[name] == "simulated",
            "expires": p.expires if p else None,
            "answers": sum(x.preference is not None for x in mine), "skipped": sum(x.preference is None for x in mine),
            "seconds": median(seconds) if seconds else None, "left": [bias.left, bias.total] if bias else [0, 0],
            "gold": [sum(not contradicts(x.preference, probes[x.comparison][0]) for x in gold), len(gold)],
            "repeats": [sum(not contradicts(x.preference, probes[x.comparison][0]) for x in again), len(again)],
            "flagged": sum(bool(x.flags) for x in mine),
        })  # fmt: skip
    return found


def _contested(store: Store, run: str, votes: dict[int, list[Label]]) -> list[dict[str, Any]]:
    """The questions that people disagree about most: the larger the smaller camp, the earlier."""

    def split(answers: list[Label]) -> float:
        a = sum(x.preference for x in answers if x.preference is not None)
        return min(a, len(answers) - a) / len(answers)

    several = [(number, answers) for number, answers in votes.items() if len(answers) > 1 and split(answers) > 0]
    found = []
    for number, answers in sorted(several, key=lambda item: -split(item[1]))[:SHOWN]:
        question = store.question(number, run)
        assert question is not None
        prompt = question.comparison.a[0].task.prompt
        words = prompt if isinstance(prompt, str) else prompt[-1]["content"] if prompt else question.comparison.key
        found.append({"question": number, "words": words[:120], "answers": [[x.judge, x.preference] for x in answers]})
    return found


def _number(value: float) -> float | None:
    return value if value == value else None
