"""How far judges agree, and whether the place on the screen sways them.

Letters: U questions, J judges. Ratings are a (J, U) array of categories, NaN where a judge did not answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import krippendorff
import numpy as np
from scipy.stats import binomtest

from rather.core import Label

Ratings = np.ndarray


@dataclass(frozen=True)
class Agreement:
    """Agreement of all judges on the questions that at least two answered; NaN where that cannot be told.

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


def measure(labels: Sequence[Label], seed: int = 0, resamples: int = 1000) -> Agreement:
    """Agreement among the answers in `labels`, read as a better, tie or b better, or which of several sides is best."""
    judges, ratings = table(labels)
    several = ratings[:, (~np.isnan(ratings)).sum(0) >= 2]
    low, high = alpha_interval(several, seed, resamples)
    full = several[:, ~np.isnan(several).any(0)]
    pairs = {(judges[i], judges[j]): cohen_kappa(ratings[i], ratings[j]) for i, j in combinations(range(len(judges)), 2)}
    return Agreement(judges, several.shape[1], raw_agreement(several), alpha(several), low, high, fleiss_kappa(full), pairs)


def table(labels: Sequence[Label]) -> tuple[list[str], Ratings]:
    """Judges and their answers as ratings: 1 a better, 0 a tie, -1 b better; 1 + the number of the side that is the best of several."""
    judges = sorted({x.judge for x in labels if x.preference is not None})
    questions = {q: i for i, q in enumerate(sorted({x.comparison for x in labels}))}
    ratings = np.full((len(judges), len(questions)), np.nan)
    for x in labels:
        if x.preference is not None:
            ratings[judges.index(x.judge), questions[x.comparison]] = np.sign(x.preference - 0.5) if x.best is None else 1 + x.best
    return judges, ratings


def raw_agreement(ratings: Ratings) -> float:
    """Share of pairs of answers to one question that are the same."""
    same = total = 0
    for a, b in combinations(ratings, 2):
        both = ~np.isnan(a) & ~np.isnan(b)
        same += int((a == b)[both].sum())
        total += int(both.sum())
    return same / total if total else float("nan")


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


def alpha(ratings: Ratings) -> float:
    """Krippendorff's alpha for nominal categories; NaN where all answers are the same or no question has two."""
    used = ratings[:, (~np.isnan(ratings)).sum(0) >= 2]
    if not used.size or len(np.unique(used[~np.isnan(used)])) < 2:
        return float("nan")
    return float(krippendorff.alpha(reliability_data=used, level_of_measurement="nominal"))


def alpha_interval(ratings: Ratings, seed: int = 0, resamples: int = 1000) -> tuple[float, float]:
    """95 % percentile interval of alpha, questions drawn again with replacement."""
    chance = np.random.default_rng(seed)
    u = ratings.shape[1]
    if not u:
        return float("nan"), float("nan")
    drawn = np.array([alpha(ratings[:, chance.integers(u, size=u)]) for _ in range(resamples)])
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return float("nan"), float("nan")
    return float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


@dataclass(frozen=True)
class PositionBias:
    """How often the side on the left was preferred, ties aside, with its 95 % interval and the p-value of one half."""

    left: int
    total: int
    low: float
    high: float
    p_value: float


def position_bias(labels: Sequence[Label]) -> PositionBias | None:
    """The two-sided binomial test of "left and right are liked equally often"; None without a clear answer about two sides."""
    clear = [x for x in labels if x.preference is not None and x.preference != 0.5 and x.best is None]
    if not clear:
        return None
    left = sum((x.preference > 0.5) == (x.left == "a") for x in clear)  # type: ignore[operator]
    result = binomtest(left, len(clear))
    interval = result.proportion_ci(method="wilson")
    return PositionBias(left, len(clear), interval.low, interval.high, float(result.pvalue))
