"""One person, at a terminal with `rather label` and on the page: what was begun at one is ended at the other."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
from clients import OPEN, answer_to, given, program
from process import until
from questions import question

from rather.store import Store

Serve = Callable[..., str]


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


@pytest.fixture
def store(either: Store) -> Store:
    either.ask("r", [question(i) for i in range(3)])
    return either


def label(folder: Path, store: Store) -> pexpect.spawn:
    (folder / "run.toml").write_text(f'[run]\nname = "r"\nstore = "{store.where}"\n[judge]\nkind = "terminal"\nname = "ann"\n')
    command = ["-m", "rather", "label", "run.toml"]
    return pexpect.spawn(sys.executable, command, cwd=folder, timeout=60, encoding="utf-8", env={**os.environ, "TERM": "dumb"})


def holds(store: Store, child: pexpect.spawn) -> int:
    """The number of the question that stands at the terminal."""
    child.expect("question 1 of 3")
    child.expect(r"(one|two) (\d)")
    return int(str(child.after).split()[1]) + 1


def test_a_question_begun_at_a_terminal_is_answered_on_the_page(store: Store, serve: Serve, tmp_path: Path) -> None:
    ann = program(serve(), store, "ann")
    terminal = label(tmp_path, store)
    number = holds(store, terminal)
    shown = given(ann)
    assert (shown["id"], shown["invitation"]) == (number, None), "the same one, and it says that it was begun at a terminal"
    assert ann.post("/api/answers", json=answer_to(shown, seconds=0.6)).status_code == 200
    (kept,) = store.labels("r")
    assert (kept.judge, kept.comparison, kept.preference) == ("ann", number, float(shown["order"] == "ab"))
    terminal.send("q")
    terminal.expect("0 new answers")
    terminal.expect(pexpect.EOF)
    assert store.labels("r") == [kept], "who leaves the terminal takes nothing back"
    assert ann.post("/api/undo", json={"question": number}).json() == {"undone": True}
    assert given(ann)["id"] == number


def test_a_question_begun_on_the_page_is_answered_at_a_terminal(store: Store, serve: Serve, tmp_path: Path) -> None:
    ann = program(serve(), store, "ann")
    shown = given(ann)
    terminal = label(tmp_path, store)
    assert holds(store, terminal) == shown["id"]
    time.sleep(0.5)  # as people do: what is typed ahead is dropped
    terminal.send("1")
    until(lambda: len(store.labels("r")) == 1)
    (kept,) = store.labels("r")
    assert (kept.comparison, kept.shown, kept.preference) == (shown["id"], shown["order"], float(shown["order"] == "ab")), "in one order"
    (own,) = ann.get("/api/answers").json()["answers"]
    assert (own["question"], own["choice"]) == (shown["id"], "left")
    assert ann.post("/api/answers", json=answer_to(shown, choice="right", seconds=0.6)).status_code == 200, "a change of mind"
    (changed,) = store.labels("r")
    assert changed.preference == 1 - (kept.preference or 0)
    terminal.close(force=True)
