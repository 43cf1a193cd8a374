"""What a run achieved: win rates with intervals, accuracy and calibration of a reward model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rather.core import Comparison, Rate

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


def _interval(mean: float, variance: float, size: float) -> tuple[float, float]:
    """A mean's score interval, given the mean's variance, drawn towards one half as a mean of `size` coins is."""
    center = (mean + Z * Z / (2 * size)) / (1 + Z * Z / size)
    half = Z / (1 + Z * Z / size) * math.sqrt(variance + Z * Z / (4 * size * size))
    return center - half, center + half


def win_rate(comparisons: Sequence[Comparison], policy: str) -> Rate:
    """How often the judges prefer the side that `policy` made; comparisons of one task count as one question."""
    by_task: dict[tuple[str, str], list[float]] = {}
    for c in comparisons:
        assert c.preference is not None
        value = c.preference if c.a[0].policy == policy else 1 - c.preference
        by_task.setdefault((c.a[0].task.source, c.a[0].task.key), []).append(value)
    return rate([float(np.mean(values)) for values in by_task.values()])


@dataclass(frozen=True)
class Calibration:
    """Accuracy of P(a better) on comparisons without tie, expected calibration error, and the reliability curve.

    `bins` holds (mean prediction, share that came true, count) of each of ten equal bins that is not empty.
    """

    accuracy: Rate
    error: float
    bins: list[tuple[float, float, int]]


def calibration(predicted: Sequence[float], preferences: Sequence[float]) -> Calibration:
    """How right and how well calibrated predictions are (Guo et al. 2017, eq. 3), ties left out.

    The side that is predicted to win is taken as the positive one, so predictions lie in [0.5, 1].
    """
    pairs = [(p, y) for p, y in zip(predicted, preferences, strict=True) if y != 0.5]
    confidence = np.array([max(p, 1 - p) for p, _ in pairs])
    right = np.array([float((p > 0.5) == (y > 0.5)) for p, y in pairs])
    place = np.minimum(((confidence - 0.5) * 20).astype(int), 9)
    bins = [(float(confidence[place == i].mean()), float(right[place == i].mean()), int((place == i).sum())) for i in np.unique(place)]
    error = sum(count * abs(mean - share) for mean, share, count in bins) / max(len(pairs), 1)
    return Calibration(rate(list(right)), float(error), bins)
