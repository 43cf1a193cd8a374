"""Functions that users bring, to reward answers or to judge them: one row or batched, sync or async, as they are or as "module:name"."""

import asyncio
import difflib
import importlib
import inspect
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rather.core import Comparison, Prompt, Trajectory
from rather.errors import ConfigError, DataError, RatherError

F = TypeVar("F", bound=Callable[..., Any])
BATCHED = "_rather_batched"
CONCURRENT = 64
"""Calls of an async function that may wait at a time."""


def batched(function: F) -> F:
    """Mark a reward or judge function that takes lists, one item an answer or pair, and returns a list as long."""
    setattr(function, BATCHED, True)
    return function


def named(function: Callable[..., Any]) -> str:
    """What messages call a function."""
    return getattr(function, "__qualname__", type(function).__name__)


def load_function(name: str, what: str) -> Callable[..., Any]:
    """The function that "module:name" names; modules are found from the current folder, too. `what` is the setting that names it.

    Raises:
        ConfigError: there is no such module or function, or the module raises an error.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ConfigError(f'{what} is {name!r}; write "module:name"')
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        found: Any = importlib.import_module(module)
    except Exception as e:
        raise ConfigError(f"{what}: the module {module!r} cannot be imported: {type(e).__name__}: {e}") from e
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), 1)
            raise ConfigError(f"{what}: {module!r} has no {part!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{what}: {name!r} is {type(found).__name__}, not a function")
    return found


@dataclass(frozen=True)
class Answer:
    """What a reward function sees: a prompt, a completion, and the columns of the prompt's row."""

    prompt: Prompt
    completion: str
    columns: Mapping[str, Any]

    @classmethod
    def of(cls, trajectory: Trajectory) -> "Answer":
        """The answer that a trajectory holds; a task's `answer` is one of the columns."""
        task = trajectory.task
        own = {} if task.answer is None else {"answer": task.answer}
        return cls(task.prompt or "", trajectory.text or "", {**task.row, **own})


def reward(function: Callable[..., Any], answers: Sequence[Answer]) -> list[float | None]:
    """What a function of (prompt, completion, **columns) makes of each answer: a finite number, or None where it cannot judge.

    A function gets the columns that its parameters name, all of them where it takes **columns. One that has neither a parameter `prompt`
    nor `completion`, and takes two, is called with (completion, answer).

    Raises:
        ConfigError: it takes a column that the prompts lack.
        DataError: it returned something else.
    """
    taken = [_arguments(function, answer) for answer in answers]
    found = called(function, taken)
    return [None if value is None else _number(function, value) for value in found]


def _arguments(function: Callable[..., Any], answer: Answer) -> tuple[Sequence[Any], dict[str, Any]]:
    """The arguments of one call, by position and by name."""
    parameters = inspect.signature(function).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = {p.name for p in parameters}
    if not names & {"prompt", "completion"} and len(positional) == 2:
        return (answer.completion, answer.columns.get("answer", "")), {}
    every = {**answer.columns, "prompt": answer.prompt, "completion": answer.completion}
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return (), every
    lacking = [p.name for p in parameters if p.name not in every and p.default is p.empty and p.kind != p.VAR_POSITIONAL]
    if lacking:
        have = ", ".join(map(repr, every))
        raise ConfigError(f"the function {named(function)} takes {lacking[0]!r}, which the prompts do not have; there are {have}")
    return (), {name: every[name] for name in names if name in every}


def called(function: Callable[..., Any], calls: Sequence[tuple[Sequence[Any], dict[str, Any]]]) -> list[Any]:
    """What a function returns in each call; a batched one is called once, an async one concurrently.

    Raises:
        DataError: a batched one did not return a value a row.
    """
    if not calls:
        return []
    if hasattr(function, BATCHED):
        positional = [list(column) for column in zip(*(args for args, _ in calls), strict=True)]
        keys = dict.fromkeys(key for _, keywords in calls for key in keywords)
        found = _waited(function(*positional, **{key: [keywords.get(key) for _, keywords in calls] for key in keys}))
        values = found.tolist() if hasattr(found, "tolist") else found
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != len(calls):
            raise DataError(f"the batched function {named(function)} returned {values!r:.80} for {len(calls)} rows; return a list as long")
        return list(values)
    found = [function(*args, **keywords) for args, keywords in calls]
    if any(map(inspect.isawaitable, found)):
        return _waited(_gathered(found))
    return found


async def _gathered(calls: Sequence[Any]) -> list[Any]:
    free = asyncio.Semaphore(CONCURRENT)

    async def one(call: Any) -> Any:
        async with free:
            return await call

    return await asyncio.gather(*map(one, calls))


def _waited(found: Any) -> Any:
    """The result of what may be awaitable; in a notebook, whose loop is running, in a thread of its own."""
    if not inspect.isawaitable(found):
        return found

    async def result() -> Any:
        return await found

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(result())
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, result()).result()


def _number(function: Callable[..., Any], value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, str) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"the reward function {named(function)} returned {value!r:.80}; return a finite number, or None if it cannot judge")
    return number


class RewardFunctions:
    """Scores answers by functions, in this process: the sum of their rewards by weight. It stands where verifiers do (see `Checker`).

    An answer that one of them returns None for has no score, and is not learned from; `problems` counts these.
    """

    kind = "verifier"

    def __init__(self, functions: Sequence[Callable[..., Any]], weights: Sequence[float] | None = None, name: str = "reward") -> None:
        if not functions or (weights is not None and len(weights) != len(functions)):
            raise ConfigError(f"there are {len(functions)} reward functions and {len(weights or [])} weights; give as many, at least one")
        self.functions, self.weights, self.name = list(functions), list(weights or [1.0] * len(functions)), name
        self.problems = Counter[str]()

    def score(self, trajectories: Sequence[Trajectory]) -> list[float | None]:
        """A score for each, or None.

        Raises:
            RatherError: a function raised an error, or returned what is no number.
        """
        answers = [Answer.of(t) for t in trajectories]
        scores: list[float | None] = [0.0] * len(answers)
        for function, weight in zip(self.functions, self.weights, strict=True):
            for i, value in enumerate(self._rewards(function, answers)):
                if value is None:
                    self.problems[f"{named(function)} returned None"] += 1
                    scores[i] = None
                elif (before := scores[i]) is not None:
                    scores[i] = before + weight * value
        return scores

    def judge(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """The side with the higher mean score, 0.5 where they are equal; None where an answer has no score."""
        return compared(self.score, comparisons)

    def close(self) -> None:
        """Nothing runs beside this process."""

    def _rewards(self, function: Callable[..., Any], answers: Sequence[Answer]) -> list[float | None]:
        try:
            return reward(function, answers)
        except RatherError:
            raise
        except Exception as e:
            raise DataError(f"the reward function {named(function)} raised {type(e).__name__}: {e}") from e


def compared(score: Callable[[Sequence[Trajectory]], list[float | None]], comparisons: Sequence[Comparison]) -> list[float | None]:
    """P(a better) by scores of answers: 1 for the side with the higher mean, 0.5 where they are equal; None where one has no score."""
    sides = [side for c in comparisons for side in (c.a, c.b)]
    scores = iter(score([t for side in sides for t in side]))
    means = list[float | None]()
    for side in sides:
        found = [next(scores) for _ in side]
        means.append(None if None in found else sum(x for x in found if x is not None) / len(found))
    pairs = zip(means[0::2], means[1::2], strict=True)
    return [None if a is None or b is None else 0.5 * ((a > b) - (a < b) + 1) for a, b in pairs]
