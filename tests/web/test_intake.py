"""A program asks people about its own answers, while the page is open."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from clients import answer, given, program

from conftest import served
from rather.core import Comparison, Task, Trajectory
from rather.errors import DataError
from rather.store import Store
from rather.store.quality import Asking

PROGRAM = """
import sys
from rather.store import Store
store = Store(sys.argv[1])
print(store.compare("Which fruit?", ["An apple.", "A pear."]))
print(store.compare([{"role": "user", "content": "And now?"}], ["One.", "Two.", "Three."]))
"""


def test_a_program_asks_while_the_page_is_open(either: Store, where: str) -> None:
    either.set_asking("run", Asking(1, repeats=0))
    with served(either, "run") as url:
        ann = program(url, either, "ann")
        assert ann.get("/api/next").json()["question"] is None
        for _ in range(2):  # the same questions are asked once
            done = subprocess.run([sys.executable, "-c", PROGRAM, where], capture_output=True, text=True, check=True)
        numbers = list(map(int, done.stdout.split()))
        assert len(either.questions("run", "train")) == 2
        first = given(ann)
        assert first["id"] in numbers
        for _ in numbers:
            assert answer(ann, **({} if given(ann)["id"] == numbers[0] else {"choice": "place", "place": 2})).status_code == 200
    answered = either.answered("run", "train").comparisons
    assert {c.a[0].task.source for c in answered} == {"program"}
    pair = next(c for c in answered if c.a[0].task.prompt == "Which fruit?")
    assert {pair.a[0].text, pair.b[0].text} == {"An apple.", "A pear."}
    assert pair.preference in (0.0, 1.0)


def test_the_order_of_the_sides_is_drawn(store: Store) -> None:
    for i in range(40):
        assert store.compare(f"Question {i}?", ["First.", "Second."]) == store.compare(f"Question {i}?", ["Second.", "First."])
    first = sum(q.comparison.a[0].text == "First." for q in store.questions("run", "train"))
    assert 10 < first < 30


@pytest.mark.parametrize(
    ("prompt", "answers", "sentence"),
    [
        (" ", ["a", "b"], "prompt is empty"),
        ([{"role": "user"}], ["a", "b"], r"prompt\[0\] is .* a message has a role and a content"),
        ("p", "ab", "give a list of 2 to 8 answers"),
        ("p", ["a"], "give a list of 2 to 8 answers"),
        ("p", ["a", " "], r"answers\[1\] is ' '; give words"),
        ("p", ["a", "b", "a"], r"answers\[2\] is the same as answers\[0\]"),
        ("p", ["a", 3], r"answers\[1\] is 3; give words"),
        ("p", iter("ab"), "give a list of 2 to 8 answers"),
        ("p", list("abcdefghi"), "give a list of 2 to 8 answers"),
        ("p", ["a", "b\0"], r"answers\[1\] holds the character U\+0000"),
        ("\ud83d", ["a", "b"], r"prompt holds the character U\+D83D"),
        ([{"role": "user", "content": "x", "calls": [{"name\0": 1}]}], ["a", "b"], r"prompt\[0\] holds the character U\+0000"),
        ([{"role": "user", "content": "x", "when": object()}], ["a", "b"], r"prompt\[0\] has a field that cannot be kept"),
    ],
)
def test_what_is_no_question_is_refused(store: Store, prompt, answers, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        store.compare(prompt, answers)
    assert store.questions("run", "train") == []


def test_programs_that_ask_the_same_at_once_ask_one_question(either: Store, elsewhere: Store) -> None:
    begin = threading.Barrier(6)

    def ask(i: int) -> list[int]:
        found = []
        for number in range(20):
            begin.wait(30)
            found.append((either, elsewhere)[i % 2].compare(f"Question {number}?", ["First.", "Second."]))
        return found

    with ThreadPoolExecutor(6) as pool:
        (first, *others) = pool.map(ask, range(6))
    assert len(set(first)) == 20
    assert all(found == first for found in others)


def test_a_question_of_more_sides_than_letters_is_refused(store: Store) -> None:
    a, b, *others = ((Trajectory(Task("t", "1", "p"), "x", str(i)),) for i in range(9))
    with pytest.raises(DataError, match="'k' has 9 sides; there are 8 at most"):
        store.ask("run", [Comparison(a, b, key="k", others=tuple(others))])
