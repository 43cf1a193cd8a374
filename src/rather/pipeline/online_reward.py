"""A reward that learns while it rewards, from a judge who is asked about answers of the present policy."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rather.core import Comparison, Trajectory
from rather.errors import ConfigError
from rather.judges.given import JudgeLike
from rather.pipeline.online import Questions
from rather.text.head.model import RewardHead

SILENT = "the judge has answered no question yet, or all answers to each prompt were alike"


class OnlineReward:
    """Rewards answers by a reward `head` that learns from them meanwhile: the `reward` of GRPO or PPO.

    With every step's answers `judge`, a function of (prompt, a, b) or any judge, is asked which of two answers to a prompt is better. The
    head is fitted to all comparisons so far, then each answer is rewarded by its mean score. So it goes on, without asking, when `labels`
    questions have been answered. `strategy` chooses the two by what the head believes ("random", "bald", "information_directed", ...; see
    `pipeline.strategies`), and with `a_step` questions at most a step also the prompts. `comparisons` are some that there are already.

    Before the first comparison there is no reward: the step's answers are unjudged, and nothing is learned from them; after three such
    steps in a row training ends with an error. Comparisons, and what the head has read of them, are in the learner's checkpoints, so that
    a stopped training goes on exactly, and asks nothing again that was answered before its last checkpoint.

    Raises:
        ConfigError: an argument is wrong, or the head has learned from comparisons that are not given.
    """

    def __init__(
        self,
        head: RewardHead,
        judge: JudgeLike,
        labels: int = 200,
        *,
        strategy: str = "random",
        a_step: int | None = None,
        comparisons: Sequence[Comparison] = (),
        seed: int = 0,
    ) -> None:
        if head is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise ConfigError("OnlineReward: head is None; give a rather.RewardHead")
        self.questions = Questions("OnlineReward", judge, labels, strategy, seed, head, a_step, comparisons)
        self.head, self.problems = head, Counter[str]()

    @property
    def comparisons(self) -> list[Comparison]:
        """All comparisons that the head has learned from."""
        return self.questions.comparisons

    def score(self, trajectories: Sequence[Trajectory]) -> list[float | None]:
        """Ask about some of these answers, learn, and say what each is rewarded with; None where nothing has been learned yet."""
        features = self.head.read(trajectories)
        self.questions.ask(trajectories, features)
        if self.head.known is None:
            self.problems[SILENT] += 1
            return [None] * len(trajectories)
        return self.head.values(features).tolist()

    def metrics(self) -> dict[str, float]:
        """The last step's questions, and what the fit to all comparisons came to."""
        return self.questions.metrics()

    def state_dict(self) -> dict[str, Any]:
        """What was asked and answered."""
        return self.questions.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        self.questions.load_state_dict(state)
