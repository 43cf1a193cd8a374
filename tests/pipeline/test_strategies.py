"""Which two of several candidates to ask about: by hand, by identities, and against numerical integration."""

import math
from collections import Counter

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import entr, expit
from scipy.stats import norm

from rather.errors import ConfigError, TrainingError
from rather.pipeline import strategies
from rather.pipeline.strategies import JOINT, PAIRWISE, alone, moments, pick, shuffled_in, wishes

# Differences of means: 2 (0, 1), 0.5 (0, 2), -1.5 (1, 2).
MEAN = np.array([2.0, 0.0, 1.5])
# Variances of differences: 1 + 4 - 2 = 3 (0, 1), 1 + 0.25 = 1.25 (0, 2), 4 + 0.25 = 4.25 (1, 2).
COVARIANCE = np.array([[1.0, 1.0, 0.0], [1.0, 4.0, 0.0], [0.0, 0.0, 0.25]])
ALL = [*PAIRWISE, *JOINT]


@pytest.mark.parametrize(
    ("strategy", "pairs", "best"),
    [
        ("near_tie", [-2, -0.5, -1.5], (0, 2)),
        ("large_gap", [2, 0.5, 1.5], (0, 1)),
        ("d_optimal", [3, 1.25, 4.25], (1, 2)),
    ],
)
def test_means_and_variances_of_differences_by_hand(strategy: str, pairs: list[float], best: tuple[int, int]) -> None:
    found = wishes(strategy, MEAN, COVARIANCE, 0)
    assert found[np.triu_indices(3, 1)].tolist() == pairs
    assert pick(strategy, MEAN, COVARIANCE, 0) == best


def one(strategy: str, mean: float, std: float) -> float:
    """The wish for a pair whose scores differ by N(mean, std^2)."""
    return float(wishes(strategy, np.array([mean, 0.0]), np.diag([std**2, 0.0]), 0)[0, 1])


def test_a_certain_belief_by_hand() -> None:
    # P = sigmoid(log 3) = 3/4: entropy -(3/4 log 3/4 + 1/4 log 1/4) = 2 log 2 - 3/4 log 3, and an answer tells nothing
    assert one("entropy", math.log(3), 0) == pytest.approx(2 * math.log(2) - 0.75 * math.log(3))
    assert one("disagreement", math.log(3), 0) == pytest.approx(0, abs=1e-12)
    assert one("bald", math.log(3), 0) == pytest.approx(0, abs=1e-12)


def test_a_nearly_certain_belief_by_hand() -> None:
    # sigmoid has the slope 1/4 at 0: P has the standard deviation 0.01 / 4; information is var P / (2 P (1 - P)) = 0.0025^2 / 0.5
    assert one("disagreement", 0, 0.01) == pytest.approx(0.0025, rel=1e-3)
    assert one("bald", 0, 0.01) == pytest.approx(1.25e-5, rel=1e-3)


def test_a_very_uncertain_belief_by_hand() -> None:
    # P is 0 or 1, with a half each: standard deviation 1/2, and an answer tells one bit
    assert one("disagreement", 0, 1000) == pytest.approx(0.5, abs=0.01)
    assert one("bald", 0, 1000) == pytest.approx(math.log(2), abs=0.03)
    assert one("entropy", 0, 1000) == pytest.approx(math.log(2))


@pytest.mark.parametrize("std", [0.3, 2.0, 10.0])
@pytest.mark.parametrize("mean", [0.0, 1.3, -6.0])
def test_integrals_are_as_by_quadrature(mean: float, std: float) -> None:
    def expected(f) -> float:
        return quad(lambda s: f(s) * norm.pdf(s, mean, std), mean - 9 * std, mean + 9 * std, limit=400, epsabs=1e-13, points=[0.0, mean])[0]

    p = expected(expit)
    variance = expected(lambda s: (expit(s) - p) ** 2)
    inner = expected(lambda s: entr(expit(s)) + entr(expit(-s)))
    assert one("disagreement", mean, std) == pytest.approx(variance**0.5, abs=1e-10)
    assert one("entropy", mean, std) == pytest.approx(entr(p) + entr(1 - p), abs=1e-10)
    assert one("bald", mean, std) == pytest.approx(entr(p) + entr(1 - p) - inner, abs=1e-10)


@pytest.mark.parametrize("strategy", ALL)
def test_wishes_are_symmetric_and_no_candidate_meets_itself(strategy: str) -> None:
    found = wishes(strategy, MEAN, COVARIANCE, 3)
    assert np.array_equal(found, found.T)
    assert np.isneginf(np.diag(found)).all()
    assert np.isfinite(found[np.triu_indices(3, 1)]).all()
    assert np.array_equal(found, wishes(strategy, MEAN, COVARIANCE, 3)), "the same seed gives the same"


@pytest.mark.parametrize("strategy", PAIRWISE)
def test_permuted_candidates_have_permuted_wishes(strategy: str) -> None:
    order = np.array([2, 0, 1])
    permuted = wishes(strategy, MEAN[order], COVARIANCE[np.ix_(order, order)], 0)
    np.testing.assert_allclose(permuted, wishes(strategy, MEAN, COVARIANCE, 0)[np.ix_(order, order)], rtol=1e-12)


@pytest.mark.parametrize("strategy", PAIRWISE)
def test_only_differences_count(strategy: str) -> None:
    """What is added to all scores, sure or unsure, changes nothing; nor does a change of all signs."""
    expected = wishes(strategy, MEAN, COVARIANCE, 0)
    np.testing.assert_allclose(wishes(strategy, MEAN + 5, COVARIANCE + 7, 0), expected, rtol=1e-9)
    np.testing.assert_allclose(wishes(strategy, -MEAN, COVARIANCE, 0), expected, rtol=1e-9)


@pytest.mark.parametrize(("strategy", "factor"), [("near_tie", 3), ("large_gap", 3), ("d_optimal", 9)])
def test_scores_three_times_as_large(strategy: str, factor: float) -> None:
    found, expected = wishes(strategy, 3 * MEAN, 9 * COVARIANCE, 0), wishes(strategy, MEAN, COVARIANCE, 0)
    np.testing.assert_allclose(found, factor * expected)


# Two independent scores ~ N(0, 1), and one that is 0 for sure: best with 3/8, 3/8 and 1/4.
UNSURE = np.zeros(3), np.diag([1.0, 1.0, 0.0])


def test_double_thompson_by_hand() -> None:
    # Of p_i p_j / (1 - p_i) + p_i p_j / (1 - p_j): (0, 1) 2 * 9/64 / (5/8) = 0.45; (0, 2) 6/64 / (5/8) + 6/64 / (3/4) = 0.275
    counts = Counter(pick("double_thompson", *UNSURE, seed) for seed in range(2000))
    assert counts[0, 1] / 2000 == pytest.approx(0.45, abs=0.04)
    assert counts[0, 2] / 2000 == pytest.approx(0.275, abs=0.04)
    assert counts[1, 2] / 2000 == pytest.approx(0.275, abs=0.04)


def test_double_thompson_takes_the_second_best_when_it_is_sure_of_the_best() -> None:
    assert pick("double_thompson", np.array([0.0, 3.0, 2.0, 1.0]), np.zeros((4, 4)), 0) == (1, 2)


def test_random_pairs_are_equally_likely() -> None:
    counts = Counter(pick("random", MEAN, COVARIANCE, seed) for seed in range(1500))
    assert all(count / 1500 == pytest.approx(1 / 3, abs=0.05) for count in counts.values())
    assert len(counts) == 3


def test_information_directed_by_hand() -> None:
    # s_0 - s_1 ~ N(0, 2): regret E|s_0 - s_1| / 2 = (4 / pi)^1/2 / 2, squared 1 / pi
    found = wishes("information_directed", np.zeros(2), np.eye(2), 0)[0, 1]
    assert found == pytest.approx(math.pi * one("bald", 0, 2**0.5), rel=0.05)


def test_information_directed_is_as_by_quadrature() -> None:
    mean, std = np.array([0.5, 0.0, -0.4]), np.array([0.6, 1.0, 1.5])

    def density(x: float) -> float:
        """Of the largest score: the sum over i of the density of s_i times P(s_j < x) of the others."""
        below, at = norm.cdf(x, mean, std), norm.pdf(x, mean, std)
        return float(sum(at[i] * np.delete(below, i).prod() for i in range(3)))

    best = quad(lambda x: x * density(x), -15, 15, points=[0.0])[0]
    found = wishes("information_directed", mean, np.diag(std**2), 0)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        gain = one("bald", mean[i] - mean[j], math.hypot(std[i], std[j]))
        assert found[i, j] == pytest.approx(gain / (best - (mean[i] + mean[j]) / 2) ** 2, rel=0.1)


def test_information_directed_leaves_out_what_is_bad() -> None:
    """The third is least known, and asking about it tells most, but it is not the best."""
    mean, covariance = np.array([2.0, 2.0, 0.0]), np.diag([0.5, 0.5, 4.0])
    assert pick("bald", mean, covariance, 0) == (0, 2)
    assert pick("information_directed", mean, covariance, 0) == (0, 1)


def test_nothing_is_left_to_ask() -> None:
    assert wishes("information_directed", np.zeros(3), np.zeros((3, 3)), 0)[np.triu_indices(3, 1)].tolist() == [0, 0, 0]


@pytest.mark.parametrize("strategy", ALL)
def test_two_candidates_are_a_pair(strategy: str) -> None:
    assert pick(strategy, np.array([1.0, 0.0]), np.eye(2), 0) == (0, 1)


def test_an_ensemble_is_a_belief() -> None:
    # scores 1 and 3, 0 and 4: means 2 and 2; deviations -1, 1 and -2, 2: variances 1 and 4, covariance (2 + 2) / 2
    mean, covariance = moments(np.array([[1.0, 0.0], [3.0, 4.0]]))
    assert mean.tolist() == [2, 2]
    assert covariance.tolist() == [[1, 2], [2, 4]]
    # the difference is 1 for one member and -1 for the other
    assert wishes("d_optimal", mean, covariance, 0)[0, 1] == 1


def test_what_cannot_be_asked_about_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"strategy is 'best'; take one of random, .*, d_optimal"):
        wishes("best", MEAN, COVARIANCE, 0)
    with pytest.raises(ConfigError, match="1 candidates make no pair"):
        pick("bald", np.zeros(1), np.eye(1), 0)
    for mean, covariance in ((np.array([0.0, math.nan]), np.eye(2)), (np.zeros(2), np.diag([1.0, math.inf]))):
        with pytest.raises(TrainingError, match="not finite"):
            wishes("near_tie", mean, covariance, 0)


def test_the_points_span_the_normal_distribution() -> None:
    moments_of = [float(strategies.POINTS**k @ strategies.WEIGHTS) for k in (0, 2, 4)]
    assert moments_of == pytest.approx([1, 1, 3])


def test_questions_alone_by_hand_and_as_one_pair_of_two() -> None:
    mean, variance = np.array([2.0, -0.5, 0.0]), np.array([3.0, 1.25, 1e-3])
    assert alone("near_tie", mean, variance, 0).tolist() == [-2, -0.5, 0]
    assert alone("d_optimal", mean, variance, 0).tolist() == [3, 1.25, 1e-3]
    for strategy in PAIRWISE:
        each = [one(strategy, m, math.sqrt(v)) for m, v in zip(mean, variance, strict=True)]
        assert alone(strategy, mean, variance, 0) == pytest.approx(each)
    directed = alone("information_directed", mean, variance, 0)
    # E|s| of N(0, 0.001) is (2 / pi * 0.001)^1/2: information 0.001 / 8 over the square of half of that
    assert directed[2] == pytest.approx(0.001 / 8 / (0.001 * 2 / math.pi / 4), rel=0.1)
    assert alone("double_thompson", mean, variance, 0).tolist() == [1, 1, 1]
    with pytest.raises(ConfigError, match="^strategy is 'x'"):
        alone("x", mean, variance, 0)


def test_those_at_random_stand_anywhere_as_often_and_the_others_keep_their_order() -> None:
    wished, by_chance = np.array([0.1, 0.5, 0.3, 0.9, 0.7]), np.array([False, True, False, True, False])
    places, firsts = Counter[tuple[int, ...]](), Counter[int]()
    for seed in range(2000):
        found = shuffled_in(wished, by_chance, np.random.default_rng(seed))
        assert found[[0, 2, 4]].tolist() == [0.1, 0.3, 0.7]
        order = [int(i) for i in np.argsort(-found, kind="stable")]
        places[tuple(sorted((order.index(1), order.index(3))))] += 1
        firsts[order[0]] += 1
    assert len(places) == 10, "two of five places: any two"
    assert min(places.values()) > 150
    assert max(places.values()) < 250
    assert firsts[4] == pytest.approx(1200, abs=100), "the most wanted one comes first in three of five"
    assert firsts[1] == pytest.approx(400, abs=80)
    assert firsts[3] == pytest.approx(400, abs=80)
    everywhere = Counter(int(shuffled_in(wished, np.full(5, True), np.random.default_rng(seed)).argmax()) for seed in range(1000))
    assert min(everywhere[i] for i in range(5)) > 150
    assert shuffled_in(wished, np.full(5, False), np.random.default_rng(0)).tolist() == wished.tolist()
    assert shuffled_in(np.empty(0), np.empty(0, bool), np.random.default_rng(0)).tolist() == []
