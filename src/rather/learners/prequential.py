"""How well answers are predicted before they are learned from, each by what those before it have taught (Dawid 1984)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rather.learners.rates import rate


def figures(log_odds: Sequence[float], preferences: Sequence[float]) -> dict[str, float]:
    """Mean log loss in nats, and accuracy with its interval, ties left out; of log-odds that a is better, and preferences for a.

    Log-odds of 0 foresee nothing: they are half right.
    """
    odds, said = np.array(log_odds), np.array(preferences)
    right = rate([float(p) for p in np.where(odds == 0, 0.5, (odds > 0) == (said > 0.5))[said != 0.5]])
    found = {"prequential_loss": float((np.logaddexp(0, odds) - said * odds).mean()), "answers": float(right.count)}
    if right.count:
        found |= {"prequential_accuracy": right.mean, "prequential_accuracy_low": right.low, "prequential_accuracy_high": right.high}
    return found


def last_sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    """See `sentence`, of the last of a run's metrics that say it."""
    return next((said for row in reversed(rows) if (said := sentence(row))), "")


def sentence(values: Mapping[str, Any]) -> str:
    """What a step's metrics say of it; nothing where there is nothing to say."""
    if "prequential_accuracy" not in values:
        return ""
    accuracy, low, high = (100 * values[f"prequential_accuracy{end}"] for end in ("", "_low", "_high"))
    interval = f"95 % interval {low:.0f} to {high:.0f} %"
    return f"{accuracy:.0f} % of {values['answers']:.0f} answers were predicted right before they were learned from ({interval})"
