"""Open questions that get another priority while people answer."""

from collections.abc import Callable, Iterator

import pytest

from rather.core import Comparison, Label, Task, Trajectory
from rather.store import Store, asking, counting
from rather.store.asking import prioritize, waiting
from rather.store.decisions import decide
from rather.store.quality import Asking


def question(key: str) -> Comparison:
    task = Task("test", key, "Which?")
    return Comparison((Trajectory(task, "p", f"one {key}"),), (Trajectory(task, "p", f"two {key}"),), key=key)


@pytest.fixture
def store(where: str) -> Iterator[Store]:
    made = Store(where)
    for name in ("ann", "ben", "owner"):
        made.add_judge(name, "person")
    made.set_asking("r", Asking(overlap=2, gold=0, repeats=0, random=0))
    yield made
    made.close()


def following(store: Store, judge: str, held: tuple[int, ...] = ()) -> int | None:
    found = asking.next_question(store, "r", judge, 0, held)
    return found and found.id


def test_what_waits_is_what_wants_answers_and_lies_before_nobody(store: Store) -> None:
    done, once, leased, decided, *rest = store.ask("r", [question(str(i)) for i in range(7)], scores=[0.0] * 7)
    store.ask("r", [question("gold")], "gold")
    store.ask("r", [question("eval")], "eval-0-1")
    store.ask("elsewhere", [question("other")])
    store.answer_all([Label(done, "ann", 1.0), Label(done, "ben", 1.0), Label(once, "ben", 1.0)])
    decide(store, "r", "owner", decided, 1.0)
    assert following(store, "ben") == leased
    assert [q.id for q in waiting(store, "r")] == [once, *rest]
    prioritize(store, "r", {n: (float(n), "bald") for n in (done, once, leased, decided, *rest)})
    found = {q.id: (q.score, q.why) for q in store.questions("r", "train")}
    assert {n for n in found if found[n] == (n, "bald")} == {once, *rest}
    assert {found[n] for n in (done, leased, decided)} == {(0.0, "random")}, "those stay as they are"
    assert [q.id for q in waiting(store, "r")] == [*rest[::-1], once]
    assert following(store, "ben") == leased, "who has one before them keeps it"
    assert following(store, "ann") == rest[-1]
    assert following(store, "ben", (leased,)) == rest[-1], "two may answer it"
    assert following(store, "ann", (rest[-1],)) == rest[-2]


def test_many_are_changed_some_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "AT_ONCE", 2)
    monkeypatch.setattr(asking, "MOST", 4)
    numbers = store.ask("r", [question(str(i)) for i in range(5)])
    assert [q.id for q in waiting(store, "r")] == numbers[:4]
    prioritize(store, "r", {n: (float(n), "bald") for n in numbers})
    assert [q.id for q in waiting(store, "r")] == numbers[:0:-1]
    prioritize(store, "r", {})


def test_who_answers_a_question_is_not_waited_for(postgres: Callable[[str], str]) -> None:
    """SQLite has one writer at a time, and they are quick."""
    where = postgres("priorities")
    one, other = Store(where), Store(where)
    first, second = one.ask("r", [question("1"), question("2")])
    with one.transaction(write=True) as connection:
        counting.lock(connection, [first])
        prioritize(other, "r", dict.fromkeys((first, second), (1.0, "bald")))
    assert [q.score for q in one.questions("r")] == [None, 1.0]
    one.close()
    other.close()
