"""Supervised fine-tuning: raise the likelihood of given answers."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from rather.core import Comparison, Trajectory
from rather.learners.common import LeastUsed, Means, Optimization, Order, Stepper, at_place, parts, used
from rather.scale import ranks


class SFT:
    """Minimizes the mean negative log-likelihood of the answers' tokens; prompts are not learned."""

    def __init__(self, policy: Any, trajectories: Sequence[Trajectory], parameters: Sequence[nn.Parameter], how: Optimization) -> None:
        self.model, self.trajectories, self.how = policy, list(trajectories), how
        self.order: Order | LeastUsed = Order(len(self.trajectories), how.seed)
        self.stepper = Stepper(parameters, how)

    def follow(self, comparisons: Sequence[Comparison]) -> None:
        """Learn from the preferred sides of these from now on; those that were there before keep their place."""
        before, self.trajectories = self._names(), examples(comparisons)
        self.order = LeastUsed.after(self.order, before, self._names(), self.how.seed)

    def step(self) -> dict[str, float]:
        """One optimizer step on a batch of answers."""
        batch = self.model.collate([self.trajectories[i] for i in self.order.take(self.how.batch_size)])
        total = batch.mask.sum()
        means, loss = Means(), 0.0
        for rows, weight in ranks.mine(parts(batch, self.how.micro_batch_tokens)):
            part = batch.select(rows)
            logprobs, entropy = self.model.evaluate(part)
            part_loss = -(logprobs * part.mask).sum() * (weight / total)
            part_loss.backward()
            if weight:
                loss = loss + part_loss.detach()
                means.add(entropy=used(part.mask, entropy), length=part.mask.sum(-1))
        return self.stepper.step(loss) | means.result() | {"tokens": float(total)}

    def state_dict(self) -> dict[str, Any]:
        """Optimizer state and the place in the data."""
        return {"stepper": self.stepper.state_dict(), "place": self.order.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        self.stepper.load_state_dict(state["stepper"])
        self.order = at_place(state["place"], self._names(), self.how.seed)

    def _names(self) -> list[str]:
        return [f"{t.task.source}/{t.task.key}/{t.text}" for t in self.trajectories]


def examples(comparisons: Sequence[Comparison]) -> list[Trajectory]:
    """The sides that were preferred, each once a question: what is better than several others stands in several comparisons."""
    found = {(c.key, *(x.text for x in side)): side for c in comparisons if (side := preferred(c))}
    return [t for side in found.values() for t in side]


def preferred(comparison: Comparison) -> tuple[Trajectory, ...]:
    """The side that was preferred; none for a tie."""
    assert comparison.preference is not None
    if comparison.preference == 0.5:
        return ()
    return comparison.a if comparison.preference > 0.5 else comparison.b
