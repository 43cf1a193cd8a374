"""What a run achieved: win rates with intervals, accuracy and calibration of a reward model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rather.core import Comparison, Rate
from rather.learners.rates import rate


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
