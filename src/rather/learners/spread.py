"""Means over the trajectories of a step, with their errors, as metrics."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np


def spread(name: str, values: Sequence[float], groups: Sequence[Hashable] | None = None) -> dict[str, float]:
    """Mean of `values`, its standard error, and their standard deviation, as metrics.

    Values of one of the `groups`, such as answers to one prompt, may be alike: then the error is that of groups drawn at random (Liang and
    Zeger 1986). It is left out where there is but one group.
    """
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    mean = float(np.mean(values))
    if groups is None:
        return {name: mean, f"{name}_stderr": std / len(values) ** 0.5, f"{name}_std": std}
    sums = dict[Hashable, float]()
    for group, value in zip(groups, values, strict=True):
        sums[group] = sums.get(group, 0.0) + value - mean
    count = len(sums)
    error = {} if count < 2 else {f"{name}_stderr": math.sqrt(count / (count - 1) * sum(x * x for x in sums.values())) / len(values)}
    return {name: mean, **error, f"{name}_std": std}


def gold_correlation(rewards: Sequence[float], gold: Sequence[float], groups: Sequence[Hashable] | None = None) -> dict[str, float]:
    """Correlation of the trajectories' rewards, or advantages, with their gold rewards, and its standard error by chance, as metrics.

    Where several are of one of the `groups`, such as answers to one prompt, it is that within groups. It is 0 where all rewards or all gold
    rewards are the same. A reward of NaN is left out.
    """
    every = range(len(gold)) if groups is None else groups
    judged = [(p, w, group) for p, w, group in zip(rewards, gold, every, strict=True) if not math.isnan(p)]
    sizes = Counter(group for *_, group in judged)
    apart = len(sizes) == len(judged)
    members = {group: [(p, w) for p, w, of in judged if of == group] for group in sizes} if not apart else {}
    means = {group: np.mean(some, 0) for group, some in members.items()}
    values = np.array([np.array((p, w)) - (0.0 if apart else means[group]) for p, w, group in judged if apart or sizes[group] > 1])
    free = len(values) - (1 if apart else sum(size > 1 for size in sizes.values())) - 2
    if free < 1:
        return {}
    p, w = (values - values.mean(0)).T
    scale = math.sqrt(float(p @ p) * float(w @ w))
    return {"gold_correlation": float(p @ w) / scale if scale > 0 else 0.0, "gold_correlation_stderr": 1 / math.sqrt(free)}
