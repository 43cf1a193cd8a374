"""Two servers on one store, each of which remembers where a busy person's search begins: nothing is lost by it, nothing given wrongly."""

import random
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from sqlalchemy import update

from rather.core import Comparison, Label, Task, Trajectory
from rather.store import Store, engine, leasing
from rather.store import tables as t
from rather.store.people import erase

PEOPLE = ("ann", "ben", "cem")


def question(key: str) -> Comparison:
    task = Task("test", key, "Which?")
    return Comparison((Trajectory(task, "p", f"one {key}"),), (Trajectory(task, "p", f"two {key}"),), key=key)


@pytest.fixture
def servers(where: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Store]]:
    """Two stores at one place; whoever has answered two is busy."""
    monkeypatch.setattr(leasing, "MANY", 2)
    made = [Store(where), Store(where)]
    for name in PEOPLE:
        made[0].add_judge(name, "person")
    yield made
    for store in made:
        store.close()


def remembering(servers: list[Store], count: int = 8) -> list[int]:
    """The numbers of so many questions; ann has answered the first four, ben the second and the others, and server A remembers hers."""
    numbers = servers[0].ask("r", [question(str(i)) for i in range(count)])
    for number in numbers[:4]:
        assert following(servers[0], "ann") == number
        servers[0].answer(Label(number, "ann", 1.0))
    servers[0].answer_all([Label(n, "ben", 1.0) for n in (numbers[1], *numbers[4:])])
    found = servers[0].lease("r", "ann", None, 3)
    assert found is not None
    assert found.id == numbers[4]
    assert [start[1] for start in servers[0]._starts.values()] == [numbers[4]]
    servers[0].release(found.id, "ann")
    return numbers


def following(store: Store, judge: str, overlap: int = 3, held: tuple[int, ...] = ()) -> int | None:
    found = store.lease("r", judge, None, overlap, held=held)
    return found and found.id


def pass_by(store: Store) -> None:
    """All leases end."""
    with store.transaction(write=True) as connection:
        connection.execute(update(t.lease).values(expires=0.0))


def test_what_is_undone_at_another_server_comes_back_first(servers: list[Store]) -> None:
    here, there = servers
    numbers = remembering(servers)
    there.undo("r", "ann", numbers[1])
    assert following(here, "ann") == numbers[1]


@pytest.mark.parametrize("change", ["undone", "undone by somebody else", "asked with a higher score"])
@pytest.mark.parametrize("clock_s", [31.0, -3600.0], ids=["half a minute later", "the clock is set back"])
def test_what_comes_before_is_found_when_the_start_is_forgotten(
    servers: list[Store], monkeypatch: pytest.MonkeyPatch, change: str, clock_s: float
) -> None:
    here, there = servers
    numbers = remembering(servers)
    if change == "undone":
        there.undo("r", "ann", numbers[1])
        expected = numbers[1]
    elif change == "undone by somebody else":
        (expected,) = there.ask("r", [question("first")], scores=[1.0])
        there.answer_all([Label(expected, "ben", 1.0), Label(expected, "cem", 1.0)])
        there.undo("r", "ben", expected)
    else:
        (expected,) = there.ask("r", [question("better")], scores=[1.0])
        there.answer(Label(expected, "ben", 1.0))
    pass_by(there)
    assert following(here, "ann") == numbers[4], "for a moment what comes after goes on"
    here.release(numbers[4], "ann")
    monkeypatch.setattr(engine, "now", lambda: time.time() + clock_s)
    assert following(here, "ann") == expected


def test_what_comes_before_is_found_when_there_is_nothing_else(servers: list[Store]) -> None:
    here, there = servers
    numbers = remembering(servers)
    there.answer_all([Label(n, "ann", 1.0) for n in numbers[4:]])
    there.undo("r", "ann", numbers[1])
    pass_by(there)
    assert following(here, "ann") == numbers[1]


def test_whoever_has_an_erased_persons_number_misses_nothing(servers: list[Store]) -> None:
    here, there = servers
    numbers = remembering(servers)
    erase(there, "ann")
    there.add_judge("dan", "person")  # who has ann's number, in SQLite
    held = list[int]()
    while (found := following(here, "dan", held=tuple(held))) is not None:
        held.append(found)
    assert sorted(held) == numbers


@pytest.mark.parametrize("seed", range(4))
def test_every_question_gets_its_answers_and_none_too_many(servers: list[Store], monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    chance, clock = random.Random(seed), [0.0]
    monkeypatch.setattr(engine, "now", lambda: time.time() + clock[0])
    monkeypatch.setattr(leasing, "current_time", lambda: time.time() + clock[0])
    servers[0].ask("r", [question(str(i)) for i in range(12)])
    before = {name: set[int]() for name in PEOPLE}
    overlap = 1

    def step(server: Store, who: str) -> int | None:
        found = server.lease("r", who, None, overlap, seconds=600)
        if found is None:
            return None
        given = Counter(x.comparison for x in server.labels("r"))
        assert not any(x.judge == who and x.comparison == found.id for x in server.labels("r")), "nobody is asked what they have answered"
        others = sum(found.id in before[name] for name in PEOPLE if name != who)
        assert found.id in before[who] or given[found.id] + others < overlap, "it has enough"
        before[who].add(found.id)
        return found.id

    def answers(server: Store, who: str, number: int) -> None:
        server.answer(Label(number, who, 1.0))
        before[who].discard(number)

    for turn in range(150):
        server, who, what = chance.choice(servers), chance.choice(PEOPLE), chance.random()
        overlap = 1 if turn < 50 else 2
        if what < 0.15 and (mine := server.judged("r", who)):
            number = chance.choice(mine).comparison
            server.undo("r", who, number)
            before[who].add(number)
        elif what < 0.25:
            server.ask("r", [question(f"more {turn}")], scores=[chance.choice([0.5, 1.0, 2.0])])
        elif what < 0.3:
            clock[0] += chance.choice([31.0, 601.0])
            if clock[0]:
                pass_by(server)
                before = {name: set[int]() for name in PEOPLE}
        elif (number := step(server, who)) is not None and chance.random() < 0.8:
            answers(server, who, number)
    idle = 0
    while idle < 6:
        idle = 0
        for server in servers:
            for who in PEOPLE:
                if (number := step(server, who)) is None:
                    idle += 1
                else:
                    answers(server, who, number)
    given = Counter(x.comparison for x in servers[0].labels("r"))
    # What was undone may have been answered by somebody else meanwhile, who was asked in place of whoever undid it.
    assert {q.id for q in servers[0].questions("r")} == {n for n, count in given.items() if count >= overlap}
    assert max(given.values()) == overlap
