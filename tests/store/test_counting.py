"""What the store counts beforehand, or by the database, is what its rows say; and no statement grows with the store."""

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import sqlalchemy as sa

from rather.core import Comparison, Label, Task, Trajectory
from rather.data import transfer
from rather.data.writers import write_rows
from rather.store import Store, leasing, tally
from rather.store import tables as t
from rather.store.asking import next_question, repeat
from rather.store.better import write
from rather.store.clips import missing, undrawable
from rather.store.decisions import decide, decided
from rather.store.imports import import_all
from rather.store.overview import figures, overview
from rather.store.people import erase
from rather.store.quality import FLAGS, Asking
from rather.store.share import share

PEOPLE = ("ann", "ben", "cat", "dan")


def question(key: str, sides: int = 2) -> Comparison:
    task = Task("file", key, f"prompt {key}")
    a, b, *others = [(Trajectory(task, "p@0", f"{word} {key}"),) for word in ("yes", "no", "so", "or")[:sides]]
    return Comparison(a, b, key=key, others=tuple(others))


def filled(store: Store, questions: int = 12) -> list[int]:
    for name in PEOPLE:
        store.add_judge(name, "simulated" if name == "dan" else "person")
    numbers = store.ask("r", [question(str(i), 4 if i % 5 == 4 else 2) for i in range(questions)])
    store.ask("another run", [question(str(i)) for i in range(3)])
    for number in store.ask("r", [question(f"gold {i}") for i in range(3)], "gold"):
        store.probe(number, float(number % 2))
        numbers.append(number)
    return numbers


def live(store: Store, numbers: list[int], chance: random.Random, steps: int) -> None:
    """People answer, skip, write better answers, change their minds, undo, are asked again and are erased, and files are imported."""
    for step in range(steps):
        there = {q.id: q for q in store.questions("r")}
        numbers[:] = [n for n in numbers if n in there] + [n for n, q in there.items() if q.why == "written" and n not in numbers]
        who, what = chance.choice(PEOPLE), chance.random()
        store.add_judge(who, "simulated" if who == "dan" else "person")
        if what < 0.08:
            store.undo("r", who, chance.choice([None, *numbers]))
        elif what < 0.14 and (again := repeat(store, "r", who)) is not None:
            store.answer(Label(again, who, chance.choice([0.0, 1.0, None]), "", 1.0))
        elif what < 0.15:
            erase(store, who)
        elif what < 0.18:
            rows = [replace(question(str(chance.randrange(15))), preference=chance.choice([0.0, 0.5, 1.0])) for _ in range(3)]
            import_all(store, "r", rows, "train", chance.choice(["file", who]) if store.judges()[who] == "person" else "file")
        elif what < 0.2:
            store.answer(Label(store.questions("another run")[0].id, who, 1.0))
        elif what < 0.27:
            number = chance.choice(numbers)
            best = chance.choice([None, 0, 2]) if len(store.question(number, "r").comparison.sides) > 2 else None
            decide(store, "r", who, number, chance.choice([0.0, 0.5, 1.0, None]), best)
        elif what < 0.37:
            number = chance.choice(numbers)
            if len(there[number].comparison.sides) < 8:
                write(store, Label(number, who, 0.5, "both bad", 3.0), f"better {step}", chance.choice([None, f"{who} {step}"]))
        else:
            number = chance.choice(numbers)
            several = len(store.question(number, "r").comparison.sides) > 2
            p = chance.choice([0.0, 0.25, 0.5, 0.75, 1.0, 1.0, None])
            best = chance.randrange(3) if several and p not in (None, 0.5) else None
            flags = ("late",) if chance.random() < 0.05 else ()
            seconds = chance.choice([None, 0.1, 0.4, 1.0, 2.5, 7.0])
            store.answer(
                Label(number, who, float(best == 0) if best is not None else p, "", seconds, chance.choice(["ab", "ba"]), flags, best=best)
            )


def kept(store: Store) -> dict[str, Any]:
    with store.transaction() as connection:
        answers = {r.id: r.answers for r in connection.execute(t.comparison.select().where(t.comparison.c.run == "r"))}
    counts = {name: store.count("r", name) for name in store.judges()}
    return {
        "answers": answers,
        "turns": {name: (c.turns, c.answered) for name, c in counts.items()},
        "questions": next(iter(counts.values())).questions,
    }


def told(store: Store) -> dict[str, Any]:
    found = overview(store, "r", figures(store, "r"))
    assert abs(found.pop("as_of") - time.time()) < 60
    del found["asking"]
    over = found.pop("over_time")
    if over is not None:
        assert over == reference.over_time(store, "r", over["start"], over["span_s"], over["count"])
    figures_of = {p["name"]: {k: v for k, v in p.items() if k not in ("name", "role", "simulated", "expires")} for p in found["people"]}
    contested = [(x["question"], x["answers"]) for x in found["contested"]]
    flagged = [(x["question"], x["judge"], x["reasons"], x["seconds"]) for x in found["flagged"]]
    return found | {"people": figures_of, "contested": contested, "flagged": flagged}


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))])
def test_what_is_counted_is_what_the_rows_say(where: str, seed: int) -> None:
    store, chance = Store(where), random.Random(seed)
    numbers = filled(store)
    for flagged in (True, False):
        store.set_asking("r", Asking(overlap=2, fastest_s=0.5, leave_out=() if flagged else FLAGS))
        live(store, numbers, chance, 70)
        given = reference.labels(store, "r")
        assert kept(store) == reference.counted(store, "r")
        why = reference.flags(given, store.probes("r"), 0.5, {j for j, kind in store.judges().items() if kind == "person"})
        assert store.flagged("r") == why
        assert store.labels("r") == [replace(x, flags=(*x.flags, *why.get(x.id or 0, ()))) for x in given]
        expected, found = reference.overview(store, "r"), told(store)
        assert found.pop("agreement") == pytest.approx(expected.pop("agreement"), abs=1e-12, nan_ok=True)
        assert found == expected
        by_owners = reference.decided(store, "r")
        assert {number: x.id for number, x in decided(store, "r").items()} == by_owners
        honest = [x for x in store.labels("r", "train") if x.preference is not None and not x.flags and x.comparison not in by_owners]
        trained = {q.id for q in store.questions("r", "train")}
        learned = sorted([*(x.id for x in honest), *(label for number, label in by_owners.items() if number in trained)])
        assert store.answered("r", "train", without=FLAGS).labels == learned
    store.close()


def test_of_two_who_answer_one_question_at_once_with_one_name_one_counts(where: str) -> None:
    store = Store(where)
    store.add_judge("ann", "person")
    numbers = store.ask("r", [question(str(i)) for i in range(10)])

    def answer() -> None:
        for number in numbers:
            store.answer(Label(number, "ann", 1.0))

    both = [threading.Thread(target=answer) for _ in range(4)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(store.history("r")) == 40
    assert kept(store) == reference.counted(store, "r")
    assert store.count("r", "ann").turns == 10
    store.close()


def in_order(store: Store, judge: str, overlap: int, leased: Counter[int]) -> list[int]:
    """The questions that the judge may get, as they should come."""
    given = reference.labels(store, "r")
    mine = {x.comparison for x in given if x.judge == judge}
    answers = Counter(x.comparison for x in given if x.preference is not None)
    asked = [q for q in store.questions("r") if q.purpose not in reference.KNOWN and q.id not in mine]
    asked.sort(key=lambda q: (math.inf if q.score is None or math.isnan(q.score) else -q.score, q.id))
    return [q.id for q in asked if answers[q.id] + leased[q.id] < overlap]


@pytest.mark.parametrize("seed", range(3))
def test_the_next_question_has_the_highest_score_of_those_that_may_be_asked(where: str, seed: int) -> None:
    store, chance = Store(where), random.Random(seed)
    filled(store)
    for i in range(30):
        scores = None if chance.random() < 0.4 else [chance.choice([0.1, 0.5, 0.9, -1.0, float("nan")])]
        store.ask("r", [question(f"more {i}")], chance.choice(["train", "eval-0"]), scores=scores)
    numbers = [q.id for q in store.questions("r")]
    held = {name: list[int]() for name in PEOPLE}
    for _ in range(120):
        who, overlap = chance.choice(PEOPLE), chance.choice([1, 2, 3])
        others = Counter({n: sum(n in held[name] for name in PEOPLE if name != who) for n in numbers})
        expected = [n for n in in_order(store, who, overlap, others) if n not in held[who]]
        found = store.lease("r", who, None, overlap, held=held[who])
        assert (found and found.id) == next(iter(expected), None)
        if found is not None:
            held[who].append(found.id)
        if held[who] and chance.random() < 0.6:
            number = held[who].pop(chance.randrange(len(held[who])))
            store.answer(Label(number, who, chance.choice([1.0, None])))
    store.close()


def test_who_has_answered_many_is_not_led_past_them_each_time_and_misses_none(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing, "MANY", 3)
    store = Store(where)
    for name in ("ann", "ben"):
        store.add_judge(name, "person")
    numbers = store.ask("r", [question(str(i)) for i in range(12)], scores=[1.0] * 6 + [0.5] * 6)
    store.answer_all([Label(n, "ann", 1.0) for n in numbers[:8]] + [Label(n, "ben", 1.0) for n in (numbers[1], *numbers[8:])])

    def following(held: list[int]) -> int | None:
        found = store.lease("r", "ann", None, 5, held=held)
        if found is not None:
            held.append(found.id)
        return found and found.id

    held = list[int]()
    assert following(held) == numbers[8]
    store.undo("r", "ann", numbers[1])
    (better,) = store.ask("r", [question("better")], scores=[2.0])
    store.answer(Label(better, "ben", 1.0))  # all that are left have one answer
    assert [following(held) for _ in range(6)] == [*numbers[9:], better, numbers[1], None], "what comes back is asked when the rest is done"
    other = Store(where)
    assert other.lease("r", "ann", None, 5, held=held[:-2]).id == better, "another server has not led her past anything"
    other.close()
    store.close()


def test_leases_that_have_expired_stay_and_do_not_count(where: str) -> None:
    store = Store(where)
    filled(store, 2)
    first = store.lease("r", "ann", seconds=2.0)
    assert first is not None
    second = store.lease("r", "ben")
    assert second is not None
    assert first.id != second.id
    assert store.lease("r", "cat") is None
    time.sleep(2.1)
    taken = store.lease("r", "cat")
    assert taken is not None
    assert taken.id == first.id
    with store.transaction() as connection:
        assert len(connection.execute(t.lease.select()).all()) == 3
    store.close()


def test_at_random_all_are_drawn_and_about_equally_often(where: str) -> None:
    store, chance = Store(where), random.Random(0)
    store.add_judge("ann", "person")
    numbers = store.ask("r", [question(str(i)) for i in range(40)], scores=[float(i) for i in range(40)])
    drawn = Counter[int]()
    for _ in range(400):
        found = store.lease("r", "ann", None, at_random=chance.randrange(2**31))
        assert found is not None
        drawn[found.id] += 1
        store.release(found.id, "ann")
    assert set(drawn) == set(numbers)
    assert max(drawn.values()) < 60, "of 400 draws of 40, each is drawn 10 times; gaps differ by chance"
    for number in numbers[1:]:
        store.answer(Label(number, "ann", 1.0))
    found = store.lease("r", "ann", None, at_random=2**31 - 1)
    assert found is not None
    assert found.id == numbers[0], "the order goes round"
    store.close()


@contextmanager
def watched(store: Store) -> Iterator[list[int]]:
    """How many parameters statements had."""
    counts = list[int]()

    def count(_connection: Any, _cursor: Any, _statement: str, parameters: Any, _context: Any, many: bool) -> None:
        counts.append(max(map(len, parameters), default=0) if many else len(parameters))

    sa.event.listen(store.engine, "before_cursor_execute", count)
    yield counts
    sa.event.remove(store.engine, "before_cursor_execute", count)


@pytest.mark.slow
def test_no_statement_has_more_than_a_thousand_parameters(where: str, tmp_path: Path) -> None:
    store, many = Store(where), 1200
    with watched(store) as counts:
        for name in ("ann", "ben"):
            store.add_judge(name, "person")
        asked = [question(str(i)) for i in range(many)]
        numbers = store.ask("r", asked)
        assert store.ask("r", asked) == numbers
        given = store.answer_all([Label(n, who, float(n % 2), seconds=0.1) for n in numbers for who in ("ann", "ben")])
        store.set_asking("r", Asking(overlap=5, gold=0.5, repeats=0.5, leave_out=FLAGS))
        for again in store.ask("r", [question(f"again {i}") for i in range(many)], "repeat"):
            store.probe(again, 1.0, "ann", again - many)
        for gold in store.ask("r", [question(f"gold {i}") for i in range(20)], "gold"):
            store.probe(gold, 1.0)
            store.answer(Label(gold, "ben", 0.0))
        for purpose in ("train", None, "gold", "repeat"):
            store.lease("r", "ann", purpose, 10**9, held=numbers[:1000])
        for turn in range(20):
            next_question(store, "r", "ben", turn, numbers[:1000])
        assert len(store.answered("r", "train", among=given).labels) == 2 * many
        assert len(store.answered("r", "train", each=True, judges=["ben"]).labels) == many
        assert len(store.labels("r", among=given)) == 2 * many
        assert len(store.labels("r")) == 2 * many + 20
        assert len(store.questions("r", unanswered_by="ann")) == many + 20
        store.judged("r", "ann")
        assert len(store.flagged("r")) == 2 * many + 20
        missing(store, "r")
        undrawable(store, "r")
        told(store)
        tally.count(store, "r", "train")
        for form in ("all", "comparisons", "trl"):
            transfer.export(store, "r", tmp_path / f"{form}.jsonl", form)
        rows = [{"prompt": f"p {i}", "a": "x", "b": "y", "preference": 1.0, "judge": f"judge {i % 7}"} for i in range(2 * many)]
        for preference in (1.0, 0.0):
            write_rows(tmp_path / "in.jsonl", [row | {"preference": preference} for row in rows])
            transfer.import_comparisons(store, "r", tmp_path / "in.jsonl")
            transfer.import_comparisons(store, "r", tmp_path / "in.jsonl", "gold")
        assert erase(store, "ann") == many
    assert kept(store) == reference.counted(store, "r")
    assert max(counts) <= 1000
    assert max(counts) > 400, "something was counted"
    store.close()


@pytest.mark.slow
def test_a_question_and_an_answer_cost_as_much_in_a_large_store_as_in_a_small_one(tmp_path: Path) -> None:
    steps = {size: work(tmp_path, size) for size in (300, 3000)}
    for what, small in steps[300].items():
        assert small > 0, "something was counted"
        assert steps[3000][what] < 1.5 * small, what


def work(folder: Path, size: int) -> dict[str, int]:
    """Hundreds of instructions of SQLite's machine for what happens while people wait, with so many questions."""
    store, count = Store(str(folder / f"{size}.db")), Counter[str]()
    for name in PEOPLE:
        store.add_judge(name, "person")
    ann = store.add_judge("ann", "person")
    numbers = store.ask("r", [question(str(i)) for i in range(size)], scores=[-float(i) for i in range(size)])
    given = [Label(n, who, 1.0) for n in numbers[: 8 * size // 10] for who in ("ben", "cat")] + [Label(n, "dan", 1.0) for n in numbers[-9:]]
    store.answer_all([*given, *(Label(n, "ann", 1.0) for n in numbers[:20])])
    for gold in store.ask("r", [question(f"gold {i}") for i in range(5)], "gold"):
        store.probe(gold, 1.0)
    store.set_asking("r", Asking(overlap=2, gold=0.2, repeats=0.2, random=0.3))
    now = ["nothing"]

    def count_it() -> None:
        count[now[0]] += 1

    sa.event.listen(store.engine, "connect", lambda connection, _: connection.set_progress_handler(count_it, 100))
    store.engine.dispose()
    for _ in range(40):
        now[0] = "next"
        found = next_question(store, "r", "ann", store.count("r", "ann").turns)
        assert found is not None
        now[0] = "share"
        assert share(store, "r", ann).questions > 20
        now[0] = "answer"
        store.answer(Label(found.id, "ann", 1.0))
        store.answer(Label(found.id, "ann", 0.0))
        now[0] = "undo"
        store.undo("r", "ann")
        store.answer(Label(found.id, "ann", 0.0))
    store.close()
    return {what: count[what] for what in ("next", "share", "answer", "undo")}


def test_an_old_store_is_counted_when_it_is_opened(where: str) -> None:
    from alembic import command
    from alembic.config import Config

    from rather.store import engine

    old, chance, config = sa.create_engine(engine.address(where)), np.random.default_rng(5), Config()
    config.set_main_option("script_location", str(engine.MIGRATIONS))

    def insert(connection: sa.Connection, table: str, **values: Any) -> None:
        marks = ", ".join(f":{name}" for name in values)
        connection.execute(sa.text(f"insert into {table} ({', '.join(values)}) values ({marks})"), values)

    with old.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0005")
        for number, name in enumerate(PEOPLE, 1):
            insert(connection, "judge", id=number, name=name, kind="person", role="annotator", details="{}")
        for number in range(1, 31):
            for side, letter in enumerate("ab"):
                row = {"source": "f", "task": f"{number}", "policy": "p", "text": letter, "terminated": True, "prompt": '"x"'}
                insert(connection, "trajectory", id=2 * number + side, **row)
            purpose, score = ("gold", None) if number > 25 else ("train", [None, 0.2, 0.9][number % 3])
            run = {"run": "another" if number == 1 else "r", "key": f"{number}", "purpose": purpose, "why": "random"}
            insert(connection, "comparison", id=number, **run, score=score, created=0.0)
            for side, letter in enumerate("ab"):
                insert(connection, "side", comparison=number, side=letter, place=0, trajectory=2 * number + side)
            if number > 25:
                insert(connection, "probe", comparison=number, preference=1.0)
        for _ in range(150):
            who, number, kind = (int(chance.integers(1, n)) for n in (5, 31, 8))
            kind = {1: "undo", 2: "abstention"}.get(kind, "answer")
            values = {"kind": kind, "preference": float(chance.integers(3)) / 2 if kind == "answer" else None, "reason": "", "flags": "[]"}
            insert(connection, "label", comparison=number, judge=who, **values, seconds=1.0, shown_left="a", created=0.0)
    old.dispose()
    store = Store(where)
    expected = reference.counted(store, "r")
    assert len(set(expected["answers"].values())) > 2
    assert kept(store) == expected
    held = list[int]()
    for number in in_order(store, "ann", 4, Counter()):
        found = store.lease("r", "ann", None, 4, held=held)
        assert found is not None
        assert found.id == number
        held.append(number)
    assert store.lease("r", "ann", None, 4, held=held) is None
    wrapped = store.lease("r", "ben", None, 5, at_random=2**31 - 1)
    assert wrapped is not None
    expected, found = reference.overview(store, "r"), told(store)
    assert found.pop("agreement") == pytest.approx(expected.pop("agreement"), abs=1e-12, nan_ok=True)
    assert found == expected
    store.answer(Label(2, "ann", 0.0))
    assert kept(store) == reference.counted(store, "r")
    store.close()
