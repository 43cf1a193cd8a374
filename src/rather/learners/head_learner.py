"""What fits a reward head in a run: a step learns from all comparisons there are, and is exact."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rather.core import Comparison, RewardModel
from rather.learners import prequential
from rather.learners.head import Array, Learned
from rather.learners.inputs import accuracy, check_comparisons
from rather.learners.learner import Learner, digest, digest_of_comparisons
from rather.learners.settings import Optimization
from rather.learners.train import Callback

MANY, SHARE = 64, 16
"""When more answers than `MANY` wait, so many are predicted at once as are one in `SHARE` of those learned from before."""


class Head(RewardModel, Protocol):
    """A reward model that learns from all comparisons at once."""

    known: Learned | None
    """What has been learned."""

    def learn(self, comparisons: Sequence[Comparison], temperatures: bool = True) -> Learned:
        """Learn from these, and from no others."""
        ...

    def log_odds(self, comparisons: Sequence[Comparison]) -> Array:
        """Log-odds (n,) that a is better in the eyes of whoever judged; 0 while nothing has been learned."""
        ...

    def differences(self, comparisons: Sequence[Comparison]) -> tuple[Array, Array]:
        """Means (n,) and variances (n,) of the differences of the scores of sides a and b."""
        ...


class HeadLearner(Learner[Head, Sequence[Comparison]]):
    """Fits a reward head to comparisons, see `learners.head`; one step is enough, and each further one fits it to those there are then.

    With `temperatures` that of each judge is learned. With `prequential` each answer is first predicted by the head of those that were
    given before it, and only then learned from. When many have come in since the last step they are taken one after another, too, in the
    order in which they were given, so that what is measured does not depend on when steps are taken; of very many, see `MANY`.
    """

    name = "reward"

    def __init__(
        self,
        model: Head,
        comparisons: Sequence[Comparison],
        *,
        temperatures: bool = True,
        prequential: bool = False,
        steps: int = 1,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        folder: Path | str | None = None,
    ) -> None:
        self.comparisons, self.temperatures, self.number = check_comparisons(comparisons), temperatures, 0
        self.prequential = prequential
        self.predicted: dict[str, float] = {}
        """The log-odds of each answer before it was learned from, in the order in which they were."""
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
        if not self.prequential:
            self.predicted = {}  # what is learned now cannot be predicted later
        foreseen = self._predict() if self.prequential else {}
        learned = self.model.learn(self.comparisons, self.temperatures)
        self.number += 1
        return learned.metrics() | {f"temperature/{name}": t for name, t in learned.temperatures().items()} | foreseen

    def _predict(self) -> dict[str, float]:
        """Predict the answers that are new and learn from all but the last of them; put all in order; how it went so far, as metrics.

        An answer that was changed keeps its prediction, which was made before either was known; one that was withdrawn does not count.
        """
        if not self.predicted:
            self.model.known = None  # it has learned from answers that were not predicted
        answers = _named(self.comparisons)
        ordered = [answers[name] for name in self.predicted if name in answers]
        new = sorted((name for name in answers if name not in self.predicted), key=lambda name: answers[name].label)
        while new:
            size = max(1, len(ordered) // SHARE) if len(new) > MANY else 1
            names, new = new[:size], new[size:]
            some = [answers[name] for name in names]
            self.predicted |= zip(names, self.model.log_odds(some).tolist(), strict=True)
            ordered += some
            if new:
                self.model.learn(ordered, self.temperatures)
        self.comparisons = ordered
        counted = [name for name in self.predicted if name in answers]
        preferences = [c.preference for c in ordered if c.preference is not None]
        return prequential.figures([self.predicted[name] for name in counted], preferences)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps and what was predicted: the model is all else."""
        return {"number": self.number, "predicted": self.predicted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        self.number, self.predicted = state["number"], dict(state.get("predicted", {}))


def _named(comparisons: Sequence[Comparison]) -> dict[str, Comparison]:
    """Comparisons by digits that stand for the question, its two sides and who answered, not for what they said."""
    found, seen = dict[str, Comparison](), Counter[str]()
    for c in comparisons:
        name = digest([c.key, c.judge, [t.text for t in c.a], [t.text for t in c.b]])
        seen[name] += 1
        found[f"{name}/{seen[name]}"] = c
    return found
