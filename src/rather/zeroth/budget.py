"""What answers buy: the label calculator of zeroth-order optimization.

With m one-bit answers about fresh directions v ~ N(0, I) in d dimensions, the cosine of the estimate with the gradient is
sqrt(m c^2 / (m c^2 + d - 1)), c = E[y <v, u>] the signal of an answer y in {-1, 1} for the gradient's direction u.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BEST_SIGNAL = math.sqrt(2 / math.pi)
"""The signal of a judge who never errs about a value that is linear: E|<v, u>|."""
ENOUGH = 0.2
"""A cosine below which an update is mostly noise."""
FIRST = 32
"""Answers before anything is said about the signal."""


def cosine(answers: float, signal: float, size: int) -> float:
    """The cosine of the estimate with the gradient that `answers` in `size` dimensions are expected to give."""
    known = answers * signal**2
    return math.sqrt(known / (known + size - 1)) if known else 0.0


@dataclass(frozen=True)
class Signal:
    """The signal of an answer, and its 95 % interval; the lower end is 0 where the answers might as well be coin flips."""

    mean: float
    low: float
    high: float


def signal(answers: Sequence[float], directions: np.ndarray) -> Signal:
    """Estimate c from answers (m,) in {-1, 0, 1} and their directions (m, d).

    For i != j, E[y_i y_j <v_i, v_j>] = c^2: the mean over all pairs has no bias, and a standard error of about sqrt(2 d) / m where
    answers are coin flips.
    """
    y, m, d = np.asarray(answers, float), len(answers), directions.shape[1]
    total = y @ directions
    square = float(total @ total - ((y**2) @ (directions.astype(float) ** 2).sum(1))) / (m * (m - 1))
    error = math.sqrt(2 * d) / m
    return Signal(*(min(math.sqrt(max(x, 0.0)), BEST_SIGNAL) for x in (square, square - 1.96 * error, square + 1.96 * error)))


def advice(found: Signal, asked: int, left: int, size: int, won: bool = False, each: int = 1) -> str:
    """What the answers that are left will buy, in a sentence or two for whoever gives them.

    `won`: held-out tasks show progress. An answer is about `each` directions, and `found` the signal for one of them.
    """
    if asked < FIRST:
        return f"{FIRST - asked} more answers, then it can be said what the others will buy"
    best, likely = (cosine((asked + left) * each, c, size) for c in (found.high, found.mean))
    said = f"an answer's signal is {found.mean:.2f} ({found.low:.2f} to {found.high:.2f}, at most {BEST_SIGNAL:.2f})"
    if left:
        said += f"; with {left} more answers the direction's cosine with the best one is about {likely:.2f}, at most {best:.2f}"
    if found.low == 0.0 and not won:
        said += "; there is no signal yet: so far the answers might as well be coin flips"
    if best < ENOUGH:
        smaller = max(1, int((asked + left) * each * found.high**2 * (1 / ENOUGH**2 - 1)))
        said += f". That is too little: take a space of at most {smaller} numbers (now {size}), or more trajectories a side"
    return said
