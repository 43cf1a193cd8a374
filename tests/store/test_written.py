"""Answers that judges write themselves: learned from, withdrawn with the answer they came with, erased without a trace."""

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import sqlalchemy as sa

from rather.core import Comparison, Label, Task, Trajectory
from rather.data.forms import read_comparisons
from rather.data.transfer import export, import_comparisons
from rather.errors import DataError, StoreError
from rather.store import Store, own
from rather.store import tables as t
from rather.store.asking import next_question
from rather.store.better import LONGEST, write
from rather.store.decisions import decide
from rather.store.overview import progress
from rather.store.people import erase
from rather.store.quality import Asking

PEOPLE = ("ann", "ben", "cat")
TEXT = "ann's own better words"


@pytest.fixture
def store(where: str) -> Iterator[Store]:
    made = Store(where)
    for name in PEOPLE:
        made.add_judge(name, "person")
    made.set_asking("r", Asking(overlap=2, repeats=0, gold=0, random=0))
    yield made
    made.close()


def question(key: str, sides: int = 2) -> Comparison:
    task = Task("file", key, f"prompt {key}")
    a, *others = [(Trajectory(task, "p@0", f"{word} {key}"),) for word in ["yes", "no", "so", "or", "if", "as", "at", "by"][:sides]]
    return Comparison(a, others[0] if others else (), key=key, others=tuple(others[1:]))


def better(store: Store, number: int, text: str = TEXT, judge: str = "ann", token: str | None = None) -> int:
    asked = store.question(number, "r")
    assert asked is not None
    return write(store, Label(number, judge, 0.5, "both bad", 9.0, "ba"), text, token)


def newest(store: Store) -> Any:
    return store.questions("r")[-1]


def pairs(store: Store) -> list[tuple[str | None, str | None, float | None]]:
    return [(c.a[0].text, c.b[0].text, c.preference) for c in store.answered("r", "train").comparisons]


def counted_right(store: Store) -> None:
    with store.transaction() as connection:
        answers = {r.id: r.answers for r in connection.execute(t.comparison.select().where(t.comparison.c.run == "r"))}
    counts = {name: store.count("r", name) for name in store.judges()}
    turns = {name: (c.turns, c.answered) for name, c in counts.items()}
    found = {"answers": answers, "turns": turns, "questions": next(iter(counts.values())).questions}
    assert found == reference.counted(store, "r")


def test_it_is_a_question_that_its_writer_has_answered(store: Store) -> None:
    (one,) = store.ask("r", [question("round-1/x")])
    number = better(store, one, token="once")
    assert better(store, one, token="once") == number, "sent twice"
    assert len(store.questions("r")) == 2
    made = newest(store)
    assert [side[0].text for side in made.comparison.sides] == [TEXT, "yes round-1/x", "no round-1/x"]
    a = made.comparison.a[0]
    assert (a.policy, a.terminated, a.task) == ("person", True, question("round-1/x").a[0].task)
    assert (made.purpose, made.why) == ("train", "written")
    assert [(x.comparison, x.preference, x.best, x.shown) for x in store.labels("r")] == [(made.id, 1.0, 0, "abc"), (one, 0.5, None, "ba")]
    assert pairs(store) == [("yes round-1/x", "no round-1/x", 0.5), (TEXT, "yes round-1/x", 1.0), (TEXT, "no round-1/x", 1.0)]
    (said,) = own.answers(store, "r", "ann", 2**31 - 1)
    assert (said.label.comparison, said.label.id, said.better) == (one, number, TEXT), "the list has one answer"
    counted_right(store)


def test_others_are_asked_about_it_and_its_writer_never(store: Store) -> None:
    (one,) = store.ask("r", [question("1")])
    better(store, one)
    made = newest(store).id
    assert next_question(store, "r", "ann", 0) is None
    given = [next_question(store, "r", "ben", 0), next_question(store, "r", "ben", 1, [one])]
    assert [q and q.id for q in given] == [one, made]
    store.answer(Label(made, "ben", 0.0, best=1, shown="abc"))
    store.undo("r", "ann", one)
    assert next_question(store, "r", "ann", 0, [one]) is None, "not even when it is withdrawn and asked further"
    assert store.question(made, "r", "ann") is None


def test_undo_withdraws_it_and_another_one_can_be_written(store: Store) -> None:
    (one,) = store.ask("r", [question("1")])
    better(store, one, token="first")
    before = newest(store)
    assert store.undo("r", "ann", one, "first") == one
    assert store.answered("r", "train").comparisons == []
    assert next_question(store, "r", "ben", 0, [one]) is None
    assert [x.better for x in own.answers(store, "r", "ann", 2**31 - 1)] == []
    assert progress(store, "r")["questions"] == 1
    counted_right(store)
    better(store, one, "another one")
    assert newest(store).comparison.key != before.comparison.key
    assert [a for a, _, _ in pairs(store)] == ["yes 1", "another one", "another one"]
    better(store, one, "a third one")
    assert [a for a, _, _ in pairs(store)] == ["yes 1", "a third one", "a third one"], "answering anew replaces it"
    store.answer(Label(one, "ann", 1.0))
    assert [a for a, _, _ in pairs(store)] == ["yes 1"], "so does any other answer"
    assert store.undo("r", "ann") == one, "the last answer is the one to the question that was asked"
    counted_right(store)


def test_undo_without_naming_a_question_finds_the_answer_that_it_came_with(store: Store) -> None:
    (one,) = store.ask("r", [question("1")])
    better(store, one)
    assert store.undo("r", "ann", newest(store).id) is None, "what was written is undone by the answer it came with alone"
    assert store.undo("r", "ann") == one
    assert store.undo("r", "ann") is None
    assert store.labels("r") == []


@pytest.mark.parametrize("how", ["answer", "decision"])
def test_what_others_have_judged_meanwhile_stays(store: Store, how: str) -> None:
    (one,) = store.ask("r", [question("1")])
    better(store, one)
    made = newest(store).id
    if how == "answer":
        store.answer(Label(made, "ben", 0.0, best=2, shown="abc"))
    else:
        decide(store, "r", "ben", made, 0.0, 2)
    store.undo("r", "ann", one)
    assert newest(store).purpose == "train"
    assert pairs(store) == [("no 1", TEXT, 1.0), ("no 1", "yes 1", 1.0)]
    found = next_question(store, "r", "cat", 0, [one])
    assert (found and found.id) == (made if how == "answer" else None), "a decided question is asked of nobody"
    counted_right(store)


def test_a_skip_of_somebody_else_keeps_nothing_alive(store: Store) -> None:
    (one,) = store.ask("r", [question("1")])
    better(store, one)
    store.answer(Label(newest(store).id, "ben", None, "skipped"))
    store.undo("r", "ann", one)
    assert newest(store).purpose == "same"
    counted_right(store)


@pytest.mark.parametrize("purpose", ["gold", "repeat", "eval-0", "check-0", "same"])
def test_beside_questions_that_are_not_learnt_from_it_is_not_either(store: Store, purpose: str) -> None:
    (one,) = store.ask("r", [question("1")], purpose)
    better(store, one)
    assert newest(store).purpose == "same"
    assert store.answered("r", "train").comparisons == []
    assert next_question(store, "r", "ben", 0, [one]) is None
    counted_right(store)
    store.undo("r", "ann", one)
    counted_right(store)


def test_what_cannot_be_written_is_refused_in_a_sentence(store: Store) -> None:
    two, eight = store.ask("r", [question("1"), question("2", 8)])
    (alone,) = store.ask("r", [question("3", 1)], "unpaired")
    task = Task("env", "4")
    drives = [(Trajectory(task, "p@0", observations=np.zeros((2, 1)), actions=np.zeros(1)),) for _ in range(2)]
    words = question("5")
    (filmed,) = store.ask("r", [Comparison(*drives, key="4")])
    (several,) = store.ask("r", [Comparison(words.a * 2, words.b * 2, key="5")])
    for number, text, complaint in (
        (two, "", "empty"), (two, " \n\t", "empty"), (two, "yes 1", "same as one"), (two, "  no 1 \n", "same as one"),
        (two, "x" * (LONGEST + 1), "20,001 characters"), (eight, TEXT, "8 sides already"),
        (alone, TEXT, "at least two"), (filmed, TEXT, "in words"), (several, TEXT, "single answers"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=complaint):
            better(store, number, text)
    with pytest.raises(DataError, match="preferred"):
        write(store, Label(two, "ann", 1.0), TEXT)
    with pytest.raises(StoreError, match="not in the store"):
        write(store, Label(10**6, "ann", 0.5), TEXT)
    assert store.history("r") == []
    assert len(store.questions("r")) == 5
    better(store, two, "x" * LONGEST)


def test_seven_sides_become_eight(store: Store) -> None:
    (one,) = store.ask("r", [question("1", 7)])
    better(store, one)
    assert len(newest(store).comparison.sides) == 8
    assert pairs(store)[-7:] == [(TEXT, f"{word} 1", 1.0) for word in ["yes", "no", "so", "or", "if", "as", "at"]]


def test_the_same_answer_sent_many_times_at_once_makes_one_question(store: Store) -> None:
    (one,) = store.ask("r", [question("1")])
    numbers, failed = list[int](), list[Exception]()

    def send() -> None:
        try:
            numbers.append(better(store, one, token="the same"))
        except Exception as e:  # noqa: BLE001
            failed.append(e)

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(set(numbers)) == 1
    assert len(store.questions("r")) == 2


def rows_of(store: Store) -> Counter[str]:
    with store.transaction() as connection:
        counts = {
            table.name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar() for table in t.metadata.sorted_tables
        }
    return Counter({name: n for name, n in counts.items() if n and name != "asking"})


def test_erasing_who_wrote_it_leaves_nothing_of_it(store: Store, where: str) -> None:
    one, two = store.ask("r", [question("1"), question("2")])
    (elsewhere,) = store.ask("another run", [question("3")])
    store.answer(Label(two, "ben", 1.0))
    before = rows_of(store)
    better(store, one)
    made = newest(store).id
    store.answer(Label(made, "ben", 0.0, best=1, shown="abc", criteria={"honest": 1.0}))
    store.lease("r", "cat", held=[one, two])
    better(store, made, "ben's answer, beside ann's", "ben")  # in place of the one before
    store.answer(Label(newest(store).id, "cat", 0.0, best=3, shown="abcd", criteria={"honest": 1.0}))
    decide(store, "r", "cat", made, 1.0, 0)
    better(store, two, "words of ann that she took back")
    store.undo("r", "ann", two)
    store.probe(newest(store).id, 1.0)
    store.answer(Label(elsewhere, "ben", 1.0))
    assert erase(store, "ann", "r") >= 8
    assert [q.id for q in store.questions("r")] == [one, two]
    counted_right(store)
    assert store.count("r", "ben").answered == 1
    after = rows_of(store)
    assert after - before == Counter({"label": 1, "standing": 2}), "ben's answer in another run; cat has answered nothing any more"
    assert before - after == Counter({"judge": 1})
    store.close()
    if "://" in where:
        database = where.replace("+psycopg", "")
        import psycopg

        with psycopg.connect(database, autocommit=True) as connection:
            for table in t.metadata.sorted_tables:
                assert connection.execute(f'select count(*) from "{table.name}" x where x::text like %s', ["%ann%"]).fetchone() == (0,)  # type: ignore[arg-type]
            connection.execute("checkpoint")
            folder = connection.execute("select current_setting('data_directory'), oid from pg_database where datname = current_database()")
            data, number = folder.fetchone() or ("", 0)
        files = [path for path in (Path(data) / "base" / str(number)).iterdir() if path.is_file()]
    else:
        files = [path for path in Path(where).parent.iterdir() if path.name.startswith("store.db")]
    assert files
    for path in files:
        content = path.read_bytes()
        assert TEXT.encode() not in content
        assert b"words of ann" not in content
        assert b"beside ann" not in content


def test_erasing_one_run_leaves_what_was_written_in_another(store: Store) -> None:
    (one,) = store.ask("r", [question("1")])
    (other,) = store.ask("q", [question("2")])
    better(store, one)
    write(store, Label(other, "ann", 0.5), "kept")
    erase(store, "ann", "r")
    assert [a.a[0].text for a in store.answered("q", "train", only=lambda c: bool(c.others)).comparisons] == ["kept", "kept"]
    assert len(store.questions("r")) == 1
    erase(store, "ann")
    assert len(store.questions("q")) == 1


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_its_pairs_are_exported_and_come_back(store: Store, tmp_path: Path, ending: str) -> None:
    (one,) = store.ask("r", [question("1")])
    better(store, one)
    assert export(store, "r", tmp_path / f"trl.{ending}", "trl") == 2
    read = list(read_comparisons(tmp_path / f"trl.{ending}"))
    assert {(c.a[0].text, c.b[0].text) if c.preference == 1 else (c.b[0].text, c.a[0].text) for c in read} == {
        (TEXT, "yes 1"),
        (TEXT, "no 1"),
    }
    file = tmp_path / f"pairs.{ending}"
    assert export(store, "r", file, "comparisons") == 3
    assert vars(import_comparisons(store, "again", file))["questions"] == 3
    assert vars(import_comparisons(store, "again", file))["unchanged"] == 3
    found = [(c.a[0].text, c.b[0].text, c.preference) for c in store.answered("again", "train").comparisons]
    assert found == pairs(store)


def test_what_a_file_says_in_the_writers_name_replaces_it(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text('{"prompt": "p", "a": "x", "b": "y", "preference": 0.5, "judge": "ann"}\n')
    import_comparisons(store, "r", file)
    better(store, store.questions("r")[0].id)
    file.write_text('{"prompt": "p", "a": "x", "b": "y", "preference": 1.0, "judge": "ann"}\n')
    assert vars(import_comparisons(store, "r", file))["changed"] == 1
    assert pairs(store) == [("x", "y", 1.0)]
    counted_right(store)
