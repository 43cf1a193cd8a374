"""Zeroth-order estimators against closed forms; d dimensions, n directions."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rather.core import direction
from rather.losses import LINKS, sign_weights, zpg_weights
from rather.zeroth.budget import cosine

D, MU, TRIM = 12, 0.5, 1e-4
CHANCE = np.random.default_rng(0)
SLOPE, THETA = torch.tensor(CHANCE.normal(size=D)), torch.tensor(CHANCE.normal(size=D) * 0.3)


def value(x: Tensor) -> Tensor:
    """<b, x> + 0.5 sum_i sin(2 x_i)."""
    return x @ SLOPE + 0.5 * torch.sin(2 * x).sum(-1)


def smoothed_gradient() -> Tensor:
    """E over v ~ N(0, I) of the gradient at theta + mu v: E cos(2 (t + mu v)) = cos(2 t) exp(-2 mu^2)."""
    return SLOPE + torch.cos(2 * THETA) * math.exp(-2 * MU**2)


def estimate(kind: str, link: str, mirrored: bool, dimensions: int, mu: float, count: int = 200_000) -> Tensor:
    """The mean estimate when every judge tells the exact probability."""
    chance = np.random.default_rng(1)
    v = torch.tensor(chance.normal(size=(count, D)))
    if kind == "sphere":
        v /= v.norm(dim=1, keepdim=True)
    elif kind == "block":
        v = torch.tensor(np.stack([direction(i, D, "block", 4) for i in range(count // 10)])).double()
    here = value(THETA - mu * v) if mirrored else value(THETA)
    told = LINKS[link].probability(value(THETA + mu * v) - here).clamp(TRIM, 1 - TRIM)
    return (zpg_weights(told[:, None, None], mu, LINKS[link], TRIM, mirrored, dimensions)[:, None] * v).mean(0)


@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize("link", ["logistic", "probit"])
def test_zpg_estimates_the_gradient_of_the_smoothed_value(link: str, mirrored: bool) -> None:
    # A small mu keeps all probabilities inside what is trimmed; the smoothed gradient at mu = 0.1 is known as well.
    expected = SLOPE + torch.cos(2 * THETA) * math.exp(-2 * 0.1**2)
    found = estimate("gaussian", link, mirrored, 1, 0.1)
    assert (found - expected).norm() < 0.03 * expected.norm()
    assert (2 * found - expected).norm() > 0.5 * expected.norm()


@pytest.mark.parametrize("kind", ["sphere", "block"])
def test_sphere_and_blocks_need_the_factor_d_and_agree_with_gaussian(kind: str) -> None:
    # On the sphere |v| = 1, so mu sqrt(d) smooths about as widely; both are small here.
    expected = SLOPE + torch.cos(2 * THETA)
    right, wrong = estimate(kind, "logistic", True, D, 0.05), estimate(kind, "logistic", True, 1, 0.05)
    assert (right - expected).norm() < 0.05 * expected.norm()
    assert (wrong - expected).norm() > 0.5 * expected.norm()


def test_several_comparisons_and_judges_are_averaged_where_they_belong() -> None:
    # Two comparisons, two judges: shares 1/2 and 1, the second trimmed to 0.9; logits 0 and log 9; mean log(9) / 2, over 2 mu = 1
    told = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    found = zpg_weights(told, 0.5, trim=0.1)
    torch.testing.assert_close(found, torch.tensor([math.log(9) / 2]))
    # One judge says nothing: the other's answer is the share
    found = zpg_weights(torch.tensor([[[1.0, torch.nan], [torch.nan, torch.nan]]]), 0.5, trim=0.1)
    torch.testing.assert_close(found, torch.tensor([math.log(9)]))


@pytest.mark.parametrize("link", LINKS)
def test_trimmed_shares_never_give_an_infinity(link: str) -> None:
    told = torch.tensor([[[0.0]], [[1.0]], [[torch.nan]]])
    weights = zpg_weights(told, 0.1, LINKS[link], trim=0.05)
    assert weights.isfinite().all()
    assert weights[0] < weights[2] == 0 < weights[1]


@pytest.mark.parametrize("link", LINKS)
def test_links_are_undone_by_their_inverse_and_fair_at_zero(link: str) -> None:
    x = torch.linspace(-0.9, 0.9, 19, dtype=torch.float64)
    p = LINKS[link].probability(x)
    torch.testing.assert_close(LINKS[link].inverse(p), x)
    assert (p.diff() > 0).all()
    assert p[9].item() == pytest.approx(0.5)


def test_the_sign_counts_votes_ties_and_silence() -> None:
    nan = torch.nan
    told = torch.tensor([[[1.0, 1.0, 0.0]], [[0.0, nan, 0.5]], [[0.5, 0.5, 0.5]], [[nan, nan, nan]], [[1.0, 0.0, nan]]])
    assert sign_weights(told).tolist() == [1, -1, 0, 0, 0]


def test_swapping_the_twins_and_their_answers_changes_nothing() -> None:
    told, v = torch.rand(50, 2, 3).round(), torch.randn(50, D)
    for weigh in (sign_weights, lambda p: zpg_weights(p, 0.3)):
        torch.testing.assert_close((weigh(told)[:, None] * v).mean(0), (weigh(1 - told)[:, None] * -v).mean(0))


def test_the_mean_sign_times_direction_is_the_gradients_direction() -> None:
    u = SLOPE.float() / SLOPE.float().norm()
    v = torch.tensor(np.random.default_rng(2).normal(size=(400_000, D)), dtype=torch.float32)
    told = (v @ u > 0).float()
    found = (sign_weights(told[:, None, None])[:, None] * v).mean(0)
    assert (found - math.sqrt(2 / math.pi) * u).norm() < 0.01


@pytest.mark.parametrize(("size", "answers"), [(100, 50), (100, 400), (576, 240)])
def test_the_cosine_law(size: int, answers: int) -> None:
    """A judge who answers by sigmoid(<v, u>): c = E[<v, u> tanh(<v, u> / 2)]."""
    chance = np.random.default_rng(3)
    z = chance.normal(size=1_000_000)
    signal = float((z * np.tanh(z / 2)).mean())
    found = []
    for _ in range(600):
        v = chance.normal(size=(answers, size))
        told = torch.tensor(chance.random(answers) < 1 / (1 + np.exp(-v[:, 0]))).float()
        estimate = (sign_weights(told[:, None, None]).numpy()[:, None] * v).mean(0)
        found.append(estimate[0] / np.linalg.norm(estimate))
    assert np.mean(found) == pytest.approx(cosine(answers, signal, size), rel=0.05)


def test_directions_come_from_their_seed_alone() -> None:
    assert (direction(7, 100) == direction(7, 100)).all()
    assert not (direction(7, 100) == direction(8, 100)).any()
    many = np.stack([direction(i, 50) for i in range(2000)])
    assert many.dtype == np.float32
    assert abs(many.mean()) < 0.01
    assert abs(many.var() - 1) < 0.02
    assert np.linalg.norm(direction(1, 50, "sphere")) == pytest.approx(1, abs=1e-6)
    block = direction(1, 50, "block", 9)
    assert (block != 0).sum() == 9
    assert np.allclose(abs(block[block != 0]), 1 / 3)
