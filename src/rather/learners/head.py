"""Bayesian logistic regression on features of trajectories (Bishop 2006, sec. 4.5): scores from few labels, and how sure they are.

The model is Bradley and Terry's (1952) with linear scores: of a comparison with differences of features z = phi_a - phi_b by a judge of
temperature t, P(a better) = sigmoid(w.z / t), and w ~ N(0, 1 / ridge). Preferences between 0 and 1, ties too, are targets of the same
cross-entropy. The posterior of w is taken as the normal one around its maximum (Laplace).

Shape letters: n comparisons, F features, J judges, m trajectories or differences that are asked about, S samples.
"""

# SciPy does not say what its functions take and give.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import brentq
from scipy.special import expit, softmax

from rather.errors import TrainingError

Array = np.ndarray[Any, np.dtype[np.float64]]
Whole = np.ndarray[Any, np.dtype[np.int64]]

TOLERANCE = 1e-7
"""How far from the maximum a fit may end, in standard deviations of the posterior."""
AGAIN, LIMIT = 10, 400
"""Iterations after which the curvature is computed again, and after which a fit is given up."""


class Curvature:
    """H = R^T R + P, the negative Hessian of a log posterior, as something that equations are solved with.

    R is `rows` (n, F), P the diagonal matrix of `prior` (F,). With more features than comparisons it is Woodbury's identity that solves
    them, from the (n, n) matrix I + R P^-1 R^T (Rasmussen and Williams 2006, sec. 3.4).
    """

    def __init__(self, rows: Array, prior: Array) -> None:
        self.rows, self.prior = rows, prior
        self.dual = rows.shape[1] > len(rows)
        scaled = rows / np.sqrt(prior) if self.dual else rows
        inner = scaled @ scaled.T if self.dual else scaled.T @ scaled
        inner[np.diag_indices_from(inner)] += 1.0 if self.dual else prior
        self.factor: tuple[Array, bool] = cho_factor(inner, lower=True, overwrite_a=True, check_finite=False)

    def solve(self, x: Array) -> Array:
        """H^-1 x, for each row of x (..., F)."""
        if not self.dual:
            return cho_solve(self.factor, x.T, check_finite=False).T
        own = x / self.prior
        return own - cho_solve(self.factor, self.rows @ own.T, check_finite=False).T @ self.rows / self.prior


@dataclass(frozen=True)
class Answers:
    """What is learned from: differences of features `z` (n, F), preferences P(a better) (n,) in [0, 1], and who of J judges answered."""

    z: Array
    preference: Array
    judge: Whole
    judges: int = 1

    def trust(self, log_temperatures: Array) -> Array:
        """Inverse temperatures (J,), of mean 1, since scores have no scale."""
        return self.judges * softmax(-log_temperatures)

    def slope(self, scores: Array, log_temperatures: Array) -> tuple[Array, Array]:
        """The gradient of the cross-entropy by the scores (n,) that the sides differ by, and by the logarithms of the temperatures (J,)."""
        trust = self.trust(log_temperatures)
        logits = trust[self.judge] * scores
        error = expit(logits) - self.preference
        each = np.bincount(self.judge, error * logits, self.judges)
        return trust[self.judge] * error, trust / self.judges * each.sum() - each

    def curvature(self, scores: Array, log_temperatures: Array, ridge: float) -> Curvature:
        """The curvature (Gauss and Newton's) by weights and logarithms of temperatures together: J features more, of prior variance 1.

        The logit s / t of judge j has the derivatives z / t, and -(s / t) (1[j = k] - 1 / (J t_k)) by log t_k.
        """
        trust = self.trust(log_temperatures)
        logits = trust[self.judge] * scores
        p = expit(logits)
        by_temperatures = -scores[:, None] * (np.eye(self.judges)[self.judge] - trust / self.judges)
        d = trust[self.judge] * np.sqrt(p * (1 - p))
        prior = np.concatenate([np.full(self.z.shape[1], ridge), np.ones(self.judges)])
        return Curvature(d[:, None] * np.concatenate([self.z, by_temperatures], 1), prior)


@dataclass(frozen=True)
class Posterior:
    """The normal approximation of p(w | answers) around its maximum: mean `w` (F,), and covariance the inverse of `curvature`.

    `log_temperatures` (J,) are at the maximum, too. `known` is the curvature that the maximum was found with.
    """

    answers: Answers
    ridge: float
    w: Array
    log_temperatures: Array
    known: Curvature

    @cached_property
    def curvature(self) -> Curvature:
        """The curvature at the maximum."""
        return self.answers.curvature(self.answers.z @ self.w, self.log_temperatures, self.ridge)

    def mean(self, x: Array) -> Array:
        """Mean scores (m,) of features, or of differences of features, `x` (m, F)."""
        return x @ self.w

    def variance(self, x: Array) -> Array:
        """Variances (m,) of the scores of `x` (m, F)."""
        return np.maximum((x * self._solved(x)).sum(1), 0.0)

    def covariance(self, x: Array) -> Array:
        """Joint covariance (m, m) of the scores of `x` (m, F), such as those of m answers to a prompt."""
        found = x @ self._solved(x).T
        return (found + found.T) / 2

    def probability(self, x: Array) -> Array:
        """P(a better) (m,) for differences `x` (m, F); see `moderated`."""
        return moderated(self.mean(x), self.variance(x))

    def sample(self, generator: np.random.Generator, count: int) -> Array:
        """Weights (S, F) drawn from the posterior.

        With e and f standard normal, H^-1 (R^T e + P^1/2 f) has the covariance H^-1 (R^T R + P) H^-1 = H^-1.
        """
        h = self.curvature
        drawn = generator.standard_normal((count, len(h.rows))) @ h.rows
        drawn += np.sqrt(h.prior) * generator.standard_normal(drawn.shape)
        return self.w + h.solve(drawn)[:, : len(self.w)]

    def _solved(self, x: Array) -> Array:
        """Covariances (m, F) of the scores of `x` (m, F) with the weights."""
        return self.curvature.solve(np.pad(x, ((0, 0), (0, self.answers.judges))))[:, : len(self.w)]


def moderated(mean: Array, variance: Array) -> Array:
    """The mean of sigmoid(s) for s ~ N(mean, variance), nearly: sigmoid(mean / (1 + pi variance / 8)^1/2) (MacKay 1992, eq. 10)."""
    return expit(mean / np.sqrt(1 + np.pi * variance / 8))


def fit(answers: Answers, ridge: float, start: Posterior | None = None) -> Posterior:
    """The posterior of w; `start` is one for about the same answers, such as all but the last, from where it is found in a moment.

    Minimized is the cross-entropy + ridge |w|^2 / 2 + |log t|^2 / 2, by Newton's method in the form of conjugate gradients (Polak and
    Ribiere 1969), which needs the curvature of some earlier place alone: to within `TOLERANCE` of the same maximum from any start.

    Raises:
        TrainingError: it is not found, since a feature is not finite.
    """
    features, size = answers.z.shape[1], answers.z.shape[1] + answers.judges
    x, known = np.zeros(size), None
    if start is not None:
        x[:features], x[features : features + len(start.log_temperatures)] = start.w, start.log_temperatures
        known = start.__dict__.get("curvature", start.known)
        known = known if known.prior.shape == x.shape else None
    scores, direction, before, slope_before = answers.z @ x[:features], np.zeros(size), 1.0, np.zeros(size)
    for i in range(LIMIT):
        w, temperatures = x[:features], x[features:]
        if known is None or i % AGAIN == AGAIN - 1:
            known = answers.curvature(scores, temperatures, ridge)
        by_scores, by_temperatures = answers.slope(scores, temperatures)
        slope = np.concatenate([by_scores @ answers.z, by_temperatures]) + known.prior * x
        step = -known.solve(slope)
        decrement = -float(step @ slope)
        if not np.isfinite(decrement):
            break
        if decrement <= TOLERANCE**2:
            return Posterior(answers, ridge, w, temperatures, known)
        direction = step + max(0.0, float(step @ (slope_before - slope)) / before) * direction
        if direction @ slope >= 0:
            direction = step
        before, slope_before = decrement, slope
        along = answers.z @ direction[:features]
        length = _length(answers, known.prior, x, scores, direction, along)
        x, scores = x + length * direction, scores + length * along
    raise TrainingError(f"the head's weights did not settle in {LIMIT} steps; look for features that are not finite, or raise the ridge")


def _length(answers: Answers, prior: Array, x: Array, scores: Array, direction: Array, along: Array) -> float:
    """How far to go along a direction downhill, which changes the scores by `along`: to where the loss begins to rise."""
    features = answers.z.shape[1]
    still, faster = float(direction @ (prior * x)), float(direction @ (prior * direction))

    def rise(t: float) -> float:
        by_scores, by_temperatures = answers.slope(scores + t * along, x[features:] + t * direction[features:])
        return float(by_scores @ along + by_temperatures @ direction[features:]) + still + t * faster

    end = 1.0
    while rise(end) < 0:
        end *= 2
    return cast(float, brentq(rise, 0.0, end, xtol=1e-12))
