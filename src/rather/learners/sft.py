"""Supervised fine-tuning: raise the likelihood of given answers."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from rather.core import Trajectory
from rather.learners.common import Means, Optimisation, Order, Stepper


class SFT:
    """Minimises the mean negative log-likelihood of the answers' tokens; prompts are not learnt."""

    def __init__(self, policy: Any, trajectories: Sequence[Trajectory], parameters: Sequence[nn.Parameter], how: Optimisation) -> None:
        self.model, self.trajectories, self.how = policy, list(trajectories), how
        self.order = Order(len(self.trajectories), how.seed)
        self.stepper = Stepper(parameters, how)

    def step(self) -> dict[str, float]:
        """One optimiser step on a batch of answers."""
        batch = self.model.collate([self.trajectories[i] for i in self.order.take(self.how.batch_size)])
        total = batch.mask.sum()
        means, loss, start = Means(), 0.0, 0
        lengths = batch.mask.sum(-1).tolist()
        while start < len(batch):
            end, used = start + 1, lengths[start]
            while end < len(batch) and used + lengths[end] <= self.how.micro_tokens:
                used += lengths[end]
                end += 1
            part = batch.select(slice(start, end))
            logprobs, entropy = self.model.evaluate(part)
            part_loss = -(logprobs * part.mask).sum() / total
            part_loss.backward()
            loss += part_loss.item()
            means.add(entropy=entropy[part.mask.bool()], length=part.mask.sum(-1))
            start = end
        return self.stepper.step(loss) | means.result() | {"tokens": float(total)}

    def state_dict(self) -> dict[str, Any]:
        """Optimiser state and the place in the data."""
        return {"stepper": self.stepper.state_dict(), "place": self.order.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        self.stepper.load_state_dict(state["stepper"])
        self.order.place = state["place"]
