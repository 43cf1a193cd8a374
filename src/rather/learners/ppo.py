"""PPO-Clip (Schulman et al. 2017) with a reward model and a KL penalty to a reference, as in RLHF (Ouyang et al. 2022).

Shape letters: B trajectories, T actions (padded), N single steps.
"""

# PyTorch says in part alone what `backward`, `step` and `tolist` take and give.
# pyright: reportUnknownMemberType=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, Unpack, runtime_checkable

import torch
from torch import Tensor, nn

from rather.core import Batch, Critic, RewardSource, Sampler, Trajectory
from rather.data.rows import Prompts, tasks
from rather.errors import TrainingError
from rather.learners.common import Means, Stepper, in_parts, numbers, parts, ratio_metrics
from rather.learners.inputs import AnyReward, P, Reference, acting, kind_of, language_model, mean_score, rollouts, together
from rather.learners.learner import Learner, digest
from rather.learners.ppo_settings import PPOOptions, PPOSettings
from rather.learners.reward_scale import RewardScale
from rather.learners.rollouts import Source
from rather.learners.settings import LoRA, Optimization, Sampling
from rather.learners.spread import spread
from rather.learners.train import Callback
from rather.losses import gae, kl_estimate, masked_mean, ppo_clip_loss, value_loss, whiten
from rather.scale import ranks
from rather.settings import given


@dataclass(frozen=True)
class Credited:
    """What was sampled, what the critic judges it by, `seen` (B, T + 1, ...), and what was known before the first update, (B, T) each."""

    batch: Batch
    seen: Tensor
    advantages: Tensor
    returns: Tensor
    values: Tensor

    def select(self, rows: slice | Tensor) -> "Credited":
        """The rows that a slice or an index tensor names."""
        return Credited(self.batch.select(rows), *(x[rows] for x in (self.seen, self.advantages, self.returns, self.values)))

    def single(self) -> "Credited":
        """Every action as a row of its own, for policies and critics that see no further than a state: (N, 1), without what came after."""
        b, (row, t) = self.batch, self.batch.mask.bool().nonzero(as_tuple=True)
        parts = (x[row, t][:, None] for x in (b.observations, b.actions, b.mask, b.logprobs, b.rewards))
        batch = Batch(*parts, terminated=b.terminated[row], groups=b.groups[row])
        return Credited(batch, *(x[row, t][:, None] for x in (self.seen, self.advantages, self.returns, self.values)))


class GradientByHand(Protocol):
    """Computes PPO's gradient where autograd is too slow."""

    def take(self, rows: Credited) -> None:
        """Learn from these single steps from now on."""
        ...

    def backward(self, chosen: Tensor, s: PPOSettings) -> tuple[float, dict[str, float]]:
        """Leave the gradient on the `chosen` (N,) steps in the parameters; returns the loss, and what it is made of."""
        ...


@runtime_checkable
class LooksBeside(RewardSource, Protocol):
    """A reward model that shares computation with the reference."""

    def beside(self, reference: Reference, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """`rewards`, and what `reference.look` gives."""
        ...


@runtime_checkable
class Remembers(RewardSource, Protocol):
    """A reward that goes by what it has rewarded before: its memory is a part of the learner's state."""

    def memory(self) -> dict[str, Any]:
        """What it remembers: tensors and numbers."""
        ...

    def recall(self, memory: dict[str, Any]) -> None:
        """Take `memory` back."""
        ...

    def metrics(self) -> dict[str, float]:
        """What it has measured since the last call."""
        ...


class PPO(Learner[P, Prompts], Generic[P]):
    """One step: collect trajectories or parts of them, credit their actions by GAE, and update policy and critic on them.

    `prompts` are what `data.rows.tasks` reads, answered by `sampler` (the policy's own); a `source` stands for both and collects by itself
    (see `Rollouts`). `reward` is a reward model, a function or a list of functions (see `verify.functions`), or one that learns by
    comparing two answers to each prompt (`OnlineReward`); without one the reward is what is in the batch. A row with a NaN there is
    unjudged and left out; where all are, nothing is learned. `gold` measures trajectories beside it.

    Of policy, reference, adapter and parameters see `DPO`. The `reference` keeps the policy near where it started, and its pass over a text
    gives the critic what it judges by; with `parameters` and no reference there is no penalty, and the critic judges by the observations.
    The critic learns at `critic_lr`, or where that is None as a part of `parameters`. `kl` weighs the penalty on log pi - log pi_ref of
    each action; with `kl_target` (nats a trajectory) the weight follows it (Ziegler et al. 2019). `by_hand` computes the gradient where
    autograd is too slow (`control.gradients`).

    Raises:
        ConfigError: an argument is not known, or its value is wrong.
        DataError: a prompt cannot be read.
    """

    name = "ppo"
    best = ("score", 1.0)

    def __init__(
        self,
        policy: P,
        prompts: Prompts = (),
        reward: AnyReward | None = None,
        reference: Reference | None = None,
        parameters: Sequence[nn.Parameter] | None = None,
        *,
        critic: Critic | None = None,
        sampler: Sampler | None = None,
        source: Source | None = None,
        gold: Callable[[Trajectory], float] | None = None,
        by_hand: GradientByHand | None = None,
        eps: float = 1e-8,
        adapter: LoRA | Literal["full"] | None = None,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        folder: Path | str | None = None,
        **options: Unpack[PPOOptions],
    ) -> None:
        self.own, how, sampling = given("PPO", options, PPOSettings, Optimization, Sampling)
        s, reading = self.own, tasks(prompts)
        model, self.reference, parameters = acting(policy, reference, adapter, seed, parameters, sampling)
        answers, times = s.rollout_batch_size, together(reward, s.rollout_batch_size)
        self.source, self.reward_model = rollouts(model, reading, answers // times, times, sampler, source, reward, sampling, seed, gold)
        self.critic = language_model("the policy", model).critic(seed + 1) if critic is None else critic
        settings = {"ppo": s, "sample": sampling, "data": {"prompts": digest([t.prompt for t in reading])}}
        steps = how.steps_on(len(reading), answers // times)
        super().__init__(model, steps, how, seed, settings, callbacks, folder, reward=kind_of(reward))
        self.by_hand = by_hand
        own = [] if s.critic_lr is None else [*self.critic.parameters()]
        updates = self.steps * s.update_epochs * -(-answers // how.batch_size)
        self.stepper = Stepper(parameters, how, updates, own, s.critic_lr or 0.0, eps)
        self.number, self.kl, self.rollout_metrics = 0, s.kl, dict[str, float]()
        self.reward_scale = RewardScale()

    @property
    def taken(self) -> int:
        """Steps that have been taken."""
        return self.number

    def evaluate(self, data: Prompts) -> dict[str, float]:
        """The mean score of one answer to each of other prompts."""
        return mean_score(self.source, self.reward_model, tasks(data), self.how.micro_batch_tokens)

    def step(self) -> dict[str, float]:
        """Sample once, and take the optimizer steps that follow from it; none if nothing was judged."""
        batch, means = self.source.collect(self.number), Means()
        known = self._credit(batch, means)
        taken = {} if known is None else self._update(known, means)
        self.number += 1
        self.source.sync()
        found, target = means.result(), self.own.kl_target
        if target is not None and known is not None:
            self.kl *= 1 + 0.1 * max(-0.2, min(0.2, found["kl"] / target - 1))
        tokens = 0.0 if known is None else float(known.batch.mask.sum())
        remembered = self.reward_model.metrics() if isinstance(self.reward_model, Remembers) else {}
        return taken | found | self.rollout_metrics | remembered | {"kl_weight": self.kl, "tokens": tokens}

    def state_dict(self) -> dict[str, Any]:
        """Optimizer state, critic, the weight of the KL penalty, the number of steps, the reward's memory, where trajectories stand."""
        own = {"critic": self.critic.state_dict(), "number": self.number, "kl": self.kl, "reward_scale": self.reward_scale.state_dict()}
        if isinstance(self.reward_model, Remembers):
            own["reward"] = self.reward_model.memory()
        return own | {"stepper": self.stepper.state_dict(), "source": self.source.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        self.stepper.load_state_dict(state["stepper"])
        self.critic.load_state_dict(state["critic"])
        self.number, self.kl = state["number"], state["kl"]
        self.reward_scale.load_state_dict(state.get("reward_scale", [0.0, 0.0, 0.0]))  # which older checkpoints do not have
        if isinstance(self.reward_model, Remembers):
            self.reward_model.recall(state["reward"])
        self.source.load_state_dict(state["source"])

    def _update(self, known: Credited, means: Means) -> dict[str, float]:
        """Take the optimizer steps on what was sampled; returns what the last of them says."""
        s, taken = self._limits(), dict[str, float]()
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.number)
        rows = known.single() if self.model.memoryless else known
        if self.by_hand is not None:
            self.by_hand.take(rows)
        for epoch in range(s.update_epochs):
            measured = means if epoch == s.update_epochs - 1 else None
            for chosen in torch.split(torch.randperm(len(rows.batch), generator=generator), self.how.batch_size):
                if self.by_hand is None:
                    loss = self._backward(rows.select(chosen.to(known.batch.mask.device)), s, measured)
                else:
                    loss, found = self.by_hand.backward(chosen, s)
                    if measured is not None:
                        measured.weigh(len(chosen), **found)
                taken = self.stepper.step(loss)
        return taken

    @torch.no_grad()
    def _credit(self, batch: Batch, means: Means) -> Credited | None:
        """What was judged, with what it is credited with; None where nothing was."""
        s, self.rollout_metrics = self.own, {}
        raw_rewards, model, looked = batch.rewards, self.reward_model, list[Tensor]()
        reference = self.reference
        if reference is not None and isinstance(model, LooksBeside):
            raw_rewards, *looked = self._of(batch, lambda part: model.beside(reference, part))
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
        if s.normalize_reward:
            scale = self.reward_scale.see(raw_rewards, mask, s.gamma)
            rewards = raw_rewards / scale
            means.add(reward_scale=torch.tensor([scale]))
        if reference is not None:
            expected, seen = looked or self._of(batch, reference.look)
            drift = kl_estimate(batch.logprobs, expected) * mask
            rewards = rewards - self.kl * drift
            means.add(kl=drift.sum(-1))
        values = self.critic.values(seen)
        # A text is scored as it stands, cut or not: nothing follows it. An episode that a limit cut would have gone on.
        ended = batch.terminated if self.model.memoryless else torch.ones_like(batch.terminated)
        advantages, returns = gae(rewards, values, mask, ended, s.gamma, s.lam)
        left = masked_mean((returns - values[:, :-1]).square(), mask)
        total = masked_mean((returns - masked_mean(returns, mask)).square(), mask)
        first_advantages, scores = torch.full((2, len(judged)), torch.nan, device=mask.device)
        first_advantages[judged], scores[judged] = (returns - values[:, :-1])[:, 0], (raw_rewards * mask).sum(-1)
        self.rollout_metrics = spread("score", numbers(scores[judged]), numbers(batch.groups)) | self.source.metrics(
            first_advantages, scores
        )
        means.add(length=mask.sum(-1), explained_variance=(1 - left / total.clamp(min=1e-8))[None])
        if s.whiten:
            advantages = whiten(advantages, mask)
        return Credited(batch, seen, advantages, returns, values[:, :-1])

    def _of(self, batch: Batch, what: Callable[[Batch], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return in_parts(batch, self.how.micro_batch_tokens, what)

    def _limits(self) -> PPOSettings:
        """The settings of this step, whose clip may have fallen."""
        s, left = self.own, max(1 - self.number / self.steps, 1 / self.steps)
        if s.clip_schedule == "constant":
            return s
        return s.model_copy(update={"clip": left * s.clip, "clip_high": None if s.clip_high is None else left * s.clip_high})

    def _backward(self, chosen: Credited, s: PPOSettings, means: Means | None) -> Tensor:
        """Leave the gradient in the parameters; the loss is a mean over all actions in `chosen`, however it is split."""
        total, count = torch.zeros((), device=chosen.batch.mask.device), chosen.batch.mask.sum()
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
