"""How much is left for one person: their share of the answers that are still wanted, and how long that takes them.

The statements are made once: making them takes longer than running them.
"""

import math
from dataclasses import dataclass
from statistics import median
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from rather.store import tables as t
from rather.store.engine import now
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


_RUN, _WHO, _NOW = (bindparam(name) for name in ("run", "who", "now"))
_STANDING, _INVITATION, _LABEL = t.standing.c, t.invitation.c, t.label.c
_OTHERS = select(func.count(_INVITATION.judge.distinct())).join(t.judge, t.judge.c.id == _INVITATION.judge)
_OTHERS = _OTHERS.where((_INVITATION.run == _RUN) | _INVITATION.run.is_(None), _INVITATION.expires > _NOW)
_OTHERS = _OTHERS.where(_INVITATION.role == "annotator", t.judge.c.kind != "simulated", _INVITATION.judge != _WHO)
COUNTS = select(
    func.coalesce(select(t.asked.c.questions).where(t.asked.c.run == _RUN).scalar_subquery(), 0),
    func.coalesce(select(_STANDING.answered).where(_STANDING.run == _RUN, _STANDING.judge == _WHO).scalar_subquery(), 0),
    func.coalesce(select(func.sum(_STANDING.answered)).where(_STANDING.run == _RUN).scalar_subquery(), 0),
    _OTHERS.scalar_subquery(),
)
"""The run's questions, how many of them the judge has answered, how many answers there are, and how many other people may answer."""

_LATEST = select(_LABEL.id, _LABEL.comparison, _LABEL.seconds, _LABEL.counts).where(_LABEL.judge == _WHO)
_LATEST = _LATEST.order_by(_LABEL.id.desc()).limit(3 * LATEST).subquery()
SECONDS = select(_LATEST.c.seconds).join(t.comparison, t.comparison.c.id == _LATEST.c.comparison)
SECONDS = SECONDS.where(t.comparison.c.run == _RUN, _LATEST.c.counts, _LATEST.c.seconds.is_not(None))
SECONDS = SECONDS.order_by(_LATEST.c.id.desc()).limit(LATEST)
"""How long the judge's latest answers in the run took; those before what they have answered since in other runs are not read."""


def share(store: Store, run: str, judge: int) -> Share:
    """The share of the judge of that number.

    Beside what they have answered it is an equal part of what is still wanted, of all who may answer. What is wanted is about `overlap`
    answers a question, less those that there are; no row is counted but people.
    """
    overlap, values = store.asking(run).overlap, {"run": run, "who": judge, "now": now()}
    with store.transaction() as connection:
        questions, mine, given, others = connection.execute(COUNTS, values).one()
        wanted = max(0, overlap * questions - given)
        left = min(math.ceil(wanted / (1 + others)), max(0, questions - mine))
        seconds = _seconds(connection, values) if left else 0.0
    return Share(mine + left, None if seconds is None else math.ceil(seconds * left / 60))


def _seconds(connection: Connection, values: dict[str, Any]) -> float | None:
    """The median time of the judge's latest answers; None if there are too few."""
    seconds = list(connection.execute(SECONDS, values).scalars())
    return median(seconds) if len(seconds) >= FEWEST else None
