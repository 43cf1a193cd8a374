"""Whatever a program gives as its judge."""

from collections.abc import Callable

from rather.core import Judge, RewardModel
from rather.errors import ConfigError
from rather.judges.functions import FunctionJudge
from rather.judges.model import ModelJudge

JudgeLike = Judge | RewardModel | Callable[..., object]
"""A judge, a reward model, or a function of (prompt, a, b)."""


def judge_of(judge: object) -> Judge:
    """A judge as it is, a reward model, or a function of (prompt, a, b) as a judge.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(judge, Judge):
        return judge
    if isinstance(judge, RewardModel):
        return ModelJudge("reward", judge)
    if callable(judge):
        return FunctionJudge(judge)
    raise ConfigError(f'judge is {judge!r:.80}; give a function of (prompt, a, b) that returns "a", "b", "tie" or None, or a reward model')
