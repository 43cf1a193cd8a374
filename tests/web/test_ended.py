"""An invitation that ends while a request is on its way: nothing is written after it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillWaiting
from contextlib import AbstractContextManager
from threading import Event
from typing import Any

import pytest
from clients import OPEN, answer_to, given, program
from questions import question
from sqlalchemy import Connection, func, select

from rather.core import Label
from rather.store import Store, counting, people, tables
from rather.store.people import erase, invite, revoke
from rather.store.quality import Asking

Serve = Callable[..., str]
ENDS: dict[str, Callable[[Store], object]] = {
    "erased from this run": lambda store: erase(store, "ann", "r"),
    "erased from all runs": lambda store: erase(store, "ann"),
    "erased, and somebody else has the name": lambda store: (erase(store, "ann"), invite(store, "ann", run="r")),
    "revoked": lambda store: revoke(store, "ann", "r"),
    "given another link": lambda store: invite(store, "ann", run="r"),
}
ASKED = {"an answer": ("POST", "answers"), "an undo": ("POST", "undo"), "a question": ("GET", "next"), "a repeat": ("GET", "next")}


@pytest.fixture
def store(either: Store) -> Store:
    """Ann has answered in another run, too, so that her name stays when she is erased from this one."""
    either.ask("r", [question(i) for i in range(20)])
    (other,) = either.ask("other", [question(0)])
    either.add_judge("ann", "person")
    either.answer(Label(other, "ann", 1.0))
    return either


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def written(store: Store) -> list[int]:
    """How much there is of what a request can write in the run: labels, leases, questions."""
    of_run = select(tables.comparison.c.id).where(tables.comparison.c.run == "r")
    wanted = [select(func.count()).select_from(x).where(x.c.comparison.in_(of_run)) for x in (tables.label, tables.lease)]
    with store.transaction() as connection:
        return [connection.execute(x).scalar_one() for x in (*wanted, select(func.count()).select_from(of_run.subquery()))]


@pytest.mark.parametrize("what", ASKED)
@pytest.mark.parametrize("ends", ENDS)
def test_who_waits_to_write_writes_nothing_once_their_invitation_has_ended(
    store: Store, serve: Serve, elsewhere: Store, monkeypatch: pytest.MonkeyPatch, ends: str, what: str
) -> None:
    url = serve()
    ann = program(url, store, "ann", run="r")
    for _ in range(8):
        shown = given(ann)
        assert ann.post("/api/answers", json=answer_to(shown)).status_code == 200
    body = answer_to(given(ann)) if what == "an answer" else {"question": shown["id"]} if what == "an undo" else None
    if what == "a repeat":
        store.set_asking("r", Asking(repeats=1.0))
    begins, ended, left = store.transaction, list[str](), list[int]()

    def begins_when_it_has_ended(write: bool = False) -> AbstractContextManager[Connection]:
        if write and not ended:
            ended.append(ends)
            ENDS[ends](elsewhere)
            left.extend(written(elsewhere))
        return begins(write)

    monkeypatch.setattr(store, "transaction", begins_when_it_has_ended)
    method, path = ASKED[what]
    refused = ann.request(method, f"/api/{path}", json=body)
    assert (refused.status_code, ended) == (401, [ends]), refused.text
    assert written(store) == left
    assert ann.get("/api/next").status_code == 401


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str], tuple[Event, Event]]:
    """Stops whoever calls that function: one event says that they have come to it, the other lets them go on."""

    def pause(module: Any, name: str) -> tuple[Event, Event]:
        does, reached, go_on = getattr(module, name), Event(), Event()

        def wait(*given: Any) -> Any:
            reached.set()
            assert go_on.wait(60)
            return does(*given)

        monkeypatch.setattr(module, name, wait)
        return reached, go_on

    return pause


def test_an_answer_in_the_middle_of_an_erasure_waits_and_is_refused(
    store: Store, serve: Serve, elsewhere: Store, paused: Callable[..., tuple[Event, Event]]
) -> None:
    ann = program(serve(), store, "ann", run="r")
    body = answer_to(given(ann))
    reached, go_on = paused(people, "_end")  # when her answers are deleted, and before her invitation is
    with ThreadPoolExecutor() as pool:
        erasing = pool.submit(erase, elsewhere, "ann", "r")
        assert reached.wait(60)
        sent = pool.submit(ann.post, "/api/answers", json=body)
        with pytest.raises(StillWaiting):
            sent.result(1)
        go_on.set()
        assert erasing.result(60) == 0
        assert sent.result(60).status_code == 401
    assert store.history("r") == []
    assert len(store.labels("other")) == 1


def test_an_erasure_in_the_middle_of_an_answer_waits_and_takes_it_along(
    store: Store, serve: Serve, elsewhere: Store, paused: Callable[..., tuple[Event, Event]]
) -> None:
    ann = program(serve(), store, "ann", run="r")
    body = answer_to(given(ann))
    reached, go_on = paused(counting, "answered")  # when it is written, and before that is committed
    with ThreadPoolExecutor() as pool:
        sent = pool.submit(ann.post, "/api/answers", json=body)
        assert reached.wait(60)
        erasing = pool.submit(erase, elsewhere, "ann", "r")
        with pytest.raises(StillWaiting):
            erasing.result(1)
        go_on.set()
        assert sent.result(60).status_code == 200
        assert erasing.result(60) == 1
    assert store.history("r") == []
