"""How much is left for one person: their share of the answers that are still wanted, and how long that takes them."""

import math
from dataclasses import dataclass
from statistics import median

from sqlalchemy import Connection, func, select

from rather.store import tables as t
from rather.store.engine import now
from rather.store.people import lets_into
from rather.store.store import Store

LATEST = 20
"""Answers that say how quickly somebody answers now."""
FEWEST = 5
"""Answers below which nothing is said about the time."""


@dataclass(frozen=True)
class Share:
    """How many questions are one person's, those that they have answered among them, and the minutes that the others take, if known."""

    questions: int
    minutes: int | None


def share(store: Store, run: str, judge: int) -> Share:
    """The share of the judge of that number.

    Beside what they have answered it is an equal part of what is still wanted, of all who may answer. What is wanted is about `overlap`
    answers a question, less those that there are; no row is counted but people.
    """
    overlap, c = store.asking(run).overlap, t.standing.c
    with store.transaction() as connection:
        questions = connection.execute(select(t.asked.c.questions).filter_by(run=run)).scalar() or 0
        mine = connection.execute(select(c.answered).filter_by(run=run, judge=judge)).scalar() or 0
        given = connection.execute(select(func.sum(c.answered)).where(c.run == run)).scalar() or 0
        wanted = max(0, overlap * questions - given)
        left = min(math.ceil(wanted / _people(connection, run, judge)), max(0, questions - mine))
        seconds = _seconds(connection, run, judge) if left else 0.0
    return Share(mine + left, None if seconds is None else math.ceil(seconds * left / 60))


def _people(connection: Connection, run: str, judge: int) -> int:
    """How many may answer: annotators who are people, and the judge."""
    c = t.invitation.c
    others = select(func.count(c.judge.distinct())).join(t.judge, t.judge.c.id == c.judge)
    others = others.where(lets_into(run), c.expires > now(), c.role == "annotator", t.judge.c.kind != "simulated", c.judge != judge)
    return 1 + (connection.execute(others).scalar() or 0)


def _seconds(connection: Connection, run: str, judge: int) -> float | None:
    """The median time of the judge's latest answers in the run; None if there are too few. What they did in other runs is not read on."""
    c = t.label.c
    latest = select(c.id, c.comparison, c.seconds, c.counts).where(c.judge == judge).order_by(c.id.desc()).limit(3 * LATEST).subquery()
    here = select(latest.c.seconds).join(t.comparison, t.comparison.c.id == latest.c.comparison)
    here = here.where(t.comparison.c.run == run, latest.c.counts, latest.c.seconds.is_not(None)).order_by(latest.c.id.desc()).limit(LATEST)
    seconds = list(connection.execute(here).scalars())
    return median(seconds) if len(seconds) >= FEWEST else None
