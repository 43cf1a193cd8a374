"""PPO-Clip (Schulman et al. 2017) with a reward model and a KL penalty to a reference, as in RLHF (Ouyang et al. 2022).

Shape letters: B trajectories, T actions (padded), N single steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rather.core import Batch, spread
from rather.errors import TrainingError
from rather.learners.common import Means, Optimization, Stepper, in_parts, parts, ratio_metrics
from rather.losses import gae, kl_estimate, masked_mean, ppo_clip_loss, value_loss, whiten
from rather.scale import ranks


@dataclass(frozen=True)
class Clip:
    """How far a step may go from what was sampled, and what a state and an action are credited with.

    `kl` weighs the penalty on log pi - log pi_ref of each action; with `kl_target` (nats a trajectory) the weight follows it
    (Ziegler et al. 2019). `reward_clip` bounds what the reward model says of one action. An update of all that was sampled
    is made `update_epochs` times, in minibatches of `Optimization.batch_size` rows. With `critic_lr` the critic learns at a rate of its
    own.
    """

    update_epochs: int = 4
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    clip_high: float | None = None
    dual_clip: float | None = None
    value_clip: float | None = 0.2
    value_weight: float = 0.5
    entropy_weight: float = 0.0
    kl: float = 0.05
    kl_target: float | None = None
    reward_clip: float | None = None
    whiten: bool = True
    critic_lr: float | None = None


@dataclass(frozen=True)
class _Credited:
    """What was sampled, what the critic judges it by, `seen` (B, T + 1, ...), and what was known before the first update, (B, T) each."""

    batch: Batch
    seen: Tensor
    advantages: Tensor
    returns: Tensor
    values: Tensor

    def select(self, rows: Any) -> "_Credited":
        return _Credited(self.batch.select(rows), *(x[rows] for x in (self.seen, self.advantages, self.returns, self.values)))

    def single(self) -> "_Credited":
        """Every action as a row of its own, for policies and critics that see no further than a state: (N, 1), without what came after."""
        b, (row, t) = self.batch, self.batch.mask.bool().nonzero(as_tuple=True)
        parts = (x[row, t][:, None] for x in (b.observations, b.actions, b.mask, b.logprobs, b.rewards))
        batch = Batch(*parts, terminated=b.terminated[row], groups=b.groups[row])
        return _Credited(batch, *(x[row, t][:, None] for x in (self.seen, self.advantages, self.returns, self.values)))


class PPO:
    """One step: collect trajectories or parts of them, credit their actions by GAE, and update policy and critic on them.

    `source` collects (see `common.Rollouts`). `reward_model` gives the rewards; without one they are those in the batch. A row with a
    NaN there is unjudged and left out; where all are, nothing is learned. `reference` keeps the policy near where it started, and its pass
    over a text gives the critic what it judges by; without one there is no penalty, and the critic judges by the observations.
    `parameters` are the policy's, and the critic's unless it has a rate of its own. `by_hand` computes the gradient where autograd is too
    slow (`control.gradients`).
    """

    def __init__(
        self,
        policy: Any,
        critic: Any,
        source: Any,
        parameters: Sequence[nn.Parameter],
        how: Optimization,
        settings: Clip,
        reward_model: Any = None,
        reference: Any = None,
        by_hand: Any = None,
    ) -> None:
        self.model, self.critic, self.source = policy, critic, source
        self.how, self.settings, self.reward_model, self.reference = how, settings, reward_model, reference
        self.by_hand = by_hand
        own = [] if settings.critic_lr is None else [*critic.parameters()]
        self.stepper = Stepper(parameters, how, own, settings.critic_lr or 0.0)
        self.number, self.kl, self.rollout_metrics = 0, settings.kl, dict[str, float]()

    def step(self) -> dict[str, float]:
        """Sample once, and take the optimizer steps that follow from it; none if nothing was judged."""
        batch, means = self.source.collect(self.number), Means()
        known = self._credit(batch, means)
        taken = {} if known is None else self._update(known, means)
        self.number += 1
        self.source.sync()
        found, target = means.result(), self.settings.kl_target
        if target is not None and known is not None:
            self.kl *= 1 + 0.1 * max(-0.2, min(0.2, found["kl"] / target - 1))
        tokens = 0.0 if known is None else float(known.batch.mask.sum())
        return taken | found | self.rollout_metrics | {"kl_weight": self.kl, "tokens": tokens}

    def state_dict(self) -> dict[str, Any]:
        """Optimizer state, critic, the weight of the KL penalty, the number of steps, and where trajectories stand."""
        own = {"critic": self.critic.state_dict(), "number": self.number, "kl": self.kl}
        return own | {"stepper": self.stepper.state_dict(), "source": self.source.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        self.stepper.load_state_dict(state["stepper"])
        self.critic.load_state_dict(state["critic"])
        self.number, self.kl = state["number"], state["kl"]
        self.source.load_state_dict(state["source"])

    def _update(self, known: _Credited, means: Means) -> dict[str, float]:
        """Take the optimizer steps on what was sampled; returns what the last of them says."""
        s, taken = self.settings, dict[str, float]()
        generator = torch.Generator().manual_seed(self.how.seed * 1_000_003 + self.number)
        rows = known.single() if self.model.memoryless else known
        if self.by_hand is not None:
            self.by_hand.take(rows)
        for epoch in range(s.update_epochs):
            measured = means if epoch == s.update_epochs - 1 else None
            for chosen in torch.randperm(len(rows.batch), generator=generator).split(self.how.batch_size):
                if self.by_hand is None:
                    loss = self._backward(rows.select(chosen.to(known.batch.mask.device)), measured)
                else:
                    loss, found = self.by_hand.backward(chosen, s)
                    if measured is not None:
                        measured.weigh(len(chosen), **found)
                taken = self.stepper.step(loss)
        return taken

    @torch.no_grad()
    def _credit(self, batch: Batch, means: Means) -> _Credited | None:
        """What was judged, with what it is credited with; None where nothing was."""
        s, self.rollout_metrics = self.settings, {}
        raw_rewards, model, looked = batch.rewards, self.reward_model, list[Tensor]()
        if self.reference is not None and hasattr(model, "beside"):
            raw_rewards, *looked = self._of(batch, lambda part: model.beside(self.reference, part))
        elif model is not None:
            (raw_rewards,) = self._of(batch, lambda part: (model.rewards(part),))
        judged = ~raw_rewards.isnan().any(-1)
        means.add(unjudged=(~judged).float())
        if not judged.any():
            if model is not None:
                raise TrainingError("the reward model's score of every answer is not a number; train it again with a lower reward.lr")
            return None
        if not judged.all():
            batch, raw_rewards, looked = batch.select(judged), raw_rewards[judged], [x[judged] for x in looked]
        mask = batch.mask
        if s.reward_clip is not None:
            raw_rewards = raw_rewards.clamp(-s.reward_clip, s.reward_clip)
        rewards, seen = raw_rewards, batch.observations
        if self.reference is not None:
            expected, seen = looked or self._of(batch, self.reference.look)
            drift = kl_estimate(batch.logprobs, expected) * mask
            rewards = raw_rewards - self.kl * drift
            means.add(kl=drift.sum(-1))
        values = self.critic.values(seen)
        advantages, returns = gae(rewards, values, mask, batch.terminated, s.gamma, s.lam)
        left = masked_mean((returns - values[:, :-1]).square(), mask)
        total = masked_mean((returns - masked_mean(returns, mask)).square(), mask)
        first_advantages = torch.full((len(judged),), torch.nan, device=mask.device)
        first_advantages[judged] = (returns - values[:, :-1])[:, 0]
        self.rollout_metrics = spread("score", (raw_rewards * mask).sum(-1).tolist()) | self.source.metrics(first_advantages)
        means.add(length=mask.sum(-1), explained_variance=(1 - left / total.clamp(min=1e-8))[None])
        if s.whiten:
            advantages = whiten(advantages, mask)
        return _Credited(batch, seen, advantages, returns, values[:, :-1])

    def _of(self, batch: Batch, what: Callable[[Batch], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return in_parts(batch, self.how.micro_batch_tokens, what)

    def _backward(self, chosen: _Credited, means: Means | None) -> Tensor:
        """Leave the gradient in the parameters; the loss is a mean over all actions in `chosen`, however it is split."""
        s, total, count = self.settings, torch.zeros((), device=chosen.batch.mask.device), chosen.batch.mask.sum()
        for rows, weight in ranks.mine(parts(chosen.batch, self.how.micro_batch_tokens)):
            part = chosen if rows.stop == len(chosen.batch) and not rows.start else chosen.select(rows)
            batch = part.batch
            share = batch.mask.sum() / count
            logprobs, entropy = self.model.evaluate(batch)
            policy_loss = ppo_clip_loss(logprobs, batch.logprobs, part.advantages, batch.mask, s.clip, s.clip_high, s.dual_clip)
            values = self.critic.values(part.seen)[:, : batch.mask.shape[1]]
            critic_loss = value_loss(values, part.values, part.returns, batch.mask, s.value_clip or None)
            mean_entropy = masked_mean(entropy, batch.mask)
            loss = (policy_loss + s.value_weight * critic_loss - s.entropy_weight * mean_entropy) * share * weight
            loss.backward()
            total += loss.detach()
            if means is not None and weight:
                means.weigh(share * count, policy_loss=policy_loss, value_loss=critic_loss, entropy=mean_entropy)
                means.add(**ratio_metrics(logprobs, batch.logprobs, batch.mask, s.clip, s.clip_high))
        return total
