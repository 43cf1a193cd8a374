"""Whatever a program gives as its judge."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from rather.core import Batch, Judge
from rather.errors import ConfigError
from rather.judges.functions import FunctionJudge
from rather.judges.model import ModelJudge


class Scorer(Protocol):
    """A reward model."""

    def scores(self, batch: Batch) -> Tensor:
        """Scores (K, B) of K members."""
        ...


JudgeLike = Judge | Scorer | Callable[..., object]
"""A judge, a reward model, or a function of (prompt, a, b)."""


def judge_of(judge: Any) -> Judge:
    """A judge as it is, a reward model, or a function of (prompt, a, b) as a judge.

    Raises:
        ConfigError: it is something else.
    """
    if hasattr(judge, "judge"):
        return judge
    if hasattr(judge, "scores"):
        return ModelJudge("reward", judge)
    if callable(judge):
        return FunctionJudge(judge)
    raise ConfigError(f'judge is {judge!r:.80}; give a function of (prompt, a, b) that returns "a", "b", "tie" or None, or a reward model')
