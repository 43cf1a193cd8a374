"""A function as a judge."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from rather.core import Comparison, Prompt, Trajectory
from rather.errors import JudgeError, RatherError
from rather.verify.functions import called, named

ANSWERS = {"a": 1.0, "b": 0.0, "tie": 0.5}


class FunctionJudge:
    """Asks a function of (prompt, a, b), where a and b are the words of the two sides; a side of several answers is a list of them.

    Where these are answers to different prompts, prompt is the list of those.

    It returns "a", "b" or "tie", the probability in [0, 1] that a is better, or None to abstain. It may be async, and
    `rather.batched`: then it gets lists of prompts, of a and of b, and returns a list as long.
    """

    kind = "function"

    def __init__(self, function: Callable[..., Any], name: str = "") -> None:
        self.function, self.name = function, name or named(function)

    def judge(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """P(a better) of each, or None where the function abstains.

        Raises:
            JudgeError: it raised an error, or returned something else.
        """
        calls = [((_prompt(c), _words(c.a), _words(c.b)), dict[str, Any]()) for c in comparisons]
        try:
            found = called(self.function, calls)
        except RatherError:
            raise
        except Exception as e:
            raise JudgeError(f"the judge {named(self.function)} raised {type(e).__name__}: {e}") from e
        return [self._preference(value) for value in found]

    def _preference(self, value: Any) -> float | None:
        if value is None:
            return None
        if isinstance(value, str) and value.lower() in ANSWERS:
            return ANSWERS[value.lower()]
        try:
            preference = math.nan if isinstance(value, str | bool) else float(value)
        except (TypeError, ValueError):
            preference = math.nan
        if not 0 <= preference <= 1:
            wanted = '"a", "b", "tie", a probability from 0 to 1, or None'
            raise JudgeError(f"the judge {named(self.function)} returned {value!r:.80}; return {wanted}")
        return preference


def _prompt(comparison: Comparison) -> Prompt | list[Prompt]:
    prompts = [t.task.prompt or "" for t in comparison.a]
    return prompts[0] if all(prompt == prompts[0] for prompt in prompts) else prompts


def _words(side: Sequence[Trajectory]) -> str | list[str]:
    words = [t.text or "" for t in side]
    return words[0] if len(words) == 1 else words
