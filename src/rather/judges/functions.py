"""A function as a judge."""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

from rather.core import Comparison, Prompt, Trajectory
from rather.errors import JudgeError
from rather.verify.functions import ANSWERS, as_number, called, named


class FunctionJudge:
    """Asks a function of (prompt, a, b), where a and b are the words of two answers; in control they are trajectories.

    It returns "a", "b" or "tie", the probability in [0, 1] that a is better, or None to abstain. It may be async, and
    `rather.batched`: then it gets lists of prompts, of a and of b, and returns a list as long. Where sides have several answers, it
    compares those to the same prompt, pair by pair; P(a better) is the mean over pairs, those left out where it abstains.
    """

    kind = "function"

    def __init__(self, function: Callable[..., Any], name: str = "") -> None:
        self.function, self.name = function, name or named(function)

    def judge(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """P(a better) of each, or None where the function abstains.

        Raises:
            JudgeError: it raised an error, or returned something else; or sides are not of as many answers to the same prompts.
        """
        pairs = [self._pairs(c) for c in comparisons]
        calls = [((_prompt(a), _shown(a), _shown(b)), dict[str, Any]()) for some in pairs for a, b in some]
        places = [f" for the prompt {prompt!r:.60}" for (prompt, _, _), _ in calls]
        found = called(self.function, calls, self._raised, places)
        said = [self._preference(value, place) for value, place in zip(found, places, strict=True)]
        return [_mean(said[start:end]) for start, end in pairwise(accumulate(map(len, pairs), initial=0))]

    def _pairs(self, comparison: Comparison) -> list[tuple[Trajectory, Trajectory]]:
        a, b = comparison.a, comparison.b
        if [_prompt(t) for t in a] != [_prompt(t) for t in b]:
            sides = f"question {comparison.key!r} has sides of {len(a)} and {len(b)} answers, which are not to the same prompts"
            raise JudgeError(f"{sides}; the judge {named(self.function)} compares two answers to one prompt, so ask somebody else")
        return list(zip(a, b, strict=True))

    def _raised(self, place: str, e: Exception) -> JudgeError:
        return JudgeError(f"the judge {named(self.function)} raised {type(e).__name__}{place}: {e}")

    def _preference(self, value: Any, place: str) -> float | None:
        if value is None:
            return None
        if isinstance(value, str) and value.lower() in ANSWERS:
            return ANSWERS[value.lower()]
        if isinstance(value, bool) or not 0 <= (preference := as_number(value)) <= 1:
            wanted = '"a", "b", "tie", a probability from 0 to 1, or None'
            raise JudgeError(f"the judge {named(self.function)} returned {value!r:.80}{place}; return {wanted}")
        return preference


def _mean(preferences: Sequence[float | None]) -> float | None:
    given = [p for p in preferences if p is not None]
    return sum(given) / len(given) if given else None


def _prompt(trajectory: Trajectory) -> Prompt:
    return trajectory.task.prompt or ""


def _shown(trajectory: Trajectory) -> str | Trajectory:
    return trajectory if trajectory.text is None else trajectory.text
