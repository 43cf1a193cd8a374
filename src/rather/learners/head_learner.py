"""What fits a reward head in a run: a step learns from all comparisons there are, and is exact."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rather.core import Comparison, RewardModel
from rather.learners.head import Learned
from rather.learners.inputs import accuracy, check_comparisons
from rather.learners.learner import Learner, digest_of_comparisons
from rather.learners.settings import Optimization
from rather.learners.train import Callback


class Head(RewardModel, Protocol):
    """A reward model that learns from all comparisons at once."""

    def learn(self, comparisons: Sequence[Comparison], temperatures: bool = True) -> Learned:
        """Learn from these, and from no others."""
        ...


class HeadLearner(Learner[Head, Sequence[Comparison]]):
    """Fits a reward head to comparisons, see `learners.head`; one step is enough, and each further one fits it to those there are then.

    With `temperatures` that of each judge is learned.
    """

    name = "reward"

    def __init__(
        self,
        model: Head,
        comparisons: Sequence[Comparison],
        *,
        temperatures: bool = True,
        steps: int = 1,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        folder: Path | str | None = None,
    ) -> None:
        self.comparisons, self.temperatures, self.number = check_comparisons(comparisons), temperatures, 0
        settings = {"reward": {"temperatures": temperatures}, "data": {"comparisons": digest_of_comparisons(self.comparisons)}}
        super().__init__(model, steps, Optimization(), seed, settings, callbacks, folder)

    @property
    def taken(self) -> int:
        """Steps that have been taken."""
        return self.number

    def evaluate(self, data: Sequence[Comparison]) -> dict[str, float]:
        """The share of comparisons that the mean score orders as they were judged, ties left out."""
        return accuracy(self.model, check_comparisons(data), lambda batch: self.model.scores(batch).mean(0), self.how)

    def follow(self, comparisons: Sequence[Comparison]) -> None:
        """Learn from these from now on."""
        self.comparisons = list(comparisons)

    def step(self) -> dict[str, float]:
        """Fit the head to all comparisons."""
        learned = self.model.learn(self.comparisons, self.temperatures)
        self.number += 1
        return learned.metrics() | {f"temperature/{name}": t for name, t in learned.temperatures().items()}

    def state_dict(self) -> dict[str, Any]:
        """The number of steps: the model is all there is."""
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        self.number = state["number"]
