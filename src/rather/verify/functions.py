"""Functions that users bring, to reward answers or to judge them: one row or batched, sync or async, as they are or as "module:name"."""

import asyncio
import difflib
import importlib
import inspect
import math
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from rather.core import Comparison, Prompt, Trajectory
from rather.errors import ConfigError, DataError, RatherError

F = TypeVar("F", bound=Callable[..., Any])
Failed = Callable[[str, Exception], RatherError]
BATCHED = "_rather_batched"
CONCURRENT = 64
"""Calls of an async function that may wait at a time."""
ANSWERS = {"a": 1.0, "b": 0.0, "tie": 0.5}
"""P(a better) by what a judge function may say in words."""


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


def reward(function: Callable[..., Any], answers: Sequence[Answer], failed: Failed | None = None) -> list[float | None]:
    """What a function of (prompt, completion, **columns) makes of each answer: a finite number, or None where it cannot judge.

    A function gets the columns that its parameters name, all of them where it takes **columns. One of two other parameters, such as
    (text, answer), is called with the completion and the task's answer. `failed` is as in `called`.

    Raises:
        ConfigError: it takes a column that a prompt lacks.
        DataError: it returned something else.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:
        raise ConfigError(f"the parameters of {named(function)} are not known; call it from a function of (prompt, completion)") from None
    calls = [_arguments(function, parameters, answer) for answer in answers]
    places = [f" for the prompt {answer.prompt!r:.60}" for answer in answers]
    found = called(function, calls, failed, places)
    return [None if value is None else _number(function, value, place) for value, place in zip(found, places, strict=True)]


def _arguments(function: Callable[..., Any], parameters: Sequence[inspect.Parameter], answer: Answer) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of one call, by position and by name."""
    known = {**answer.columns, "prompt": answer.prompt, "completion": answer.completion}
    every = any(p.kind == p.VAR_KEYWORD for p in parameters)
    single = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if not every and "answer" in known and _are_text_and_answer(single, known):
        return [answer.completion, known["answer"]], {}
    lacking = [p.name for p in single if p.name not in known and p.default is p.empty]
    if lacking:
        have = ", ".join(map(repr, known))
        raise ConfigError(
            f"the function {named(function)} takes {lacking[0]!r}, which the prompt {answer.prompt!r:.60} does not have; there are {have}"
        )
    first = [p.name for p in single if p.kind == p.POSITIONAL_ONLY and p.name in known]
    names = known if every else {p.name for p in single}
    return [known[name] for name in first], {name: value for name, value in known.items() if name in names and name not in first}


def _are_text_and_answer(parameters: Sequence[inspect.Parameter], known: Mapping[str, Any]) -> bool:
    """Whether a function takes the completion and the task's answer by position: two parameters that are called like nothing else."""
    names = [p.name for p in parameters]
    bare = len(parameters) == 2 and all(p.default is p.empty and p.kind != p.KEYWORD_ONLY for p in parameters)
    return bare and (names == ["text", "answer"] or not (set(names) - {"answer"}) & set(known))


def called(
    function: Callable[..., Any],
    calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]],
    failed: Failed | None = None,
    places: Sequence[str] = (),
) -> list[Any]:
    """What a function returns in each call; a batched one is called once, an async one up to `CONCURRENT` times at once.

    `failed` makes an error of ours of what the function raises in a call, and of the call's place among `places`.

    Raises:
        DataError: a batched one did not return a value a row.
    """
    if not calls:
        return []
    if hasattr(function, BATCHED):
        with _failing(failed, ""):
            return _together(function, calls)
    places, found = places or [""] * len(calls), list[Any]()
    try:
        for (positional, keywords), place in zip(calls, places, strict=True):
            with _failing(failed, place):
                found.append(function(*positional, **keywords))
    except BaseException:
        _close(found)
        raise
    return _waited(_gathered(found, failed, places)) if any(map(inspect.isawaitable, found)) else found


@contextmanager
def _failing(failed: Failed | None, place: str) -> Iterator[None]:
    """Let `failed` make an error of what is raised, unless that is one of ours."""
    try:
        yield
    except Exception as e:
        if failed is None or isinstance(e, RatherError):
            raise
        raise failed(place, e) from e


def _together(function: Callable[..., Any], calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]]) -> list[Any]:
    """What a batched function returns, called once with a list for each argument; None stands where a row has no such column."""
    positional = [list(column) for column in zip(*(args for args, _ in calls), strict=True)]
    keys = dict.fromkeys(key for _, keywords in calls for key in keywords)
    found = _waited(function(*positional, **{key: [keywords.get(key) for _, keywords in calls] for key in keys}))
    values = found.tolist() if hasattr(found, "tolist") else found
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != len(calls):
        raise DataError(f"the batched function {named(function)} returned {values!r:.80} for {len(calls)} rows; return a list as long")
    return list(values)


async def _gathered(found: Sequence[Any], failed: Failed | None, places: Sequence[str]) -> list[Any]:
    """The results of calls, some of them awaitable; the first that fails ends the others."""
    free = asyncio.Semaphore(CONCURRENT)

    async def one(call: Any, place: str) -> Any:
        async with free:
            with _failing(failed, place):
                return await call if inspect.isawaitable(call) else call

    tasks = [asyncio.ensure_future(one(call, place)) for call, place in zip(found, places, strict=True)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        _close(found)


def _close(found: Sequence[Any]) -> None:
    """Close coroutines that nobody has awaited."""
    for call in found:
        if inspect.iscoroutine(call):
            call.close()


def _waited(found: Any) -> Any:
    """The result of what may be awaitable.

    All of them run in one loop, in a thread of its own: what an async function keeps from call to call, such as an HTTP client's
    connections, belongs to the loop it began in; and in a notebook another loop is running.
    """
    if not inspect.isawaitable(found):
        return found

    async def result() -> Any:
        return await found

    waiting = asyncio.run_coroutine_threadsafe(result(), _loop(os.getpid()))
    try:
        return waiting.result()
    finally:
        waiting.cancel()  # where Ctrl-C ended the wait


@cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """The loop of a process: a forked one has none of its parent's threads."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name=f"async functions of {process}", daemon=True).start()
    return loop


def _number(function: Callable[..., Any], value: Any, place: str) -> float:
    if not math.isfinite(number := as_number(value)):
        what = f"the reward function {named(function)} returned {value!r:.80}{place}"
        raise DataError(f"{what}; return a finite number, or None if it cannot judge")
    return number


def as_number(value: Any) -> float:
    """What a function returned as a number, also where that is an array or a tensor of one; NaN where it is none."""
    try:
        return math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last is PyTorch's
        return math.nan


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
            for i, value in enumerate(reward(function, answers, partial(_raised, function))):
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


def _raised(function: Callable[..., Any], place: str, e: Exception) -> DataError:
    return DataError(f"the reward function {named(function)} raised {type(e).__name__}{place}: {e}")


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
