"""A sequential test of whether the current policy is worse than an earlier one, which may be looked at after every comparison.

Each comparison is a bet at fair odds (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting"). If the
current policy wins at least half of the time, the wealth of someone who bets against it is expected never to grow. So it exceeds 1 / alpha
with probability alpha at most, however often one looks (Ville 1939).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

ALPHA = 0.05
"""How often at most a policy that is as good is said to be worse, and the other way round."""
BETS = (np.arange(200) + 0.5) / 200
"""Shares of the wealth that are bet; the wealth is the mean over all of them."""


@dataclass(frozen=True)
class Verdict:
    """What comparisons of the current policy with an earlier one have shown; `wins` are of the current one, a tie being half of one."""

    result: Literal["worse", "no worse", "unsure"]
    wins: float
    comparisons: int


def verdict(preferences: Iterable[float]) -> Verdict:
    """The verdict by P(current policy is better) (n,) in [0, 1], in the order in which they were given, as soon as there is one."""
    wealth = np.ones((2, len(BETS)))
    wins, count = 0.0, 0
    for p in preferences:
        edge = 1 - 2 * p
        wealth *= np.stack([1 + BETS * edge, 1 - BETS * edge])
        wins, count = wins + p, count + 1
        worse, better = wealth.mean(1)
        if worse >= 1 / ALPHA:
            return Verdict("worse", wins, count)
        if better >= 1 / ALPHA:
            return Verdict("no worse", wins, count)
    return Verdict("unsure", wins, count)
