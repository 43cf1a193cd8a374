"""Several answers to a prompt with ratings or ranks, as comparisons of two.

A difference of ratings is read as the log-odds that the one is better, as in Bradley and Terry's model: P = 1 / (1 + exp(-difference)).
Ratings of 4 and 3 say 0.73, 4 and 0 say 0.98, equal ones 0.5. Ranks say who is better, not by how much: 1, or 0.5 for equal ranks.
"""

import math
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from rather.data.messages import read_answer, short
from rather.errors import DataError

RATINGS = ("rating", "score", "helpfulness", "overall_score")
"""Columns that rate an answer; the first of them that is there counts."""
MOST = 100
"""Answers to one prompt: each is compared with each."""

Compared = tuple[str, str, float]
"""An answer, another one, and P(the first better)."""


def is_rated(row: dict[str, Any]) -> bool:
    """Whether a row is one answer with its rating: `prompt`, `response` and one of `RATINGS`."""
    return {"prompt", "response"} <= set(row) and any(name in row for name in RATINGS)


def is_ranked(row: dict[str, Any]) -> bool:
    """Whether a row holds all answers to a prompt: a list `answers`."""
    return {"prompt", "answers"} <= set(row)


def columns(row: dict[str, Any]) -> set[str]:
    """The columns of a rated or ranked row that count."""
    if is_rated(row):
        return {"prompt", "response", next(name for name in RATINGS if name in row)}
    return {"prompt", "answers", "ranks" if "ranks" in row else "scores"}


def read_rated(rows: list[tuple[str, dict[str, Any]]]) -> Iterator[Compared]:
    """Every pair of rated answers to one prompt; `rows` come with their places."""
    found = []
    for place, row in rows:
        name = next(name for name in RATINGS if name in row)
        found.append((read_answer(row["response"], place), _number(row[name], f"{place}: the {name}")))
    yield from _by_score(found, rows[-1][0])


def read_ranked(row: dict[str, Any], place: str) -> Iterator[Compared]:
    """Every pair of the answers in one row: with `ranks` (1 is the best, equal ones are ties) or `scores` (higher is better).

    Raises:
        DataError: neither is there, or not one for each answer.
    """
    name = "ranks" if "ranks" in row else "scores"
    answers, numbers = row["answers"], row.get(name)
    if not isinstance(answers, list) or not isinstance(numbers, list) or len(answers) != len(numbers):
        raise DataError(f"{place} has 'answers', which need a list 'ranks' (1 is the best) or 'scores' of one number for each answer")
    texts = [read_answer(x, place) for x in answers]
    values = [_number(x, f"{place}: the {name[:-1]}") for x in numbers]
    if name == "scores":
        yield from _by_score(list(zip(texts, values, strict=True)), place)
        return
    for (a, i), (b, j) in _combined(list(zip(texts, values, strict=True)), place):
        yield a, b, 1.0 if i < j else 0.5 if i == j else 0.0


def log_odds(margin: object, place: str) -> float:
    """P(chosen better) from the margin by which it is.

    Raises:
        DataError: it is no number, or negative: then the rejected answer would be the better one.
    """
    number = _number(margin, f"{place}: the margin")
    if number < 0:
        raise DataError(f"{place}: the margin {number:g} is negative, as if rejected were better than chosen; exchange them")
    return _sigmoid(number)


def _by_score(found: list[tuple[str, float]], place: str) -> Iterator[Compared]:
    for (a, x), (b, y) in _combined(found, place):
        yield a, b, _sigmoid(x - y)


def _combined(found: list[tuple[str, float]], place: str) -> Iterator[tuple[tuple[str, float], tuple[str, float]]]:
    if len(found) > MOST:
        raise DataError(f"{place} is one of {len(found)} answers to one prompt; {MOST} can be compared, each with each")
    return combinations(found, 2)


def _number(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{what} {short(value)} is no number") from None
    if not math.isfinite(number):
        raise DataError(f"{what} is {number}, not a finite number")
    return number


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - 1 / (1 + math.exp(x))
