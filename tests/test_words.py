"""The words that README, docs and the package do not use."""

import pytest

import words

CEILING = 60
"""Those that are left: names in files that must stay what they are, and words in another sense. It may fall, not rise."""


def test_struck_words_do_not_come_back() -> None:
    places = [f"{path.relative_to(words.ROOT)}:{line}: {word}" for path in words.files() for _, line, word in words.found(path.read_text())]
    assert len(places) <= CEILING, "\n".join(["see `python tests/words.py`:", *places])


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("told_of(x)", 1),
        ("self.paid = payer(worth)", 3),
        ("One attempt, two attempts", 2),
        ("the start of a run; from the start", 1),
        ("a standard deviation and a deviation", 1),
        ("optimiser, Normalise, optimizer", 2),
        ("repayment, untold, payload, worthy", 0),
        ("| GiB | its |", 1),
        ("meant_for, meant to, what is meant", 1),
        ("f'{name}_error' and JudgeError, calibration_error", 1),
    ],
)
def test_what_is_counted(text: str, count: int) -> None:
    assert len(list(words.found(text))) == count
