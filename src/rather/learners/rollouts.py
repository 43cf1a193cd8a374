"""Where the batches come from that a policy is improved on."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from rather.core import Batch, Model, Sampler, Task, Trajectory
from rather.errors import ConfigError
from rather.learners.common import numbers
from rather.learners.signs import signs
from rather.learners.spread import gold_correlation, spread
from rather.verify.checker import Scorer


class Source(Protocol):
    """Where batches of trajectories come from that a policy is improved on."""

    def collect(self, number: int) -> Batch:
        """What the policy does at step `number`, with its rewards."""
        ...

    def sync(self) -> None:
        """Take over the policy's present parameters."""
        ...

    def metrics(self, advantages: Tensor, scores: Tensor) -> dict[str, float]:
        """What there is to say about the last batch; `advantages` and `scores` (B,) are NaN for trajectories that are not learned from."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        ...


@runtime_checkable
class LearningReward(Scorer, Protocol):
    """Scores the answers of a step together, at least two to each prompt, and learns from them meanwhile."""

    def metrics(self) -> dict[str, float]:
        """What there is to say about the last step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What it has learned from."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        ...


class Rollouts:
    """What a policy is improved on: trajectories of `tasks(number)`, new for every `number`; `gold` is their gold reward.

    A `reward` that learns by the sampler's answers is part of the state.
    """

    def __init__(
        self,
        model: Model,
        sampler: Sampler,
        tasks: Callable[[int], Sequence[Task]],
        seed: int,
        gold: Callable[[Trajectory], float] | None = None,
        reward: LearningReward | None = None,
    ) -> None:
        if not (gold is None or callable(gold)):
            raise ConfigError(f"gold is {gold!r:.80}; give a function of an answer, a Trajectory, that returns a number")
        self.reward = reward
        self.model, self.sampler, self.tasks, self.seed, self.gold = model, sampler, tasks, seed, gold
        self.gold_rewards: list[float] = []
        self.trajectories: list[Trajectory] = []

    def collect(self, number: int) -> Batch:
        """Let the policy act."""
        found = self.sampler.sample(self.tasks(number), self.seed * 1_000_003 + number)
        self.gold_rewards = [] if self.gold is None else [self.gold(t) for t in found]
        self.trajectories = found
        return self.model.collate(found)

    def sync(self) -> None:
        """Let the sampler know that the policy has changed."""
        self.sampler.sync()

    def metrics(self, advantages: Tensor, scores: Tensor) -> dict[str, float]:
        """The gold reward of the last trajectories, if there is one, and its correlation with their advantages; how the reward learns.

        Of texts also their `signs`. `advantages` and `scores` (B,) are NaN for those that are not learned from.
        """
        measured, gold = {} if self.reward is None else self.reward.metrics(), self.gold_rewards
        texts = [t.text for t in self.trajectories if t.text is not None]
        if texts and len(texts) == len(self.trajectories):
            measured = measured | signs([t.task.prompt for t in self.trajectories], texts, numbers(scores))
        if gold:
            tasks = [(t.task.source, t.task.key) for t in self.trajectories]
            measured = measured | spread("gold", gold, tasks) | gold_correlation(numbers(advantages), gold, tasks)
        return measured

    def state_dict(self) -> dict[str, Any]:
        """That of a reward that learns; `number` says all else."""
        return {} if self.reward is None else {"reward": self.reward.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        if self.reward is not None:
            self.reward.load_state_dict(state["reward"])
