"""What owners decide about questions: learned from in place of all answers, and nobody else is asked."""

from sqlalchemy import insert

from rather.core import Label
from rather.errors import DataError, StoreError
from rather.store import counting, rows
from rather.store import tables as t
from rather.store.engine import now
from rather.store.judges import writer
from rather.store.store import Store


def decide(
    store: Store,
    run: str,
    judge: str,
    question: int,
    preference: float | None,
    best: int | None = None,
    reason: str = "",
    invitation: int | None = None,
) -> int:
    """Write down what an owner, `judge`, decides about a question; returns the label's number.

    `preference` is P(a better), and of more than two sides `best` the number of the one that is preferred. Without a preference what was
    decided before is withdrawn. What the owner answers as everybody does is another thing, and stays. `invitation` let the owner in.

    Raises:
        DataError: a preference outside [0, 1], or a best side that is none of more than two.
        StoreError: an unknown question or judge; an InvitationError, that the invitation has ended.
    """
    asked = store.question(question, run)
    if asked is None:
        raise StoreError(f"question {question} is not in the run {run!r} of the store {store.where}")
    sides = len(asked.comparison.sides)
    if (preference is not None and not 0 <= preference <= 1) or (best is not None and not 0 <= best < sides > 2):
        raise DataError(f"question {question} has {sides} sides; {preference if best is None else best} decides nothing about it")
    values = {"comparison": question, "kind": "decision", "preference": preference, "best": best, "reason": reason, "flags": []}
    with store.transaction(write=True) as connection:
        values |= {"judge": writer(connection, judge, invitation), "shown": rows.LETTERS[:sides], "created": now()}
        made = connection.execute(insert(t.label).values(values))
        counting.answered(connection, [question])
        return made.inserted_primary_key[0]  # type: ignore[index]


def decided(store: Store, run: str) -> dict[int, Label]:
    """The decisions that hold, by question."""
    wanted = rows.DECIDED.join(t.comparison).join(t.judge).where(t.comparison.c.run == run).add_columns(t.judge.c.name)
    with store.transaction() as connection:
        return {r.comparison: rows.label_of(r, r.name) for r in connection.execute(wanted)}
