"""How rows become questions and back, and which labels count."""

import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from sys import intern
from typing import Any, Literal

import numpy as np
from sqlalchemy import BindParameter, ColumnElement, Connection, Row, Select, Table, delete, func, literal_column, null, select

from rather.core import Comparison, Label, Prompt, Task, Trajectory
from rather.store import counting
from rather.store import tables as t
from rather.store.engine import now

LETTERS = "abcdefgh"
"""What the sides of a question are called."""
LEARNED = ("train", "unpaired")
"""The purposes of questions that something is learned from: comparisons, and answers alone."""


@dataclass(frozen=True)
class Lease:
    """What a judge was given: the `token` that an answer to it names, the `invitation` it was given under (None at a terminal), the letters
    of its sides in the order in which they were `shown`, when it was `given`, and until when it is theirs alone.
    """

    token: str
    invitation: int | None
    shown: str
    given: float
    expires: float


@dataclass(frozen=True, eq=False)
class Question:
    """A stored comparison: its number, the run and purpose it belongs to, and why it is asked.

    Purposes are "train", "eval-...", "check-...", "gold", "repeat", "unpaired" for one side alone, and "same" for what needs no answer.
    `original` is the question
    that a repeat asks again. `trajectories` are the numbers in the store of each side's trajectories. `lease` is there where the question
    was given to a judge.
    """

    id: int
    run: str
    purpose: str
    why: str
    score: float | None
    comparison: Comparison
    original: int | None = None
    trajectories: tuple[tuple[int, ...], ...] = ((), ())
    lease: Lease | None = None


WRITTEN: Select[Any] = select(t.label).where(t.label.c.kind.in_(("answer", "abstention")))
"""All labels of judges, whether they count or not."""

CURRENT: Select[Any] = select(t.label).where(t.label.c.counts, t.label.c.kind != "decision")
"""The labels of judges that count: the latest of each one on each question, unless that is an undo."""

COUNTED: Select[Any] = select(t.label).where(t.label.c.counts)
"""What is learned from: the labels of judges that count, and the decisions of owners that hold."""

DECISION = t.label.c.kind == literal_column("'decision'")  # as it stands in the index of decisions: SQLite compares words
DECIDED: Select[Any] = select(t.label).where(t.label.c.counts, DECISION)
"""The decisions of owners that hold, at most one a question."""

_SHOWN = t.side.join(t.trajectory).outerjoin(t.clip, t.clip.c.trajectory == t.trajectory.c.id)
_BARE = select(t.side.c.comparison).select_from(_SHOWN).where(t.side.c.comparison == t.comparison.c.id)
READY = ~_BARE.where(t.trajectory.c.text.is_(None), t.clip.c.webp.is_(None)).correlate(t.comparison).exists()
"""Whether all that a question shows can be shown: a control trajectory needs its clip."""


def decided() -> ColumnElement[bool]:
    """Whether an owner has decided the question."""
    made = DECIDED.where(t.label.c.comparison == t.comparison.c.id)
    return made.with_only_columns(t.label.c.comparison).correlate(t.comparison).exists()


def answered_by(judge: int | BindParameter[int]) -> ColumnElement[bool]:
    """Whether the judge has answered the question."""
    mine = CURRENT.where(t.label.c.judge == judge, t.label.c.comparison == t.comparison.c.id)
    return mine.with_only_columns(t.label.c.comparison).correlate(t.comparison).exists()


def of_purpose(purpose: str | Sequence[str] | None) -> ColumnElement[bool]:
    """Questions of a purpose or several, or without one all but those whose answers are known; sides that are the "same" need none."""
    c = t.comparison.c
    return c.rank.is_not(None) if purpose is None else c.purpose == purpose if isinstance(purpose, str) else c.purpose.in_(purpose)


def meant_for(judge: int | BindParameter[int]) -> ColumnElement[bool]:
    """Whether the judge may be asked: repeats are for the one who has answered before, what they wrote themselves for others."""
    others = select(t.probe.c.comparison).where(t.probe.c.comparison == t.comparison.c.id, t.probe.c.judge != judge)
    own = select(t.written.c.comparison).where(t.written.c.comparison == t.comparison.c.id, t.written.c.judge == judge)
    return ~others.correlate(t.comparison).exists() & ~own.correlate(t.comparison).exists()


def of_what_they_wrote() -> ColumnElement[bool]:
    """Whether a label is about an answer that its judge wrote."""
    own = select(t.written.c.comparison).where(t.written.c.comparison == t.label.c.comparison, t.written.c.judge == t.label.c.judge)
    return own.correlate(t.label).exists()


HISTORY = (
    select(
        t.label.c.id, t.label.c.comparison, t.comparison.c.key, t.comparison.c.purpose, t.judge.c.name.label("judge"), t.label.c.kind,
        t.label.c.preference, t.label.c.best, t.label.c.reason, t.label.c.seconds, t.label.c.shown, t.label.c.flags, t.label.c.created,
    ).select_from(t.label.join(t.comparison).join(t.judge)).order_by(t.label.c.id)
)  # fmt: skip
"""Every row that was ever written about a question, oldest first."""


def with_sides(connection: Connection, rows: Collection[Row[Any]], steps: bool = True) -> list[Question]:
    """Questions from rows of the table; what was seen and done at each step of a control trajectory is left out without `steps`."""
    sides: dict[int, dict[str, tuple[list[int], list[Trajectory]]]] = {}
    originals: dict[int, int] = {}
    tasks: dict[tuple[str, str], Task] = {}
    columns = [c if steps or c.name != "steps" else null().label("steps") for c in t.trajectory.c]
    wanted = select(t.side.c.comparison, t.side.c.side, *columns).join(t.trajectory, t.trajectory.c.id == t.side.c.trajectory)
    wanted = wanted.order_by(t.side.c.comparison, t.side.c.side, t.side.c.place)
    again = select(t.probe.c.comparison, t.probe.c.original).where(t.probe.c.original.is_not(None))
    for some in counting.parts(r.id for r in rows):
        stored: Sequence[Any] = connection.execute(wanted.where(t.side.c.comparison.in_(some))).all()
        for question, letter, number, *row in stored:
            there, trajectories = sides.setdefault(question, {}).setdefault(letter, ([], []))
            there.append(number)
            trajectories.append(from_row(*row, tasks=tasks))
        originals |= {r.comparison: r.original for r in connection.execute(again.where(t.probe.c.comparison.in_(some)))}
    found = []
    for r in rows:
        places, (a, *others) = zip(*((tuple(there), tuple(side)) for there, side in sides[r.id].values()), strict=True)
        comparison = Comparison(a, others[0] if others else (), key=r.key, others=tuple(others[1:]))
        found.append(Question(r.id, r.run, r.purpose, r.why, r.score, comparison, originals.get(r.id), places))
    return found


def drawn(connection: Connection, table: Table, count: int) -> list[int]:
    """The numbers of so many new rows. The connection must hold the lock that writers take.

    They are drawn beforehand: where a database gives them out, SQLAlchemy inserts row by row under SQLite.
    """
    if connection.dialect.name == "sqlite":
        last = connection.execute(select(func.max(table.c.id))).scalar() or 0
        return list(range(last + 1, last + 1 + count))
    numbers = select(func.nextval(func.pg_get_serial_sequence(table.name, "id"))).select_from(func.generate_series(1, count))
    return list(connection.execute(numbers).scalars())


def insert_all(connection: Connection, table: Table, values: Sequence[dict[str, Any]]) -> None:
    """Insert rows of the same columns in the same order.

    The driver is given tuples: SQLAlchemy takes longer to read a thousand dictionaries than SQLite to write them.
    """
    if not values:
        return
    dialect, names = connection.dialect, list(values[0])
    columns = [[row[name] for row in values] for name in names]
    for i, name in enumerate(names):
        if (convert := table.c[name].type.dialect_impl(dialect).bind_processor(dialect)) is not None:
            columns[i] = list(map(convert, columns[i]))
    marks = ", ".join(["?" if dialect.paramstyle == "qmark" else "%s"] * len(names))
    connection.exec_driver_sql(f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({marks})", list(zip(*columns, strict=True)))


def add_questions(
    connection: Connection,
    run: str,
    questions: Sequence[tuple[str, Comparison]],
    purpose: str,
    why: str | Sequence[str],
    scores: Sequence[float | None] | None = None,
) -> list[int]:
    """Insert questions under the keys that stand before them, which the run must not have yet; returns their numbers."""
    fixed = {"run": run, "purpose": purpose, "created": now()}
    given, whys = scores or [None] * len(questions), [why] * len(questions) if isinstance(why, str) else why
    numbers = drawn(connection, t.comparison, len(questions))
    asked = [
        {**fixed, "id": number, "key": key, "why": w, "score": score, **counting.place(number, purpose, score)}
        for number, (key, _), w, score in zip(numbers, questions, whys, given, strict=True)
    ]
    insert_all(connection, t.comparison, asked)
    counting.asked(connection, run, sum(row["rank"] is not None for row in asked))
    sides = [
        ({"comparison": number, "side": letter, "place": place}, trajectory)
        for number, (_, comparison) in zip(numbers, questions, strict=True)
        for letter, side in zip(LETTERS, comparison.sides, strict=False)
        for place, trajectory in enumerate(side)
    ]
    trajectories = drawn(connection, t.trajectory, len(sides))
    values = [{**to_row(trajectory), "id": number} for number, (_, trajectory) in zip(trajectories, sides, strict=True)]
    insert_all(connection, t.trajectory, values)
    insert_all(connection, t.side, [{**side, "trajectory": number} for number, (side, _) in zip(trajectories, sides, strict=True)])
    return numbers


def delete_questions(connection: Connection, numbers: Sequence[int]) -> int:
    """Delete questions with all about them, and the trajectories that no other question shows; returns how many labels that were."""
    gone, s = 0, t.side.c
    counting.deleted(connection, numbers)
    for some in counting.parts(numbers):
        shown = list(connection.execute(select(s.trajectory).where(s.comparison.in_(some)).distinct()).scalars())
        said = select(t.label.c.id).where(t.label.c.comparison.in_(some))
        connection.execute(delete(t.criterion).where(t.criterion.c.label.in_(said)))
        for table in (t.lease, t.label, t.probe, t.written, t.side):
            there = connection.execute(delete(table).where(table.c.comparison.in_(some))).rowcount
            gone += there if table is t.label else 0
        connection.execute(delete(t.comparison).where(t.comparison.c.id.in_(some)))
        elsewhere = select(s.trajectory).where(s.trajectory == t.trajectory.c.id).correlate(t.trajectory).exists()
        for few in counting.parts(shown):
            connection.execute(delete(t.trajectory).where(t.trajectory.c.id.in_(few), ~elsewhere))
    return gone


ARRAYS: tuple[Literal["observations", "actions", "logprobs", "rewards", "before"], ...] = (
    "observations",
    "actions",
    "logprobs",
    "rewards",
    "before",
)


def to_row(x: Trajectory) -> dict[str, Any]:
    """A trajectory as a row."""
    return {
        "source": x.task.source, "task": x.task.key, "prompt": x.task.prompt, "answer": x.task.answer,
        "policy": x.policy, "text": x.text, "terminated": x.terminated, "steps": steps_of(x) if x.text is None else None,
    }  # fmt: skip


def steps_of(x: Trajectory) -> bytes:
    """The arrays of a trajectory, compressed."""
    file = io.BytesIO()
    np.savez_compressed(file, **{name: value for name in ARRAYS if (value := getattr(x, name)) is not None})
    return file.getvalue()


def from_row(
    source: str, key: str, prompt: Prompt | None, answer: str | None, policy: str, text: str | None, terminated: bool, steps: bytes | None,
    tasks: dict[tuple[str, str], Task] | None = None,
) -> Trajectory:  # fmt: skip
    """A trajectory from the columns of its row, but the first; it shares its task with others that are read with the same `tasks`."""
    arrays = {} if steps is None else arrays_of(steps)
    task = None if tasks is None else tasks.get((source, key))
    if task is None or (task.prompt, task.answer) != (prompt, answer):
        task = Task(intern(source), key, prompt, answer)
        if tasks is not None:
            tasks[source, key] = task
    return Trajectory(task, intern(policy), text, terminated, **arrays)


def arrays_of(steps: bytes) -> dict[str, np.ndarray]:
    """What `steps_of` has written."""
    with np.load(io.BytesIO(steps), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def labels(
    connection: Connection, run: str, purpose: str | Sequence[str] | None = None, among: Collection[int] | None = None
) -> Iterator[Row[Any]]:
    """Rows of the labels that count, or of those with the numbers `among` these, oldest first."""
    wanted = (CURRENT if among is None else WRITTEN).join(t.comparison).where(t.comparison.c.run == run).order_by(t.label.c.id)
    if purpose is not None:
        wanted = wanted.where(of_purpose(purpose))
    accepted = None if among is None else set(among)
    for row in connection.execute(wanted.execution_options(yield_per=1000)):
        if accepted is None or row.id in accepted:
            yield row


def label_of(row: Row[Any], judge: str, flags: tuple[str, ...] = (), criteria: Mapping[str, float] | None = None) -> Label:
    """A row as a label, with flags beside its own."""
    r = row
    return Label(r.comparison, judge, r.preference, r.reason, r.seconds, r.shown, (*r.flags, *flags), r.id, r.best, criteria or {})


def criteria(connection: Connection, labels: Iterable[int]) -> dict[int, dict[str, float]]:
    """What labels say on criteria, by their numbers; those that say nothing are left out."""
    found, c = dict[int, dict[str, float]](), t.criterion.c
    for some in counting.parts(labels):
        for label, name, preference in connection.execute(select(c.label, c.name, c.preference).where(c.label.in_(some)).order_by(c.name)):
            found.setdefault(label, {})[name] = preference
    return found


def asked(run: str, purpose: str | Sequence[str] | None = None, beginning: str = "") -> Select[Any]:
    """A run's questions in the order they were asked, of a purpose or several, with a beginning of their keys."""
    wanted = select(t.comparison).where(t.comparison.c.run == run).order_by(t.comparison.c.id)
    if beginning:
        wanted = wanted.where(t.comparison.c.key.startswith(beginning, autoescape=True))
    return wanted if purpose is None else wanted.where(of_purpose(purpose))
