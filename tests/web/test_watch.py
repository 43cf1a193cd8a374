"""What the owner's page is told while the figures are counted, and how old they may be."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from questions import question

from rather.core import Label
from rather.store import Store
from rather.store.overview import COUNTED, overview
from rather.store.people import erase, invite
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


@pytest.mark.parametrize("back", [False, True], ids=["gone", "gone and back under the same name"])
def test_figures_of_before_an_erasure_elsewhere_are_shown_to_nobody(
    store: Store, elsewhere: Store, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    monkeypatch.setattr(watch, "QUICK_S", 0.0)
    monkeypatch.setattr(watch, "SHARE", 10**9)
    monkeypatch.setattr(watch, "PATIENCE_S", 60.0)
    (other,) = store.ask("other", [question(0)])
    store.answer(Label(other, "ann", 1.0))  # her name stays in the store
    watched = Watch(store, "r")
    named = {p["name"]: p["answers"] for p in overview(store, "r", watched.figures())["people"]}
    assert named == {"ann": 1, "ben": 1}
    erase(elsewhere, "ann", None if back else "r")
    if back:
        invite(elsewhere, "ann", run="r")
    named = {p["name"]: p["answers"] for p in overview(store, "r", watched.figures())["people"]}
    assert named == ({"ann": 0, "ben": 1} if back else {"ben": 1})


def test_figures_that_are_counted_during_an_erasure_are_shown_to_nobody(
    store: Store, elsewhere: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, counted, go_on = watch.figures, Event(), Event()

    def slowly(*given: Any) -> Any:
        found = counts(*given)
        counted.set()
        assert go_on.wait(60)
        return found

    monkeypatch.setattr(watch, "figures", slowly)
    watched = Watch(store, "r")
    assert watched.figures() is None, "they are being counted"
    assert counted.wait(60)
    erase(elsewhere, "ann", "r")
    monkeypatch.setattr(watch, "PATIENCE_S", 60.0)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(watched.figures)
        time.sleep(0.3)  # it waits for those that are being counted
        go_on.set()
        found = asked.result(60)
        assert found is None or found.people.keys() == {"ben"}, "she was still in those"
    found = watched.figures()
    assert found is not None
    assert found.people.keys() == {"ben"}


def test_before_anything_is_counted_the_page_is_told_so(store: Store) -> None:
    found = overview(store, "r", None)
    assert found["questions"] == 4
    assert [found[what] for what in ("as_of", *COUNTED)] == [None] * 7
