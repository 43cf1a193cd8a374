"""A test that may be looked at after every comparison: is the policy of now worse than an earlier one? It stops as soon as it is sure.

Each comparison is a bet at fair odds (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting"). If now wins
at least half of the time, the wealth of who bets against it is expected never to grow, so it exceeds 1 / alpha with probability alpha at
most, however often one looks (Ville 1939).
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
    """What comparisons of now with an earlier policy have shown: now is worse, no worse, or nobody knows yet.

    `wins` are those of now, a tie being half of one, of `comparisons`.
    """

    says: Literal["worse", "no worse", "unsure"]
    wins: float
    comparisons: int


def verdict(preferences: Iterable[float]) -> Verdict:
    """The verdict of P(now is better) (n,) in [0, 1], in the order in which they were given; what comes after it is sure does not count."""
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
