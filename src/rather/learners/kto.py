"""Kahneman-Tversky optimization (Ethayarajh et al. 2024): a policy from answers that are good or bad, each by itself.

Shape letters: B answers, T tokens (padded), P prompt tokens (padded).
"""

# PyTorch says in part alone what `backward`, `step` and `tolist` take and give.
# pyright: reportUnknownMemberType=false

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, Literal, Unpack

import torch
from torch import Tensor, nn

from rather.core import UNUSED, Batch, Comparison, Policy, Trajectory
from rather.errors import ConfigError, DataError
from rather.learners.common import LeastUsed, Means, Order, Stepper, at_place, in_parts, names, numbers, parts, used
from rather.learners.inputs import P, check_comparisons, reference_of, trainee
from rather.learners.kto_settings import KTOOptions, KTOSettings
from rather.learners.learner import Learner, digest_of_comparisons
from rather.learners.settings import LoRA, Optimization
from rather.learners.train import Callback
from rather.losses import implicit_scores, kto_loss
from rather.scale import ranks
from rather.settings import given


class KTO(Learner[P, Sequence[Comparison]], Generic[P]):
    """Raises the implicit scores of good answers above a reference point, and lowers those of bad ones below it.

    `comparisons` are answers alone, good where the preference is above one half and bad where it is below, and pairs, which are one good
    and one bad answer each; a tie says nothing and is left out. A step takes `batch_size` of them. The reference point is an estimate of
    KL(pi || pi_ref), at least 0: the mean log-ratio of the batch's prompts, each with an answer to another one, see `mismatched`. It gets
    no gradient. Of policy, reference, adapter and parameters see `DPO`; the reference is evaluated in each step.

    Raises:
        ConfigError: an argument is not known, or its value is wrong.
        DataError: all answers are good, or all are bad.
    """

    name = "kto"

    def __init__(
        self,
        policy: P,
        comparisons: Sequence[Comparison],
        reference: Policy | None = None,
        parameters: Sequence[nn.Parameter] | None = None,
        *,
        adapter: LoRA | Literal["full"] | None = None,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        folder: Path | str | None = None,
        **options: Unpack[KTOOptions],
    ) -> None:
        self.own, how = given("KTO", options, KTOSettings, Optimization)
        check_batch("KTO: batch_size", how.batch_size)
        self.reference = reference_of(policy, reference)
        self.comparisons = learnable(check_comparisons(comparisons, alone=True))
        model, parameters = trainee(policy, adapter, seed, parameters)
        settings = {"kto": self.own, "data": {"comparisons": digest_of_comparisons(self.comparisons)}}
        super().__init__(model, how.steps_on(len(self.comparisons)), how, seed, settings, callbacks, folder)
        self.order: Order | LeastUsed = Order(len(self.comparisons), seed)
        self.stepper = Stepper(parameters, how, self.steps)

    @property
    def epoch(self) -> int:
        """Steps in which every label is used once."""
        return -(-len(self.comparisons) // self.how.batch_size)

    @torch.no_grad()
    def evaluate(self, data: Sequence[Comparison]) -> dict[str, float]:
        """The share of answers whose log-ratio is on the right side of the reference point, and the loss."""
        means, labels = Means(), clear(check_comparisons(data, alone=True))
        for start in range(0, len(labels), self.how.batch_size):
            batch, good = self._batch(labels[start : start + self.how.batch_size])
            point, (ratios,) = self._reference_point(batch), in_parts(batch, self.how.micro_batch_tokens, self._ratios)
            means.add(accuracy=((ratios > point) == good).float())
            means.weigh(len(batch), loss=self._loss(self.own.beta * ratios, good, point))
        return means.result()

    def follow(self, comparisons: Sequence[Comparison]) -> None:
        """Learn from these from now on; those that were there before keep their place."""
        before, self.comparisons = names(self.comparisons), learnable(comparisons)
        self.order = LeastUsed.after(self.order, before, names(self.comparisons), self.seed)

    def step(self) -> dict[str, float]:
        """One optimizer step on a batch of labels."""
        batch, good = self._batch([self.comparisons[i] for i in self.order.take(self.how.batch_size)])
        (reference,) = in_parts(batch, self.how.micro_batch_tokens, lambda part: self.reference.evaluate(part)[:1])
        point = self._reference_point(batch)
        means, loss = Means(), 0.0
        for rows, weight in ranks.mine(parts(batch, self.how.micro_batch_tokens)):
            part, mask = batch.select(rows), batch.mask[rows]
            logprobs, entropy = self.model.evaluate(part)
            scores = implicit_scores(logprobs, reference[rows], mask, self.own.beta)
            part_loss = self._loss(scores, good[rows], point) * (weight * len(part) / len(batch))
            part_loss.backward()
            if weight:
                loss = loss + part_loss.detach()
                means.add(entropy=used(mask, entropy), length=mask.sum(-1), **self._measured(scores.detach(), good[rows], point))
        found = self.stepper.step(loss) | means.result()
        return found | {"reference_point": float(point), "tokens": float(batch.mask.sum())}

    def state_dict(self) -> dict[str, Any]:
        """Optimizer state and the place in the data."""
        return {"stepper": self.stepper.state_dict(), "place": self.order.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        self.stepper.load_state_dict(state["stepper"])
        self.order = at_place(state["place"], names(self.comparisons), self.seed)

    def _batch(self, labels: Sequence[Comparison]) -> tuple[Batch, Tensor]:
        """The answers that labels are about, and which of them are good (B,)."""
        answers = [answer for c in labels for answer in judged(c)]
        batch = self.model.collate([t for t, _ in answers])
        return batch, torch.tensor([good for _, good in answers], device=batch.mask.device)

    def _reference_point(self, batch: Batch) -> Tensor:
        """The reference point of a batch, in nats; 0 where all answers are to one prompt."""
        others = mismatched(batch)
        if others is None:
            return batch.mask.new_zeros(())
        return in_parts(others, self.how.micro_batch_tokens, self._ratios)[0].mean().clamp(min=0)

    def _ratios(self, batch: Batch) -> tuple[Tensor]:
        """Log-ratios (B,) of policy and reference."""
        return (((self.model.evaluate(batch)[0] - self.reference.evaluate(batch)[0]) * batch.mask).sum(-1),)

    def _loss(self, scores: Tensor, good: Tensor, point: Tensor) -> Tensor:
        own = self.own
        return kto_loss(scores, good, own.beta * point, own.desirable_weight, own.undesirable_weight)

    def _measured(self, scores: Tensor, good: Tensor, point: Tensor) -> dict[str, Tensor]:
        """What the scores (B,) of answers are measured by."""
        return {
            "accuracy": ((scores > self.own.beta * point) == good).float(),
            "score_good": torch.where(good, scores, torch.nan),
            "score_bad": torch.where(good, torch.nan, scores),
            "log_ratio": scores / self.own.beta,
        }


def mismatched(batch: Batch) -> Batch | None:
    """The prompts of a batch, each with an answer to another one; None where all answers are to one prompt.

    It is the nearest answer before it in the batch that is to another prompt; before the first one comes the last. The end of an answer
    that would make a row longer than the longest one of the batch is left out, so that all fit the model.

    Raises:
        ConfigError: there are no prompts in it.
    """
    if batch.prompts is None:
        raise ConfigError("KTO learns from answers to prompts; a policy for control learns by PPO or zeroth order")
    count, prompts, sizes = len(batch), batch.observations, batch.prompts[:, 1]
    same: list[list[bool]] = numbers((prompts[:, None] == prompts).all(-1))
    before = [next((j % count for j in range(i - 1, i - count, -1) if not same[i][j % count]), None) for i in range(count)]
    rows = torch.tensor([i for i, j in enumerate(before) if j is not None])
    if not len(rows):
        return None
    own, other = batch.select(rows), batch.select(torch.tensor([j for j in before if j is not None]))
    room = (sizes + (batch.actions != UNUSED).sum(-1)).max() - sizes[rows]
    fits = torch.arange(batch.actions.shape[1]) < room[:, None]
    return replace(other, observations=own.observations, prompts=own.prompts, groups=own.groups,
                   actions=torch.where(fits, other.actions, UNUSED), mask=other.mask * fits.to(other.mask))  # fmt: skip


def check_batch(name: str, size: int) -> None:
    """Make sure that a batch has several answers; the message calls its size by `name`.

    Raises:
        ConfigError: it has one.
    """
    if size < 2:
        raise ConfigError(f"{name} is {size}; set it to 2 or more, since KTO measures how far it has gone on other prompts of the batch")


def judged(comparison: Comparison) -> list[tuple[Trajectory, bool]]:
    """The answers that a label is about, and whether each is good; none for a tie."""
    assert comparison.preference is not None
    if comparison.preference == 0.5:
        return []
    a_is_good = comparison.preference > 0.5
    return [*((t, a_is_good) for t in comparison.a), *((t, not a_is_good) for t in comparison.b)]


def clear(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The labels that are no ties."""
    return [c for c in comparisons if judged(c)]


def learnable(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The labels that are no ties.

    Raises:
        DataError: they say that all answers are good, or that all are bad.
    """
    found = clear(comparisons)
    if found and not both_kinds(found):
        kind = "good" if judged(found[0])[0][1] else "bad"
        raise DataError(f"all {len(found)} labels say that an answer is {kind}; KTO needs good and bad ones, or pairs")
    return found


def both_kinds(comparisons: Sequence[Comparison]) -> bool:
    """Whether some answers are good, and some bad."""
    return len({good for c in comparisons for _, good in judged(c)}) == 2
