"""A person at a real terminal, played by another program."""

import os
import sys
import time
from pathlib import Path

import pexpect
import pytest

from rather.core import Comparison, Task, Trajectory
from rather.store import Store, own

SCRIPT = """
import sys
from rich.console import Console
from rather.judges import people
from rather.store import Store
print("answered", people.ask(Store(sys.argv[1]), "run", "me", "train", "Which one?", Console(width=100)))
"""


DUMB = {**os.environ, "TERM": "dumb"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path / "store.db"))
    tasks = [Task("f", str(i), f"prompt {i}") for i in range(1, 6)]
    sides = [
        ((Trajectory(t, "p", f"first of {t.key} [bold]x[/bold]"),), (Trajectory(t, "p", f"second of {t.key}\x1b[31m"),)) for t in tasks
    ]
    made.ask("run", [Comparison(a, b, key=t.key) for t, (a, b) in zip(tasks, sides, strict=True)])
    return made


def play(tmp_path: Path) -> pexpect.spawn:
    return pexpect.spawn(sys.executable, ["-c", SCRIPT, str(tmp_path / "store.db")], timeout=30, encoding="utf-8", env=DUMB)


def test_guidelines_stand_before_the_first_question(store: Store, tmp_path: Path) -> None:
    rules = '"# Be strict\\n\\n* **right** before nice\\n\\x1b[31m[bold]as written[/bold]"'
    script = SCRIPT.replace("Console(width=100))", f"Console(width=100), {rules})")
    child = pexpect.spawn(sys.executable, ["-c", script, str(tmp_path / "store.db")], timeout=30, encoding="utf-8", env=DUMB)
    child.expect("question 1 of 5")
    before = child.before or ""
    assert before.index("Be strict") < before.index("right before nice") < before.index("Which one?")
    assert "[bold]as written[/bold]" in before
    assert "\x1b[31m" not in before
    press(child, "q")
    child.expect("answered 0")


def press(child: pexpect.spawn, key: str) -> None:
    time.sleep(0.3)  # as people do, after they have seen the question: what is typed ahead is dropped
    child.send(key)


def test_keys(store: Store, tmp_path: Path) -> None:
    child = play(tmp_path)
    for number, key in (("1", "1"), ("2", "1"), ("3", "="), ("4", "s"), ("5", "2")):
        child.expect(f"question {number} of 5")
        child.expect(f"prompt {number}")
        press(child, "x")  # another key does nothing
        press(child, key)
    child.expect("answered 5")
    child.expect(pexpect.EOF)
    labels = {x.comparison: x for x in store.labels("run")}
    first, second = ([float(labels[i].shown[place] == "a") for i in range(1, 6)] for place in (0, 1))
    assert [labels[i].preference for i in range(1, 6)] == [first[0], first[1], 0.5, None, second[4]]
    assert {x.shown for x in labels.values()} == {"ab", "ba"}
    assert all(x.seconds is not None and x.seconds > 0 for x in labels.values())
    assert store.judges() == {"me": "person"}


def test_undo_and_stop(store: Store, tmp_path: Path) -> None:
    child = play(tmp_path)
    child.expect("question 1 of 5")
    press(child, "1")
    child.expect("question 2 of 5")
    press(child, "u")
    child.expect("withdrawn")
    child.expect("question 1 of 5")
    child.expect("prompt 1")
    press(child, "2")
    child.expect("question 2 of 5")
    press(child, "q")
    child.expect("answered 1")
    child.expect(pexpect.EOF)
    (label,) = store.labels("run")
    assert (label.comparison, label.preference) == (1, float(label.shown == "ba"))
    child = play(tmp_path)
    child.expect("question 2 of 5")
    child.close(force=True)


def test_what_strangers_wrote_is_shown_as_text(store: Store, tmp_path: Path) -> None:
    child = play(tmp_path)
    child.expect("question 1 of 5")
    child.expect("╯ ╰")
    shown = child.before or ""
    assert "first of 1 [bold]x[/bold]" in shown
    assert "second of 1" in shown
    press(child, "q")
    child.expect(pexpect.EOF)
    assert "\x1b[31m" not in shown + (child.before or "")


def test_the_best_of_four(tmp_path: Path) -> None:
    made = Store(str(tmp_path / "store.db"))
    for n in (1, 2):
        a, b, *others = ((Trajectory(Task("f", "x", "prompt"), "p", word),) for word in ("red", "green", "blue", "grey"))
        made.ask("run", [Comparison(a, b, key=str(n), others=tuple(others))])
    child = play(tmp_path)
    for number in (1, 2):
        child.expect(f"question {number} of 2")
        child.expect("grey")
        press(child, "5")
        press(child, "4")
    child.expect("answered 2")
    labels = {x.comparison: x for x in made.labels("run")}
    for x in labels.values():
        assert x.best == "abcd".index(x.shown[3])
        assert x.preference == float(x.best == 0)


def test_criteria_are_asked_for_one_after_the_other_before_the_whole(store: Store, tmp_path: Path) -> None:
    store.ask("run", [_of_three()])
    script = SCRIPT.replace("Console(width=100))", 'Console(width=100), "", ["helpful", "[bold]honest"])')
    child = pexpect.spawn(sys.executable, ["-c", script, str(tmp_path / "store.db")], timeout=30, encoding="utf-8", env=DUMB)

    def say(*steps: tuple[str, str]) -> None:
        for asked, key in steps:
            child.expect_exact(asked)
            press(child, key)

    helpful, honest, overall = "Which is more: helpful?", "Which is more: [bold]honest?", "Which is better overall?"
    say((helpful, "1"), (honest, "="), (overall, "2"))
    say((helpful, "2"), (honest, "u"), (helpful, "1"), (honest, "2"), (overall, "u"), (honest, "1"), (overall, "="))
    say((helpful, "1"), (honest, "s"))
    say((helpful, "u"), ("withdrawn", "x"), (helpful, "="), (honest, "="), (overall, "s"))
    say((helpful, "2"), (honest, "2"), (overall, "1"))
    say((helpful, "2"), (honest, "1"), (overall, "1"))
    child.expect("question 6 of 6")
    press(child, "3")
    child.expect("answered 6")
    labels = [x.label for x in own.answers(store, "run", "me", 2**31 - 1)][::-1]
    left = [{name: p if x.shown == "ab" else 1 - p for name, p in x.criteria.items()} for x in labels]
    assert left == [
        {"helpful": 1.0, "[bold]honest": 0.5}, {"helpful": 1.0, "[bold]honest": 1.0}, {},
        {"helpful": 0.0, "[bold]honest": 0.0}, {"helpful": 0.0, "[bold]honest": 1.0}, {},
    ]  # fmt: skip
    assert [x.preference is None for x in labels] == [False, False, True, False, False, False]


def _of_three() -> Comparison:
    task = Task("f", "6", "prompt 6")
    a, b, c = ((Trajectory(task, "p", f"{word} of 6"),) for word in ("first", "second", "third"))
    return Comparison(a, b, key="6", others=(c,))


def test_one_answer_alone_is_good_or_bad(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store.db"))
    store.ask("run", [Comparison((Trajectory(Task("f", str(i), "p"), "p", f"alone {i}"),), (), key=str(i)) for i in range(3)], "unpaired")
    script = SCRIPT.replace('"train"', '"unpaired"')
    child = pexpect.spawn(sys.executable, ["-c", script, str(tmp_path / "store.db")], timeout=30, encoding="utf-8", env=DUMB)
    for i, key in enumerate("1=2s"):  # there is no tie
        if key != "2":
            child.expect(f"alone {min(i, 2)}") if key != "=" else child.expect("alone 1")
            child.expect("1 good  2 bad")
        press(child, key)
    child.expect("answered 3")
    assert [(x.preference, x.shown) for x in store.labels("run")] == [(1.0, "a"), (0.0, "a"), (None, "a")]
    store.close()
