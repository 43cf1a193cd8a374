"""Comparisons that were judged elsewhere: their questions and answers go into the store in one transaction, all or none."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import sqlalchemy as sa
from sqlalchemy import Connection, insert, select

from rather.core import Comparison, Prompt, Trajectory
from rather.errors import DataError
from rather.store import counting, rows, written
from rather.store import tables as t
from rather.store.engine import now
from rather.store.store import Store

SAME = 1e-9
"""Preferences that differ by less are the same: 1 - (1 - 0.3) is not 0.3."""
CUT = "\0cut off"
"""Stands behind what was truncated, in the digest of a question; no text has a NUL."""


@dataclass(frozen=True)
class Imported:
    """What became of the rows of a file; each is counted once.

    `questions` are new with their answer. Of questions that were there: `answers` of judges who had not answered them, `changed`
    answers of judges who had said something else, and `unchanged` ones, which add nothing.
    """

    questions: int = 0
    answers: int = 0
    changed: int = 0
    unchanged: int = 0


def digest(prompt: Prompt | None, sides: Iterable[Sequence[str | None]]) -> str:
    """What a comparison asks, as 32 hexadecimal digits of a SHA-256: its prompt and its sides' texts, whichever of them is a."""
    asked = json.dumps([prompt, sorted(map(list, sides))], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()[:32]


def _said(side: Sequence[Trajectory]) -> list[str | None]:
    """A side's texts; of one that was truncated it says so, for the same words to their end are another answer."""
    return [x.text if x.terminated else f"{x.text}{CUT}" for x in side]


def key(digest: str, purpose: str, occurrence: int) -> str:
    """The key of an imported question: gold questions are others than those that are learned from, and a repeated row is another one."""
    return f"{'gold/' if purpose == 'gold' else ''}import/{digest}/{occurrence}"


def import_all(
    store: Store, run: str, comparisons: Iterable[Comparison], purpose: str, judge: str, advance: Callable[[int], object] = lambda n: None
) -> Imported:
    """Put comparisons and their preferences into the store, in one transaction.

    A question is what it asks. The first row of a judge about it is an answer to its first occurrence, the second one to its second, and
    so on: who says two things of the same pair in one file is of two opinions. A judge's answer that is another than the one in the
    store is a new label, and counts from then on. Rows that name no judge are answers of `judge`. The answers to questions of the
    purpose "gold" are known answers and nobody's labels. One answer
    alone is a question of the purpose "unpaired". `advance` is called with the number of rows, as they are written.

    Raises:
        DataError: the name of a judge is too long; one answer alone is no question of that purpose; and whatever reading `comparisons`
            raises. Nothing is kept then.
    """
    gold, seen, counts = purpose == "gold", Counter[tuple[str, str]](), Counter[str]()
    chunks = counting.parts(comparisons)
    first = next(chunks, [])  # what has to be fetched is here before others wait for the store
    with store.transaction(write=True) as connection:
        if connection.dialect.name == "postgresql":  # two imports of one file at once
            connection.execute(sa.text("select pg_advisory_xact_lock(7282)"))
        judges, changed = dict[str, int](), list[int]()
        for some in chain([first] if first else [], chunks):
            keyed = []
            for c in some:
                who = "" if gold else c.judge or judge
                asked = digest(c.a[0].task.prompt, [_said(side) for side in c.sides])
                keyed.append((key(asked, purpose, seen[asked, who]), who, c))
                seen[asked, who] += 1
            if not gold:
                _find_judges(connection, {who for _, who, _ in keyed}, judges)
            alone = [row for row in keyed if len(row[2].sides) == 1]
            if alone and purpose != "train":
                raise DataError(
                    f"the file has answers that stand alone, good or bad; as questions of the purpose {purpose!r} they cannot be asked"
                )
            counts += _write(connection, run, [row for row in keyed if len(row[2].sides) > 1], purpose, judges, changed)
            counts += _write(connection, run, alone, "unpaired", judges, changed)
            advance(len(some))
        counting.answered(connection, changed)
    return Imported(**counts)


Keyed = tuple[str, str, Comparison]
"""A row with the key of its question and the name of its judge."""


def _find_judges(connection: Connection, names: set[str], judges: dict[str, int]) -> None:
    """Add the numbers of judges to those that are known; new ones are written down."""
    for name in sorted(names - judges.keys()):
        if len(name) > t.judge.c.name.type.length:  # type: ignore[attr-defined]
            raise DataError(f"the judge's name {name[:40]}... has {len(name)} characters; at most 200 are kept: give a shorter one")
        number = connection.execute(select(t.judge.c.id).where(t.judge.c.name == name)).scalar()
        if number is None:
            values = {"name": name, "kind": "file", "details": {}}
            number = connection.execute(insert(t.judge).values(values)).inserted_primary_key[0]  # type: ignore[index]
        judges[name] = number


def _write(connection: Connection, run: str, keyed: list[Keyed], purpose: str, judges: dict[str, int], changed: list[int]) -> Counter[str]:
    """Write some rows; returns how many of each kind they were. The questions of new labels are `changed`."""
    known = _known(connection, run, {name for name, _, _ in keyed})
    new: dict[str, Comparison] = {}
    for name, _, c in keyed:
        if name not in known:
            new.setdefault(name, c)  # where two judges answer it, the sides stand as the first one's row has them
    numbers = rows.add_questions(connection, run, list(new.items()), purpose, "import")
    known |= {name: (number, c.a[0].text, c.a[0].terminated) for number, (name, c) in zip(numbers, new.items(), strict=True)}
    fresh = set(new)
    before = _known_answers(connection, purpose, [number for number, *_ in known.values()], judges)
    labels, counts = dict[tuple[int, str], float](), Counter[str]()
    for name, who, c in keyed:
        number, *a = known[name]
        assert c.preference is not None
        said = c.preference if [c.a[0].text, c.a[0].terminated] == a else 1 - c.preference
        last = before.get((number, who))
        if last is not None and abs(last - said) < SAME:
            counts["unchanged"] += 1
            continue
        labels[number, who] = before[number, who] = said
        counts["questions" if name in fresh else "answers" if last is None else "changed"] += 1
        fresh.discard(name)
    _answer(connection, labels, purpose, judges)
    changed += [number for number, _ in labels] if purpose != "gold" else []
    return counts


def _known(connection: Connection, run: str, keys: set[str]) -> dict[str, tuple[int, str | None, bool]]:
    """Of questions that are there: their number, the text that begins side a, and whether it came to its end."""
    c = t.comparison.c
    first = (t.side.c.side == "a") & (t.side.c.place == 0)
    wanted = select(c.key, c.id, t.trajectory.c.text, t.trajectory.c.terminated).select_from(t.comparison.join(t.side).join(t.trajectory))
    wanted = wanted.where(c.run == run, c.key.in_(sorted(keys)), first)
    return {name: (number, text, ended) for name, number, text, ended in connection.execute(wanted)}


def _known_answers(connection: Connection, purpose: str, numbers: list[int], judges: dict[str, int]) -> dict[tuple[int, str], float]:
    """What each judge has answered to which question; of gold questions, the known answers, which are nobody's."""
    if purpose == "gold":
        wanted = select(t.probe.c.comparison, t.probe.c.preference).where(t.probe.c.comparison.in_(numbers))
        return {(number, ""): preference for number, preference in connection.execute(wanted)}
    c, names = t.label.c, {number: name for name, number in judges.items()}
    answers = rows.CURRENT.where(c.comparison.in_(numbers), c.kind == "answer").with_only_columns(c.comparison, c.judge, c.preference)
    return {(number, names[who]): preference for number, who, preference in connection.execute(answers) if who in names}


def _answer(connection: Connection, labels: dict[tuple[int, str], float], purpose: str, judges: dict[str, int]) -> None:
    if not labels:
        return
    if purpose == "gold":
        connection.execute(sa.delete(t.probe).where(t.probe.c.comparison.in_([number for number, _ in labels])))
        rows.insert_all(connection, t.probe, [{"comparison": number, "preference": said} for (number, _), said in labels.items()])
        return
    written.withdraw(connection, {(number, judges[who]) for number, who in labels})
    fixed = {"kind": "answer", "reason": "", "shown": "a" if purpose == "unpaired" else "ab", "flags": [], "created": now()}
    given = [{"comparison": number, "judge": judges[who], "preference": said, **fixed} for (number, who), said in labels.items()]
    rows.insert_all(connection, t.label, given)
