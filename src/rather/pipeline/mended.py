"""A reward that was hacked, mended by comparisons: what it gets wrong is learned on top of it.

Shape letters: n comparisons, N trajectories, E features beside those of the head: reward, words, repeated words, and `WORDS` counts.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rather.core import Comparison, RewardModel, Trajectory
from rather.errors import ConfigError, DataError, TrainingError
from rather.judges.best_of import score_of
from rather.learners.common import check_pessimism
from rather.learners.head import RIDGES, Answers, Array, Choice, fit
from rather.learners.inputs import RewardFns, check_comparisons, reward_functions
from rather.text.head.model import RewardHead
from rather.verify.checker import Scorer

WORDS, LARGEST = 8, 1e100
"""How many words are features, and which rewards are too large to compute with."""


class MendedReward:
    """Rewards answers by `reward`, corrected by what comparisons say that it gets wrong: the reward of GRPO or PPO after an alarm.

    With s the standard deviation of the reward over the compared answers, and T the temperature of the judge,

        score = reward / s + w.x,    P(a better) = sigmoid((score of a - score of b) / T),    w ~ N(0, 1 / ridge)

    Each x is standardized: the reward, the number of words, the number of repeated words, the counts of the `WORDS` words that correlate
    most with the reward, and the features of `head` (which weigh as much as one of the others, all together). As long as comparisons
    agree with the reward, the score orders answers as it does. w is fitted by Bayesian logistic regression, with the ridge under
    which they are most likely (see `learners.head`). A score is lower by `pessimism` standard deviations of the posterior: least where
    comparisons are near. An answer without a reward has no score.

    `head` is a `rather.RewardHead` that need not have learned anything; comparisons should be of answers that were hacked, and of others.

    Raises:
        ConfigError: an argument is something else.
        DataError: one of the comparisons cannot be learned from, or a reward is not finite.
        TrainingError: no comparison is left whose answers both have a reward.
    """

    def __init__(
        self,
        reward: RewardModel | Scorer | RewardFns,
        head: RewardHead,
        comparisons: Sequence[Comparison],
        *,
        pessimism: float = 0.5,
    ) -> None:
        if not isinstance(head, RewardHead):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"MendedReward: head is {head!r:.80}; give a rather.RewardHead")
        self.head, self.pessimism, self.problems = head, check_pessimism(pessimism, 2), Counter[str]()
        self.scorer = None if isinstance(reward, RewardModel) else reward if isinstance(reward, Scorer) else reward_functions(reward)
        self.reward = score_of(reward) if self.scorer is None else self.scorer.score
        self.comparisons = check_comparisons(comparisons)
        if any(len(side) != 1 for c in self.comparisons for side in (c.a, c.b)):
            raise DataError("MendedReward learns from comparisons of two answers; leave out those of sets of answers")
        self._learn()

    def _learn(self) -> None:
        rewards = self._rewards([t for c in self.comparisons for t in (c.a[0], c.b[0])])
        pairs = zip(self.comparisons, rewards[0::2], rewards[1::2], strict=True)
        judged = [(c, a, b) for c, a, b in pairs if a is not None and b is not None]
        if not judged:
            raise TrainingError("MendedReward has nothing to learn from: of no comparison have both answers a reward")
        some = [c for c, *_ in judged]
        sides = [t for c in some for t in (c.a[0], c.b[0])]
        values = np.array([r for _, *both in judged for r in both], np.float64)
        if not np.abs(values).max() < LARGEST:
            raise DataError("rewards of compared answers are not finite, or too large; leave those comparisons out, or scale the reward")
        self.words = _words(sides, values)
        flat = self._extra(sides, values)
        features, extra = self.head.sides(some), flat.reshape(len(some), 2, -1)
        self.center, std = flat.mean(0), flat.std(0)
        self.scale = np.divide(1.0, std, out=np.zeros_like(std), where=std > 1e-6 * np.abs(flat).max(0))
        self.unit = self.scale[0] or 1.0
        names = sorted({c.judge for c in some})
        self.choice = Choice.standardizing(self.head.groups, features, 1.0)
        z = np.concatenate([(extra[:, 0] - extra[:, 1]) * self.scale, self.choice.differences(features)], 1)
        preference = np.array([c.preference for c in some], np.float64)
        judge, offset = np.array([names.index(c.judge) for c in some]), (extra[:, 0, 0] - extra[:, 1, 0]) * self.unit
        answers = Answers(z, preference, judge, len(names), offset)
        self.posterior = max((fit(answers, ridge) for ridge in RIDGES), key=lambda found: found.evidence)

    def score(self, trajectories: Sequence[Trajectory]) -> list[float | None]:
        """A score for each, or None where it has no reward.

        Raises:
            TrainingError: states of an answer are not finite.
        """
        rewards = self._rewards(trajectories)
        known = [i for i, reward in enumerate(rewards) if reward is not None]
        scores: list[float | None] = [None] * len(rewards)
        if known:
            some, numbers = [trajectories[i] for i in known], np.array([rewards[i] for i in known], np.float64)
            for i, score in zip(known, self._scores(some, numbers), strict=True):
                scores[i] = float(score)
        return scores

    def _scores(self, trajectories: Sequence[Trajectory], rewards: Array) -> Array:
        """Scores (N,) of answers with these rewards (N,)."""
        extra = (self._extra(trajectories, rewards) - self.center) * self.scale
        x = np.concatenate([extra, self.choice.of(self.head.read(trajectories))], 1)
        doubt = np.sqrt(self.posterior.variance(x)) if self.pessimism else 0.0
        return rewards * self.unit + self.posterior.mean(x) - self.pessimism * doubt

    def _rewards(self, trajectories: Sequence[Trajectory]) -> list[float | None]:
        found = self.reward(trajectories)
        if self.scorer is not None:
            self.problems = self.scorer.problems
        return found

    def _extra(self, trajectories: Sequence[Trajectory], rewards: Array) -> Array:
        """Features of answers (N, E), float64, beside those of the head."""
        rows = [
            [r, len(w), len(w) - len(set(w)), *map(w.count, self.words)] for r, w in zip(rewards, map(_split, trajectories), strict=True)
        ]
        return np.array(rows, np.float64).reshape(len(trajectories), -1)


def _split(trajectory: Trajectory) -> list[str]:
    return (trajectory.text or "").lower().split()


def _words(trajectories: Sequence[Trajectory], rewards: Array) -> list[str]:
    """The `WORDS` words whose counts correlate most with the rewards (N,) of answers, in either direction."""
    answers, found = [_split(t) for t in trajectories], dict[str, float]()
    apart = rewards - rewards.mean()
    for word in sorted({word for said in answers for word in said}):
        counts = np.array([said.count(word) for said in answers], np.float64)
        counts -= counts.mean()
        spread = np.sqrt((counts @ counts) * (apart @ apart))
        found[word] = abs(float(counts @ apart)) / spread if spread else 0.0
    return sorted(found, key=lambda word: -found[word])[:WORDS]
