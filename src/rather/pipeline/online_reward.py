"""A reward that learns while it rewards, from a judge who is asked about answers of the present policy."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

# pyright: reportUnknownMemberType=false
import numpy as np
import torch

from rather.core import Comparison, Trajectory
from rather.errors import ConfigError
from rather.judges.given import JudgeLike
from rather.learners.head import Raw, learn
from rather.learners.inputs import check_comparisons
from rather.pipeline.online import Questions, counted
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
        if not isinstance(head, RewardHead):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"OnlineReward: head is {head!r:.80}; give a rather.RewardHead")
        if head.known is not None:
            raise ConfigError("OnlineReward: the head has learned already; give a new rather.RewardHead, and what it knew as comparisons")
        self.head, self.questions = head, Questions("OnlineReward", judge, labels, strategy, a_step, seed)
        self.before = check_comparisons(comparisons)
        self.features: list[Raw] = [*head.sides(self.before)]
        """Raw features (2, G, C) of the sides of each comparison."""
        self.problems, self.said = Counter[str](), list[float | None]()
        self._fit()

    @property
    def comparisons(self) -> list[Comparison]:
        """All comparisons that the head has learned from."""
        return [*self.before, *self.questions.comparisons]

    def score(self, trajectories: Sequence[Trajectory]) -> list[float | None]:
        """Ask about some of these answers, learn, and say the mean score of each; None where nothing has been learned yet."""
        features = self.head.read(trajectories)
        self._ask(trajectories, features)
        if self.head.known is None:
            self.problems[SILENT] += 1
            return [None] * len(trajectories)
        return self.head.known.posterior.mean(self.head.known.choice.of(features)).tolist()

    def metrics(self) -> dict[str, float]:
        """The last step's questions, and what the fit to all comparisons came to."""
        known = {} if self.head.known is None else self.head.known.metrics()
        return counted(self.said) | {name: known[name] for name in ("comparisons", "ridge", "evidence") if name in known}

    def state_dict(self) -> dict[str, Any]:
        """Comparisons, and the features of their sides (n, 2, G, C)."""
        new = self.features[len(self.before) :]
        return {"questions": self.questions.state_dict(), "features": torch.from_numpy(np.stack(new)) if new else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        self.questions.load_state_dict(state["questions"])
        new = [] if state["features"] is None else [*state["features"].numpy(force=True)]
        self.features = self.features[: len(self.before)] + new
        self._fit()

    def _ask(self, trajectories: Sequence[Trajectory], features: Raw) -> None:
        """Have some pairs compared, and learn from what the judge said."""
        self.said = []
        if not self.questions.left:
            return
        known, believed = self.head.known, None
        if known is not None:
            x = known.choice.of(features)
            believed = known.posterior.mean(x), known.posterior.covariance(x)
        pairs = self.questions.choose(trajectories, believed)
        self.said = self.questions.ask([(trajectories[a], trajectories[b]) for a, b in pairs])
        new = [features[[a, b]] for (a, b), preference in zip(pairs, self.said, strict=True) if preference is not None]
        if new:
            self.features += new
            self._fit()

    def _fit(self) -> None:
        """Fit the head to all comparisons: from nothing, so that it depends on them alone, bit for bit, and not on when they came."""
        if self.features:
            preference = np.array([c.preference for c in self.comparisons], np.float64)
            self.head.known = learn(np.stack(self.features), preference, [c.judge for c in self.comparisons], [self.head.groups])
