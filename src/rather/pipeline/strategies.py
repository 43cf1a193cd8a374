"""Which two of several candidates to ask about, from a normal belief about their scores.

P(a better) = sigmoid(s), s the difference of the scores of a and b.

Shape letters: n candidates, N pairs of them, S samples, Q points of an integral.
"""

# SciPy does not say what its functions take and give.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false

from collections.abc import Callable

import numpy as np
from scipy.special import entr, expit

from rather.errors import ConfigError, TrainingError
from rather.learners.head import Array

POINTS = np.linspace(-8.0, 8.0, 257)
"""Where integrals over a standard normal variable are taken. At even steps, since sigmoid turns to a step where the variance is large:
at a standard deviation of 10 they are wrong by less than 1e-12, where 128 points of Gauss and Hermite are by 1e-3."""
WEIGHTS = np.exp(-(POINTS**2) / 2) / np.exp(-(POINTS**2) / 2).sum()
REDRAWS = 100
"""How often `double_thompson` draws the second candidate again while it is the first."""
NEXT = 1e-9
"""How much more than another a question is wanted that is to come just before it."""
SAMPLES = 4096
"""Samples of scores that `information_directed` measures regret by."""


def near_tie(mean: Array, variance: Array) -> Array:
    """The nearer the mean difference is to nothing, the higher: (N,), (N,) to (N,), as all of these."""
    del variance
    return -np.abs(mean)


def large_gap(mean: Array, variance: Array) -> Array:
    """The size of the mean difference: pairs whose answer teaches what is good, though it is expected."""
    del variance
    return np.abs(mean)


def disagreement(mean: Array, variance: Array) -> Array:
    """Standard deviation of P(a better) under the belief (Christiano et al. 2017, sec. 2.2.4, for an ensemble)."""
    p = expit(_points(mean, variance))
    return np.sqrt(((p - (p @ WEIGHTS)[:, None]) ** 2) @ WEIGHTS)


def entropy(mean: Array, variance: Array) -> Array:
    """Entropy of the mean P(a better), in nats: what an answer could tell at most."""
    s = _points(mean, variance)
    return entr(expit(s) @ WEIGHTS) + entr(expit(-s) @ WEIGHTS)


def bald(mean: Array, variance: Array) -> Array:
    """Nats that an answer is expected to tell about the scores: `entropy` less the mean entropy of P (Houlsby et al. 2011, eq. 2)."""
    s = np.abs(_points(mean, variance))
    each = np.log1p(np.exp(-s)) + s * expit(-s)  # the entropy of sigmoid(s)
    return np.maximum(entropy(mean, variance) - each @ WEIGHTS, 0.0)


def d_optimal(mean: Array, variance: Array) -> Array:
    """Variance of the difference: a linear measurement of it would shrink the determinant of the covariance most."""
    del mean
    return variance


def at_random(mean: Array, covariance: Array, generator: np.random.Generator) -> Array:
    """All pairs are as likely the best: (n,), (n, n) to (N,), as all of these."""
    del covariance
    return generator.random(len(mean) * (len(mean) - 1) // 2)


def double_thompson(mean: Array, covariance: Array, generator: np.random.Generator) -> Array:
    """1 for one pair and 0 for all others: the best of one sample of scores, and the best of another (compare Wu and Liu 2016).

    The second is drawn again while it is the first (Dwaracherla et al. 2024), after `REDRAWS` it is the second best of the last sample.
    """
    order = _samples(mean, covariance, generator, 2 + REDRAWS).argsort(1)[:, ::-1]
    first = order[0, 0]
    others = np.flatnonzero(order[1:, 0] != first)
    last = order[-1]
    second = order[1 + others[0], 0] if len(others) else last[last != first][0]
    i, j = np.triu_indices(len(mean), 1)
    return ((i == min(first, second)) & (j == max(first, second))).astype(np.float64)


def information_directed(mean: Array, covariance: Array, generator: np.random.Generator) -> Array:
    """Information an answer is expected to give, `bald`, over squared regret, E[max_k s_k] - E[s_i + s_j] / 2.

    Russo and Van Roy (2014) minimize the inverse over mixtures of actions; this takes the best single pair. A pair that tells nothing is
    wanted by 0, and so are all where there is nothing to regret.
    """
    samples = _samples(mean, covariance, generator, SAMPLES)
    i, j = np.triu_indices(len(mean), 1)
    average = samples.mean(0)
    regret = samples.max(1).mean() - (average[i] + average[j]) / 2
    gain = bald(*_differences(mean, covariance))
    return np.divide(gain, regret**2, out=np.zeros_like(gain), where=(gain > 0) & (regret > 0))


PAIRWISE: dict[str, Callable[[Array, Array], Array]] = {
    "near_tie": near_tie,
    "large_gap": large_gap,
    "disagreement": disagreement,
    "entropy": entropy,
    "bald": bald,
    "d_optimal": d_optimal,
}
"""Strategies that look at means and variances of differences alone."""
JOINT: dict[str, Callable[[Array, Array, np.random.Generator], Array]] = {
    "random": at_random,
    "double_thompson": double_thompson,
    "information_directed": information_directed,
}
"""Strategies that draw, and compare each candidate with all others."""


def wishes(strategy: str, mean: Array, covariance: Array, seed: int) -> Array:
    """How much each pair of n candidates is wanted (n, n), symmetric, -inf on the diagonal, for scores ~ N(mean, covariance).

    Raises:
        ConfigError: there is no such strategy, or no pair.
        TrainingError: a number is not finite.
    """
    if strategy not in (*PAIRWISE, *JOINT):
        raise ConfigError(f"strategy is {strategy!r}; take one of {', '.join((*JOINT, *PAIRWISE))}")
    if len(mean) < 2:
        raise ConfigError(f"{len(mean)} candidates make no pair to ask about; give at least 2")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise TrainingError("the belief about scores is not finite; look for weights of the reward model that are not")
    if strategy in PAIRWISE:
        each = PAIRWISE[strategy](*_differences(mean, covariance))
    else:
        each = JOINT[strategy](mean, covariance, np.random.default_rng(seed))
    found = np.full((len(mean), len(mean)), -np.inf)
    i, j = np.triu_indices(len(mean), 1)
    found[i, j] = found[j, i] = each
    return found


def alone(strategy: str, mean: Array, variance: Array, seed: int) -> Array:
    """How much each of N questions about two candidates is wanted (N,), by mean and variance (N,) of the differences of their scores.

    Strategies that look for the best candidate have no other to choose; `double_thompson` wants all questions equally.

    Raises:
        ConfigError, TrainingError: see `wishes`.
    """
    if strategy in PAIRWISE:
        return PAIRWISE[strategy](mean, variance)
    pairs = zip(mean, variance, strict=True)
    return np.array([wishes(strategy, np.array([m, 0.0]), np.diag([v, 0.0]), seed + i)[0, 1] for i, (m, v) in enumerate(pairs)])


def shuffled_in(wished: Array, at_random: Array, generator: np.random.Generator) -> Array:
    """Wishes (N,) that put those `at_random` (N,), True or False, at places drawn among all; the others keep theirs.

    So the first of all is one of them as often as they are among the N.
    """
    places = np.sort(generator.permutation(len(wished))[: at_random.sum()])
    others, each = np.sort(wished[np.logical_not(at_random)])[::-1], np.arange(len(places))
    after = np.append(others, others[-1] - 2 * NEXT if len(others) else 0.0)  # what each comes just before
    found = wished.astype(np.float64)
    found[generator.permutation(np.flatnonzero(at_random))] = after[places - each] + NEXT * (1 - each / max(1, len(places)))
    return found


def best(wished: Array) -> tuple[int, int]:
    """The pair i < j that is wanted most, the first of several, by wishes (n, n)."""
    i, j = np.triu_indices(len(wished), 1)
    place = int(wished[i, j].argmax())
    return int(i[place]), int(j[place])


def pick(strategy: str, mean: Array, covariance: Array, seed: int) -> tuple[int, int]:
    """The pair i < j that is wanted most; see `wishes`."""
    return best(wishes(strategy, mean, covariance, seed))


def moments(scores: Array) -> tuple[Array, Array]:
    """Mean (n,) and covariance (n, n) of the scores (K, n) by an ensemble of K members, as of a belief that is these members."""
    mean = scores.mean(0)
    return mean, (scores - mean).T @ (scores - mean) / len(scores)


def _differences(mean: Array, covariance: Array) -> tuple[Array, Array]:
    """Means and variances (N,) of the differences of the scores of all pairs i < j."""
    i, j = np.triu_indices(len(mean), 1)
    own = np.diag(covariance)
    return mean[i] - mean[j], np.maximum(own[i] + own[j] - 2 * covariance[i, j], 0.0)


def _points(mean: Array, variance: Array) -> Array:
    """Differences (N, Q) at the points of the integral."""
    return mean[:, None] + np.sqrt(variance)[:, None] * POINTS


def _samples(mean: Array, covariance: Array, generator: np.random.Generator, count: int) -> Array:
    """Scores (S, n) drawn from the belief, whose covariance may be singular."""
    return generator.multivariate_normal(mean, covariance, count, check_valid="ignore", method="eigh")
