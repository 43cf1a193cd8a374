import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from rather.losses import (
    bradley_terry_loss,
    gae,
    group_advantages,
    hinge_loss,
    implicit_scores,
    ipo_loss,
    kl_estimate,
    log_odds,
    mean_logprobs,
    ppo_clip_loss,
    robust_loss,
    simpo_loss,
    value_loss,
    whiten,
)

t = torch.tensor


def assert_close(found: torch.Tensor, expected: object) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float32), atol=1e-6, rtol=1e-5)


def test_bradley_terry_by_hand() -> None:
    # -log sigmoid(2 - 1) = log(1 + e^-1) = 0.313262; -log sigmoid(-1) = 1.313262
    assert_close(bradley_terry_loss(t([2.0]), t([1.0]), t([1.0])), 0.313262)
    assert_close(bradley_terry_loss(t([2.0]), t([1.0]), t([0.0])), 1.313262)
    # a tie is the mean of both: 0.813262
    assert_close(bradley_terry_loss(t([2.0]), t([1.0]), t([0.5])), 0.813262)
    # margin 1 takes the whole difference away: log 2; center 0.01 * (2 + 1)^2 = 0.09
    assert_close(bradley_terry_loss(t([2.0]), t([1.0]), t([1.0]), margin=1.0), math.log(2))
    assert_close(bradley_terry_loss(t([2.0]), t([1.0]), t([1.0]), center=0.01), 0.403262)


def test_bradley_terry_swapped_sides() -> None:
    a, b, p = torch.randn(7), torch.randn(7), torch.rand(7)
    assert_close(bradley_terry_loss(a, b, p, margin=0.3), bradley_terry_loss(b, a, 1 - p, margin=-0.3))


def test_bradley_terry_of_an_ensemble_is_the_mean_of_its_members() -> None:
    a, b, p = torch.randn(3, 5), torch.randn(3, 5), torch.rand(5)
    assert_close(bradley_terry_loss(a, b, p), sum(bradley_terry_loss(a[k], b[k], p) for k in range(3)) / 3)


def test_bradley_terry_in_parts_gives_the_same_gradient() -> None:
    a = torch.randn(6, requires_grad=True)
    b, p = torch.randn(6), torch.rand(6)
    (whole,) = torch.autograd.grad(bradley_terry_loss(a, b, p), a)
    parts = bradley_terry_loss(a[:2], b[:2], p[:2]) * 2 / 6 + bradley_terry_loss(a[2:], b[2:], p[2:]) * 4 / 6
    assert_close(torch.autograd.grad(parts, a)[0], whole)


def test_dpo_is_log_two_at_the_reference() -> None:
    logprobs = torch.randn(4, 5)
    scores = implicit_scores(logprobs, logprobs, torch.ones(4, 5), beta=0.1)
    assert_close(bradley_terry_loss(scores[:2], scores[2:], torch.ones(2)), math.log(2))


def test_implicit_scores_by_hand() -> None:
    # 0.5 * ((-1 + 2) + (-3 + 1)) = -0.5; the third action is padding
    assert_close(implicit_scores(t([[-1.0, -3.0, 9.0]]), t([[-2.0, -1.0, 0.0]]), t([[1.0, 1.0, 0.0]]), 0.5), [-0.5])


def test_ipo_by_hand() -> None:
    # beta 0.5: target 1. (3 - 1 - 1)^2 = 1; b preferred: (3 - 1 + 1)^2 = 9; a tie: the mean 5
    assert_close(ipo_loss(t([3.0]), t([1.0]), 0.5), 1.0)
    assert_close(ipo_loss(t([3.0]), t([1.0]), 0.5, t([0.0])), 9.0)
    assert_close(ipo_loss(t([3.0]), t([1.0]), 0.5, t([0.5])), 5.0)


def test_hinge_by_hand() -> None:
    # a preferred by 0.25: max(0, 1 - 0.25) = 0.75; b preferred: 1.25; p = 0.8: 0.8 * 0.75 + 0.2 * 1.25 = 0.85; beyond 1 nothing is lost
    for preference, expected in ((1.0, 0.75), (0.0, 1.25), (0.8, 0.85), (0.5, 1.0)):
        assert_close(hinge_loss(t([1.25]), t([1.0]), t([preference])), expected)
    assert_close(hinge_loss(t([3.0]), t([1.0]), t([1.0])), 0.0)
    # p = 0.8 at a difference of 2: a fifth of max(0, 1 + 2)
    assert_close(hinge_loss(t([3.0]), t([1.0]), t([0.8])), 0.6)


def test_robust_by_hand() -> None:
    # L(1) = 0.313262 and L(0) = 1.313262 at a difference of 1, a fifth flipped: (0.8 * 0.313262 - 0.2 * 1.313262) / 0.6 = -0.020071
    assert_close(robust_loss(t([2.0]), t([1.0]), t([1.0]), 0.2), -0.020071)
    # (0.8 * 1.313262 - 0.2 * 0.313262) / 0.6 = 1.646595; a tie stays one: 0.813262
    assert_close(robust_loss(t([2.0]), t([1.0]), t([0.0]), 0.2), 1.646595)
    assert_close(robust_loss(t([2.0]), t([1.0]), t([0.5]), 0.2), 0.813262)


def test_robust_is_on_average_the_loss_of_labels_that_were_not_flipped() -> None:
    a, b, e = torch.randn(5), torch.randn(5), 0.3
    right, wrong = (robust_loss(a, b, torch.full((5,), p), e) for p in (1.0, 0.0))
    assert_close((1 - e) * right + e * wrong, bradley_terry_loss(a, b, torch.ones(5)))
    assert_close(robust_loss(a, b, t([1.0, 0.0, 0.5, 0.2, 1.0]), 0.0), bradley_terry_loss(a, b, t([1.0, 0.0, 0.5, 0.2, 1.0])))


def test_simpo_by_hand() -> None:
    # scores 2 * -1 and 2 * -2: -log sigmoid(2 - 1) = log(1 + e^-1) = 0.313262; b preferred: -log sigmoid(-2 - 1) = log(1 + e^3) = 3.048587
    assert_close(simpo_loss(t([-2.0]), t([-4.0]), t([1.0]), 1.0), 0.313262)
    assert_close(simpo_loss(t([-2.0]), t([-4.0]), t([0.0]), 1.0), 3.048587)
    assert_close(simpo_loss(t([-2.0]), t([-4.0]), t([0.25]), 1.0), 0.25 * 0.313262 + 0.75 * 3.048587)


def test_mean_logprobs_and_log_odds_by_hand() -> None:
    # (-1 - 3) / 2; the third action is padding; a row without actions is 0
    assert_close(mean_logprobs(t([[-1.0, -3.0, 9.0], [5.0, 5.0, 5.0]]), t([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])), [-2.0, 0.0])
    # P = 1/4: log(1/3); P = 4/5: log 4; P = 1 stays finite: -log(1e-6)
    assert_close(log_odds(t([0.25, 0.8]).log()), [math.log(1 / 3), math.log(4)])
    assert_close(log_odds(t([0.0])), [-math.log(1e-6)])


@pytest.mark.parametrize(
    "loss",
    [hinge_loss, lambda a, b, p: robust_loss(a, b, p, 0.2), lambda a, b, p: simpo_loss(a, b, p, 0.7)],
    ids=["hinge", "robust", "simpo"],
)
def test_losses_of_pairs_have_two_equal_sides_and_the_right_gradient(loss: Callable[..., torch.Tensor]) -> None:
    """To swap the sides and the preference changes nothing; autograd agrees with differences, in parts as in whole."""
    a, b, p = torch.randn(6), torch.randn(6), torch.rand(6)
    assert_close(loss(a, b, p), loss(b, a, 1 - p))
    a.requires_grad_()
    (whole,) = torch.autograd.grad(loss(a, b, p), a)
    parts = loss(a[:2], b[:2], p[:2]) * 2 / 6 + loss(a[2:], b[2:], p[2:]) * 4 / 6
    assert_close(torch.autograd.grad(parts, a)[0], whole)
    h = 1e-2
    with torch.no_grad():
        slopes = [(loss(a + h * one, b, p) - loss(a - h * one, b, p)) / (2 * h) for one in torch.eye(6)]
    torch.testing.assert_close(torch.stack(slopes), whole, atol=1e-3, rtol=1e-2)


def test_ppo_clip_by_hand() -> None:
    logprobs, old = t([[math.log(2.0), math.log(0.5)]]), torch.zeros(1, 2)
    # ratios 2 and 0.5. A = 1: min(2, 1.2) = 1.2 and min(0.5, 0.8) = 0.5: -(1.2 + 0.5) / 2
    assert_close(ppo_clip_loss(logprobs, old, t([1.0]), torch.ones(1, 2)), -0.85)
    # A = -1: min(-2, -1.2) = -2 and min(-0.5, -0.8) = -0.8: 1.4
    assert_close(ppo_clip_loss(logprobs, old, t([-1.0]), torch.ones(1, 2)), 1.4)
    # clip_high 0.5: min(2, 1.5) = 1.5
    assert_close(ppo_clip_loss(logprobs, old, t([1.0]), torch.ones(1, 2), clip_high=0.5), -1.0)
    # dual clip 1.5 holds -2 at -1.5: (1.5 + 0.8) / 2
    assert_close(ppo_clip_loss(logprobs, old, t([-1.0]), torch.ones(1, 2), dual_clip=1.5), 1.15)
    # sequence ratio: geometric mean of 2 and 0.5 is 1
    assert_close(ppo_clip_loss(logprobs, old, t([3.0]), torch.ones(1, 2), ratio="sequence"), -3.0)


def test_ppo_means() -> None:
    # at ratio 1 the loss is minus the mean advantage. Tokens: (1 * 1 + 4 * 3) / 4; sequences: (1 + 4) / 2
    mask, zeros = t([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]), torch.zeros(2, 3)
    assert_close(ppo_clip_loss(zeros, zeros, t([1.0, 4.0]), mask), -13 / 4)
    assert_close(ppo_clip_loss(zeros, zeros, t([1.0, 4.0]), mask, mean="sequence"), -2.5)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("mean", ["token", "sequence"])
def test_ppo_padding_changes_nothing(ratio: str, mean: str) -> None:
    logprobs, old, advantages = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 4)
    mask = (torch.arange(4) < t([[4], [2], [1]])).float()
    found = ppo_clip_loss(logprobs, old, advantages, mask, ratio=ratio, mean=mean)
    wide = [F.pad(x, (0, 3), value=7.0) for x in (logprobs, old, advantages)]
    assert_close(ppo_clip_loss(*wide, F.pad(mask, (0, 3)), ratio=ratio, mean=mean), found)


def test_ppo_gradient_at_ratio_one_is_the_policy_gradient() -> None:
    logprobs = torch.randn(2, 3, requires_grad=True)
    advantages, mask = torch.randn(2, 3), torch.ones(2, 3)
    (found,) = torch.autograd.grad(ppo_clip_loss(logprobs, logprobs.detach(), advantages, mask), logprobs)
    assert_close(found, -advantages / 6)


def test_value_loss_by_hand() -> None:
    # 0.5 * (2 - 0)^2 = 2; held within 0.2 of 1: 1.2, error 1.44 < 4; of 2.5: 2.3, error 5.29: 2.645
    assert_close(value_loss(t([[2.0]]), t([[1.0]]), t([[0.0]]), torch.ones(1, 1)), 2.0)
    assert_close(value_loss(t([[2.0]]), t([[1.0]]), t([[0.0]]), torch.ones(1, 1), clip=0.2), 2.0)
    assert_close(value_loss(t([[2.0]]), t([[2.5]]), t([[0.0]]), torch.ones(1, 1), clip=0.2), 2.645)


def test_gae_by_hand() -> None:
    rewards, values, mask = t([[1.0, 2.0, 0.0]]), t([[0.5, 1.0, 4.0, 9.0]]), t([[1.0, 1.0, 0.0]])
    # cut by a limit: d1 = 2 + 0.5 * 4 - 1 = 3, d0 = 1 + 0.5 * 1 - 0.5 = 1, A0 = 1 + 0.25 * 3 = 1.75
    advantages, returns = gae(rewards, values, mask, t([False]), gamma=0.5, lam=0.5)
    assert_close(advantages, [[1.75, 3.0, 0.0]])
    assert_close(returns, [[2.25, 4.0, 0.0]])
    # ended by the task: d1 = 2 - 1 = 1, A0 = 1.25
    assert_close(gae(rewards, values, mask, t([True]), gamma=0.5, lam=0.5)[0], [[1.25, 1.0, 0.0]])


def test_gae_with_lambda_one_is_monte_carlo() -> None:
    rewards, values = torch.randn(3, 6), torch.randn(3, 7)
    mask = (torch.arange(6) < t([[6], [3], [1]])).float()
    _, returns = gae(rewards, values, mask, t([True, True, True]), gamma=0.9, lam=1.0)
    for row, length in enumerate((6, 3, 1)):
        for start in range(length):
            expected = sum(0.9 ** (i - start) * rewards[row, i] for i in range(start, length))
            assert_close(returns[row, start], expected)


def test_group_advantages_by_hand() -> None:
    scores, groups = t([1.0, 3.0, 5.0, math.nan, 7.0]), t([0, 0, 1, 1, 1])
    # group 0: mean 2, unbiased std sqrt(2); group 1: mean 6 of {5, 7}, std sqrt(2); NaN is left out
    found = group_advantages(scores, groups, eps=0.0)
    assert_close(found, [-(0.5**0.5), 0.5**0.5, -(0.5**0.5), 0.0, 0.5**0.5])
    assert_close(group_advantages(scores, groups, scale="none"), [-1, 1, -1, 0, 1])
    # batch: std of {1, 3, 5, 7} = sqrt(20 / 3)
    assert_close(group_advantages(scores, groups, scale="batch", eps=0.0), t([-1.0, 1, -1, 0, 1]) / (20 / 3) ** 0.5)


def test_group_advantages_of_equal_or_single_scores_are_zero() -> None:
    assert_close(group_advantages(t([2.0, 2.0, 5.0]), t([4, 4, 9])), [0, 0, 0])
    assert_close(group_advantages(t([math.nan, math.nan]), t([1, 1])), [0, 0])


def test_kl_estimates_by_hand_and_on_average() -> None:
    a, b = t([-1.0]), t([-1.5])
    # d = 0.5: k1 = 0.5, k2 = 0.125, k3 = e^-0.5 - 1 + 0.5 = 0.106531
    assert_close(kl_estimate(a, b), [0.5])
    assert_close(kl_estimate(a, b, "k2"), [0.125])
    assert_close(kl_estimate(a, b, "k3"), [0.106531])
    p, q = torch.randn(6).log_softmax(0), torch.randn(6).log_softmax(0)
    exact = (p.exp() * (p - q)).sum()
    for kind in ("k1", "k3"):
        assert_close((p.exp() * kl_estimate(p, q, kind)).sum(), exact)


def test_whiten() -> None:
    values, mask = torch.randn(3, 5) * 4 + 7, (torch.rand(3, 5) < 0.7).float()
    found = whiten(values, mask)
    kept = found[mask.bool()]
    assert_close(kept.mean(), 0.0)
    assert kept.var(unbiased=False).item() == pytest.approx(1, abs=1e-4)
    assert (found[mask == 0] == 0).all()
