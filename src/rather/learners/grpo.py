"""GRPO (Shao et al. 2024): several trajectories of each task, credited by how they compare with each other; no critic.

Shape letters: B trajectories, T actions (padded).
"""

# PyTorch says in part alone what `backward`, `step` and `tolist` take and give.
# pyright: reportUnknownMemberType=false

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Unpack, cast

import torch
from torch import Tensor, nn

from rather.core import Batch, Sampler, Trajectory
from rather.data.rows import Prompts, tasks
from rather.errors import ConfigError, RatherWarning
from rather.learners.common import Means, Stepper, in_parts, numbers, parts, ratio_metrics, used
from rather.learners.grpo_settings import GRPOOptions, GRPOSettings
from rather.learners.inputs import AnyReward, P, Reference, acting, kind_of, mean_score, rollouts
from rather.learners.learner import Learner, digest
from rather.learners.rollouts import Source
from rather.learners.settings import LoRA, Optimization, Sampling
from rather.learners.spread import spread
from rather.learners.train import Callback
from rather.losses import group_advantages, kl_estimate, ppo_clip_loss
from rather.scale import ranks
from rather.settings import given

NOTHING_TO_LEARN = (
    "in the last 10 steps all trajectories of each task scored the same, so nothing was learned; take easier or harder tasks, "
    "a larger grpo.group_size, a higher sample.temperature, or verifiers that score partly"
)


FIRST_WEIGHT = 0.04
"""The least weight of the KL after a step that was undone: that of Shao et al."""


@dataclass(frozen=True)
class Sampled:
    """What was sampled at once: B trajectories, which rows (N,) have an advantage, and their advantages (N,)."""

    batch: Batch
    kept: Tensor
    advantages: Tensor

    @property
    def tokens(self) -> float:
        """Actions in all of them."""
        return self.batch.mask.sum().item()


class GRPO(Learner[P, Prompts], Generic[P]):
    """One step: sample groups, score them, and update the policy `updates` times on those that differ within.

    A score is the sum of a trajectory's rewards. Of prompts, reward, sampler, source and gold see `PPO`, of policy, reference, adapter and
    parameters `DPO`. The `reference` measures how far the policy has gone (`measure_kl`), and holds it back if `kl` is set.

    `scale` "group" divides by the std within the group, "none" by nothing (Dr. GRPO, Liu et al. 2025). `mean` says what counts
    equally: every "token" of the batch (DAPO, Yu et al. 2025), every "sequence" (Shao et al. 2024), or every token over a "constant"
    length of `max_tokens` (Dr. GRPO). `ratio` "sequence" is GSPO (Zheng et al. 2025). `kl` weighs a k3 term against the reference. Groups
    whose trajectories all score the same teach nothing: up to `max_resample` more samplings are made for others in their place.

    With `kl_bound` the policy goes no further than so many nats a token from the reference, measured on each step's trajectories: a step
    that leads further is undone, and the weight of the KL doubles; it halves, down to `kl`, where the policy is nearer than 2 / 3 of it
    (the rule of Schulman et al. 2017, sec. 4).

    Raises:
        ConfigError: an argument is not known, or its value is wrong; or there is a `kl_bound` and no reference.
        DataError: a prompt cannot be read.
    """

    name = "grpo"
    best = ("score", 1.0)

    def __init__(
        self,
        policy: P,
        prompts: Prompts = (),
        reward: AnyReward | None = None,
        reference: Reference | None = None,
        parameters: Sequence[nn.Parameter] | None = None,
        *,
        sampler: Sampler | None = None,
        source: Source | None = None,
        gold: Callable[[Trajectory], float] | None = None,
        adapter: LoRA | Literal["full"] | None = None,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        folder: Path | str | None = None,
        **options: Unpack[GRPOOptions],
    ) -> None:
        self.own, how, sampling = given("GRPO", options, GRPOSettings, Optimization, Sampling)
        s, reading = self.own, tasks(prompts)
        if not sampling.temperature and sampler is source is None:
            raise ConfigError("GRPO: temperature is 0, at which all answers of a group are the same; set it above 0")
        model, reference, parameters = acting(policy, reference, adapter, seed, parameters, sampling)
        if s.kl_bound is not None and reference is None:
            raise ConfigError(f"kl_bound is {s.kl_bound:g}, but there is no reference to measure the KL from; give one")
        self.reference = reference if s.kl or s.measure_kl or s.kl_bound is not None else None
        each = how.batch_size, s.group_size
        self.source, self.reward_model = rollouts(model, reading, *each, sampler, source, reward, sampling, seed, gold)
        settings = {"grpo": s, "sample": sampling, "data": {"prompts": digest([t.prompt for t in reading])}}
        super().__init__(model, how.steps_on(len(reading)), how, seed, settings, callbacks, folder, reward=kind_of(reward))
        self.stepper = Stepper(parameters, how, self.steps * s.updates)
        self.longest, self.done, self.kl = sampling.max_tokens, 0, s.kl
        self.number, self.idle, self.rollout_metrics = 0, 0, dict[str, float]()

    @property
    def taken(self) -> int:
        """Steps that have been taken; `number` counts the samplings, of which a step may make several."""
        return self.done

    def evaluate(self, data: Prompts) -> dict[str, float]:
        """The mean score of one answer to each of other prompts."""
        return mean_score(self.source, self.reward_model, tasks(data), self.how.micro_batch_tokens)

    def step(self) -> dict[str, float]:
        """Sample, and take the optimizer steps that follow from it; none if no group teaches anything."""
        means = Means()
        sampled = self._collect(means)
        useful = [(found.batch.select(found.kept), found.advantages) for found in sampled if len(found.kept)]
        tokens, rows = sum(found.tokens for found in sampled), float(sum(len(found.batch) for found in sampled))
        self.idle = 0 if useful or "score" not in self.rollout_metrics else self.idle + 1
        if self.idle == 10:
            warnings.warn(NOTHING_TO_LEARN, RatherWarning, stacklevel=2)
        taken, bound = dict[str, float](), self.own.kl_bound
        before = [] if bound is None else [p.detach().clone() for p in self.parameters]
        for _ in range(self.own.updates if useful else 0):
            loss = sum(self._update(batch, advantages, tokens, rows, means) for batch, advantages in useful)
            taken = self.stepper.step(loss)
        if bound is not None and useful:
            taken |= self._hold(bound, before, [found.batch for found in sampled], tokens)
        self.source.sync()
        self.done += 1
        return taken | means.result() | self.rollout_metrics | {"tokens": tokens, "groups_sampled_again": len(sampled) - 1.0}

    def state_dict(self) -> dict[str, Any]:
        """Optimizer state, how often was sampled, for how many steps nothing was learned, and the weight of the KL."""
        own = {"stepper": self.stepper.state_dict(), "number": self.number, "idle": self.idle, "taken": self.done, "kl": self.kl}
        return own | {"source": self.source.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        self.stepper.load_state_dict(state["stepper"])
        self.number, self.idle = state["number"], state["idle"]
        self.done, self.kl = state.get("taken", self.number), state.get("kl", self.own.kl)  # which older checkpoints do not say
        self.source.load_state_dict(state["source"])

    def _hold(self, bound: float, before: Sequence[Tensor], batches: Sequence[Batch], tokens: float) -> dict[str, float]:
        """Undo a step that leads beyond the bound and further than the policy was, and adapt the weight of the KL."""
        was, now = self._distances(batches, tokens)
        undone = not (now <= bound or now < was)
        if undone:
            self.put_back(before)
            self.kl = max(2 * self.kl, FIRST_WEIGHT)
        elif now < bound / 1.5:
            self.kl = max(self.kl / 2, self.own.kl)
        return {"kl_token": was if undone else now, "kl_weight": self.kl, "undone": float(undone)}

    def _distances(self, batches: Sequence[Batch], tokens: float) -> tuple[float, float]:
        """KL from the reference, in nats a token, of the policy that acted and of the present one, on what the first one did.

        The k3 terms of the present policy are weighted by pi / pi_old, so that their mean is its KL in each state.
        """
        reference = self.reference
        assert reference is not None

        def each(part: Batch) -> tuple[Tensor, Tensor]:
            now, start = self.model.evaluate(part)[0], reference.evaluate(part)[0]
            then = kl_estimate(part.logprobs, start, "k3")
            return (then * part.mask).sum(-1), ((now - part.logprobs).exp() * kl_estimate(now, start, "k3") * part.mask).sum(-1)

        rows = [in_parts(batch, self.how.micro_batch_tokens, each) for batch in batches]
        was, now = (sum(float(x.double().sum()) for x in some) / tokens for some in zip(*rows, strict=True))
        return was, now

    def _collect(self, means: Means) -> list[Sampled]:
        """What was sampled, at once and in place of groups that teach nothing."""
        found, judged, prompts = list[Sampled](), list[float](), list[tuple[int, float]]()
        wanted, useful, model, learned, scores = 0, 0, self.reward_model, torch.zeros(0), torch.zeros(0)
        for _ in range(1 + self.own.max_resample):
            batch = self.source.collect(self.number)
            self.number += 1
            rewards = batch.rewards
            if model is not None:
                (rewards,) = in_parts(batch, self.how.micro_batch_tokens, lambda part: (model.rewards(part),))
            scores = (rewards * batch.mask).sum(-1)
            # On the CPU, where sums come out the same on every rank: an advantage of 0 decides what is forwarded.
            advantages = group_advantages(scores.cpu(), batch.groups.cpu(), self.own.scale).to(scores.device)
            groups, index = cast(tuple[Tensor, Tensor], torch.unique(batch.groups, return_inverse=True))  # which PyTorch does not type
            differ = torch.zeros(len(groups), device=scores.device).index_add(0, index, (advantages != 0).float()) > 0
            known = ~scores.isnan()
            judged += numbers(scores[known])
            prompts += [(len(found), group) for group in numbers(batch.groups[known])]
            means.add(unjudged=scores.isnan().float(), length=batch.mask.sum(-1), groups_without_variance=(~differ).float())
            kept = (advantages != 0).nonzero()[:, 0]
            found.append(Sampled(batch, kept, advantages[kept]))
            wanted, useful = max(wanted, len(groups)), useful + int(differ.sum())
            learned = advantages.where(~scores.isnan(), torch.nan)
            if useful >= wanted:
                break
        self.rollout_metrics = (spread("score", judged, prompts) if judged else {}) | self.source.metrics(learned, scores)
        return found

    def _update(self, batch: Batch, advantages: Tensor, tokens: float, rows: float, means: Means) -> Tensor:
        """Gather the gradient of `batch`; the loss is a mean over all that was sampled, forwarded or not."""
        s, total = self.own, torch.zeros((), device=advantages.device)
        for rows_, weight in ranks.mine(parts(batch, self.how.micro_batch_tokens)):
            part = batch.select(rows_)
            logprobs, entropy = self.model.evaluate(part)
            mean = "sequence" if s.mean == "sequence" else "token"
            loss = ppo_clip_loss(logprobs, part.logprobs, advantages[rows_], part.mask, s.clip, s.clip_high, None, s.ratio, mean)
            here = part.mask.sum()
            loss = loss * {"token": here / tokens, "sequence": len(part) / rows, "constant": here / (rows * self.longest)}[s.mean]
            drift = None
            if self.reference is not None:
                with torch.no_grad():
                    reference = self.reference.evaluate(part)[0]
                drift = (kl_estimate(logprobs, reference, "k3") * part.mask).sum(-1)
                loss = loss + self.kl * drift.sum() / tokens
            loss = loss * weight
            loss.backward()
            if not weight:
                continue
            total += loss.detach()
            if drift is not None:
                means.add(kl=drift)
            means.add(entropy=used(part.mask, entropy), **ratio_metrics(logprobs, part.logprobs, part.mask, s.clip, s.clip_high))
        return total
