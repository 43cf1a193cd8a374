"""Best of n: a reward is used without training. Several answers to a prompt are drawn, and the one with the highest reward is given."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from rather.core import Perturbation, RewardModel, Task, Trajectory
from rather.errors import ConfigError, TrainingError
from rather.learners.common import in_parts
from rather.learners.inputs import RewardFns, no_model, reward_functions
from rather.learners.settings import Sampling
from rather.text import engine
from rather.text.head.model import RewardHead
from rather.text.language_model import Generative, LanguageModel, TextSampler
from rather.verify.checker import Scorer

TOKENS, AT_ONCE = 1536, 64
"""Tokens that are scored at a time, times `WITHOUT_GRADIENT`, and answers that are laid out at a time."""

Score = Callable[[Sequence[Trajectory]], list[float | None]]
"""Scores of answers; None where a reward function judges nothing, and for an answer that was truncated before its first word."""


class BestOf(Generative):
    """The policy that draws `n` answers to each prompt from `policy` and gives the one with the highest reward (Stiennon et al. 2020).

    `reward` is a reward head, a reward model, or reward functions as `GRPO` takes them. Heads and models read the words of an answer, so
    their base model may be another one than `policy`. The first of the `n` answers is the one that `policy` itself gives for the same
    seed; of equal rewards the earliest wins. An answer without a reward, such as one that a function returns None for, is taken only
    where none has one.

    Raises:
        ConfigError: `n` is below 1, or `policy` or `reward` is something else.
        TrainingError: the reward head has not been fitted.
    """

    def __init__(self, policy: LanguageModel, reward: RewardModel | RewardFns, n: int = 8) -> None:
        if not isinstance(policy, LanguageModel):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise no_model("the policy", policy)
        if not isinstance(n, int) or n < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"BestOf: n is {n!r}; draw 1 answer or more")
        self.policy, self.score, self.n = policy, score_of(reward), n
        self.name = f"best of {n} of {policy.name}"

    def sampler(self, sampling: Sampling) -> "BestSampler":
        """What draws the answers, each with its reward on its last token.

        Raises:
            ConfigError: all answers to a prompt would be the same.
        """
        return BestSampler(self, engine.Sampling(**sampling.model_dump()))


class BestSampler(TextSampler):
    """Draws the best of several answers to each prompt; see `BestOf.sampler`."""

    def __init__(self, of: BestOf, sampling: engine.Sampling, rows: int = 32, progress: Callable[[int], None] = lambda n: None) -> None:
        if sampling.temperature == 0 and of.n > 1:
            raise ConfigError(f"best of {of.n} at temperature 0 draws the same answer {of.n} times; set the temperature above 0")
        super().__init__(of.policy, sampling, rows, progress)
        self.of = of

    def sample(self, tasks: Sequence[Task], seed: int, perturbations: Sequence[Perturbation | None] | None = None) -> list[Trajectory]:
        """One answer a task, its reward on its last token; a task that comes again gets others. See `TextSampler.sample`.

        Raises:
            TrainingError: a reward is not finite.
        """
        n = self.of.n
        wanted = None if perturbations is None else [p for p in perturbations for _ in range(n)]
        drawn = super().sample([task for task in tasks for _ in range(n)], seed, wanted)
        rewards = self.of.score(drawn)
        firsts = [start + ranked(rewards[start : start + n])[0] for start in range(0, len(drawn), n)]
        return [_rewarded(drawn[i], rewards[i]) for i in firsts]


def score_of(reward: RewardModel | Scorer | RewardFns) -> Score:
    """What scores answers by a reward.

    Raises:
        ConfigError: `reward` is something else.
        TrainingError: it is a reward head that has not been fitted.
    """
    if not isinstance(reward, RewardModel):
        return (reward if isinstance(reward, Scorer) else reward_functions(reward)).score
    if isinstance(reward, RewardHead):
        _ = reward.learned

    def score(answers: Sequence[Trajectory]) -> list[float | None]:
        scores: list[float | None] = [None] * len(answers)
        said = [i for i, t in enumerate(answers) if t.text or t.terminated]
        for start in range(0, len(said), AT_ONCE):
            some = said[start : start + AT_ONCE]
            for i, own in zip(some, _scores(reward, [answers[i] for i in some]), strict=True):
                scores[i] = own
        return scores

    return score


def ranked(rewards: Sequence[float | None]) -> list[int]:
    """The places of rewards from the highest to the lowest, None last; of equal ones the first comes first."""
    return sorted(range(len(rewards)), key=lambda i: -math.inf if (r := rewards[i]) is None else r, reverse=True)


def _scores(reward: RewardModel, answers: Sequence[Trajectory]) -> list[float]:
    """Scores of answers by their words: the sampled tokens may be another model's."""
    batch = reward.collate([replace(t, observations=None, actions=None, logprobs=None, rewards=None) for t in answers])
    (rewards,) = in_parts(batch, TOKENS, lambda part: (reward.rewards(part),))
    scores: list[float] = (rewards * batch.mask).sum(-1).tolist()
    if not all(map(math.isfinite, scores)):
        raise TrainingError(f"the scores of answers to {answers[0].task.prompt!r:.60} are not finite; the reward is broken, train it again")
    return scores


def _rewarded(answer: Trajectory, reward: float | None) -> Trajectory:
    """An answer with its reward; NaN where there is none."""
    assert answer.actions is not None
    rewards = np.zeros(len(answer.actions), np.float32)
    rewards[-1:] = math.nan if reward is None else reward
    return replace(answer, rewards=rewards)
