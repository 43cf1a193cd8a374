"""Bayesian logistic regression: by hand, beside scipy and scikit-learn, and what must not change anything."""

import numpy as np
import pytest
from scipy import integrate, optimize, special
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from rather.errors import TrainingError
from rather.learners import head
from rather.learners.head import RIDGES, Answers, Choice, Posterior, chosen, fit, learn, moderated


def answers(n: int, features: int, judges: int = 1, seed: int = 0, soft: bool = False) -> Answers:
    """Differences by chance, and preferences by weights of length 3."""
    chance = np.random.default_rng(seed)
    z = chance.standard_normal((n, features))
    w = chance.standard_normal(features)
    p = special.expit(3 * z @ w / np.linalg.norm(w))
    preference = np.round(p, 1) if soft else (chance.random(n) < p).astype(float)
    return Answers(z, preference, chance.integers(0, judges, n), judges)


def one(z: float, preference: float, ridge: float) -> Posterior:
    return fit(Answers(np.array([[z]]), np.array([preference]), np.array([0])), ridge)


def test_one_label_of_one_feature_by_hand() -> None:
    """The maximum has sigmoid(-w) = ridge w: at w = 1 with ridge = 1 / (1 + e); H = p (1 - p) + ridge, p = sigmoid(1)."""
    ridge = 1 / (1 + np.e)
    found = one(1.0, 1.0, ridge)
    assert found.w == pytest.approx([1.0], abs=1e-6)
    p = np.e / (1 + np.e)
    assert found.variance(np.array([[1.0], [2.0]])) == pytest.approx([1 / (p * (1 - p) + ridge), 4 / (p * (1 - p) + ridge)])
    assert found.mean(np.array([[1.0], [-2.0]])) == pytest.approx([1.0, -2.0], abs=1e-6)


def test_ties_alone_say_nothing_but_where_scores_are_equal() -> None:
    """w = 0 and H = z z^T / 4 + ridge I = [[5, 2], [2, 2]]: a score along z is known better than one across."""
    found = fit(Answers(np.array([[4.0, 2.0]]), np.array([0.5]), np.array([0])), 1.0)
    assert np.abs(found.w).max() < 1e-9
    assert found.covariance(np.eye(2)) == pytest.approx(np.array([[2.0, -2.0], [-2.0, 5.0]]) / 6)
    assert found.probability(np.array([[1.0, 1.0]])) == pytest.approx([0.5])


def test_an_answer_against_one_that_is_as_sure_is_a_tie() -> None:
    both = fit(Answers(np.array([[1.0], [1.0]]), np.array([1.0, 0.0]), np.array([0, 0])), 0.1)
    assert both.w == pytest.approx([0.0], abs=1e-9)


@pytest.mark.parametrize(("n", "features"), [(60, 5), (5, 60), (40, 40)])
def test_the_maximum_is_that_of_scikit_learn(n: int, features: int) -> None:
    """Of which both sides of each comparison are examples, with opposite signs and half the weight."""
    a = answers(n, features)
    peer = LogisticRegression(C=2 / 0.3, fit_intercept=False, tol=1e-12, max_iter=10_000)
    peer.fit(np.concatenate([a.z, -a.z]), np.concatenate([a.preference, 1 - a.preference]), np.full(2 * n, 0.25))
    assert fit(a, 0.3).w == pytest.approx(peer.coef_[0], abs=2e-5)


@pytest.mark.parametrize(("n", "features"), [(30, 6), (6, 30)])
def test_the_maximum_with_judges_is_that_of_scipy(n: int, features: int) -> None:
    a, ridge, judges = answers(n, features, 3, soft=True), 0.5, 3

    def loss(x: np.ndarray) -> float:
        w, t = x[:features], x[features:]
        inverse = judges * np.exp(-t) / np.exp(-t).sum()
        logits = inverse[a.judge] * (a.z @ w)
        cross = np.logaddexp(0, -logits) * a.preference + np.logaddexp(0, logits) * (1 - a.preference)
        return float(cross.sum() + ridge * w @ w / 2 + t @ t / 2)

    peer = optimize.minimize(loss, np.zeros(features + judges), method="BFGS", options={"gtol": 1e-7})
    found = fit(a, ridge)
    assert found.w == pytest.approx(peer.x[:features], abs=1e-4)
    assert found.log_temperatures == pytest.approx(peer.x[features:], abs=1e-4)
    assert a.trust(found.log_temperatures).mean() == pytest.approx(1.0)


@pytest.mark.parametrize("judges", [1, 3])
@pytest.mark.parametrize(("n", "features"), [(50, 8), (8, 50)])
def test_one_answer_more_gives_what_a_cold_fit_gives(n: int, features: int, judges: int) -> None:
    a = answers(n, features, judges)
    fewer = Answers(a.z[:-1], a.preference[:-1], a.judge[:-1], judges)
    start = fit(fewer, 0.2)
    for warm in (fit(a, 0.2, start), fit(a, 0.2, fit(fewer, 0.2, fit(a, 0.2)))):
        cold = fit(a, 0.2)
        assert warm.w == pytest.approx(cold.w, abs=1e-6)
        assert warm.variance(a.z) == pytest.approx(cold.variance(a.z), rel=1e-5)
    assert np.array_equal(fit(a, 0.2, cold).w, cold.w), "there is nothing left to do"
    assert fit(a, 0.2, fit(a, 5.0)).w == pytest.approx(cold.w, abs=1e-6), "from another ridge"
    _ = start.curvature  # from here on it is what the next fit begins with
    assert fit(a, 0.2, start).w == pytest.approx(fit(a, 0.2).w, abs=1e-6)


def test_a_judge_who_comes_later_joins() -> None:
    a = answers(40, 6, 3)
    start = fit(Answers(a.z[:30], a.preference[:30], a.judge[:30] % 2, 2), 0.2)
    assert fit(a, 0.2, start).w == pytest.approx(fit(a, 0.2).w, abs=1e-6)


@pytest.mark.parametrize(("n", "features"), [(20, 6), (6, 20)])
def test_what_must_not_change_anything(n: int, features: int) -> None:
    a = answers(n, features, 2, soft=True)
    w = fit(a, 0.4).w
    order = np.random.default_rng(1).permutation(n)
    flip = np.where(np.arange(n) % 3 == 0, -1.0, 1.0)
    same = {
        "another order": Answers(a.z[order], a.preference[order], a.judge[order], 2),
        "sides swapped and labels flipped": Answers(a.z * flip[:, None], np.where(flip < 0, 1 - a.preference, a.preference), a.judge, 2),
    }
    for what, other in same.items():
        assert fit(other, 0.4).w == pytest.approx(w, abs=1e-6), what
    single = Answers(a.z, a.preference, np.zeros(n, np.int64))
    twice = Answers(np.repeat(a.z, 2, 0), np.repeat(a.preference, 2), np.zeros(2 * n, np.int64))
    assert fit(twice, 0.8).w == pytest.approx(fit(single, 0.4).w, abs=1e-6), "each pair twice, and twice the ridge"


@pytest.mark.parametrize(("n", "features"), [(40, 7), (7, 40)])
def test_the_covariance_is_the_inverse_of_the_second_derivatives(n: int, features: int) -> None:
    a, ridge = answers(n, features), 0.7
    found = fit(a, ridge)
    p = special.expit(a.z @ found.w)
    inverse = np.linalg.inv(a.z.T @ np.diag(p * (1 - p)) @ a.z + ridge * np.eye(features))
    x = np.random.default_rng(3).standard_normal((4, features))
    assert found.covariance(x) == pytest.approx(x @ inverse @ x.T)
    assert found.variance(x) == pytest.approx(np.diag(x @ inverse @ x.T))
    drawn = found.sample(np.random.default_rng(0), 20_000)
    std = np.sqrt(np.diag(x @ inverse @ x.T))
    scores = (drawn @ x.T - found.mean(x)) / std
    assert scores.mean(0) == pytest.approx(np.zeros(4), abs=0.03), "4 standard errors of 20,000 draws"
    assert np.cov(scores, rowvar=False) == pytest.approx(x @ inverse @ x.T / np.outer(std, std), abs=0.04)
    again = found.sample(np.random.default_rng(0), 20_000)
    assert np.array_equal(drawn, again)


def test_the_covariance_knows_that_temperatures_are_learned() -> None:
    """Gauss and Newton's: by finite differences of all logits."""
    a, ridge = answers(30, 4, 3), 0.5
    found = fit(a, ridge)
    best = np.concatenate([found.w, found.log_temperatures])

    def logits(x: np.ndarray) -> np.ndarray:
        inverse = 3 * np.exp(-x[4:]) / np.exp(-x[4:]).sum()
        return inverse[a.judge] * (a.z @ x[:4])

    derivatives = np.stack([(logits(best + e) - logits(best - e)) / 2e-6 for e in 1e-6 * np.eye(7)], 1)
    p = special.expit(logits(best))
    h = derivatives.T @ np.diag(p * (1 - p)) @ derivatives + np.diag([ridge] * 4 + [1.0] * 3)
    assert found.covariance(np.eye(4)) == pytest.approx(np.linalg.inv(h)[:4, :4], rel=1e-5, abs=1e-7)


def test_the_evidence_is_the_integral_over_the_prior() -> None:
    """Of one feature, where it can be done: Laplace's approximation is off by hundredths of a nat."""
    a = answers(20, 1)
    for ridge in (0.3, 3.0):

        def density(w: float, ridge: float = ridge) -> float:
            p = special.expit(a.z[:, 0] * w)
            return float(np.prod(np.where(a.preference == 1, p, 1 - p)) * norm.pdf(w, 0, ridge**-0.5))

        assert fit(a, ridge).evidence == pytest.approx(np.log(integrate.quad(density, -30, 30)[0]), abs=0.05)


@pytest.mark.parametrize(("n", "features"), [(40, 7), (7, 40)])
def test_the_evidence_is_that_of_the_equation(n: int, features: int) -> None:
    """Bishop's (4.137), with determinants of the whole."""
    a, ridge = answers(n, features), 0.5
    found = fit(a, ridge)
    p = special.expit(a.z @ found.w)
    h = a.z.T @ np.diag(p * (1 - p)) @ a.z + ridge * np.eye(features)
    likely = np.log(np.where(a.preference == 1, p, 1 - p)).sum() - ridge * found.w @ found.w / 2 + features * np.log(ridge) / 2
    assert found.evidence == pytest.approx(likely - np.linalg.slogdet(h)[1] / 2)


def sides(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Raw features (n, 2, 3, 8), of which the second group of three says what is preferred, at an odd scale and place."""
    chance = np.random.default_rng(seed)
    features = chance.standard_normal((n, 2, 3, 8)).astype(np.float32)
    preference = (features[:, 0, 1, :7].sum(-1) > features[:, 1, 1, :7].sum(-1)).astype(np.float64)
    features[:, :, 1] = 40 * features[:, :, 1] + 1000
    features[..., 7] = 5.0
    return features, preference


def test_features_are_chosen_that_say_something() -> None:
    features, preference = sides(200)
    found = learn(features, preference, ["me"] * 200, [(0,), (1,), (0, 1, 2)])
    assert found.choice.groups == (1,)
    assert found.choice.ridge == RIDGES[0], "of labels without noise the weights may be large"
    assert found.choice.first == 128
    noise = np.random.default_rng(1).integers(0, 2, 200).astype(np.float64)
    nothing = learn(features, noise, ["me"] * 200, [(0,), (1,), (0, 1, 2)])
    assert nothing.choice.ridge >= 3, "and where there is nothing to learn small"
    again = learn(features, preference, ["me"] * 200, [(0,), (1,), (0, 1, 2)], before=nothing, same=0)
    assert again.choice.groups == (1,), "what was chosen by other answers does not count"
    assert again.posterior.w == pytest.approx(found.posterior.w, abs=1e-5)
    two, drawn = found.members(2, 0), found.posterior.sample(np.random.default_rng(0), 2)
    assert two.mean(0) == pytest.approx(found.posterior.w)
    assert two[0] - two[1] == pytest.approx((drawn[0] - drawn[1]) * 2**0.5), "as far apart as the posterior is wide"
    unseen, answer = sides(200, 1)
    right = (found.posterior.probability(found.choice.differences(unseen)) > 0.5) == (answer > 0.5)
    assert right.mean() > 0.9
    assert found.metrics()["accuracy"] > 0.95


def test_features_are_standardized_by_labeled_trajectories() -> None:
    """Mean 0 and variance 1 / F; of a constant feature nothing is left, whatever it is later."""
    features, _ = sides(100)
    choice = Choice.standardizing((1,), features, 1.0)
    x = choice.of(features).reshape(200, 8)
    assert x.mean(0) == pytest.approx(np.zeros(8), abs=1e-5)
    assert x[:, :7].var(0) == pytest.approx(np.full(7, 1 / 8), rel=1e-4)
    features[..., 7] = 1e6
    assert not choice.of(features)[..., 7].any()
    pairs = choice.of(features)
    assert choice.differences(features) == pytest.approx(pairs[:, 0] - pairs[:, 1], abs=1e-5)


def many(n: int, seed: int = 0, inside: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """600 raw features (n, 2, 2, 300) that vary in so many directions, more and more, and preferences by one of those that vary most."""
    chance = np.random.default_rng(seed)
    directions = np.random.default_rng(0).standard_normal((inside, 600)) / 600**0.5
    known = chance.standard_normal((n, 2, inside)) * np.linspace(0.1, 1, inside)
    features = (known @ directions + 5).reshape(n, 2, 2, 300).astype(np.float32)
    return features, (known[:, 0, -20:].sum(-1) > known[:, 1, -20:].sum(-1)).astype(np.float64)


def test_principal_components_of_many_features(monkeypatch: pytest.MonkeyPatch) -> None:
    few = many(255)
    assert learn(*few, ["me"] * 255, [(0, 1)]).choice.basis is None, "of 128 comparisons are too few sides"
    choice = Choice.standardizing((0, 1), many(300)[0], 1.0)
    assert choice.basis is not None
    assert choice.basis.shape == (600, 512)
    assert choice.basis.T @ choice.basis == pytest.approx(np.eye(512), abs=1e-4)
    rows = ((many(300)[0].reshape(600, 600) - choice.center) * choice.scale).astype(np.float64)
    values = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
    assert (choice.of(many(300)[0]).reshape(600, 512) ** 2).sum(0)[::-1] == pytest.approx(values[:512] ** 2, rel=1e-3)
    pairs = choice.of(few[0])
    assert choice.differences(few[0]) == pytest.approx(pairs[:, 0] - pairs[:, 1], abs=1e-5)
    labels = many(600, 1, inside=100)
    found = learn(*labels, ["me"] * 600, [(0, 1)])
    assert found.posterior.w.shape == (100,), "there are not more directions"
    begun = learn(labels[0][:590], labels[1][:590], ["me"] * 590, [(0, 1)])
    assert learn(*labels, ["me"] * 600, [(0, 1)], begun, 590).posterior.w == pytest.approx(found.posterior.w, abs=1e-5)
    monkeypatch.setattr(head, "COMPONENTS", 600)
    whole, others = learn(*labels, ["me"] * 600, [(0, 1)]), many(50, 2, inside=100)[0]
    assert whole.choice.basis is None
    x, z = found.choice.of(others[:, 0]), found.choice.differences(others)
    every, differences = whole.choice.of(others[:, 0]), whole.choice.differences(others)
    assert found.posterior.probability(z) == pytest.approx(whole.posterior.probability(differences), abs=1e-3)
    assert found.posterior.mean(x) == pytest.approx(whole.posterior.mean(every), abs=1e-3)
    assert found.posterior.covariance(x) == pytest.approx(whole.posterior.covariance(every), abs=1e-3)


def test_few_labels_choose_nothing() -> None:
    features, preference = sides(15)
    known = Answers(np.empty((15, 0)), preference, np.zeros(15, np.int64))
    choice = chosen(features, known, [(0, 1, 2), (1,)])
    assert (choice.groups, choice.ridge) == ((0, 1, 2), 1.0)
    assert np.isnan(choice.evidence)
    assert "evidence" not in learn(features, preference, ["me"] * 15, [(0,)]).metrics()


def test_probabilities_are_the_mean_over_the_posterior() -> None:
    """MacKay's approximation, beside the integral."""
    for mean, variance in ((0.5, 0.1), (1.0, 4.0), (-3.0, 9.0)):
        exact = integrate.quad(lambda s, m=mean, v=variance: special.expit(s) * norm.pdf(s, m, v**0.5), -40, 40)[0]
        assert moderated(np.array([mean]), np.array([variance])) == pytest.approx([exact], abs=0.015)
    assert moderated(np.array([2.0]), np.array([0.0])) == pytest.approx([special.expit(2.0)])


def test_a_judge_who_errs_half_the_time_hardly_counts() -> None:
    a = answers(400, 10, 2, seed=2)
    chance = np.random.default_rng(0)
    noise = Answers(a.z, np.where(a.judge == 1, chance.integers(0, 2, 400), a.preference), a.judge, 2)
    careful, alike = a.judge == 0, Answers(a.z, noise.preference, np.zeros(400, np.int64))
    best = fit(Answers(a.z[careful], a.preference[careful], a.judge[careful]), 0.5).w
    found = fit(noise, 0.5)
    assert found.answers.trust(found.log_temperatures)[1] < 0.2

    def cosine(w: np.ndarray) -> float:
        return float(w @ best / np.linalg.norm(w) / np.linalg.norm(best))

    assert cosine(found.w) > 0.99
    assert cosine(found.w) > cosine(fit(alike, 0.5).w) + 0.02


def test_features_that_are_not_finite_are_refused() -> None:
    a = answers(5, 3)
    a.z[2, 1] = np.nan
    with pytest.raises(TrainingError, match="not finite"):
        fit(a, 0.1)
