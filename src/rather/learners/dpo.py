"""Direct preference optimization (Rafailov et al. 2023): a policy from comparisons, without reward model and critic."""

# PyTorch says in part alone what `backward`, `step` and `tolist` take and give.
# pyright: reportUnknownMemberType=false

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from rather.core import Batch, Comparison, Policy
from rather.errors import TrainingError
from rather.learners.common import LeastUsed, Means, Order, Pairs, Stepper, agreement, at_place, in_parts, names, numbers, used
from rather.learners.dpo_settings import DPOOptions, DPOSettings
from rather.learners.inputs import P, accuracy, check_comparisons, trainee
from rather.learners.learner import Learner, digest_of_comparisons
from rather.learners.settings import LoRA, Optimization
from rather.learners.train import Callback
from rather.losses import bradley_terry_loss, implicit_scores, ipo_loss
from rather.settings import given
from rather.verify.functions import load_function

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Scores (N,) of the sides a and b, and P(a better) (N,): the mean loss, or the loss (N,) of each pair."""


class DPO(Learner[P, Sequence[Comparison]], Generic[P]):
    """Bradley-Terry on implicit scores beta * sum_t (log pi - log pi_ref); soft preferences give conservative DPO.

    The given `policy` stays as it is, and is the `reference` unless another one is given: what learns is a new adapter on it, a copy of the
    one that it has, or with `adapter` "full" a copy of all its weights. With `parameters` these learn in place instead.

    `loss` is "dpo", "ipo" (Azar et al. 2023, on log-ratios averaged over the actions where `normalized`), a function of the scores of a
    and b and P(a better), or its "module:name". With `sft_weight` the preferred side's negative log-likelihood, averaged over a
    trajectory's actions and at the policy's temperature, is added, so that DPO does not lower both sides (RPO; Pang et al. 2024, eq. 1).
    The preferred side is the one with more than half; ties add nothing. `reference_logprobs` says whether the reference is evaluated "once"
    for every comparison, before the first step, or again at each step ("each"), which needs a reference that stays as it is. In a
    stochastic environment DPO's closed form does not hold: the score then also rewards luck.

    Raises:
        ConfigError: an argument is not known, or its value is wrong.
    """

    name = "dpo"

    def __init__(
        self,
        policy: P,
        comparisons: Sequence[Comparison],
        reference: Policy | None = None,
        parameters: Sequence[nn.Parameter] | None = None,
        *,
        loss: str | Loss = "dpo",
        adapter: LoRA | Literal["full"] | None = None,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        folder: Path | str | None = None,
        progress: Callable[[int], None] = lambda done: None,
        **options: Unpack[DPOOptions],
    ) -> None:
        named = {"loss": loss} if isinstance(loss, str) else {}
        self.own, how = given("DPO", {**options, **named}, DPOSettings, Optimization)
        self.reference: Policy = policy if reference is None else reference
        self.comparisons = check_comparisons(comparisons)
        model, parameters = trainee(policy, adapter, seed, parameters)
        settings = {"dpo": self.own, "data": {"comparisons": digest_of_comparisons(self.comparisons)}}
        super().__init__(model, how.steps_on(len(self.comparisons)), how, seed, settings, callbacks, folder)
        self.loss: Loss | None = None if loss in ("dpo", "ipo") else load_function(loss, "dpo.loss") if isinstance(loss, str) else loss
        self.order: Order | LeastUsed = Order(len(self.comparisons), seed)
        self.stepper = Stepper(parameters, how, self.steps)
        self.kept: list[list[Tensor]] | None = None
        if self.own.reference_logprobs == "once":
            self.kept = self._evaluate_reference(self.comparisons, progress)

    @property
    def epoch(self) -> int:
        """Steps in which every comparison is used once."""
        return -(-len(self.comparisons) // self.how.batch_size)

    def evaluate(self, data: Sequence[Comparison]) -> dict[str, float]:
        """The share of comparisons that the implicit scores order as they were judged, ties left out."""

        def scores(batch: Batch) -> Tensor:
            return ((self.model.evaluate(batch)[0] - self.reference.evaluate(batch)[0]) * batch.mask).sum(-1)

        return accuracy(self.model, check_comparisons(data), scores, self.how)

    def follow(self, comparisons: Sequence[Comparison]) -> None:
        """Learn from these from now on; those that were there before keep their place."""
        before, now = names(self.comparisons), names(comparisons)
        had, have = list(map(_item, before, self.comparisons)), list(map(_item, now, comparisons))
        self.comparisons = list(comparisons)
        self.order = LeastUsed.after(self.order, before, now, self.seed)
        if self.kept is not None:
            known = dict(zip(had, self.kept, strict=True))
            new = {item: c for item, c in zip(have, comparisons, strict=True) if item not in known}
            known |= dict(zip(new, self._evaluate_reference([*new.values()]), strict=True))
            self.kept = [known[item] for item in have]

    def step(self) -> dict[str, float]:
        """One optimizer step on a batch of comparisons."""
        own, chosen = self.own, self.order.take(self.how.batch_size)
        pairs = Pairs.of(self.model, [self.comparisons[i] for i in chosen])
        kept = [row for i in chosen for row in self.kept[i]] if self.kept is not None else None
        means, loss = Means(), 0.0
        for part, _, rows, weight in pairs.split(self.how.micro_batch_tokens):
            logprobs, entropy = self.model.evaluate(part.batch)
            reference = self._reference(part.batch, None if kept is None else kept[rows])
            mask = part.batch.mask
            scores = implicit_scores(logprobs, reference, mask, own.beta)
            a, b = part.scores(scores)
            if self.loss is not None:
                part_loss = checked(self.loss, a, b, part.preference)
            elif own.loss == "ipo":
                ratios = scores / own.beta / (mask.sum(-1) if own.normalized else 1)
                part_loss = ipo_loss(*part.scores(ratios), own.beta, part.preference)
            else:
                part_loss = bradley_terry_loss(a, b, part.preference)
            sign = (part.preference - 0.5).sign()
            if own.sft_weight:
                mean_a, mean_b = part.scores((logprobs * mask).sum(-1) / mask.sum(-1).clamp(min=1))
                preferred = torch.where(sign > 0, mean_a, mean_b) * (sign != 0)
                part_loss = part_loss - own.sft_weight * preferred.mean()
            part_loss = part_loss * (weight * len(part) / len(pairs))
            part_loss.backward()
            if not weight:
                continue
            loss = loss + part_loss.detach()
            liked_a, liked_b = part.scores((logprobs * mask).sum(-1))
            liked, other = torch.where(sign >= 0, liked_a, liked_b), torch.where(sign >= 0, liked_b, liked_a)
            means.add(
                accuracy=agreement(a, b, part.preference),
                margin=torch.where(sign == 0, torch.nan, sign * (a - b)),
                logprob_preferred=liked,
                logprob_other=other,
                log_ratio=((logprobs - reference) * mask).sum(-1),
                entropy=used(mask, entropy),
                length=mask.sum(-1),
            )
        return self.stepper.step(loss) | means.result() | {"tokens": float(pairs.batch.mask.sum())}

    def state_dict(self) -> dict[str, Any]:
        """Optimizer state and the place in the data."""
        return {"stepper": self.stepper.state_dict(), "place": self.order.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        self.stepper.load_state_dict(state["stepper"])
        self.order = at_place(state["place"], names(self.comparisons), self.seed)

    def _reference(self, batch: Batch, kept: list[Tensor] | None) -> Tensor:
        if kept is None:
            with torch.no_grad():
                return self.reference.evaluate(batch)[0]
        reference = torch.zeros_like(batch.mask)
        for row, values in zip(reference, kept, strict=True):
            row[: len(values)] = values
        return reference

    @torch.no_grad()
    def _evaluate_reference(
        self, comparisons: Sequence[Comparison], progress: Callable[[int], None] = lambda done: None
    ) -> list[list[Tensor]]:
        """The reference's log-probabilities of each comparison's rows."""
        kept: list[list[Tensor]] = []
        for start in range(0, len(comparisons), self.how.batch_size):
            chosen = comparisons[start : start + self.how.batch_size]
            batch = Pairs.of(self.model, chosen).batch
            (logprobs,) = in_parts(batch, self.how.micro_batch_tokens, lambda part: self.reference.evaluate(part)[:1])
            rows = iter([row[: int(n)] for row, n in zip(logprobs, numbers(batch.mask.sum(-1)), strict=True)])
            kept += [[next(rows) for _ in (*c.a, *c.b)] for c in chosen]
            progress(len(chosen))
        return kept


def _item(name: str, c: Comparison) -> tuple[Any, ...]:
    """An item with what its sides are: another answer to several sides says other pairs under the same name."""
    return name, *(x.text if x.text is not None else np.asarray(x.actions).tobytes() for x in (*c.a, *c.b))


def checked(loss: Callable[[Tensor, Tensor, Tensor], object], a: Tensor, b: Tensor, preference: Tensor) -> Tensor:
    """The mean of a loss function that was given.

    Raises:
        TrainingError: it returned something else than one number, or one number a pair.
    """
    found = loss(a, b, preference)
    if not isinstance(found, Tensor) or found.shape not in ((), a.shape):
        what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise TrainingError(f"the function given as loss returned {what} for {len(a)} pairs; return a tensor of shape () or ({len(a)},)")
    return found.mean()
