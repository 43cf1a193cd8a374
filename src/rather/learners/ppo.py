"""PPO-Clip (Schulman et al. 2017) with a reward model and a KL penalty to a reference, as in RLHF (Ouyang et al. 2022).

Shape letters: B trajectories, T actions (padded), N single steps.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rather.core import Batch, Task
from rather.learners.common import Means, Optimisation, Stepper
from rather.losses import gae, kl_estimate, masked_mean, ppo_clip_loss, value_loss, whiten


@dataclass(frozen=True)
class Clip:
    """How far a step may go from what was sampled, and what a state and an action are credited with.

    `kl` weighs the penalty on log pi - log pi_ref of each action; with `kl_target` (nats a trajectory) the weight follows it
    (Ziegler et al. 2019). `reward_clip` bounds what the reward model says of one action. An update of all that was sampled
    is made `epochs` times, in minibatches of `Optimisation.batch_size` rows.
    """

    epochs: int = 4
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


@dataclass(frozen=True)
class _Credited:
    """What was sampled, with what was known of it before the first update: (B, T) each."""

    batch: Batch
    advantages: Tensor
    returns: Tensor
    values: Tensor

    def select(self, rows: Any) -> "_Credited":
        return _Credited(self.batch.select(rows), self.advantages[rows], self.returns[rows], self.values[rows])

    def single(self) -> "_Credited":
        """Every action as a row of its own, for policies and critics that see no further than a state."""
        b, (row, t) = self.batch, self.batch.mask.bool().nonzero(as_tuple=True)
        observations = torch.stack([b.observations[row, t], b.observations[row, t + 1]], dim=1)
        parts = (x[row, t][:, None] for x in (b.actions, b.mask, b.logprobs, b.rewards))
        batch = Batch(observations, *parts, terminated=b.terminated[row], groups=b.groups[row])
        return _Credited(batch, *(x[row, t][:, None] for x in (self.advantages, self.returns, self.values)))


class PPO:
    """One step: sample attempts at `tasks(step)`, credit their actions by GAE, and update policy and critic on them.

    `reward_model` says what actions earn; without one it is what the environment paid. `reference` keeps the policy near
    where it started; without one there is no penalty. `parameters` are the policy's; the critic's are trained with them.
    """

    def __init__(
        self,
        policy: Any,
        critic: Any,
        sampler: Any,
        tasks: Callable[[int], Sequence[Task]],
        parameters: Sequence[nn.Parameter],
        how: Optimisation,
        settings: Clip,
        reward_model: Any = None,
        reference: Any = None,
    ) -> None:
        self.model, self.critic, self.sampler, self.tasks = policy, critic, sampler, tasks
        self.how, self.settings, self.reward_model, self.reference = how, settings, reward_model, reference
        self.stepper = Stepper([*parameters, *critic.parameters()], how)
        self.number, self.kl = 0, settings.kl

    def step(self) -> dict[str, float]:
        """Sample once, and take the optimiser steps that follow from it."""
        s, seed = self.settings, self.how.seed * 1_000_003 + self.number
        batch = self.model.collate(self.sampler.sample(self.tasks(self.number), seed))
        means = Means()
        known = self._credit(batch, means)
        generator = torch.Generator().manual_seed(seed)
        taken = {}
        for _ in range(s.epochs):
            for chosen in self._minibatches(known, generator):
                taken = self._update(chosen, means)
        self.number += 1
        self.sampler.sync()
        found = means.result()
        if s.kl_target is not None:
            self.kl *= 1 + 0.1 * max(-0.2, min(0.2, found["kl"] / s.kl_target - 1))
        return taken | found | {"kl_weight": self.kl, "tokens": float(batch.mask.sum())}

    def state_dict(self) -> dict[str, Any]:
        """Optimiser state, critic, the weight of the KL penalty and the number of steps."""
        return {"stepper": self.stepper.state_dict(), "critic": self.critic.state_dict(), "number": self.number, "kl": self.kl}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        self.stepper.load_state_dict(state["stepper"])
        self.critic.load_state_dict(state["critic"])
        self.number, self.kl = state["number"], state["kl"]

    @torch.no_grad()
    def _credit(self, batch: Batch, means: Means) -> _Credited:
        s, mask = self.settings, batch.mask
        earned = batch.rewards if self.reward_model is None else self.reward_model.rewards(batch)
        if s.reward_clip is not None:
            earned = earned.clamp(-s.reward_clip, s.reward_clip)
        rewards = earned
        if self.reference is not None:
            drift = kl_estimate(batch.logprobs, self.reference.evaluate(batch)[0]) * mask
            rewards = earned - self.kl * drift
            means.add(kl=drift.sum(-1))
        values = self.critic.values(batch)
        advantages, returns = gae(rewards, values, mask, batch.terminated, s.gamma, s.lam)
        left = masked_mean((returns - values[:, :-1]).square(), mask)
        spread = masked_mean((returns - masked_mean(returns, mask)).square(), mask)
        means.add(score=(earned * mask).sum(-1), length=mask.sum(-1), explained_variance=(1 - left / spread.clamp(min=1e-8))[None])
        if s.whiten:
            advantages = whiten(advantages, mask)
        return _Credited(batch, advantages, returns, values[:, :-1])

    def _minibatches(self, known: _Credited, generator: torch.Generator) -> Iterator[_Credited]:
        if self.model.memoryless:
            known = known.single()
        order = torch.randperm(len(known.batch), generator=generator)
        for chosen in order.split(self.how.batch_size):
            yield known.select(chosen.to(known.advantages.device))

    def _update(self, chosen: _Credited, means: Means) -> dict[str, float]:
        s, batch = self.settings, chosen.batch
        logprobs, entropy = self.model.evaluate(batch)
        values = self.critic.values(batch)[:, :-1]
        policy_loss = ppo_clip_loss(logprobs, batch.logprobs, chosen.advantages, batch.mask, s.clip, s.clip_high, s.dual_clip)
        critic_loss = value_loss(values, chosen.values, chosen.returns, batch.mask, s.value_clip)
        disorder = masked_mean(entropy, batch.mask)
        loss = policy_loss + s.value_weight * critic_loss - s.entropy_weight * disorder
        loss.backward()
        with torch.no_grad():
            used = batch.mask.bool()
            ratio = (logprobs - batch.logprobs)[used].exp()
            high = s.clip if s.clip_high is None else s.clip_high
            means.add(policy_loss=policy_loss[None], value_loss=critic_loss[None], entropy=entropy[used], ratio=ratio)
            means.add(clipped=((ratio < 1 - s.clip) | (ratio > 1 + high)).float())
        return self.stepper.step(loss.item())
