"""How far judges agree, and whether the place on the screen sways them.

Letters: U questions, J judges. Ratings are a (J, U) array: 1 for a better, 0 for a tie, -1 for b better, 1 + the number of the side that
is the best of several; NaN where a judge did not answer.
"""

import math
from dataclasses import dataclass
from itertools import combinations

import krippendorff
import numpy as np

Ratings = np.ndarray
Z = 1.959963984540054
"""The quantile of the standard normal distribution at 0.975."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of all judges on the questions that at least two answered; NaN where that is not known.

    `raw` is the share of pairs of answers that are the same; `alpha` Krippendorff's alpha with its 95 % bootstrap interval over
    questions (`low`, `high`); `kappa` Fleiss' kappa, on the questions that all judges answered; `pairs` Cohen's kappa of each two.
    """

    judges: list[str]
    questions: int
    raw: float
    alpha: float
    low: float
    high: float
    kappa: float
    pairs: dict[tuple[str, str], float]


def agreement(judges: list[str], ratings: Ratings, seed: int = 0, resamples: int = 1000) -> Agreement:
    """Agreement of judges, whose answers are the rows of `ratings`."""
    several = ratings[:, (~np.isnan(ratings)).sum(0) >= 2]
    full = several[:, ~np.isnan(several).any(0)]
    pairs = {(judges[i], judges[j]): cohen_kappa(ratings[i], ratings[j]) for i, j in combinations(range(len(judges)), 2)}
    counts = _counts(several)
    raw, point, interval = of_counts(counts, np.ones(len(counts), int), seed, resamples)
    return Agreement(judges, len(counts), raw, point, *interval, fleiss_kappa(full), pairs)


def of_counts(counts: np.ndarray, often: np.ndarray, seed: int, resamples: int) -> tuple[float, float, tuple[float, float]]:
    """Share of pairs of answers that are the same, alpha and its interval; see `Agreement`.

    `counts` (S, C) says how many judges chose each category, of questions with at least two answers; `often` (S,) how many such there are.
    """
    counts = counts[:, counts.any(0)]
    sorts, often = _sorts(counts, often)
    return same_pairs(sorts, often), _alpha(sorts.repeat(often, axis=0)), _interval(sorts, often, seed, resamples)


def _counts(ratings: Ratings) -> np.ndarray:
    """How many judges chose each category, (U, C)."""
    categories = np.unique(ratings[~np.isnan(ratings)])
    return np.stack([(ratings == c).sum(0) for c in categories], axis=1) if len(categories) else np.zeros((ratings.shape[1], 0), int)


def _sorts(counts: np.ndarray, often: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that differ, in their order, and how often each is there."""
    order = np.lexsort(counts.T[::-1]) if counts.size else np.arange(0)
    counts, often = counts[order], often[order]
    first = np.flatnonzero(np.r_[True, (counts[1:] != counts[:-1]).any(1)][: len(counts)])
    return counts[first], np.add.reduceat(often, first) if len(first) else often


def same_pairs(counts: np.ndarray, often: np.ndarray) -> float:
    """Share of pairs of answers to one question that are the same; NaN where no question has two. See `of_counts`."""
    m = counts.sum(1)
    total = int((m * (m - 1)) @ often)
    return int((counts * (counts - 1)).sum(1) @ often) / total if total else float("nan")


def cohen_kappa(a: np.ndarray, b: np.ndarray) -> float:
    """Agreement of two judges beyond chance, (p_o - p_e) / (1 - p_e) (Cohen 1960); NaN where chance explains all."""
    both = ~np.isnan(a) & ~np.isnan(b)
    a, b = a[both], b[both]
    if not len(a):
        return float("nan")
    expected = sum(float((a == c).mean() * (b == c).mean()) for c in np.union1d(a, b))
    return float("nan") if expected == 1 else (float((a == b).mean()) - expected) / (1 - expected)


def fleiss_kappa(ratings: Ratings) -> float:
    """Agreement of J judges who all answered all questions, beyond chance (Fleiss 1971); NaN where chance explains all."""
    j, u = ratings.shape
    if j < 2 or not u:
        return float("nan")
    counts = np.stack([(ratings == c).sum(0) for c in np.unique(ratings)], axis=1)
    observed = float(((counts**2).sum(1) - j).mean() / (j * (j - 1)))
    expected = float(((counts.sum(0) / (j * u)) ** 2).sum())
    return float("nan") if expected == 1 else (observed - expected) / (1 - expected)


def _alpha(counts: np.ndarray) -> float:
    """Krippendorff's alpha for nominal categories; NaN where all answers are the same or no question has two."""
    if counts.shape[1] < 2 or not len(counts):
        return float("nan")
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))


def _interval(sorts: np.ndarray, often: np.ndarray, seed: int, resamples: int) -> tuple[float, float]:
    """95 % percentile interval of alpha, questions drawn again with replacement.

    Questions with the same number of answers of each kind are alike, so only how often each sort is drawn needs to be drawn.
    """
    if not len(sorts):
        return float("nan"), float("nan")
    m = sorts.sum(1)
    disagreement = (sorts * (m[:, None] - sorts)).sum(1) / (m - 1)
    drawn = np.random.default_rng(seed).multinomial(often.sum(), often / often.sum(), size=resamples)
    n_c = drawn @ sorts
    n = n_c.sum(1)
    expected = (n_c * (n[:, None] - n_c)).sum(1) / (n - 1)
    varied = expected > 0
    alphas = 1 - (drawn @ disagreement)[varied] / expected[varied]
    if not len(alphas):
        return float("nan"), float("nan")
    return float(np.quantile(alphas, 0.025)), float(np.quantile(alphas, 0.975))


@dataclass(frozen=True)
class PositionBias:
    """How often the side on the left was preferred, ties aside, with its 95 % interval and the p-value of one half."""

    left: int
    total: int
    low: float
    high: float
    p_value: float


def bias(left: int, total: int) -> PositionBias:
    """The exact binomial test and Wilson's interval (1927) of `left` among `total` answers."""
    from scipy.special import bdtr  # a third of a second, which most who ask for agreement need not wait for

    p_value = min(1.0, 2 * float(bdtr(min(left, total - left), total, 0.5)))
    center, half = left + Z**2 / 2, Z * math.sqrt(left * (total - left) / total + Z**2 / 4)
    return PositionBias(left, total, (center - half) / (total + Z**2), (center + half) / (total + Z**2), p_value)
