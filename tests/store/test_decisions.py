"""Labels that are no ordinary answers: owners' decisions, preferences on criteria, and trajectories that stand alone."""

from collections.abc import Iterator

import pytest

from rather.core import Comparison, Label, Task, Trajectory
from rather.errors import DataError, StoreError
from rather.judges.people import left
from rather.store import Store, exports, own
from rather.store.asking import next_question
from rather.store.decisions import decide, decided
from rather.store.overview import figures, progress
from rather.store.people import erase
from rather.store.quality import Asking


@pytest.fixture
def store(where: str) -> Iterator[Store]:
    made = Store(where)
    for name in ("ann", "ben", "olga"):
        made.add_judge(name, "person")
    yield made
    made.close()


def question(key: str, sides: int = 2) -> Comparison:
    task = Task("file", key, f"prompt {key}")
    a, *others = [(Trajectory(task, "p@0", f"{word} {key}"),) for word in ("yes", "no", "so")[:sides]]
    return Comparison(a, others[0] if others else (), key=key, others=tuple(others[1:]))


def test_a_decision_is_learnt_from_in_place_of_the_answers_and_can_be_withdrawn(store: Store) -> None:
    one, two = store.ask("r", [question("1"), question("2")])
    answers = [store.answer(Label(one, who, p)) for who, p in (("ann", 1.0), ("ben", 0.0), ("olga", 1.0))]
    other = store.answer(Label(two, "ann", 1.0))
    made = decide(store, "r", "olga", one, 0.0, reason="the second one is right")
    assert [(c.preference, c.judge) for c in store.answered("r").comparisons] == [(0.0, "olga"), (1.0, "ann")]
    assert store.answered("r").labels == [other, made]
    assert [c.preference for c in store.answered("r", each=True).comparisons] == [0.0, 1.0]
    assert [c.preference for page in exports.answered(store, "r") for c in page] == [0.0, 1.0]
    assert [(x.id, x.preference) for x in store.labels("r")] == list(zip([*answers, other], [1.0, 0.0, 1.0, 1.0], strict=True)), (
        "what people answered stays, the owner's own answer too"
    )
    assert store.answered("r", among=answers).comparisons[0].preference == pytest.approx(2 / 3), "as it was before the decision"
    changed = decide(store, "r", "ben", one, 0.5)
    assert decided(store, "r")[one].judge == "ben"
    assert store.answered("r").labels == [other, changed]
    decide(store, "r", "ann", one, None)
    assert not decided(store, "r")
    assert store.answered("r").labels == [*answers, other]
    assert [r["kind"] for r in store.history("r")].count("decision") == 3


def test_nobody_is_asked_what_is_decided_and_progress_counts_it(store: Store) -> None:
    store.set_asking("r", Asking(overlap=2, repeats=0, random=0))
    one, two = store.ask("r", [question("1"), question("2")])
    decide(store, "r", "olga", one, 1.0)
    assert progress(store, "r")["complete"] == 1
    assert progress(store, "r")["answers"] == 0
    given = next_question(store, "r", "ann", 0)
    assert given is not None
    assert given.id == two
    assert next_question(store, "r", "ann", 1, [two]) is None
    assert [c.preference for c in store.answered("r").comparisons] == [1.0]
    decide(store, "r", "olga", one, None)
    assert progress(store, "r")["complete"] == 0
    given = next_question(store, "r", "ann", 1, [two])
    assert given is not None
    assert given.id == one


def test_decisions_are_nobodys_answers(store: Store) -> None:
    (one,) = store.ask("r", [question("1")])
    store.answer(Label(one, "ann", 1.0, seconds=3.0))
    store.answer(Label(one, "olga", 1.0, seconds=3.0))
    before = figures(store, "r")
    decide(store, "r", "olga", one, 0.0)
    after = figures(store, "r")
    assert (after.counted, after.people) == (before.counted, before.people)
    assert store.count("r", "olga").turns == 1
    assert store.flagged("r") == {}


def test_what_decides_nothing_is_refused(store: Store) -> None:
    two, three = store.ask("r", [question("2"), question("3", 3)])
    for number, preference, best in ((two, 1.5, None), (two, 1.0, 1), (three, 0.0, 3), (three, 0.0, -1)):
        with pytest.raises(DataError, match="decides nothing"):
            decide(store, "r", "olga", number, preference, best)
    for run, judge, number in (("r", "olga", 10**6), ("another", "olga", two), ("r", "nobody", two)):
        with pytest.raises(StoreError):
            decide(store, run, judge, number, 1.0)
    assert store.history("r") == []
    decide(store, "r", "olga", three, 0.0, 2)
    assert [(c.a[0].text, c.b[0].text, c.preference) for c in store.answered("r").comparisons] == [
        ("so 3", "yes 3", 1.0),
        ("so 3", "no 3", 1.0),
    ]


def test_a_preference_on_each_criterion_is_kept_with_its_answer(store: Store) -> None:
    one, two = store.ask("r", [question("1"), question("2")])
    store.answer(Label(one, "ann", 1.0, criteria={"helpful": 1.0, "honest": 0.25}))
    store.answer(Label(one, "ben", 1.0, criteria={"honest": 0.75}))
    store.answer(Label(two, "ann", 0.0))
    assert [c.preference for c in store.answered("r").comparisons] == [1.0, 0.0]
    assert [c.preference for c in store.answered("r", criterion="honest").comparisons] == [0.5]
    assert [(c.preference, c.judge) for c in store.answered("r", criterion="honest", each=True).comparisons] == [
        (0.25, "ann"),
        (0.75, "ben"),
    ]
    assert [c.preference for c in store.answered("r", criterion="helpful").comparisons] == [1.0]
    assert store.answered("r", criterion="brave").comparisons == []
    assert [r["criteria"] for page in exports.history(store, "r") for r in page] == [{"helpful": 1.0, "honest": 0.25}, {"honest": 0.75}, {}]
    assert [x.label.criteria for x in own.answers(store, "r", "ann", 2**31 - 1)] == [{}, {"helpful": 1.0, "honest": 0.25}]
    store.undo("r", "ann", one)
    assert [c.preference for c in store.answered("r", criterion="honest").comparisons] == [0.75]
    with pytest.raises(DataError, match="outside"):
        store.answer(Label(two, "ann", 1.0, criteria={"honest": 2.0}))
    assert erase(store, "ben") == 1
    assert store.answered("r", criterion="honest").comparisons == []


def test_an_answer_sent_twice_keeps_its_criteria_once(store: Store) -> None:
    (one,) = store.ask("r", [question("1")])
    said = Label(one, "ann", 1.0, criteria={"honest": 1.0})
    assert store.answer(said, "token") == store.answer(said, "token")
    assert [c.preference for c in store.answered("r", criterion="honest").comparisons] == [1.0]


def test_one_attempt_alone_is_good_or_bad_and_no_comparison(store: Store) -> None:
    (alone,) = store.ask("r", [question("1", 1)], "unpaired")
    store.ask("r", [question("2")])
    found = store.question(alone, "r")
    assert found is not None
    assert [[x.text for x in side] for side in found.comparison.sides] == [["yes 1"]]
    given = next_question(store, "r", "ann", 0)
    assert given is not None
    store.answer(Label(alone, "ann", 1.0, shown="a"))
    store.answer(Label(alone, "ben", 0.0, shown="a"))
    assert store.answered("r", "train").comparisons == [], "learners of comparisons see none"
    assert [c for page in exports.answered(store, "r") for c in page] == []
    assert [(c.sides[0][0].text, c.preference) for c in store.answered("r", "unpaired", each=True).comparisons] == [
        ("yes 1", 1.0),
        ("yes 1", 0.0),
    ]
    assert figures(store, "r").counted["position"] is None
    rows = [r for page in exports.history(store, "r") for r in page]
    assert [(r["a_text"], "b_text" in r, r["preference"]) for r in rows] == [(["yes 1"], False, 1.0), (["yes 1"], False, 0.0)]
    for comparison, purpose in ((question("3", 1), "train"), (question("3"), "unpaired")):
        with pytest.raises(DataError, match="unpaired"):
            store.ask("r", [comparison], purpose)


def test_the_decision_before_holds_again_when_its_owner_is_erased(store: Store) -> None:
    (one,) = store.ask("r", [question("1")])
    store.answer(Label(one, "ann", 1.0))
    decide(store, "r", "olga", one, 0.0)
    decide(store, "r", "ben", one, None)
    assert [c.preference for c in store.answered("r").comparisons] == [1.0]
    erase(store, "ben")
    assert [c.preference for c in store.answered("r").comparisons] == [0.0]


def test_what_an_owner_decides_is_learnt_from_whoever_else_is_and_leaves_win_rates_alone(store: Store) -> None:
    (one,), (two,) = store.ask("r", [question("1")]), store.ask("r", [question("2")], "eval-0")
    for number in (one, two):
        store.answer(Label(number, "ann", 1.0))
        decide(store, "r", "olga", number, 0.0)
    assert [c.preference for c in store.answered("r", "train", judges=["ann"]).comparisons] == [0.0]
    assert [c.preference for c in store.answered("r", "eval-0", judges=["ann"]).comparisons] == [1.0]
    assert [c.preference for c in store.answered("r", "eval-0").comparisons] == [1.0]


def test_a_run_at_a_terminal_waits_for_nothing_that_is_decided(store: Store) -> None:
    one, two = store.ask("r", [question("1"), question("2")])
    decide(store, "r", "olga", one, 0.0)
    assert left(store, "r", "train", "ann") == 1
    store.answer(Label(two, "ann", 1.0))
    assert left(store, "r", "train", "ann") == 0
