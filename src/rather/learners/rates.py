"""The mean of values, between 0 and 1 or of any size, with its interval."""

import math
from collections.abc import Sequence

import numpy as np

from rather.core import Rate

Z = 1.959963984540054  # 97.5 % quantile of the normal distribution
PRIOR = 2
"""Values that vary like a coin's, which an interval adds to those that there are."""


def rate(values: Sequence[float]) -> Rate:
    """Wilson's (1927) score interval of the mean of `values`, (n,) in [0, 1], with their own variance in place of a coin's.

    Values in between, as shares of votes and ties are, vary less than 0s and 1s. So that a few that happen to agree do not pass for
    certain, their variance is taken as if `PRIOR` more were there which vary like a coin's. Wilson draws the interval towards one half, as
    if by a few more coins; here among n, or among as many as would know the mean as well (the effective sample size, Korn and Graubard
    1998), whichever makes a side wider: neither alone covers means near 0 and 1. Of 0s and 1s it is Wilson's.
    """
    n = len(values)
    if not n:
        return Rate(math.nan, math.nan, math.nan, 0)
    mean = float(np.mean(values))
    coin = mean * (1 - mean)
    variance = min(coin, (n * float(np.var(values)) + PRIOR * coin) / (n + PRIOR))
    effective = n * coin / variance if variance > 0 else n
    sides = [_interval(mean, variance / n, size) for size in (n, effective)]
    return Rate(mean, max(0.0, min(low for low, _ in sides)), min(1.0, max(high for _, high in sides)), n)


def of_any_size(values: Sequence[float]) -> Rate:
    """The mean of `values` (n,), and its interval where they vary as a normal distribution does; one of a single value is unknown."""
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    half = Z * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Rate(mean, mean - half, mean + half, n)


def _interval(mean: float, variance: float, size: float) -> tuple[float, float]:
    """A mean's score interval, given the mean's variance, drawn towards one half as a mean of `size` coins is."""
    center = (mean + Z * Z / (2 * size)) / (1 + Z * Z / size)
    half = Z / (1 + Z * Z / size) * math.sqrt(variance + Z * Z / (4 * size * size))
    return center - half, center + half
