"""Questions in, answers out: the one way in which anything reads or writes the store.

Labels are append-only: changing one's mind or undoing adds a row, and the latest row of a judge on a question counts.
"""

import io
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import sqlalchemy as sa
from sqlalchemy import Connection, Row, Select, exists, func, insert, select
from sqlalchemy.exc import IntegrityError

from rather.core import Answered, Comparison, Label, Task, Trajectory
from rather.errors import DataError, StoreError
from rather.store import engine as opening
from rather.store import tables as t


@dataclass(frozen=True, eq=False)
class Question:
    """A stored comparison: its number, the run and purpose ("train", "eval", "import") it belongs to, and why it is asked."""

    id: int
    run: str
    purpose: str
    why: str
    score: float | None
    comparison: Comparison


class Store:
    """A preference store at `where`: the path of an SQLite file, or a postgresql+psycopg:// URL.

    A call that returned has been committed to disk: killing any process loses nothing of it.

    Raises:
        StoreError: it cannot be opened, is locked or full, or a newer version wrote it.
    """

    def __init__(self, where: str) -> None:
        self.where = str(where)
        self.engine = opening.connect(self.where)
        self._judges: dict[str, int] = {}

    @contextmanager
    def transaction(self, write: bool = False) -> Iterator[Connection]:
        """A connection whose work is committed at the end, all or none; `write` takes the lock at once."""
        with opening.plain_errors(self.where):
            with self.engine.connect().execution_options(write=write) as connection, connection.begin():
                yield connection

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    # Judges

    def add_judge(self, name: str, kind: str, details: dict[str, Any] | None = None) -> int:
        """The number of the judge called `name`; a new one is written down as of `kind` ("person", "simulated", ...).

        Raises:
            StoreError: a judge of that name is of another kind.
        """
        with self.transaction(write=True) as connection:
            row = connection.execute(select(t.judge).where(t.judge.c.name == name)).first()
            if row is None:
                values = {"name": name, "kind": kind, "details": details or {}}
                return connection.execute(insert(t.judge).values(values)).inserted_primary_key[0]  # type: ignore[index]
        if row.kind != kind:
            raise StoreError(f"judge {name!r} is a {row.kind} judge in this store, not a {kind} one; use another name")
        return row.id

    def judges(self) -> dict[str, str]:
        """Name and kind of every judge."""
        with self.transaction() as connection:
            return {r.name: r.kind for r in connection.execute(select(t.judge).order_by(t.judge.c.id))}

    def _judge(self, name: str) -> int:
        if name not in self._judges:
            with self.transaction() as connection:
                number = connection.execute(select(t.judge.c.id).where(t.judge.c.name == name)).scalar()
            if number is None:
                raise StoreError(f"the store knows no judge {name!r}; add it first")
            self._judges[name] = number
        return self._judges[name]

    # Questions

    def ask(
        self,
        run: str,
        comparisons: Sequence[Comparison],
        purpose: str = "train",
        why: str = "random",
        scores: Sequence[float] | None = None,
    ) -> list[int]:
        """Put questions into the store, all or none; a key that the run already has is left as it is.

        Returns the number of each question. A higher score is asked earlier.
        """
        numbers = []
        with self.transaction(write=True) as connection:
            known = {
                r.key: r.id for r in connection.execute(select(t.comparison.c.key, t.comparison.c.id).where(t.comparison.c.run == run))
            }
            for i, comparison in enumerate(comparisons):
                if comparison.key not in known:
                    values = {
                        "run": run, "key": comparison.key, "purpose": purpose, "why": why,
                        "score": None if scores is None else float(scores[i]), "created": opening.now(),
                    }  # fmt: skip
                    number = connection.execute(insert(t.comparison).values(values)).inserted_primary_key[0]  # type: ignore[index]
                    known[comparison.key] = number
                    for name, side in (("a", comparison.a), ("b", comparison.b)):
                        for place, trajectory in enumerate(side):
                            made = connection.execute(insert(t.trajectory).values(_to_row(trajectory)))
                            link = {"comparison": number, "side": name, "place": place}
                            link["trajectory"] = made.inserted_primary_key[0]  # type: ignore[index]
                            connection.execute(insert(t.side).values(link))
                numbers.append(known[comparison.key])
        return numbers

    def keys(self, run: str, purpose: str) -> set[str]:
        """The keys of a run's questions."""
        wanted = select(t.comparison.c.key).where(t.comparison.c.run == run, t.comparison.c.purpose == purpose)
        with self.transaction() as connection:
            return set(connection.execute(wanted).scalars())

    def count(self, run: str, purpose: str, judge: str) -> tuple[int, int]:
        """How many questions the judge has answered or skipped, and how many there are."""
        c = t.comparison.c
        which = (c.run == run) & (c.purpose == purpose)
        mine = _current().join(t.comparison).where(which, t.label.c.judge == self._judge(judge))
        with self.transaction() as connection:
            counts = (mine.with_only_columns(func.count(t.label.c.id)), select(func.count(c.id)).where(which))
            first, second = (connection.execute(q).scalar_one() for q in counts)
        return first, second

    def questions(self, run: str, purpose: str | None = None, unanswered_by: str | None = None) -> list[Question]:
        """A run's questions in the order they were asked; `unanswered_by` leaves out those a judge has answered."""
        wanted = select(t.comparison).where(t.comparison.c.run == run).order_by(t.comparison.c.id)
        if purpose is not None:
            wanted = wanted.where(t.comparison.c.purpose == purpose)
        if unanswered_by is not None:
            wanted = wanted.where(~_answered_by(self._judge(unanswered_by)))
        with self.transaction() as connection:
            return _with_sides(connection, connection.execute(wanted).all())

    def has(self, question: int, run: str, purpose: str) -> bool:
        """Whether the run has such a question, asked for that purpose."""
        c = t.comparison.c
        wanted = select(c.id).where(c.id == question, c.run == run, c.purpose == purpose)
        with self.transaction() as connection:
            return connection.execute(wanted).first() is not None

    # Leases

    def lease(
        self, run: str, judge: str, purpose: str = "train", overlap: int = 1, seconds: float = 600, held: Collection[int] = ()
    ) -> Question | None:
        """Give `judge` the next question that still needs an answer, for `seconds`; None when there is none.

        A question wants answers from `overlap` different judges: those who have answered and those who hold an unexpired lease
        count. A judge who already holds a lease gets the same question again, unless it is among the `held` ones, which they have before
        them or have just answered.
        """
        who = self._judge(judge)
        with self.transaction(write=True) as connection:
            time = opening.now()
            connection.execute(sa.delete(t.lease).where(t.lease.c.expires < time))
            c = t.comparison.c
            mine = select(t.comparison).join(t.lease, t.lease.c.comparison == c.id).where(t.lease.c.judge == who)
            row = connection.execute(mine.where(c.run == run, c.purpose == purpose, c.id.not_in([0, *held]))).first()
            seen = [0, *held]
            while row is None:
                taken = _answers_of(c.id) + _leases_of(c.id)
                free = select(t.comparison).where(c.run == run, c.purpose == purpose, c.id.not_in(seen), taken < overlap)
                free = free.where(~_answered_by(who)).order_by(c.score.desc().nulls_last(), c.id).limit(1)
                found = connection.execute(free.with_for_update(of=t.comparison, skip_locked=True)).first()
                if found is None:
                    return None
                # Under PostgreSQL another lease may have been committed between this statement's snapshot and the lock.
                if connection.execute(select(taken < overlap).where(c.id == found.id)).scalar():
                    row = found
                seen.append(found.id)
            mine_now = {"comparison": row.id, "judge": who}
            changed = connection.execute(sa.update(t.lease).filter_by(**mine_now).values(expires=time + seconds))
            if not changed.rowcount:
                connection.execute(insert(t.lease).values(**mine_now, expires=time + seconds))
            return _with_sides(connection, [row])[0]

    def release(self, question: int, judge: str) -> None:
        """Give a lease back without an answer."""
        with self.transaction(write=True) as connection:
            connection.execute(sa.delete(t.lease).filter_by(comparison=question, judge=self._judge(judge)))

    # Labels

    def answer(self, label: Label, token: str | None = None) -> int:
        """Write one answer down and end the judge's lease; returns the label's number once it is on disk.

        A `token` that was sent before adds nothing: the number of the first label comes back.
        """
        return self.answer_all([label], [token] if token else None)[0]

    def answer_all(self, labels: Sequence[Label], tokens: Sequence[str] | None = None) -> list[int]:
        """Write several answers down, all or none.

        Raises:
            DataError: a preference outside [0, 1].
            StoreError: an unknown question or judge.
        """
        for x in labels:
            if x.preference is not None and not 0 <= x.preference <= 1:
                raise DataError(f"the label {x.preference} of question {x.comparison} is outside [0, 1]")
        numbers = []
        judges = {name: self._judge(name) for name in {x.judge for x in labels}}
        with self.transaction(write=True) as connection:
            for i, x in enumerate(labels):
                values = {
                    "comparison": x.comparison, "judge": judges[x.judge],
                    "kind": "abstention" if x.preference is None else "answer", "preference": x.preference,
                    "reason": x.reason, "seconds": x.seconds, "shown_left": x.left, "flags": list(x.flags),
                    "token": tokens[i] if tokens else None, "created": opening.now(),
                }  # fmt: skip
                try:
                    with connection.begin_nested():
                        made = connection.execute(insert(t.label).values(values))
                    number = made.inserted_primary_key[0]  # type: ignore[index]
                except IntegrityError as e:
                    # Sent before, perhaps by another process at this very moment: the first one counts.
                    sent = select(t.label.c.id).where(t.label.c.token == values["token"])
                    number = connection.execute(sent).scalar() if tokens else None
                    if number is None:
                        raise StoreError(f"question {x.comparison} is not in the store {self.where}") from e
                connection.execute(sa.delete(t.lease).filter_by(comparison=x.comparison, judge=judges[x.judge]))
                numbers.append(number)
        return numbers

    def undo(self, run: str, judge: str, question: int | None = None) -> int | None:
        """Withdraw the judge's latest answer in the run, or on one `question`; returns the question, None when there is no such answer."""
        who = self._judge(judge)
        latest = _current().join(t.comparison).where(t.comparison.c.run == run, t.label.c.judge == who)
        if question is not None:
            latest = latest.where(t.label.c.comparison == question)
        with self.transaction(write=True) as connection:
            row = connection.execute(latest.order_by(t.label.c.id.desc()).limit(1)).first()
            if row is None:
                return None
            values = {"comparison": row.comparison, "judge": who, "kind": "undo", "reason": "", "shown_left": "a", "flags": []}
            connection.execute(insert(t.label).values(**values, created=opening.now()))
            return row.comparison

    def labels(self, run: str, purpose: str | None = None, upto: int | None = None) -> list[Label]:
        """The answers and abstentions that count, oldest first; `upto` looks at the store as it was at that label."""
        wanted = _current(upto).join(t.comparison).where(t.comparison.c.run == run)
        if purpose is not None:
            wanted = wanted.where(t.comparison.c.purpose == purpose)
        with self.transaction() as connection:
            names = {r.id: r.name for r in connection.execute(select(t.judge.c.id, t.judge.c.name))}
            rows = connection.execute(wanted.order_by(t.label.c.id)).all()
        return [Label(r.comparison, names[r.judge], r.preference, r.reason, r.seconds, r.shown_left, tuple(r.flags), r.id) for r in rows]

    def history(self, run: str) -> list[dict[str, Any]]:
        """Every row that was ever written about the run's questions, undone ones too, oldest first."""
        c = t.label.c
        wanted = select(
            c.id, t.comparison.c.key, t.comparison.c.purpose, t.judge.c.name.label("judge"), c.kind, c.preference, c.reason,
            c.seconds, c.shown_left, c.flags, c.created,
        ).select_from(t.label.join(t.comparison).join(t.judge)).where(t.comparison.c.run == run).order_by(c.id)  # fmt: skip
        with self.transaction() as connection:
            return [dict(r._mapping) for r in connection.execute(wanted)]

    def answered(
        self,
        run: str,
        purpose: str | None = None,
        each: bool = False,
        upto: int | None = None,
        flagged: bool = True,
        only: Callable[[Comparison], bool] = lambda comparison: True,
    ) -> Answered:
        """Comparisons with their preferences, for learning; abstentions are left out.

        By default a question with several answers is one comparison with their mean; with `each` it is one comparison an answer,
        which names its judge. `flagged` False leaves suspicious answers out, `only` chooses questions.
        """
        questions = {q.id: q for q in self.questions(run, purpose) if only(q.comparison)}
        labels = [x for x in self.labels(run, purpose, upto) if x.comparison in questions]
        labels = [x for x in labels if x.preference is not None and (flagged or not x.flags)]
        grouped: dict[int, list[Label]] = {}
        for x in labels:
            grouped.setdefault(x.comparison, []).append(x)
        comparisons = []
        for number, answers in sorted(grouped.items()):
            q = questions[number].comparison
            if each:
                comparisons += [Comparison(q.a, q.b, x.preference, q.key, x.judge) for x in answers]
            else:
                mean = sum(x.preference or 0.0 for x in answers) / len(answers)
                comparisons.append(Comparison(q.a, q.b, mean, q.key, answers[0].judge if len(answers) == 1 else ""))
        numbers = [x.id for x in labels if x.id is not None]
        return Answered(comparisons, max(numbers, default=0), numbers)


def _current(upto: int | None = None) -> Select[Any]:
    """The labels that count: the latest of each judge on each question, unless that is an undo."""
    later = t.label.alias()
    newer = (later.c.comparison == t.label.c.comparison) & (later.c.judge == t.label.c.judge) & (later.c.id > t.label.c.id)
    if upto is not None:
        newer &= later.c.id <= upto
    wanted = select(t.label).where(t.label.c.kind != "undo", ~exists().where(newer))
    return wanted if upto is None else wanted.where(t.label.c.id <= upto)


def _answered_by(judge: int) -> Any:
    return _current().where(t.label.c.judge == judge, t.label.c.comparison == t.comparison.c.id).exists()


def _answers_of(comparison: Any) -> Any:
    counted = _current().where(t.label.c.comparison == comparison, t.label.c.kind == "answer")
    return counted.with_only_columns(func.count(t.label.c.id)).correlate(t.comparison).scalar_subquery()


def _leases_of(comparison: Any) -> Any:
    counted = select(func.count(t.lease.c.judge)).where(t.lease.c.comparison == comparison)
    return counted.correlate(t.comparison).scalar_subquery()


def _with_sides(connection: Connection, rows: Collection[Row[Any]]) -> list[Question]:
    sides: dict[tuple[int, str], list[Trajectory]] = {}
    wanted = select(t.side.c.comparison, t.side.c.side, t.trajectory).join(t.trajectory)
    wanted = wanted.order_by(t.side.c.comparison, t.side.c.side, t.side.c.place)
    numbers = [r.id for r in rows]
    for start in range(0, len(numbers), 500):
        for r in connection.execute(wanted.where(t.side.c.comparison.in_(numbers[start : start + 500]))):
            sides.setdefault((r.comparison, r.side), []).append(_from_row(r))
    return [
        Question(r.id, r.run, r.purpose, r.why, r.score, Comparison(tuple(sides[r.id, "a"]), tuple(sides[r.id, "b"]), key=r.key))
        for r in rows
    ]


ARRAYS: tuple[Literal["observations", "actions", "logprobs", "rewards"], ...] = (
    "observations",
    "actions",
    "logprobs",
    "rewards",
)


def _to_row(x: Trajectory) -> dict[str, Any]:
    steps = None
    if x.text is None:
        file = io.BytesIO()
        np.savez_compressed(file, **{name: value for name in ARRAYS if (value := getattr(x, name)) is not None})
        steps = file.getvalue()
    return {
        "source": x.task.source, "task": x.task.key, "prompt": x.task.prompt, "answer": x.task.answer,
        "policy": x.policy, "text": x.text, "terminated": x.terminated, "steps": steps,
    }  # fmt: skip


def _from_row(row: Row[Any]) -> Trajectory:
    arrays = {}
    if row.steps is not None:
        with np.load(io.BytesIO(row.steps), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    task = Task(row.source, row.task, row.prompt, row.answer)
    return Trajectory(task, row.policy, row.text, row.terminated, **arrays)
