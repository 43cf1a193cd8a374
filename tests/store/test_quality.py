from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from rather.core import Comparison, Label, Task, Trajectory
from rather.errors import StoreError
from rather.store import Question, Store
from rather.store.asking import next_question, repeat
from rather.store.overview import figures, overview
from rather.store.people import erase, invite, note, noted
from rather.store.quality import FLAGS, Asking


def question(key: str) -> Comparison:
    task = Task("file", key, f"prompt {key}")
    return Comparison((Trajectory(task, "p@0", "yes"),), (Trajectory(task, "p@0", "no"),), key=key)


@pytest.fixture
def store(where: str) -> Store:
    made = Store(where)
    for name in ("ann", "ben"):
        made.add_judge(name, "person")
    made.ask("r", [question(f"q{i}") for i in range(40)])
    yield made
    made.close()


def following(store: Store, judge: str, held: Collection[int] = ()) -> Question | None:
    return next_question(store, "r", judge, store.count("r", judge).turns, held)


def label(number: int, question: int, preference: float | None, seconds: float = 3.0, judge: str = "ann") -> Label:
    return Label(question, judge, preference, "", seconds, "a", (), number)


def test_flags_say_what_is_suspicious(store: Store) -> None:
    store.set_asking("r", Asking(fastest_s=0.5))
    one, two = store.ask("r", [question("gold 1"), question("gold 2")], "gold")
    store.probe(one, 1.0)
    store.probe(two, 0.0)
    # within half a second; an abstention is no answer that was too fast; what the same judge said since the gold question before
    given = [label(1, 1, 1.0, 0.2), label(2, 2, None, 0.2), label(3, 3, 0.5, 0.6), label(4, one, 0.9), label(5, 4, 1.0)]
    given += [label(6, 5, 0.0, judge="ben"), label(7, two, 1.0), label(8, 6, 1.0), label(9, one, 0.5, judge="ben")]
    assert store.answer_all(given) == list(range(1, 10))
    assert store.flagged("r") == {1: ("fast",), 5: ("gold",), 7: ("gold",)}, "a tie contradicts nothing"
    (again,) = store.ask("r", [question("again")], "repeat")
    store.probe(again, 1.0, "ann", 1)
    store.answer(label(10, again, 0.75))
    assert 10 not in store.flagged("r")
    store.answer(label(11, again, 0.25, 0.1))
    assert store.flagged("r") == {1: ("fast", "inconsistent"), 5: ("gold",), 7: ("gold",), 11: ("fast", "inconsistent")}


def test_suspicious_answers_are_learnt_from_or_not(store: Store) -> None:
    for number in range(1, 7):
        store.answer(Label(number, "ann", 1.0, seconds=0.1 if number < 3 else 4.0))
    assert len(store.answered("r", "train").comparisons) == 6
    assert len(store.answered("r", "train", without=FLAGS).comparisons) == 4
    store.answer_all([Label(7, "ann", 1.0, seconds=0.1, flags=("late",)), Label(8, "ann", 0.5, seconds=9.0, flags=("late",))])
    store.answer(Label(9, "ben", 1.0, seconds=0.1))
    found = store.answered("r", "train", without=("fast", "late"), judges=["ann"])
    assert (len(found.comparisons), found.left_out) == (4, {"fast": 3, "late": 1}), "each answer once, and only those of ann"
    assert store.answered("r", "train", without=("late",)).left_out == {"late": 2}
    assert store.answered("r", "eval", without=FLAGS).left_out == {}
    for number in (7, 8, 9):
        store.undo("r", "ben" if number == 9 else "ann", number)
    store.set_asking("r", Asking(fastest_s=0.0))
    assert len(store.answered("r", "train", without=FLAGS).comparisons) == 6


def test_a_repeat_asks_again_what_was_clear_and_only_whoever_said_it(store: Store) -> None:
    for number in range(1, 11):
        store.answer(Label(number, "ann", 0.5 if number == 1 else 1.0))
    made = {repeat(store, "r", "ann") for _ in range(20)} - {None}
    probes = store.probes("r")
    assert made
    assert {original for _, original in probes.values()} <= set(range(2, 6)), "clear ones, five answers ago or earlier"
    assert all(known == 1.0 for known, _ in probes.values())
    asked = store.lease("r", "ann", "repeat", 10**9)
    assert asked is not None
    assert asked.comparison.a[0].text == "yes"
    assert store.lease("r", "ben", "repeat", 10**9) is None
    assert repeat(store, "r", "ben") is None
    store.answer(Label(asked.id, "ann", 0.0))
    assert [x.flags for x in store.labels("r") if x.comparison in (asked.id, asked.original)] == [("inconsistent",)] * 2
    assert len(store.answered("r", "train").comparisons) == 10, "repeats are not learned from"


def test_questions_come_in_their_shares_and_by_priority(store: Store) -> None:
    (gold,) = store.ask("r", [question("known")], "gold")
    store.probe(gold, 1.0)
    store.set_asking("r", Asking(gold=0.3, repeats=0.3, random=0.0))
    store.ask("r", [question("wanted")], scores=[5.0])
    seen = []
    while (found := following(store, "ann")) is not None:
        seen.append(found)
        store.answer(Label(found.id, "ann", 1.0))
    kinds = [q.purpose for q in seen]
    assert kinds.count("train") == 41, "each once"
    assert kinds.count("gold") == 1
    assert kinds.count("repeat") >= 3
    assert next(q for q in seen if q.purpose == "train").comparison.key == "wanted"
    store.set_asking("r", Asking(gold=0, repeats=0, random=1.0))
    order = []
    while (found := following(store, "ben", order)) is not None and len(order) < 10:
        order.append(found.id)
    assert order == [], "overlap 1: everything is answered"
    store.set_asking("r", Asking(overlap=2, gold=0, repeats=0, random=1.0))
    while len(order) < 10 and (found := following(store, "ben", order)) is not None:
        order.append(found.id)
    assert len(set(order)) == 10
    assert order != sorted(order), "at random"


def test_the_overview_counts_everything(store: Store) -> None:
    invite(store, "ann")
    store.set_asking("r", Asking(overlap=2))
    (gold,) = store.ask("r", [question("known")], "gold")
    store.probe(gold, 1.0)
    for number in range(1, 5):
        store.answer(Label(number, "ann", 1.0, seconds=2.0, shown="ab"))
        store.answer(Label(number, "ben", 1.0 if number < 4 else 0.0, seconds=4.0, shown="ba"))
    store.answer(Label(gold, "ben", 0.0, seconds=0.1))
    store.answer(Label(5, "ben", None, "skipped"))
    found = overview(store, "r", figures(store, "r"))
    assert (found["questions"], found["complete"], found["answers"]) == (40, 4, 8)
    assert found["agreement"]["raw"] == 0.75
    people = {p["name"]: p for p in found["people"]}
    assert people["ann"]["left"] == [4, 4]
    assert people["ben"]["left"] == [1, 5]
    assert (people["ben"]["gold"], people["ben"]["skipped"], people["ben"]["flagged"], people["ben"]["role"]) == ([0, 1], 1, 5, "")
    assert [q["question"] for q in found["contested"]] == [4]
    assert found["contested"][0]["words"] == "prompt q3"
    assert found["flagged"][0]["reasons"] == ["fast", "gold"]


def test_an_erased_person_leaves_nothing(store: Store, where: str) -> None:
    invite(store, "ann")
    for number in range(1, 11):
        store.answer(Label(number, "ann", 1.0, "an opinion of ann"))
        store.answer(Label(number, "ben", 1.0))
    again = repeat(store, "r", "ann")
    store.lease("r", "ann", "repeat", 10**9)
    store.answer(Label(again or 0, "ann", 0.0))
    assert erase(store, "ann") == 11
    assert {x.judge for x in store.labels("r")} == {"ben"}
    assert store.judges() == {"ben": "person"}
    assert store.probes("r") == {}
    assert erase(store, "ann") == 0
    if "://" not in where:
        store.close()
        assert b"an opinion of ann" not in Path(where).read_bytes(), "not even in the free pages of the file"


def test_the_number_of_an_erased_person_is_never_taken_for_somebody_elses(store: Store, where: str) -> None:
    elsewhere = Store(where)
    elsewhere.add_judge("zoe", "person")
    elsewhere.answer(Label(1, "zoe", 1.0))
    erase(store, "zoe")
    store.add_judge("bob", "person")  # who has zoe's number, in SQLite
    asked: list[Callable[[], object]] = [
        lambda: elsewhere.answer(Label(2, "zoe", 1.0)),
        lambda: elsewhere.lease("r", "zoe"),
        lambda: elsewhere.release(2, "zoe"),
        lambda: elsewhere.undo("r", "zoe"),
        lambda: elsewhere.probe(3, 1.0, "zoe"),
        lambda: elsewhere.count("r", "zoe"),
        lambda: elsewhere.judged("r", "zoe"),
        lambda: elsewhere.questions("r", unanswered_by="zoe"),
        lambda: elsewhere.question(2, "r", "zoe"),
    ]
    for ask in asked:
        with pytest.raises(StoreError, match="no judge 'zoe'"):
            ask()
    assert store.judged("r", "bob") == []
    elsewhere.close()


def test_what_owners_did_is_kept_in_order(store: Store) -> None:
    for what in ("invited ann", "revoked ann"):
        note(store, "owner", what)
    assert [(x["who"], x["what"]) for x in noted(store)] == [("owner", "revoked ann"), ("owner", "invited ann")]
