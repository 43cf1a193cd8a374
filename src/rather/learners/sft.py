"""Supervised fine-tuning: raise the likelihood of given answers."""

# PyTorch says in part alone what `backward`, `step` and `tolist` take and give.
# pyright: reportUnknownMemberType=false

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, Literal, Unpack

import torch
from torch import nn

from rather.core import Comparison, Trajectory
from rather.data.rows import Answers, answers
from rather.learners.common import LeastUsed, Means, Order, Stepper, at_place, parts, used
from rather.learners.inputs import P, trainee
from rather.learners.learner import Learner, digest
from rather.learners.settings import LoRA, Optimization, OptimizationOptions
from rather.learners.train import Callback
from rather.scale import ranks
from rather.settings import given


class SFT(Learner[P, Answers], Generic[P]):
    """Minimizes the mean negative log-likelihood of the answers' tokens; prompts are not learned.

    `rows` are trajectories, or what `data.rows.answers` reads: rows with prompt and completion, conversations, a file. Of policy, adapter
    and parameters see `DPO`.

    Raises:
        ConfigError: an argument is not known, or its value is wrong.
        DataError: a row cannot be read.
    """

    name = "sft"
    best = ("loss", -1.0)

    def __init__(
        self,
        policy: P,
        rows: Answers,
        parameters: Sequence[nn.Parameter] | None = None,
        *,
        adapter: LoRA | Literal["full"] | None = None,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        folder: Path | str | None = None,
        **options: Unpack[OptimizationOptions],
    ) -> None:
        (how,) = given("SFT", options, Optimization)
        self.trajectories = answers(rows)
        model, parameters = trainee(policy, adapter, seed, parameters)
        settings = {"data": {"rows": digest([[t.task.prompt, t.text] for t in self.trajectories])}}
        super().__init__(model, how.steps_on(len(self.trajectories)), how, seed, settings, callbacks, folder)
        self.order: Order | LeastUsed = Order(len(self.trajectories), seed)
        self.stepper = Stepper(parameters, how, self.steps)

    @property
    def epoch(self) -> int:
        """Steps in which every answer is used once."""
        return -(-len(self.trajectories) // self.how.batch_size)

    @torch.no_grad()
    def evaluate(self, data: Answers) -> dict[str, float]:
        """The mean negative log-likelihood of the tokens of other answers."""
        means, held_out = Means(), answers(data)
        for start in range(0, len(held_out), self.how.batch_size):
            batch = self.model.collate(held_out[start : start + self.how.batch_size])
            for rows, _ in ranks.mine(parts(batch, self.how.micro_batch_tokens)):
                part = batch.select(rows)
                means.add(loss=used(part.mask, -self.model.evaluate(part)[0]))
        return means.result()

    def follow(self, comparisons: Sequence[Comparison]) -> None:
        """Learn from the preferred sides of these from now on; those that were there before keep their place."""
        before, self.trajectories = self._names(), examples(comparisons)
        self.order = LeastUsed.after(self.order, before, self._names(), self.seed)

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
        self.order = at_place(state["place"], self._names(), self.seed)

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
