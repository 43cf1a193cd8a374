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
from rather.errors import ConfigError, TrainingError
from rather.learners.common import LeastUsed, Means, Order, Pairs, Stepper, agreement, at_place, in_parts, names, numbers, used
from rather.learners.dpo_settings import DPOOptions, DPOSettings
from rather.learners.inputs import P, accuracy, check_comparisons, reference_of, trainee
from rather.learners.learner import Learner, digest_of_comparisons
from rather.learners.settings import LoRA, Optimization
from rather.learners.train import Callback
from rather.losses import bradley_terry_loss, hinge_loss, implicit_scores, ipo_loss, log_odds, mean_logprobs, robust_loss, simpo_loss
from rather.settings import given
from rather.verify.functions import load_function, named

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Scores (N,) of the sides a and b, and P(a better) (N,): the mean loss, or the loss (N,) of each pair."""
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, DPOSettings], Tensor]] = {
    "dpo": lambda a, b, preference, own: bradley_terry_loss(a, b, preference),
    "ipo": lambda a, b, preference, own: ipo_loss(a / own.beta, b / own.beta, own.beta, preference),
    "hinge": lambda a, b, preference, own: hinge_loss(a, b, preference),
    "robust": lambda a, b, preference, own: robust_loss(a, b, preference, own.flip_rate),
    "simpo": lambda a, b, preference, own: simpo_loss(a, b, preference, own.simpo_gamma),
    "orpo": lambda a, b, preference, own: own.beta * bradley_terry_loss(a, b, preference),
}
"""The losses by name, of the sides' scores (N,) that belong to them, see `scores`."""


class DPO(Learner[P, Sequence[Comparison]], Generic[P]):
    """Bradley-Terry on implicit scores beta * sum_t (log pi - log pi_ref); soft preferences give conservative DPO.

    The given `policy` stays as it is, and is the `reference` unless another one is given: what learns is a new adapter on it, a copy of the
    one that it has, or with `adapter` "full" a copy of all its weights. With `parameters` these learn in place instead.

    `loss` is "dpo", "ipo" (Azar et al. 2023, on log-ratios averaged over the actions where `normalized`), "hinge" (Zhao et al. 2023),
    "robust" to a share `flip_rate` of wrong labels (Chowdhury et al. 2024), a function of the scores of a and b and P(a better), or its
    "module:name". "simpo" (Meng et al. 2024) and "orpo" (Hong et al. 2024) have no reference, and none is evaluated.

    With `sft_weight` the preferred side's negative log-likelihood, averaged over a trajectory's actions and at the policy's temperature,
    is added, so that DPO does not lower both sides (RPO; Pang et al. 2024, eq. 1); in "orpo" it always is. The preferred side is the one
    with more than half; ties add nothing. `reference_logprobs` says whether the reference is evaluated "once" for every comparison, before
    the first step, or again at each step ("each"), which needs a reference that stays as it is. In a
    stochastic environment DPO's closed form does not hold: the score then also rewards luck.

    Raises:
        ConfigError: an argument is not known, its value is wrong, or the loss does not use it.
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
        if not (isinstance(loss, str) or callable(loss)):  # pyright: ignore[reportUnnecessaryComparison]
            raise ConfigError(f"DPO: loss is {loss!r:.80}; give its name, or a function of (score_a, score_b, preference)")
        by_name = {"loss": loss} if isinstance(loss, str) else {}
        self.own, how = given("DPO", {**options, **by_name}, DPOSettings, Optimization)
        if reference is not None and not self.own.has_reference:
            raise ConfigError(f"DPO: the loss {self.own.loss} has no reference; leave reference out, or take another loss")
        self.reference = reference_of(policy, reference)
        self.comparisons = check_comparisons(comparisons)
        model, parameters = trainee(policy, adapter, seed, parameters)
        settings = {"dpo": self.own, "data": {"comparisons": digest_of_comparisons(self.comparisons)}}
        super().__init__(model, how.steps_on(len(self.comparisons)), how, seed, settings, callbacks, folder, loss=loss_name(loss))
        self.loss: Loss | None = None if loss in LOSSES else load_function(loss, "dpo.loss") if isinstance(loss, str) else loss
        self.order: Order | LeastUsed = Order(len(self.comparisons), seed)
        self.stepper = Stepper(parameters, how, self.steps)
        self.kept: list[list[Tensor]] | None = None
        if self.own.has_reference and self.own.reference_logprobs == "once":
            self.kept = self._evaluate_reference(self.comparisons, progress)

    @property
    def epoch(self) -> int:
        """Steps in which every comparison is used once."""
        return -(-len(self.comparisons) // self.how.batch_size)

    def evaluate(self, data: Sequence[Comparison]) -> dict[str, float]:
        """The share of comparisons that the scores order as they were judged, ties left out."""

        def evaluated(batch: Batch) -> Tensor:
            return scores(self.model.evaluate(batch)[0], self._reference(batch, None), batch.mask, self.own)

        return accuracy(self.model, check_comparisons(data), evaluated, self.how)

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
        chosen = self.order.take(self.how.batch_size)
        pairs = Pairs.of(self.model, [self.comparisons[i] for i in chosen])
        kept = [row for i in chosen for row in self.kept[i]] if self.kept is not None else None
        means, loss = Means(), 0.0
        for part, _, rows, weight in pairs.split(self.how.micro_batch_tokens):
            mask = part.batch.mask
            logprobs, entropy = self.model.evaluate(part.batch)
            reference = self._reference(part.batch, None if kept is None else kept[rows])
            found = scores(logprobs, reference, mask, self.own)
            part_loss = self._loss(part, found, logprobs) * (weight * len(part) / len(pairs))
            part_loss.backward()
            if not weight:
                continue
            loss = loss + part_loss.detach()
            means.add(entropy=used(mask, entropy), length=mask.sum(-1), **_measured(part, found, logprobs))
            if reference is not None:
                means.add(log_ratio=((logprobs - reference) * mask).sum(-1))
        return self.stepper.step(loss) | means.result() | {"tokens": float(pairs.batch.mask.sum())}

    def state_dict(self) -> dict[str, Any]:
        """Optimizer state and the place in the data."""
        return {"stepper": self.stepper.state_dict(), "place": self.order.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        self.stepper.load_state_dict(state["stepper"])
        self.order = at_place(state["place"], names(self.comparisons), self.seed)

    def _loss(self, part: Pairs, scores: Tensor, logprobs: Tensor) -> Tensor:
        """The loss of the rows' scores (B,), and of the preferred sides' likelihood."""
        own, preference = self.own, part.preference
        a, b = part.scores(scores / part.batch.mask.sum(-1) if own.normalized else scores)
        loss = LOSSES[own.loss](a, b, preference, own) if self.loss is None else checked(self.loss, a, b, preference)
        weight = 1.0 if own.loss == "orpo" else own.sft_weight
        if not weight:
            return loss
        mean_a, mean_b = part.scores(mean_logprobs(logprobs, part.batch.mask))
        preferred = torch.where(preference > 0.5, mean_a, mean_b) * (preference != 0.5)
        return loss - weight * preferred.mean()

    def _reference(self, batch: Batch, kept: list[Tensor] | None) -> Tensor | None:
        """The reference's log-probabilities (B, T); none where the loss has no reference."""
        if not self.own.has_reference:
            return None
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


def scores(logprobs: Tensor, reference: Tensor | None, mask: Tensor, own: DPOSettings) -> Tensor:
    """The scores (B,) that the loss of these settings goes by, from log-probabilities (B, T) of policy and reference.

    "orpo": the log-odds of the mean log-probability; "simpo": that mean, times `simpo_beta`; all others: the implicit score.
    """
    if reference is None:
        mean = mean_logprobs(logprobs, mask)
        return log_odds(mean) if own.loss == "orpo" else own.simpo_beta * mean
    return implicit_scores(logprobs, reference, mask, own.beta)


def _measured(part: Pairs, scores: Tensor, logprobs: Tensor) -> dict[str, Tensor]:
    """What the scores (B,) of a part, and the log-probabilities of its sides, are measured by."""
    sign, (a, b) = (part.preference - 0.5).sign(), part.scores(scores)
    logprob_a, logprob_b = part.scores((logprobs * part.batch.mask).sum(-1))
    return {
        "accuracy": agreement(a, b, part.preference),
        "margin": torch.where(sign == 0, torch.nan, sign * (a - b)),
        "logprob_preferred": torch.where(sign >= 0, logprob_a, logprob_b),
        "logprob_other": torch.where(sign >= 0, logprob_b, logprob_a),
    }


def _item(name: str, c: Comparison) -> tuple[Any, ...]:
    """An item with what its sides are: another answer to several sides says other pairs under the same name."""
    return name, *(x.text if x.text is not None else np.asarray(x.actions).tobytes() for x in (*c.a, *c.b))


def loss_name(loss: str | Loss) -> str:
    """What stands for a loss in checkpoints."""
    return loss if isinstance(loss, str) else named(loss)


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
