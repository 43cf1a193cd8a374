"""Direct preference optimization (Rafailov et al. 2023): a policy from comparisons, without reward model and critic."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rather.core import Batch, Comparison
from rather.learners.common import LeastUsed, Means, Optimization, Order, Pairs, Stepper, agreement, at_place, in_parts, names, used
from rather.losses import bradley_terry_loss, implicit_scores, ipo_loss


class DPO:
    """Bradley-Terry on implicit scores beta * sum_t (log pi - log pi_ref); soft preferences give conservative DPO.

    `reference` is evaluated either once for every comparison, before the first step, or again at each step ("each"); the
    second needs a reference that stays as it is. In a stochastic environment DPO's closed form does not hold: the score then
    also rewards luck. `loss` "ipo" is Azar et al. (2023), on log-ratios averaged over the actions where `normalized`. With `sft_weight`
    the preferred side's negative log-likelihood, averaged over a trajectory's actions and at the policy's temperature, is added, so that
    DPO does not lower both sides (RPO; Pang et al. 2024, eq. 1). The preferred side is the one with more than half; ties add nothing.
    """

    def __init__(
        self,
        policy: Any,
        reference: Any,
        comparisons: Sequence[Comparison],
        parameters: Sequence[nn.Parameter],
        how: Optimization,
        beta: float = 0.1,
        loss: Literal["dpo", "ipo"] = "dpo",
        normalized: bool = False,
        sft_weight: float = 0.0,
        when: Literal["once", "each"] = "once",
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        self.model, self.reference, self.comparisons, self.how = policy, reference, list(comparisons), how
        self.beta, self.loss, self.normalized, self.sft_weight = beta, loss, normalized, sft_weight
        self.order: Order | LeastUsed = Order(len(self.comparisons), how.seed)
        self.stepper = Stepper(parameters, how)
        self.kept: list[list[Tensor]] | None = None
        if when == "once":
            self.kept = self._evaluate_reference(self.comparisons, progress)

    def follow(self, comparisons: Sequence[Comparison]) -> None:
        """Learn from these from now on; those that were there before keep their place."""
        before, now = names(self.comparisons), names(comparisons)
        had, have = list(map(_item, before, self.comparisons)), list(map(_item, now, comparisons))
        self.comparisons = list(comparisons)
        self.order = LeastUsed.after(self.order, before, now, self.how.seed)
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
            logprobs, entropy = self.model.evaluate(part.batch)
            reference = self._reference(part.batch, None if kept is None else kept[rows])
            mask = part.batch.mask
            scores = implicit_scores(logprobs, reference, mask, self.beta)
            a, b = part.scores(scores)
            if self.loss == "ipo":
                ratios = scores / self.beta / (mask.sum(-1) if self.normalized else 1)
                part_loss = ipo_loss(*part.scores(ratios), self.beta, part.preference)
            else:
                part_loss = bradley_terry_loss(a, b, part.preference)
            sign = (part.preference - 0.5).sign()
            if self.sft_weight:
                mean_a, mean_b = part.scores((logprobs * mask).sum(-1) / mask.sum(-1).clamp(min=1))
                preferred = torch.where(sign > 0, mean_a, mean_b) * (sign != 0)
                part_loss = part_loss - self.sft_weight * preferred.mean()
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
        self.order = at_place(state["place"], names(self.comparisons), self.how.seed)

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
            rows = iter([row[: int(n)] for row, n in zip(logprobs, batch.mask.sum(-1).tolist(), strict=True)])
            kept += [[next(rows) for _ in (*c.a, *c.b)] for c in chosen]
            progress(len(chosen))
        return kept


def _item(name: str, c: Comparison) -> tuple[Any, ...]:
    """An item with what its sides are: another answer to several sides says other pairs under the same name."""
    return name, *(x.text if x.text is not None else np.asarray(x.actions).tobytes() for x in (*c.a, *c.b))
