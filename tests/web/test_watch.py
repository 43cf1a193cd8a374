"""What the owner's page is told while the figures are counted, and how old they may be."""

import time

import pytest
from questions import question

from rather.core import Label
from rather.store import Store
from rather.store.overview import COUNTED, overview
from rather.store.people import erase
from rather.web import watch
from rather.web.watch import Watch


@pytest.fixture
def store(either: Store) -> Store:
    either.ask("r", [question(i) for i in range(4)])
    for name in ("ann", "ben"):
        either.add_judge(name, "person")
        either.answer(Label(1, name, 1.0))
    return either


def test_figures_that_come_quickly_are_of_this_moment(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "QUICK_S", 60.0)  # however busy the machine is
    monkeypatch.setattr(watch, "PATIENCE_S", 60.0)
    watched = Watch(store, "r")
    for answers in (2, 3):
        found = overview(store, "r", watched.figures())
        assert (found["answers"], sum(p["answers"] for p in found["people"])) == (answers, answers)
        assert abs(found["as_of"] - time.time()) < 30
        store.answer(Label(2, "ann", 1.0))


def test_figures_that_take_long_are_the_last_ones_and_say_of_when(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "QUICK_S", 0.0)
    monkeypatch.setattr(watch, "SHARE", 10**9)
    monkeypatch.setattr(watch, "PATIENCE_S", 60.0)
    watched = Watch(store, "r")
    first = overview(store, "r", watched.figures())
    store.answer(Label(2, "ann", 1.0))
    later = overview(store, "r", watched.figures())
    assert later["answers"] == 3, "progress is of this moment"
    assert {k: v for k, v in later.items() if k != "answers" and k != "complete"} == {
        k: v for k, v in first.items() if k != "answers" and k != "complete"
    }
    erase(store, "ann")
    assert "ann" not in str(overview(store, "r", watched.figures())), "nobody is named who was erased"


def test_before_anything_is_counted_the_page_is_told_so(store: Store) -> None:
    found = overview(store, "r", None)
    assert found["questions"] == 4
    assert [found[what] for what in ("as_of", *COUNTED)] == [None] * 7
