"""Bayesian logistic regression on features of trajectories (Bishop 2006, sec. 4.5): scores from few labels, and how sure they are.

The model is Bradley and Terry's (1952) with linear scores: of a comparison with differences of features z = phi_a - phi_b by a judge of
temperature t, P(a better) = sigmoid(w.z / t), and w ~ N(0, 1 / ridge). Preferences between 0 and 1, ties too, are targets of the same
cross-entropy. The posterior of w is taken as the normal one around its maximum (Laplace).

Which features of a trajectory count and how large the ridge is, is chosen by the evidence: how likely the answers are under the model as a
whole (MacKay 1992; Bishop 2006, sec. 4.4.1), which needs no answers kept apart.

Shape letters: n comparisons, G groups of C raw features, F features, J judges, m trajectories or differences, S samples, K members.
"""

# SciPy does not say what its functions take and give.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
import scipy  # whose parts are loaded when they are first used: 40 MB that the labelling page does without

from rather.errors import TrainingError

Array = np.ndarray[Any, np.dtype[np.float64]]
Raw = np.ndarray[Any, np.dtype[np.float32]]
Whole = np.ndarray[Any, np.dtype[np.int64]]

TOLERANCE = 1e-7
"""How far from the maximum a fit may end, in standard deviations of the posterior."""
AGAIN, LIMIT = 10, 400
"""Iterations after which the curvature is computed again, and after which a fit is given up."""
RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""The ridges that are tried: 1 / ridge is the prior variance of the score of an average trajectory."""
FEW, ENOUGH = 16, 512
"""With fewer labels nothing is chosen; and by so many at most it is chosen."""
COMPONENTS = 512
"""How many principal components stand for more features than that, as soon as so many sides are labeled."""


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
        self.factor: tuple[Array, bool] = scipy.linalg.cho_factor(inner, lower=True, overwrite_a=True, check_finite=False)

    @property
    def gain(self) -> float:
        """Log det(P^-1 H), twice the nats by which the posterior is narrower than the prior."""
        own = 2 * np.log(np.diag(self.factor[0])).sum()
        return float(own if self.dual else own - np.log(self.prior).sum())

    def solve(self, x: Array) -> Array:
        """H^-1 x, for each row of x (..., F)."""
        if not self.dual:
            return scipy.linalg.cho_solve(self.factor, x.T, check_finite=False).T
        own = x / self.prior
        return own - scipy.linalg.cho_solve(self.factor, self.rows @ own.T, check_finite=False).T @ self.rows / self.prior


@dataclass(frozen=True)
class Answers:
    """What is learned from: differences of features `z` (n, F), preferences P(a better) (n,) in [0, 1], and who of J judges answered.

    `offset` (n,) is what the differences of scores are without any weights.
    """

    z: Array
    preference: Array
    judge: Whole
    judges: int = 1
    offset: Array | float = 0.0

    def scores(self, w: Array) -> Array:
        """Differences of scores (n,) by weights (F,)."""
        return self.z @ w + self.offset

    def trust(self, log_temperatures: Array) -> Array:
        """Inverse temperatures (J,), of mean 1, since scores have no scale."""
        return self.judges * scipy.special.softmax(-log_temperatures)

    def loss(self, scores: Array, log_temperatures: Array) -> float:
        """The cross-entropy, in nats, of all answers, whose sides' scores differ by `scores` (n,)."""
        logits = self.trust(log_temperatures)[self.judge] * scores
        return float((np.logaddexp(0, logits) - self.preference * logits).sum())

    def slope(self, scores: Array, log_temperatures: Array) -> tuple[Array, Array]:
        """The gradient of `loss` by the scores (n,) and by the logarithms of the temperatures (J,)."""
        trust = self.trust(log_temperatures)
        logits = trust[self.judge] * scores
        error = scipy.special.expit(logits) - self.preference
        each = np.bincount(self.judge, error * logits, self.judges)
        return trust[self.judge] * error, trust / self.judges * each.sum() - each

    def curvature(self, scores: Array, log_temperatures: Array, prior: Array) -> Curvature:
        """The curvature (Gauss and Newton's) by weights and logarithms of temperatures together, of prior precision `prior` (F + J,).

        The logit s / t of judge j has the derivatives z / t, and -(s / t) (1[j = k] - 1 / (J t_k)) by log t_k.
        """
        trust = self.trust(log_temperatures)
        logits = trust[self.judge] * scores
        p = scipy.special.expit(logits)
        by_temperatures = -scores[:, None] * (np.eye(self.judges)[self.judge] - trust / self.judges)
        d = trust[self.judge] * np.sqrt(p * (1 - p))
        return Curvature(d[:, None] * np.concatenate([self.z, by_temperatures], 1), prior)


@dataclass(frozen=True)
class Posterior:
    """The normal approximation of p(w | answers) around its maximum: mean `w` (F,), and covariance the inverse of `curvature`.

    `log_temperatures` (J,) are at the maximum, too. `known` is a curvature near it that there is already, if there is one.
    """

    answers: Answers
    ridge: float
    w: Array
    log_temperatures: Array
    known: Curvature | None = None

    @cached_property
    def curvature(self) -> Curvature:
        """The curvature at the maximum."""
        prior = np.concatenate([np.full(len(self.w), self.ridge), np.ones(self.answers.judges)])
        return self.answers.curvature(self.answers.scores(self.w), self.log_temperatures, prior)

    @property
    def evidence(self) -> float:
        """Log p(answers | ridge), in nats: log p(answers | w) + log p(w) at the maximum, and the volume around it (Laplace).

        It is -loss - ridge |w|^2 / 2 - |log t|^2 / 2 - log det(P^-1 H) / 2.
        """
        loss = self.answers.loss(self.answers.scores(self.w), self.log_temperatures)
        norms = self.ridge * self.w @ self.w + self.log_temperatures @ self.log_temperatures
        return -loss - float(norms) / 2 - self.curvature.gain / 2

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


def log_odds(mean: Array, variance: Array) -> Array:
    """Log-odds of `moderated`."""
    return mean / np.sqrt(1 + np.pi * variance / 8)


def moderated(mean: Array, variance: Array) -> Array:
    """The mean of sigmoid(s) for s ~ N(mean, variance), nearly: sigmoid(mean / (1 + pi variance / 8)^1/2) (MacKay 1992, eq. 10)."""
    return scipy.special.expit(log_odds(mean, variance))


def fit(answers: Answers, ridge: float, start: Posterior | None = None) -> Posterior:
    """The posterior of w; `start` is one for about the same answers, such as all but the last, from where it takes a moment.

    Minimized is the cross-entropy + ridge |w|^2 / 2 + |log t|^2 / 2, by Newton's method in the form of conjugate gradients (Polak and
    Ribiere 1969), which needs the curvature of some earlier place alone: to within `TOLERANCE` of the same maximum from any start.

    Raises:
        TrainingError: it is not found, since a feature is not finite.
    """
    features, size = answers.z.shape[1], answers.z.shape[1] + answers.judges
    prior = np.concatenate([np.full(features, ridge), np.ones(answers.judges)])
    x, known = np.zeros(size), None
    if start is not None:
        x[:features], x[features : features + len(start.log_temperatures)] = start.w, start.log_temperatures
        known = start.__dict__.get("curvature", start.known)
        known = known if known is not None and known.prior.shape == x.shape else None
    scores, direction, before, slope_before = answers.scores(x[:features]), np.zeros(size), 1.0, np.zeros(size)
    for i in range(LIMIT):
        w, temperatures = x[:features], x[features:]
        if known is None or i % AGAIN == AGAIN - 1:
            known = answers.curvature(scores, temperatures, prior)
        by_scores, by_temperatures = answers.slope(scores, temperatures)
        slope = np.concatenate([by_scores @ answers.z, by_temperatures]) + prior * x
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
        length = _length(answers, prior, x, scores, direction, along)
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
    return cast(float, scipy.optimize.brentq(rise, 0.0, end, xtol=1e-12))


@dataclass(frozen=True)
class Choice:
    """Which groups of features count, what is taken off them and what they are multiplied with (F,), and the ridge.

    Over the labeled trajectories features have mean 0 and variance 1 / F, so that a ridge says the same of many features as of few. Many
    are replaced by their principal components, in the orthonormal directions `basis` (F, D); what counts is D features then, and of the
    rest nothing is known and nothing said, in no variance either. The choice was made by the `first` comparisons; `evidence` is theirs, in
    nats an answer, and NaN where they were too few.
    """

    groups: tuple[int, ...]
    center: Raw
    scale: Raw
    ridge: float
    first: int
    evidence: float = float("nan")
    basis: Raw | None = None

    @classmethod
    def standardizing(cls, groups: tuple[int, ...], features: Raw, ridge: float) -> "Choice":
        """The choice of these groups of raw features (n, 2, G, C) of labeled sides; a feature that is always the same says nothing.

        Raises:
            TrainingError: one of them is not finite.
        """
        rows = _flat(features, groups).reshape(2 * len(features), -1).astype(np.float64)
        std = rows.std(0)
        if not np.isfinite(std).all():
            raise TrainingError("features of labeled answers are not finite; leave those answers out")
        scale = np.divide(len(std) ** -0.5, std, out=np.zeros_like(std), where=std > 1e-6 * np.abs(rows).max(0))
        basis = _components((rows - rows.mean(0)) * scale) if min(len(scale) - 1, len(rows)) >= COMPONENTS else None
        return cls(groups, rows.mean(0).astype(np.float32), scale.astype(np.float32), ridge, len(features), basis=basis)

    def of(self, features: Raw) -> Array:
        """What counts (..., F) of raw features (..., G, C), standardized."""
        return self._kept((_flat(features, self.groups) - self.center) * self.scale)

    def differences(self, features: Raw) -> Array:
        """Differences (n, F) of what counts of sides a and b, from raw features (n, 2, G, C)."""
        rows = _flat(features, self.groups)
        return self._kept((rows[:, 0] - rows[:, 1]) * self.scale)

    def _kept(self, standardized: Raw) -> Array:
        return (standardized if self.basis is None else standardized @ self.basis).astype(np.float64)


def _components(rows: Array) -> Raw:
    """The directions (F, D) in which rows (m, F) of mean 0 differ most, from their Gram matrix (Bishop 2006, sec. 12.1.4)."""
    values, vectors = scipy.linalg.eigh(rows @ rows.T, subset_by_index=(len(rows) - COMPONENTS, len(rows) - 1), check_finite=False)
    some = values > 1e-9 * values[-1]
    return (rows.T @ (vectors[:, some] / np.sqrt(values[some]))).astype(np.float32)


def _flat(features: Raw, groups: tuple[int, ...]) -> Raw:
    """The raw features (..., F) of some groups."""
    rows = features if len(groups) == features.shape[-2] else features[..., list(groups), :]
    return rows.reshape(*rows.shape[:-2], rows.shape[-2] * rows.shape[-1])  # there may be none


def chosen(features: Raw, answers: Answers, candidates: Sequence[tuple[int, ...]]) -> Choice:
    """The groups, of `candidates`, and the ridge with the greatest evidence; `features` (n, 2, G, C) are raw ones of both sides.

    With fewer comparisons than `FEW` it is the first candidate, with the middle one of `RIDGES`.
    """
    every = [Choice.standardizing(groups, features, RIDGES[len(RIDGES) // 2]) for groups in candidates]
    if len(features) < FEW:
        return every[0]
    found = list[Choice]()
    for choice in every:
        known, posterior = replace(answers, z=choice.differences(features)), None
        for ridge in reversed(RIDGES):
            posterior = fit(known, ridge, posterior)
            found.append(replace(choice, ridge=ridge, evidence=posterior.evidence / len(features)))
    return max(found, key=lambda choice: choice.evidence)


@dataclass(frozen=True)
class Learned:
    """What comparisons have taught: the choice of features, the posterior of their weights, and who the J judges are."""

    choice: Choice
    posterior: Posterior
    judges: tuple[str, ...]

    def metrics(self) -> dict[str, float]:
        """What the fit came to: loss and accuracy on what was learned from, ties left out, and the choice that was made."""
        answers, scores = self.posterior.answers, self.posterior.answers.scores(self.posterior.w)
        loss = answers.loss(scores, self.posterior.log_temperatures) / len(scores)
        right, sure = (scores > 0) == (answers.preference > 0.5), answers.preference != 0.5
        found = {"loss": loss, "ridge": self.choice.ridge, "comparisons": float(len(scores))}
        found |= {"accuracy": float(right[sure].mean())} if sure.any() else {}
        return found if np.isnan(self.choice.evidence) else found | {"evidence": self.choice.evidence}

    def temperatures(self) -> dict[str, float]:
        """The temperature of each judge: above 1 for one whose answers say little; of a single one nothing can be said."""
        values = 1 / self.posterior.answers.trust(self.posterior.log_temperatures)
        return dict(zip(self.judges, values.tolist(), strict=True)) if len(self.judges) > 1 else {}

    def differences(self, features: Raw) -> tuple[Array, Array]:
        """Means (n,) and variances (n,) of the differences of the scores of sides a and b, from raw features (n, 2, G, C)."""
        z = self.choice.differences(features)
        return self.posterior.mean(z), self.posterior.variance(z)

    def log_odds(self, features: Raw, judges: Sequence[str]) -> Array:
        """Log-odds (n,) that a is better in the eyes of those of `judges` (n,), from raw features (n, 2, G, C)."""
        temperatures, (mean, variance) = self.temperatures(), self.differences(features)
        t = np.array([temperatures.get(judge, 1.0) for judge in judges])
        return log_odds(mean / t, variance / t**2)

    def members(self, count: int, seed: int) -> Array:
        """Weights (K, F) whose mean is the maximum: that alone, or draws from the posterior."""
        if count == 1:
            return self.posterior.w[None]
        drawn = self.posterior.sample(np.random.default_rng(seed), count)
        return self.posterior.w + (drawn - drawn.mean(0)) * (count / (count - 1)) ** 0.5

    def raw(self, count: int, seed: int) -> Array:
        """The weights (K, groups C) of raw features by which they score as by those of `members`, but for a constant."""
        w, basis = self.members(count, seed), self.choice.basis
        return (w if basis is None else w @ basis.T) * self.choice.scale


class Rows(Protocol):
    """Raw features (n, 2, G, C) of the sides of comparisons, an array or what reads them when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Raw: ...


def learn(
    features: Rows,
    preference: Array,
    judges: Sequence[str],
    candidates: Sequence[tuple[int, ...]],
    before: Learned | None = None,
    same: int = 0,
) -> Learned:
    """What n comparisons teach: raw features (n, 2, G, C) of their sides, preferences (n,), and the names of who judged.

    Features and ridge are chosen by the first 2^k comparisons, as many as there are, so that the choice is made again when they have
    doubled. `before`, what was learned when the first `same` comparisons were the same, saves time and changes nothing.

    Raises:
        TrainingError: there are no comparisons, or features that are not finite.
    """
    if not len(features):
        raise TrainingError("the reward head has no labels to learn from; give it at least one comparison with a preference")
    first, names = min(2 ** (len(features).bit_length() - 1), ENOUGH), tuple(sorted(set(judges)))
    whole = Answers(np.empty((len(features), 0)), preference, np.array([names.index(judge) for judge in judges]), len(names))
    if before is not None and before.choice.first == first <= same and before.judges == names:
        z = np.concatenate([before.posterior.answers.z[:same], before.choice.differences(features[same:])])
        return Learned(before.choice, fit(replace(whole, z=z), before.choice.ridge, before.posterior), names)
    begun = Answers(whole.z[:first], preference[:first], whole.judge[:first], len(names))
    choice = chosen(features[:first], begun, candidates)
    return Learned(choice, fit(replace(whole, z=choice.differences(features[:])), choice.ridge), names)
