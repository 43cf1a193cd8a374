"""Objectives as pure functions: float32, masked, no state.

Shape letters: B trajectories, T actions, K ensemble members or directions, N comparisons a direction, M judges. A mask is 1 where an
action was taken. A loss is the mean over what it is given; whoever splits a batch weighs each part by its share of the count, and
gets the same gradient.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` over the places where `mask` is 1; 0 where there is none."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """`values` (B, T) shifted and scaled to mean 0 and variance 1 over the mask of the whole batch; 0 elsewhere."""
    values, mask = values.float(), mask.float()
    centered = values - masked_mean(values, mask)
    variance = masked_mean(centered.square(), mask)
    return centered * torch.rsqrt(variance + 1e-8) * mask


def bradley_terry_loss(
    scores_a: Tensor,
    scores_b: Tensor,
    preference: Tensor,
    margin: Tensor | float = 0.0,
    center: float = 0.0,
) -> Tensor:
    """Negative log-likelihood of preferences under Bradley and Terry (1952), as in Christiano et al. (2017), eq. 1.

    P(a better) = sigmoid(scores_a - scores_b - margin), scored by binary cross-entropy against `preference` in [0, 1]: a
    hard label, a tie (0.5), a share of votes or a strength. Scores are (B,) or (K, B), preference (B,). `margin` counts
    towards b, so swapping the sides swaps its sign. `center` adds center * (a + b)^2, which holds the scores near 0
    (Eisenstein et al. 2023). On `implicit_scores` this is the loss of DPO.
    """
    difference = scores_a.float() - scores_b.float() - margin
    loss = F.binary_cross_entropy_with_logits(difference, preference.float().expand_as(difference))
    if center:
        loss = loss + center * (scores_a.float() + scores_b.float()).square().mean()
    return loss


def implicit_scores(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Implicit scores (B,) of DPO, beta * sum_t (log pi - log pi_ref) (Rafailov et al. 2023, eq. 5 without its constant)."""
    return beta * ((logprobs.float() - reference_logprobs.float()) * mask).sum(-1)


def mean_logprobs(logprobs: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities (B, T) averaged over the actions of each trajectory, (B,); 0 where there are none."""
    return (logprobs.float() * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def log_odds(logprobs: Tensor) -> Tensor:
    """log(P / (1 - P)) of log-probabilities log P <= 0, which are held at -1e-6 so that the odds stay finite."""
    logprobs = logprobs.float().clamp(max=-1e-6)
    return logprobs - torch.log(-torch.expm1(logprobs))


def preference_reinforce_loss(logprobs_a: Tensor, logprobs_b: Tensor, preference: Tensor) -> Tensor:
    """Loss whose negative gradient, the mean of (p - 1/2) grad (log pi(a) - log pi(b)), makes preferred trajectories likelier.

    It is REINFORCE (Williams 1992) on P(a better) with both trajectories drawn from the policy that learns and 1/2 as their baseline: no
    reward model, and no link is assumed. `logprobs_a` and `logprobs_b` (B,) are sums over actions.
    """
    return -((preference - 0.5) * (logprobs_a.float() - logprobs_b.float())).mean()


def ipo_loss(log_ratio_a: Tensor, log_ratio_b: Tensor, beta: float, preference: Tensor | float = 1.0) -> Tensor:
    """Squared loss of IPO, (log_ratio_a - log_ratio_b - 1 / (2 beta))^2, a preferred (Azar et al. 2023, eq. 17).

    A log-ratio (B,) is sum_t (log pi - log pi_ref), or its mean over the actions for the length-normalized form. With a soft
    `preference` p it is the expected loss: p times the loss with a preferred plus 1 - p times the loss with b preferred.
    """
    target = 1 / (2 * beta)
    difference = log_ratio_a.float() - log_ratio_b.float()
    preference = torch.as_tensor(preference, dtype=torch.float32, device=difference.device)
    return (preference * (difference - target).square() + (1 - preference) * (difference + target).square()).mean()


def hinge_loss(scores_a: Tensor, scores_b: Tensor, preference: Tensor) -> Tensor:
    """Hinge loss max(0, 1 - (scores_a - scores_b)), a preferred, of SLiC (Zhao et al. 2023) on implicit scores (RSO, Liu et al. 2024).

    With a soft `preference` p it is the expected loss, as for `ipo_loss`. Scores and preference are (B,).
    """
    difference = scores_a.float() - scores_b.float()
    return (preference * F.relu(1 - difference) + (1 - preference) * F.relu(1 + difference)).mean()


def robust_loss(scores_a: Tensor, scores_b: Tensor, preference: Tensor, flip_rate: float) -> Tensor:
    """Loss of robust DPO, an unbiased estimate of the one on labels before a share `flip_rate` < 1/2 was flipped.

    With e the flip rate and L(p) Bradley and Terry's loss it is ((1 - e) L(p) - e L(1 - p)) / (1 - 2 e) (Chowdhury et al. 2024), which
    is L((p - e) / (1 - 2 e)), since L is linear in p. It has no lower bound.
    """
    return bradley_terry_loss(scores_a, scores_b, (preference - flip_rate) / (1 - 2 * flip_rate))


def simpo_loss(scores_a: Tensor, scores_b: Tensor, preference: Tensor, gamma: float) -> Tensor:
    """Loss of SimPO, -log sigmoid(scores_a - scores_b - gamma), a preferred (Meng et al. 2024, eq. 6).

    A score (B,) is beta times `mean_logprobs`. With a soft `preference` p it is the expected loss, as for `ipo_loss`: the target margin
    gamma counts against whichever side is preferred.
    """
    difference = scores_a.float() - scores_b.float()
    return (preference * F.softplus(gamma - difference) + (1 - preference) * F.softplus(gamma + difference)).mean()


def kto_loss(
    scores: Tensor, good: Tensor, reference_point: Tensor | float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Tensor:
    """Loss of KTO, w (1 - sigmoid(score - z)) of a good answer and w (1 - sigmoid(z - score)) of a bad one (Ethayarajh et al. 2024).

    `scores` (B,) are `implicit_scores`, `good` (B,) is bool; z is the reference point times beta, and w the weight of the kind.
    """
    gain = scores.float() - reference_point
    return torch.where(good, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain)).mean()


def ppo_clip_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    ratio: Literal["token", "sequence"] = "token",
    mean: Literal["token", "sequence"] = "token",
) -> Tensor:
    """PPO's clipped surrogate, -min(r A, clip(r, 1 - clip, 1 + clip_high) A) (Schulman et al. 2017, eq. 7).

    `advantages` is (B, T), or (B,) for one number a trajectory. `clip_high` differs from `clip` in DAPO (Yu et al. 2025, eq. 10).
    `dual_clip` c > 1 bounds the loss by -c A where A < 0 (Ye et al. 2020, eq. 5). `ratio` "sequence" uses the geometric mean of the
    ratios of a trajectory (GSPO, Zheng et al. 2025, eq. 7). `mean` "token" averages over all actions, "sequence" first over the
    actions of a trajectory.
    """
    mask = mask.float()
    log_ratio = (logprobs.float() - old_logprobs.float()) * mask
    lengths = mask.sum(-1, keepdim=True).clamp(min=1)
    if ratio == "sequence":
        log_ratio = (log_ratio.sum(-1, keepdim=True) / lengths).expand_as(mask)
    if advantages.dim() == 1:
        advantages = advantages[:, None]
    ratios = log_ratio.exp()
    clipped = ratios.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    surrogate = torch.minimum(ratios * advantages, clipped * advantages)
    if dual_clip is not None:
        surrogate = torch.where(advantages < 0, torch.maximum(surrogate, dual_clip * advantages), surrogate)
    if mean == "sequence":
        each = (surrogate * mask).sum(-1) / lengths[:, 0]
        return -masked_mean(each, (mask.sum(-1) > 0).float())
    return -masked_mean(surrogate, mask)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None = None) -> Tensor:
    """Half the mean squared error of a critic, (B, T) each; with `clip`, the worse of the error of `values` and of values
    held within `clip` of `old_values` (Schulman et al. 2016, in the form of OpenAI baselines).
    """
    error = (values.float() - returns).square()
    if clip is not None:
        held = old_values + (values.float() - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (held - returns).square())
    return 0.5 * masked_mean(error, mask.float())


def gae(rewards: Tensor, values: Tensor, mask: Tensor, terminated: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both (B, T), by generalized advantage estimation (Schulman et al. 2016, eq. 16).

    `values` is (B, T+1), its last valid entry the value of the state after the last action: it counts unless the task itself
    `terminated` (B,) the trajectory. The mask is 1 on a prefix of every row.
    """
    mask, values, rewards = mask.float(), values.float(), rewards.float()
    following = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    alive = following + (1 - following) * (1 - terminated.float())[:, None]
    deltas = (rewards + gamma * values[:, 1:] * alive - values[:, :-1]) * mask
    advantages = torch.zeros_like(deltas)
    carried = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        carried = deltas[:, t] + gamma * lam * carried * mask[:, t]
        advantages[:, t] = carried
    return advantages, (advantages + values[:, :-1]) * mask


def group_advantages(scores: Tensor, groups: Tensor, scale: Literal["group", "batch", "none"] = "group", eps: float = 1e-4) -> Tensor:
    """Group-relative advantages (B,): score minus the mean of its group, over the standard deviation (Shao et al. 2024).

    `scale` "group" divides by the group's unbiased standard deviation plus `eps`, "batch" by the whole batch's, "none" by
    nothing (Dr. GRPO, Liu et al. 2025). A NaN score is unjudged: left out of the statistics, advantage 0. So is a group of one.
    """
    judged = ~scores.isnan()
    known = torch.where(judged, scores, 0.0).float()
    index = cast("Tensor", torch.unique(groups, return_inverse=True)[1])  # pyright: ignore[reportUnknownMemberType], untyped in torch
    zeros = torch.zeros(int(index.max()) + 1 if len(index) else 0, device=scores.device)
    counts = zeros.index_add(0, index, judged.float())
    means = zeros.index_add(0, index, known) / counts.clamp(min=1)
    centered = torch.where(judged, known - means[index], 0.0)
    if scale == "group":
        variances = zeros.index_add(0, index, centered.square()) / (counts - 1).clamp(min=1)
        return centered / (variances.sqrt()[index] + eps)
    if scale == "batch":
        spread = known[judged].std() if judged.sum() > 1 else known.new_zeros(())
        return centered / (spread + eps)
    return centered


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, kind: Literal["k1", "k2", "k3"] = "k1") -> Tensor:
    """Estimates of KL(pi || pi_ref) from actions drawn from pi, one an action (Schulman 2020, "Approximating KL divergence").

    k1 = log pi - log pi_ref (unbiased), k2 = k1^2 / 2 (low variance), k3 = exp(-k1) - 1 + k1 (unbiased and never negative).
    """
    difference = logprobs.float() - reference_logprobs.float()
    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * difference.square()
    return torch.expm1(-difference) + difference


class Link(NamedTuple):
    """How value differences become probabilities of being preferred, and the way back; `probability(0)` is 1/2."""

    probability: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


LN2 = math.log(2)


def _cloglog(x: Tensor) -> Tensor:
    return -torch.expm1(-LN2 * x.exp())


def _cloglog_inverse(p: Tensor) -> Tensor:
    return (-torch.log1p(-p) / LN2).log()


def _weibull(x: Tensor) -> Tensor:
    return -torch.expm1(-LN2 * (1 + x / 4).clamp(min=0).square())


def _weibull_inverse(p: Tensor) -> Tensor:
    return 4 * (torch.log1p(-p) / -LN2).sqrt() - 4


def _linear(x: Tensor) -> Tensor:
    return ((1 + x) / 2).clamp(0, 1)


def _linear_inverse(p: Tensor) -> Tensor:
    return 2 * p - 1


LINKS: dict[str, Link] = {
    "logistic": Link(torch.sigmoid, torch.logit),
    "probit": Link(torch.special.ndtr, torch.special.ndtri),  # pyright: ignore[reportUnknownMemberType], untyped in torch
    "cloglog": Link(_cloglog, _cloglog_inverse),
    "weibull": Link(_weibull, _weibull_inverse),
    "linear": Link(_linear, _linear_inverse),
}
"""Bradley and Terry's, Thurstone's, the complementary log-log, Weibull's distribution of shape 2, and a straight line.

The third and the fourth are shifted so that equal values are preferred half the time. Neither is symmetric: they describe judges who
notice what is better sooner than what is worse, or the other way round.
"""


def sign_weights(preferences: Tensor) -> Tensor:
    """Weights (K,) in {-1, 0, 1} of directions, from P(theta + mu v better), (K, N, M): the sign of sum_{n,m} (o - 1/2).

    It assumes no link, and no answer (NaN) counts as a tie. With theta + mu v against theta and one direction a step this is ZSPO
    (Zhang and Ying 2025, arXiv 2506.03066, alg. 1); E[sign(<v, u>) v] = sqrt(2 / pi) u / |u| for v ~ N(0, I) says why it moves uphill.
    """
    return (preferences - 0.5).nansum((1, 2)).sign()


def zpg_weights(
    preferences: Tensor, mu: float, link: Link = LINKS["logistic"], trim: float = 0.05, mirrored: bool = True, dimensions: int = 1
) -> Tensor:
    """Weights (K,) of directions whose mean w v estimates the gradient of the smoothed value, from preferences (K, N, M).

    w = dimensions * mean_n link^-1(p_n) / (mu or, mirrored, 2 mu), p_n the share of the M judges who prefer theta + mu v, held in
    [trim, 1 - trim] (Zhang and Ying 2025, ICLR, alg. 1). `dimensions` is d for directions on the unit sphere and for blocks (alg. 2,
    ZBCPG), 1 for v ~ N(0, I): one of the two scalings, never both. A comparison that nobody answered (NaN) is left out.
    """
    shares = preferences.nanmean(2).clamp(trim, 1 - trim)
    differences = link.inverse(shares).nanmean(1).nan_to_num(0.0)
    return dimensions * differences / (2 * mu if mirrored else mu)
