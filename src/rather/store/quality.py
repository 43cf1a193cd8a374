"""How questions are given out, and which answers are suspicious."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import CompoundSelect, Connection, func, literal, select, union_all

from rather.store import tables as t


@dataclass(frozen=True)
class Asking:
    """How a run's questions are given out, and what is made of the answers; the owner may change it at any time.

    Each question is answered by `overlap` people. Of what a person is asked, a share `gold` are gold questions (if there are any), a
    share `repeats` are their own earlier questions with the sides exchanged, and a share `random` is drawn at random instead of by
    priority. An answer within `fastest_s` seconds is suspicious; with `flagged` False, suspicious answers are not learnt from.
    """

    overlap: int = 1
    gold: float = 0.1
    repeats: float = 0.05
    random: float = 0.2
    fastest_s: float = 0.5
    flagged: bool = True


def contradicts(given: float | None, known: float) -> bool:
    """Whether one clear answer prefers the other side than another."""
    return given is not None and (given - 0.5) * (known - 0.5) < 0


def suspicious(run: str, fastest_s: float) -> CompoundSelect[Any]:
    """Why answers of a run are suspicious: label, the label `by` which that came out, the `place` of reasons that came out at once, reason.

    - "fast": it took less than `fastest_s` seconds;
    - "gold": it contradicts a gold question's answer, or was given by the same judge between that one and the gold question before;
    - "inconsistent": asked again, the judge said the opposite; both answers are.
    """
    x, c, p = t.label.c, t.comparison.c, t.probe.c
    current = select(x.id).join(t.comparison, c.id == x.comparison).where(c.run == run, x.counts)
    probed = current.join(t.probe, p.comparison == x.comparison)
    wrong = (x.preference - 0.5) * (p.preference - 0.5) < 0
    fast = current.add_columns(x.id.label("by"), literal(0).label("place"), literal("fast").label("reason"))
    before = func.lag(x.id, 1, 0).over(partition_by=x.judge, order_by=x.id).label("before")
    known = probed.where(p.original.is_(None)).add_columns(x.judge, before, wrong.label("wrong")).subquery()
    since = current.join(known, (known.c.judge == x.judge) & (x.id > known.c.before) & (x.id <= known.c.id)).where(known.c.wrong)
    again = probed.where(p.original.is_not(None), wrong).add_columns(x.judge, p.original).subquery()
    earlier = current.join(again, (again.c.judge == x.judge) & (again.c.original == x.comparison))
    return union_all(
        fast.where(x.seconds < fastest_s, x.preference.is_not(None)),
        since.add_columns(known.c.id, literal(1), literal("gold")),
        select(again.c.id, again.c.id, literal(1), literal("inconsistent")),
        earlier.add_columns(again.c.id, literal(1), literal("inconsistent")),
    )


def flags(connection: Connection, run: str, fastest_s: float) -> dict[int, tuple[str, ...]]:
    """Why answers are suspicious, by the label's number, in the order in which that came out."""
    found = suspicious(run, fastest_s).subquery()
    same, reasons = dict[tuple[str, ...], tuple[str, ...]](), dict[int, tuple[str, ...]]()
    wanted = select(found.c.id, found.c.reason).order_by(found.c.id, found.c.by, found.c.place)
    for number, reason in connection.execute(wanted.execution_options(yield_per=1000)):
        both = (*reasons.get(number, ()), reason)
        reasons[number] = same.setdefault(both, both)
    return reasons
