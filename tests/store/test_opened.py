"""A question as its owner opens it: all that was ever said about it, in words."""

import time
from collections.abc import Iterator

import pytest

from rather.core import Comparison, Label, Task, Trajectory
from rather.store import Store
from rather.store.decisions import decide
from rather.store.opened import any_answered, opened, said
from rather.store.quality import Asking


def question(key: str) -> Comparison:
    task = Task("file", key, f"prompt {key}")
    return Comparison((Trajectory(task, "p@0", "yes"),), (Trajectory(task, "p@0", "no"),), key=key)


@pytest.fixture
def store(where: str) -> Iterator[Store]:
    made = Store(where)
    for name, kind in (("ann", "person"), ("ben", "person"), ("sim", "simulated")):
        made.add_judge(name, kind)
    made.ask("another run", [question("x")])
    made.ask("r", [question(str(i)) for i in range(4)])
    made.set_asking("r", Asking(fastest_s=0.5))
    yield made
    made.close()


def of(store: Store, number: int) -> dict:
    asked = store.question(number, "r")
    assert asked is not None
    return opened(store, asked)


def test_every_row_about_a_question_is_there_and_says_whether_it_counts(store: Store) -> None:
    first, second = (q.id for q in store.questions("r")[:2])
    store.answer(Label(first, "ann", 1.0, "", 2.0, "ba"))
    store.answer(Label(second, "ann", 0.0, "", 9.0, "ab"))
    store.undo("r", "ann", first)
    store.answer(Label(first, "ann", 0.25, "", 0.1, "ab", ("late",)))
    store.answer(Label(first, "ben", None, "dull", 3.0, "ba"))
    store.answer(Label(first, "sim", 0.5, "both bad", None, "ba"))
    found = of(store, first)
    assert [(x["judge"], x["said"], x["order"], x["seconds"], x["flags"], x["reason"], x["counts"]) for x in found["answers"]] == [
        ("ann", "a is better", "ba", 2.0, [], "", False),
        ("ann", "took it back", "", None, [], "", False),
        ("ann", "b is a little better", "ab", 0.1, ["late", "fast"], "", True),
        ("ben", "skipped", "ba", 3.0, [], "dull", True),
        ("sim", "tie", "ba", None, [], "both bad", True),
    ]
    assert [x["simulated"] for x in found["answers"]] == [False] * 4 + [True]
    assert all(abs(x["created"] - time.time()) < 60 for x in found["answers"])
    assert (found["purpose"], found["why"], found["known"], found["original"], found["repeats"]) == ("train", "random", None, None, [])


def test_known_answers_and_repeats_are_named(store: Store) -> None:
    first = store.questions("r")[0].id
    (gold,) = store.ask("r", [question("gold")], "gold")
    store.probe(gold, 0.0)
    (again,) = store.ask("r", [question("again")], "repeat")
    store.answer(Label(first, "ann", 1.0, "", 5.0))
    store.probe(again, 1.0, "ann", first)
    store.answer(Label(again, "ann", 0.0, "", 5.0))
    store.answer(Label(gold, "ben", 1.0, "", 5.0))
    assert of(store, first)["repeats"] == [again]
    assert [x["flags"] for x in of(store, first)["answers"]] == [["inconsistent"]]
    assert (of(store, again)["original"], of(store, again)["known"]) == (first, "a is better")
    assert (of(store, gold)["original"], of(store, gold)["known"]) == (None, "b is better")
    assert [x["flags"] for x in of(store, gold)["answers"]] == [["gold"]]


def test_decisions_criteria_and_single_sides_are_said_in_words(store: Store) -> None:
    first = store.questions("r")[0].id
    store.answer(Label(first, "ann", 1.0, "", 5.0, criteria={"clear": 0.0, "kind": 0.5}))
    decide(store, "r", "ben", first, 0.0, reason="it is wrong")
    task = Task("file", "alone", "prompt")
    (alone,) = store.ask("r", [Comparison((Trajectory(task, "p@0", "yes"),), (), key="alone")], "unpaired")
    store.answer(Label(alone, "ann", 1.0, "", 5.0, "a"))
    found = of(store, first)["answers"]
    assert [(x["kind"], x["said"], x["reason"], x["order"], x["counts"]) for x in found] == [
        ("answer", "a is better", "", "ab", True), ("decision", "decided: b is better", "it is wrong", "", True),
    ]  # fmt: skip
    assert found[0]["criteria"] == {"clear": "b is better", "kind": "tie"}
    decide(store, "r", "ben", first, None)
    assert [(x["said"], x["counts"]) for x in of(store, first)["answers"][1:]] == [
        ("decided: b is better", False), ("took the decision back", False),
    ]  # fmt: skip
    assert [x["said"] for x in of(store, alone)["answers"]] == ["good"]


def test_only_answered_questions_of_the_run_are_drawn_and_each_of_them_is(store: Store) -> None:
    assert any_answered(store, "r") is None
    other = store.questions("another run")[0].id
    numbers = [q.id for q in store.questions("r")]
    for number in (other, *numbers[:3]):
        store.answer(Label(number, "ann", 1.0))
    store.answer(Label(numbers[3], "ann", None))
    store.undo("r", "ann", numbers[0])
    assert {any_answered(store, "r") for _ in range(40)} == set(numbers[1:3])


@pytest.mark.parametrize(
    ("preference", "best", "words"),
    [
        (1.0, None, "a is better"), (0.0, None, "b is better"), (0.75, None, "a is a little better"), (0.25, None, "b is a little better"),
        (0.5, None, "tie"), (0.9, None, "a is better (90 %)"), (0.0, 2, "c is best"), (1.0, 0, "a is best"), (None, None, "skipped"),
    ],
)  # fmt: skip
def test_answers_in_words(preference: float | None, best: int | None, words: str) -> None:
    assert said("answer", preference, best) == words
