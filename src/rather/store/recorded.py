"""Answers that a server gave (`rather api --record`): kept with their tokens, and compared later by the names they were given with."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import insert, select

from rather.core import Comparison, Label, Task, Trajectory
from rather.errors import DataError
from rather.store import rows
from rather.store import tables as t
from rather.store.engine import now
from rather.store.rows import LETTERS
from rather.store.store import Store

SOURCE = "api"
KIND = "program"
"""What judges are whose preferences a program sends: it may have asked people, or reckoned them."""


def record(store: Store, run: str, answers: Sequence[tuple[str, Trajectory]], tools: Sequence[Any] = ()) -> None:
    """Keep answers under their names, with their tokens; `tools` are the functions that the answers may call."""
    time = now()
    values = [
        {
            "run": run, "name": name, "policy": x.policy, "prompt": x.task.prompt, "tools": [*tools], "text": x.text or "",
            "terminated": x.terminated, "steps": rows.steps_of(x), "created": time,
        }
        for name, x in answers
    ]  # fmt: skip
    with store.transaction(write=True) as connection:
        connection.execute(insert(t.recorded), values)


def recorded(store: Store, run: str) -> Iterator[tuple[str, Trajectory]]:
    """All answers that were kept, oldest first, by their names."""
    wanted = select(t.recorded).where(t.recorded.c.run == run).order_by(t.recorded.c.id).execution_options(yield_per=1000)
    with store.transaction() as connection:
        for row in connection.execute(wanted):
            yield row.name, _trajectory(row)


def prefer(store: Store, run: str, chosen: str, rejected: Sequence[str], judge: str, tie: bool = False, reason: str = "") -> int:
    """Keep that `judge` prefers the answer called `chosen` to those `rejected`, or none of them where it is a `tie`.

    Said again about the same answers, it takes the place of what the judge has said before. Returns the number of the label.

    Raises:
        DataError: there is no such answer, they answer different prompts, or there are no two that differ.
    """
    names = [chosen, *rejected]
    if not 2 <= len(set(names)) == len(names) <= len(LETTERS):
        raise DataError(f"chosen and rejected are to name 2 to {len(LETTERS)} different answers; they are {names}")
    with store.transaction() as connection:
        found = {r.name: r for r in connection.execute(select(t.recorded).where(t.recorded.c.run == run, t.recorded.c.name.in_(names)))}
    if missing := [name for name in names if name not in found]:
        raise DataError(f"no answer called {missing[0]!r} has been recorded")
    first = found[chosen]
    if any(found[name].prompt != first.prompt for name in rejected):
        raise DataError("the answers are to different prompts; compare answers to the same one")
    if any(found[name].tools for name in names):
        raise DataError("the answers were given with tools, which a comparison does not keep; learn from the recorded tokens")
    if len({found[name].text for name in names}) < len(names):
        raise DataError("two of the answers are the same; there is nothing to compare")
    if (kind := store.judges().get(judge, KIND)) != KIND:
        raise DataError(f"judge {judge!r} is a {kind} judge in this store, not a {KIND} one; use another name")
    ordered = sorted(names)  # so that it is the same question whichever is preferred
    digest = hashlib.sha256(json.dumps(ordered).encode()).hexdigest()
    a, b, *others = ((_trajectory(found[name]),) for name in ordered)
    store.add_judge(judge, KIND)
    (question,) = store.ask(run, [Comparison(a, b, key=f"recorded/{digest[:32]}", others=tuple(others))], why="recorded")
    best = ordered.index(chosen)
    said = 0.5 if tie else float(best == 0)
    shown = "".join(LETTERS[ordered.index(name)] for name in names)
    return store.answer(Label(question, judge, said, reason, shown=shown, best=best if others and not tie else None))


def _trajectory(row: Any) -> Trajectory:
    task = Task(SOURCE, hashlib.sha256(json.dumps(row.prompt).encode()).hexdigest()[:16], row.prompt)
    return Trajectory(task, row.policy, row.text, row.terminated, **rows.arrays_of(row.steps))
