"""How questions are given out, and which answers are suspicious."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import CompoundSelect, Connection, false, func, literal, select, union_all

from rather.store import tables as t

FLAGS = ("fast", "gold", "inconsistent", "late")
"""Why an answer is suspicious; "late" is written down with the answer, which came after the question's time was over."""


@dataclass(frozen=True)
class Asking:
    """How a run's questions are given out, and what is made of the answers; the owner may change it at any time.

    Each question is answered by `overlap` people. Of what a person is asked, a share `gold` are gold questions (if there are any), a
    share `repeats` are their own earlier questions with the sides exchanged, and a share `random` is drawn at random instead of by
    priority. An answer of a person within `fastest_s` seconds is suspicious. Answers with a flag that is among `leave_out` are not learned
    from; see `suspicious`.
    """

    overlap: int = 1
    gold: float = 0.1
    repeats: float = 0.05
    random: float = 0.2
    fastest_s: float = 0.5
    leave_out: tuple[str, ...] = ("fast",)


def contradicts(given: float | None, known: float) -> bool:
    """Whether one clear answer prefers the other side than another."""
    return given is not None and (given - 0.5) * (known - 0.5) < 0


def suspicious(run: str, fastest_s: float, only: Collection[str] = FLAGS) -> CompoundSelect[Any]:
    """Why answers of a run are suspicious: label, the label `by` which that came out, the `place` of reasons that came out at once, reason.

    - "fast": a person gave it in less than `fastest_s` seconds;
    - "gold": it contradicts a gold question's answer, or was given by the same judge between that one and the gold question before;
    - "inconsistent": asked again, the judge said the opposite; both answers are.
    """
    x, c, p = t.label.c, t.comparison.c, t.probe.c
    current = select(x.id).join(t.comparison, c.id == x.comparison).where(c.run == run, x.counts, x.kind != "decision")
    probed = current.join(t.probe, p.comparison == x.comparison)
    wrong = (x.preference - 0.5) * (p.preference - 0.5) < 0
    fast = current.add_columns(x.id.label("by"), literal(0).label("place"), literal("fast").label("reason"))
    before = func.lag(x.id, 1, 0).over(partition_by=x.judge, order_by=x.id).label("before")
    known = probed.where(p.original.is_(None)).add_columns(x.judge, before, wrong.label("wrong")).subquery()
    since = current.join(known, (known.c.judge == x.judge) & (x.id > known.c.before) & (x.id <= known.c.id)).where(known.c.wrong)
    again = probed.where(p.original.is_not(None), wrong).add_columns(x.judge, p.original).subquery()
    earlier = current.join(again, (again.c.judge == x.judge) & (again.c.original == x.comparison))
    people = select(t.judge.c.id).where(t.judge.c.kind == "person")
    found = {
        "fast": [fast.where(x.seconds < fastest_s, x.preference.is_not(None), x.judge.in_(people))],
        "gold": [since.add_columns(known.c.id, literal(1), literal("gold"))],
        "inconsistent": [
            select(again.c.id, again.c.id, literal(1), literal("inconsistent")),
            earlier.add_columns(again.c.id, literal(1), literal("inconsistent")),
        ],
    }
    return union_all(*(part for reason, parts in found.items() if reason in only for part in parts), fast.where(false()))


def flags(connection: Connection, run: str, fastest_s: float, only: Collection[str] = FLAGS) -> dict[int, tuple[str, ...]]:
    """Why answers are suspicious, by the label's number, in the order in which that came out."""
    found = suspicious(run, fastest_s, only).subquery()
    same, reasons = dict[tuple[str, ...], tuple[str, ...]](), dict[int, tuple[str, ...]]()
    wanted = select(found.c.id, found.c.reason).order_by(found.c.id, found.c.by, found.c.place)
    for number, reason in connection.execute(wanted.execution_options(yield_per=1000)):
        both = (*reasons.get(number, ()), reason)
        reasons[number] = same.setdefault(both, both)
    return reasons
