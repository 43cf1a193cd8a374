"""A judge writes an answer of their own because no side of a question is good enough; see `written`."""

import re
from typing import Any

from sqlalchemy import Connection, func, insert, select

from rather.core import Comparison, Label, Trajectory
from rather.errors import DataError, StoreError
from rather.store import answering, counting, rows, written
from rather.store import tables as t
from rather.store.engine import now
from rather.store.judges import writer
from rather.store.store import Store

LONGEST = 20_000
"""Characters of an answer."""


def write(store: Store, label: Label, text: str, token: str | None = None, invitation: int | None = None) -> int:
    """Keep an answer that no side is good enough, and with it the better one that the judge has written; returns the label's number.

    The new question is of the purpose "train" where the other one is, and else "same", which nobody is asked. A `token` that was sent
    before adds nothing. What the judge wrote about the question earlier is withdrawn. `invitation` let the judge in, if any did.

    Raises:
        DataError: the text is too long, says nothing or what a side says, or the question cannot be answered so.
        StoreError: an unknown question or judge; an InvitationError, that the invitation has ended.
    """
    text = text.rstrip()
    with store.transaction(write=True) as connection:
        judge, original = writer(connection, label.judge, invitation), label.comparison
        # Under this lock neither another answer of theirs to the question is written meanwhile, nor the same one again.
        asked = connection.execute(select(t.comparison).where(t.comparison.c.id == original).with_for_update(key_share=True)).first()
        if asked is None:
            raise StoreError(f"question {original} is not in the store {store.where}")
        if token is not None and (sent := answering.sent(connection, token)) is not None:
            return sent
        (question,) = rows.with_sides(connection, [asked])
        _check(label, question.comparison, text)
        counting.asked(connection, asked.run, int(asked.purpose == "train"))  # before anybody's standing is locked
        written.withdraw(connection, {(original, judge)})
        new = _add(connection, asked, judge, Trajectory(question.comparison.a[0].task, "person", text))
        letters = rows.LETTERS[: len(question.comparison.sides) + 1]
        own = Label(new, label.judge, 1.0, shown=letters, flags=label.flags, best=0)
        kept = answering.keep(connection, [own, label], {label.judge: judge}, [None, token], store.where)
        counting.answered(connection, [original, new])
    return kept[1][0]


def _check(label: Label, asked: Comparison, text: str) -> None:
    number, sides = label.comparison, asked.sides
    if label.preference != 0.5 or label.best is not None:
        raise DataError(f"question {number} has a side that is preferred; an answer of one's own is for where none is good enough")
    if len(sides) == 1 or any(len(side) != 1 or side[0].text is None for side in sides):
        raise DataError(f"the sides of question {number} are not single answers in words, at least two; no other one can be written to it")
    if len(sides) == len(rows.LETTERS):
        raise DataError(f"question {number} has {len(sides)} sides already, and no question has more; say in a comment what is missing")
    if not text.strip():
        raise DataError("the better answer is empty; write it, or answer that all are bad")
    if len(text) > LONGEST:
        raise DataError(f"the better answer has {len(text):,} characters; at most {LONGEST:,} are kept")
    if any(text.strip() == (side[0].text or "").strip() for side in sides):
        raise DataError("the better answer is the same as one of those that are there; change it, or prefer that one")


def _add(connection: Connection, asked: Any, judge: int, answer: Trajectory) -> int:
    """Insert the question; its other sides are the same rows as those of the one before it."""
    (number,), (trajectory,) = rows.drawn(connection, t.comparison, 1), rows.drawn(connection, t.trajectory, 1)
    before = select(func.count()).where(t.written.c.original == asked.id, t.written.c.judge == judge)
    count = connection.execute(before).scalar()
    of_round = re.match(r"round-\d+/", asked.key)  # so that it belongs to that round, too
    key = f"written/{of_round[0] if of_round else ''}{asked.id}/{judge}/{count}"
    purpose = "train" if asked.purpose == "train" else "same"
    values = {"id": number, "run": asked.run, "key": key, "purpose": purpose, "why": written.WHY, "created": now()}
    connection.execute(insert(t.comparison).values(**values, **counting.place(number, purpose, None)))
    connection.execute(insert(t.trajectory).values(id=trajectory, **rows.to_row(answer)))
    sides: list[dict[str, Any]] = [{"comparison": number, "side": "a", "place": 0, "trajectory": trajectory}]
    for side in connection.execute(select(t.side).where(t.side.c.comparison == asked.id)):
        letter = rows.LETTERS[rows.LETTERS.index(side.side) + 1]
        sides.append({"comparison": number, "side": letter, "place": side.place, "trajectory": side.trajectory})
    connection.execute(insert(t.side), sides)
    connection.execute(insert(t.written).values(comparison=number, original=asked.id, judge=judge))
    return number
