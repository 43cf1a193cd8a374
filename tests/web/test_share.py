"""How much is one person's to answer, and how long it takes them: over HTTP, on both databases."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from clients import OPEN, answer, answer_to, given, pass_by, program
from questions import question

from rather.core import Label
from rather.store import Store
from rather.store.people import everybody, revoke
from rather.store.quality import Asking
from rather.store.share import share

Serve = Callable[..., str]


@pytest.fixture
def store(either: Store) -> Store:
    return either


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def progress(who: httpx.Client) -> dict[str, Any]:
    return who.get("/api/next").json()["progress"]


def answers(store: Store, who: httpx.Client, *seconds: float, **said: Any) -> None:
    """Answers that took so many seconds each."""
    for took in seconds:
        shown = given(who)
        pass_by(store, took)
        assert who.post("/api/answers", json=answer_to(shown, seconds=took, **said)).status_code == 200


def test_what_is_wanted_is_shared_by_the_people_who_may_answer(store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(40)])
    store.ask("other", [question(i) for i in range(9)])
    url = serve(overlap=2)
    ann, bob, _ = (program(url, store, name, run="r") for name in ("ann", "bob", "cem"))
    boss = program(url, store, "boss", role="owner", run="r")
    panel = program(url, store, "panel", simulated=True)
    program(url, store, "elsewhere", run="other")
    first = {"mine": 0, "share": 27, "minutes": None}
    assert progress(ann) == first, "80 answers for three people: 26.7"
    assert progress(boss)["share"] == 20, "the owner is a fourth, if they answer"
    assert progress(panel)["share"] == 20
    answers(store, ann, 10, 60, 60, 600)
    assert progress(ann) == {"mine": 4, "share": 4 + 26, "minutes": None}, "76 answers for three people: 25.3"
    answers(store, ann, 70, choice="skip")
    assert progress(ann) == {"mine": 5, "share": 5 + 25, "minutes": 25}, "a minute each"
    assert progress(bob) == {"mine": 0, "share": 25, "minutes": None}
    revoke(store, "cem")
    assert progress(bob)["share"] == 38, "75 answers for two people: 37.5"
    store.set_asking("r", Asking(1, repeats=0))
    assert progress(bob)["share"] == 18, "35 for two people: 17.5"


def test_nobody_is_promised_more_than_there_is_nor_less_than_nothing(store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(4)])
    url = serve(overlap=3)
    ann = program(url, store, "ann")
    assert progress(ann)["share"] == 4, "12 answers are wanted, but one of each question from her"
    answers(store, ann, 1, 1)
    assert progress(ann) == {"mine": 2, "share": 4, "minutes": None}
    bob = program(url, store, "bob")
    answers(store, bob, 1, 1, 1, 1)
    store.set_asking("r", Asking(1, repeats=0))
    assert progress(ann) == {"mine": 2, "share": 2, "minutes": 0}, "six answers where four are wanted"
    assert progress(program(url, store, "cem"))["share"] == 0


def test_the_time_is_that_of_the_latest_twenty_answers_that_count_here(store: Store, serve: Serve) -> None:
    store.ask("r", [question(i) for i in range(100)])
    other = store.ask("other", [question(i) for i in range(60)])
    ann = program(serve(), store, "ann")
    number = next(p.judge for p in everybody(store) if p.name == "ann")
    answers(store, ann, *[600.0] * 5)
    assert share(store, "r", number).minutes == 950, "95 of ten minutes"
    answers(store, ann, *[60.0] * 20)
    assert share(store, "r", number).minutes == 75, "the first five are forgotten"
    answers(store, ann, 6, 6)
    assert share(store, "r", number).minutes == 73
    store.answer_all([Label(n, "ann", 1.0, seconds=1.0) for n in other[:30]])
    assert share(store, "r", number).minutes == 73, "answers in another run are no answers here"
    store.answer_all([Label(n, "ann", 1.0, seconds=1.0) for n in other[30:]])
    assert share(store, "r", number).minutes is None, "and so many of them that none of this run was of late"


def test_no_answer_and_no_question_give_no_share(store: Store, serve: Serve) -> None:
    ann = program(serve(), store, "ann")
    assert progress(ann) == {"mine": 0, "share": 0, "minutes": 0}
    store.ask("r", [question(0)])
    assert progress(ann) == {"mine": 0, "share": 1, "minutes": None}
    assert answer(ann).status_code == 200
    assert progress(ann) == {"mine": 1, "share": 1, "minutes": 0}
