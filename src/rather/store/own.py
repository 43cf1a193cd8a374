"""What one judge has said, as they look it up themselves."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from rather.core import Label, Prompt
from rather.store import rows
from rather.store import tables as t
from rather.store.store import Store
from rather.store.written import texts

PAGE = 50
BEGINNING = 160
"""Characters of a question that stand for it in a list."""
READ = 4 * BEGINNING
"""Characters of an answer that are looked at for them: spaces and line breaks become fewer."""


@dataclass(frozen=True)
class Said:
    """An answer that counts, when it was `created`, and how its question begins: its prompt, or else its first side; clips have none.

    `better` is how an answer begins that the judge wrote, because no side was good enough; "" if there is none.
    """

    label: Label
    created: float
    beginning: str
    better: str


def answers(store: Store, run: str, judge: str, before: int) -> list[Said]:
    """The judge's latest answers and abstentions that count, of those with numbers below `before`, the latest first."""
    with store.transaction() as connection:
        mine = (
            store.said(connection, run, judge)
            .where(t.label.c.id < before, ~rows.of_what_they_wrote())
            .order_by(t.label.c.id.desc())
            .limit(PAGE)
        )
        found = connection.execute(mine).all()
        begins = _beginnings(connection, [r.comparison for r in found])
        criteria = rows.criteria(connection, [r.id for r in found])
        better = texts(connection, begins, found[0].judge) if found else {}
    return [
        Said(
            rows.label_of(r, judge, criteria=criteria.get(r.id)), r.created, begins[r.comparison], _beginning(better.get(r.comparison, ""))
        )
        for r in found
    ]


def _beginnings(connection: Connection, questions: Collection[int]) -> dict[int, str]:
    c = t.trajectory.c
    first = select(t.side.c.comparison, c.prompt, func.substr(c.text, 1, READ)).join(t.trajectory, c.id == t.side.c.trajectory)
    first = first.where(t.side.c.comparison.in_(questions), t.side.c.side == "a", t.side.c.place == 0)
    return {question: _beginning(_asked(prompt) or text or "") for question, prompt, text in connection.execute(first)}


def _asked(prompt: Prompt | None) -> str:
    """What a prompt asks: its text, or what was said last in a conversation."""
    if prompt is None or isinstance(prompt, str):
        return prompt or ""
    return next((said for message in reversed(prompt) if isinstance(said := message.get("content"), str) and said.strip()), "")


def _beginning(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= BEGINNING else line[: BEGINNING - 1].rstrip() + "\u2026"
