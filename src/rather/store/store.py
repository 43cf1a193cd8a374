"""Questions in, answers out: the one way in which anything reads or writes the store.

Labels are append-only: changing one's mind or undoing adds a row, and the latest row of a judge on a question counts.
"""

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, func, insert, select

from rather.core import Answered, Comparison, Label, Prompt
from rather.errors import DataError, StoreError
from rather.store import answering, counting, intake, leasing, quality, reading, rows, written
from rather.store import engine as opening
from rather.store import tables as t
from rather.store.judges import number_of, writer
from rather.store.quality import Asking
from rather.store.rows import Question


@dataclass(frozen=True)
class Counts:
    """How many questions a judge has answered or skipped, how many of those are ordinary ones, and how many of these there are.

    Ordinary are those whose answers are not known: neither gold questions nor repeats.
    """

    turns: int
    answered: int
    questions: int


class Store:
    """A preference store at `where`: the path of an SQLite file, or a postgresql+psycopg:// URL.

    A call that returned has been committed to disk: killing any process loses nothing of it.

    Raises:
        StoreError: it cannot be opened, is locked or full, or a newer version wrote it.
    """

    def __init__(self, where: str) -> None:
        self.where = str(where)
        self.engine = opening.connect(self.where)
        self._starts: leasing.Starts = {}
        # Threads that write to SQLite take turns here: its own way of waiting sleeps, up to a tenth of a second at a time.
        self._turn = threading.RLock() if self.engine.dialect.name == "sqlite" else nullcontext()

    @contextmanager
    def transaction(self, write: bool = False) -> Iterator[Connection]:
        """A connection whose work is committed at the end, all or none; `write` takes the lock at once."""
        with opening.plain_errors(self.where), self._turn if write else nullcontext():
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

    # Questions

    def ask(
        self,
        run: str,
        comparisons: Sequence[Comparison],
        purpose: str = "train",
        why: str | Sequence[str] = "random",
        scores: Sequence[float] | None = None,
    ) -> list[int]:
        """Put questions into the store, all or none; a key that the run already has is left as it is.

        Returns the number of each question. A higher score is asked earlier; `why` is one word for all, or one each. Questions with one
        side alone have the purpose "unpaired", and no others have.

        Raises:
            DataError: a question has as many sides as no question of its purpose has.
        """
        for c in comparisons:
            if len(c.sides) > len(rows.LETTERS):
                raise DataError(f"question {c.key!r} has {len(c.sides)} sides; there are {len(rows.LETTERS)} at most")
            if (len(c.sides) == 1) != (purpose == "unpaired"):
                raise DataError(f"question {c.key!r} has {len(c.sides)} sides; one alone is what 'unpaired' ones have, and only they")
        with self.transaction(write=True) as connection:
            counting.turn(connection, run)
            there, known = select(t.comparison.c.key, t.comparison.c.id).where(t.comparison.c.run == run), dict[str, int]()
            for some in counting.parts(dict.fromkeys(c.key for c in comparisons)):
                known |= {r.key: r.id for r in connection.execute(there.where(t.comparison.c.key.in_(some)))}
            new: dict[str, int] = {}
            for i, c in enumerate(comparisons):
                if c.key not in known:
                    new.setdefault(c.key, i)
            asked = [(key, comparisons[i]) for key, i in new.items()]
            given = None if scores is None else [float(scores[i]) for i in new.values()]
            whys = why if isinstance(why, str) else [why[i] for i in new.values()]
            known |= dict(zip(new, rows.add_questions(connection, run, asked, purpose, whys, given), strict=True))
        return [known[c.key] for c in comparisons]

    def compare(self, prompt: Prompt, answers: Sequence[str], run: str = "run", source: str = "program") -> int:
        """Ask people which of 2 to 8 answers is best: a question for the labelling page of `run`, without waiting; returns its number.

        A question that has been asked before keeps its number. `source` says which program asks. `answered` reads what people said.

        Raises:
            DataError: the prompt says nothing, or the answers do not differ.
        """
        return self.ask(run, [intake.asked(prompt, answers, source)], why="asked")[0]

    def keys(self, run: str, purpose: str | Sequence[str] | None) -> set[str]:
        """The keys of a run's questions of one purpose or several, or of all but those whose answers are known."""
        wanted = select(t.comparison.c.key).where(t.comparison.c.run == run, rows.of_purpose(purpose))
        with self.transaction() as connection:
            return set(connection.execute(wanted).scalars())

    def count(self, run: str, judge: str) -> Counts:
        """How far the judge is."""
        with self.transaction() as connection:
            mine = select(t.standing.c.turns, t.standing.c.answered).filter_by(run=run, judge=number_of(connection, judge))
            turns, answered = connection.execute(mine).first() or (0, 0)
            return Counts(turns, answered, connection.execute(select(t.asked.c.questions).filter_by(run=run)).scalar() or 0)

    def said(self, connection: Connection, run: str, judge: str) -> sa.Select[Any]:
        return rows.CURRENT.join(t.comparison).where(t.comparison.c.run == run, t.label.c.judge == number_of(connection, judge))

    def questions(
        self, run: str, purpose: str | Sequence[str] | None = None, unanswered_by: str | None = None, beginning: str = ""
    ) -> list[Question]:
        """A run's questions in the order they were asked; `unanswered_by` leaves out those a judge has answered.

        Only those whose key has that `beginning`.
        """
        wanted = rows.asked(run, purpose, beginning)
        with self.transaction() as connection:
            if unanswered_by is not None:
                who = number_of(connection, unanswered_by)
                wanted = wanted.where(~rows.answered_by(who), rows.meant_for(who))
            return rows.with_sides(connection, connection.execute(wanted).all())

    def question(self, number: int, run: str, judge: str | None = None) -> Question | None:
        """One of the run's questions, if it is for everybody or for that judge."""
        wanted = select(t.comparison).where(t.comparison.c.id == number, t.comparison.c.run == run)
        with self.transaction() as connection:
            if judge is not None:
                wanted = wanted.where(rows.meant_for(number_of(connection, judge)))
            return next(iter(rows.with_sides(connection, connection.execute(wanted).all())), None)

    # Questions with known answers, and how questions are given out

    def probe(self, question: int, preference: float, judge: str | None = None, original: int | None = None) -> None:
        """Keep the known answer of a question; of a repeat, the `judge`'s answer to the `original`."""
        with self.transaction(write=True) as connection:
            who = judge and writer(connection, judge)
            values = {"comparison": question, "preference": preference, "judge": who, "original": original}
            if connection.execute(select(t.probe).filter_by(comparison=question)).first() is None:
                connection.execute(insert(t.probe).values(values))

    def probes(self, run: str) -> dict[int, tuple[float, int | None]]:
        """The known answers: of each question its preference and, if it is a repeat, which question it repeats."""
        wanted = select(t.probe).join(t.comparison, t.comparison.c.id == t.probe.c.comparison).where(t.comparison.c.run == run)
        with self.transaction() as connection:
            return {r.comparison: (r.preference, r.original) for r in connection.execute(wanted)}

    def asking(self, run: str) -> Asking:
        """How the run's questions are given out."""
        with self.transaction() as connection:
            found = connection.execute(select(t.asking.c["values"]).where(t.asking.c.run == run)).scalar()
        asking = Asking(**(found or {}))
        return replace(asking, leave_out=tuple(asking.leave_out))

    def set_asking(self, run: str, asking: Asking) -> None:
        """Change how they are given out, from the next one on."""
        with self.transaction(write=True) as connection:
            connection.execute(sa.delete(t.asking).where(t.asking.c.run == run))
            connection.execute(insert(t.asking).values(run=run, values=vars(asking)))

    # Leases

    def lease(
        self,
        run: str,
        judge: str,
        purpose: str | None = "train",
        overlap: int = 1,
        seconds: float = 600,
        held: Collection[int] = (),
        at_random: int | None = None,
        invitation: int | None = None,
    ) -> Question | None:
        """Give `judge` the next question that still needs an answer, for `seconds`; None when there is none.

        A question wants answers from `overlap` different judges: those who have answered and those who hold an unexpired lease
        count. A judge who already holds a lease gets the same question again, unless it is among the `held` ones, which they have before
        them or have just answered. Those with the highest score come first, or with `at_random` any one, drawn by that number. Without
        a `purpose` it may be any question but those whose answers are known. One that cannot be shown, for want of its clip, waits. The
        question's `lease` says how its sides are to be shown; it is remembered what was given, under which `invitation`.
        """
        time, tried = opening.now(), set[int]()
        while True:
            with self.transaction() as connection:
                who, but = number_of(connection, judge), {*held, *tried}
                some = leasing.search(connection, run, who, purpose, overlap, but, at_random, time, self._starts)
            if not some:
                return None
            with self.transaction(write=True) as connection:
                who = writer(connection, judge, invitation)
                row = leasing.claim(connection, some, who, overlap, time)
                if row is not None:
                    (question,) = rows.with_sides(connection, [row])
                    return replace(question, lease=leasing.give(connection, question, who, judge, seconds, invitation))
            tried |= set(some)

    def given(self, run: str, judge: str, number: int) -> Question | None:
        """A question that the judge has or had before them, with its lease; None if it was never given to them."""
        wanted = select(t.comparison).where(t.comparison.c.id == number, t.comparison.c.run == run)
        with self.transaction() as connection:
            lease = leasing.given(connection, number, number_of(connection, judge))
            found = rows.with_sides(connection, connection.execute(wanted).all()) if lease is not None else []
        return replace(found[0], lease=lease) if found else None

    def release(self, question: int, judge: str) -> None:
        """Give a lease back without an answer."""
        with self.transaction(write=True) as connection:
            leasing.end(connection, question, writer(connection, judge))

    # Labels

    def answer(self, label: Label, token: str | None = None, invitation: int | None = None) -> int:
        """Write one answer down and end the judge's lease; returns the label's number once it is on disk.

        A `token` that was sent before adds nothing: the number of the first label comes back.
        """
        return self.answer_all([label], [token] if token else None, invitation)[0]

    def answer_all(self, labels: Sequence[Label], tokens: Sequence[str] | None = None, invitation: int | None = None) -> list[int]:
        """Write several answers down, all or none; those of somebody who was let in by an `invitation`, only while that holds.

        Raises:
            DataError: a preference outside [0, 1].
            InvitationError: the invitation has ended.
            StoreError: an unknown question or judge.
        """
        for x in labels:
            if outside := [said for said in (x.preference, *x.criteria.values()) if said is not None and not 0 <= said <= 1]:
                raise DataError(f"the label {outside[0]} of question {x.comparison} is outside [0, 1]")
        with self.transaction(write=True) as connection:
            judges = {name: writer(connection, name, invitation) for name in sorted({x.judge for x in labels})}
            counting.lock(connection, [x.comparison for x in labels])  # first, as all do who write about a question
            kept = answering.keep(connection, labels, judges, tokens, self.where)
            new = {(x.comparison, judges[x.judge]) for x, (_, is_new) in zip(labels, kept, strict=True) if is_new}
            written.withdraw(connection, new)
            counting.answered(connection, [x.comparison for x in labels])
        return [number for number, _ in kept]

    def undo(
        self, run: str, judge: str, question: int | None = None, token: str | None = None, seconds: float = 600,
        invitation: int | None = None,
    ) -> int | None:  # fmt: skip
        """Withdraw the judge's latest answer in the run, or on one `question`; returns the question, None when there is no such answer.

        With a `token` only the answer that was sent with it: who undoes it twice does not undo the one that they have given since. The
        judge has the question before them again, for `seconds`. A better answer that they wrote with it is withdrawn, too. Who was let in
        by an `invitation` may do it only while that holds.
        """
        with self.transaction(write=True) as connection:
            writer(connection, judge, invitation)
            latest = self.said(connection, run, judge).where(~rows.of_what_they_wrote())
            if question is not None:
                latest = latest.where(t.label.c.comparison == question)
            if token is not None:
                latest = latest.where(t.label.c.token == token)
            latest = latest.order_by(t.label.c.id.desc()).limit(1)
            row = connection.execute(latest).first()
            if row is not None:  # under the lock of those who write about one question at once, it is looked for again
                counting.lock(connection, [row.comparison])
                row = connection.execute(latest).first()
            if row is None:
                return None
            values = {"comparison": row.comparison, "judge": row.judge, "kind": "undo", "reason": "", "shown": "ab", "flags": []}
            connection.execute(insert(t.label).values(**values, created=opening.now()))
            written.withdraw(connection, {(row.comparison, row.judge)})
            before_them = sa.update(t.lease).filter_by(comparison=row.comparison, judge=row.judge)
            connection.execute(before_them.values(expires=opening.now() + seconds))
            counting.answered(connection, [row.comparison])
            return row.comparison

    def labels(self, run: str, purpose: str | Sequence[str] | None = None, among: Collection[int] | None = None) -> list[Label]:
        """The answers and abstentions that count, oldest first, with the flags of `quality.suspicious`.

        `among`: those with these numbers instead, whether they still count or not, and without these flags.
        """
        fastest_s = self.asking(run).fastest_s
        with self.transaction() as connection:
            names = {r.id: r.name for r in connection.execute(select(t.judge.c.id, t.judge.c.name))}
            flags = quality.flags(connection, run, fastest_s) if among is None else {}
            written = rows.labels(connection, run, purpose, among)
            return [rows.label_of(r, names[r.judge], flags.get(r.id, ())) for r in written]

    def flagged(self, run: str) -> dict[int, tuple[str, ...]]:
        """Why answers of a run are suspicious, by the label's number: see `quality.suspicious`."""
        fastest_s = self.asking(run).fastest_s
        with self.transaction() as connection:
            return quality.flags(connection, run, fastest_s)

    def judged(self, run: str, judge: str) -> list[Label]:
        """One judge's answers and abstentions that count, oldest first, without flags."""
        with self.transaction() as connection:
            found = connection.execute(self.said(connection, run, judge).order_by(t.label.c.id)).all()
        return [rows.label_of(r, judge) for r in found]

    def criteria(self, run: str) -> list[str]:
        """The criteria on which any label of the run says a preference."""
        names = select(t.criterion.c.name).join(t.label, t.label.c.id == t.criterion.c.label)
        names = names.join(t.comparison, t.comparison.c.id == t.label.c.comparison).where(t.comparison.c.run == run).distinct()
        with self.transaction() as connection:
            return sorted(connection.execute(names).scalars())

    def latest(self) -> int:
        """The number of the last row that was written about any answer."""
        with self.transaction() as connection:
            return connection.execute(select(func.max(t.label.c.id))).scalar() or 0

    def history(self, run: str) -> list[dict[str, Any]]:
        """Every row that was ever written about the run's questions, undone ones too, oldest first."""
        with self.transaction() as connection:
            found = connection.execute(rows.HISTORY.where(t.comparison.c.run == run))
            return [{k: v for k, v in r._mapping.items() if k != "comparison"} for r in found]

    def answered(
        self,
        run: str,
        purpose: str | Sequence[str] | None = None,
        each: bool = False,
        among: Collection[int] | None = None,
        without: Collection[str] = (),
        only: Callable[[Comparison], bool] = lambda comparison: True,
        beginning: str = "",
        judges: Collection[str] | None = None,
        criterion: str = "",
    ) -> Answered:
        """Comparisons with their preferences, for learning; abstentions are left out.

        By default a question with several answers is one comparison with their mean; with `each` it is one comparison an answer,
        which names its judge. An answer to more than two sides is several comparisons, see `Comparison.pairs`. Where an owner has decided,
        that is all that counts. `among` takes the labels with these numbers, whether they still count or not. Answers that have a flag in
        `without` are left out and counted, under the first of their flags that is there; `only`, and the `beginning` of their keys, choose
        questions; `judges` says whose answers count, if not all. With a `criterion`, preferences are those on that one alone.
        """
        fastest_s, accepted = self.asking(run).fastest_s, None if among is None else set(among)
        questions = rows.asked(run, purpose if among is None else None, beginning)
        if among is not None and purpose is not None:  # what was withdrawn since is asked of nobody, but was learned from
            questions = questions.where(rows.of_purpose(purpose) | (t.comparison.c.why == written.WHY))
        if among is None:
            questions = questions.where((t.comparison.c.answers > 0) | rows.decided())
        found, numbers, left_out = list[Comparison](), list[int](), Counter[str]()
        with reading.unwatched(), self.transaction() as connection:
            suspicious = quality.flags(connection, run, fastest_s, without) if among is None and without else {}

            def counts(label: sa.Row[Any]) -> bool:
                ours = judges is None or label.kind == "decision" or label.name in judges
                if (accepted is not None and label.id not in accepted) or not ours:
                    return False
                reasons = {*label.flags, *suspicious.get(label.id, ())}
                reason = next((flag for flag in without if flag in reasons), None)
                left_out.update([reason] if reason else [])
                return reason is None

            # A win rate is what judges say, whatever owners have decided.
            counted = rows.CURRENT if str(purpose).startswith(("eval-", "check-")) else rows.COUNTED
            labels = counted if among is None else select(t.label)
            for some in reading.judged(connection, questions, labels, counts, only, each, criterion=criterion):
                found += some.comparisons
                numbers += some.labels
        return Answered(found, max(numbers, default=0), sorted(numbers), left_out)
