"""Tasks with answers that can be verified, made by reasoning-gym."""

import json
from urllib.parse import parse_qsl

from rather.core import Task
from rather.errors import ConfigError, installing

PREFIX = "reasoning_gym:"


def made(name: str, count: int, held_out: float, seed: int, whole: bool) -> tuple[list[Task], list[Task]]:
    """`count` tasks of "reasoning_gym:DATASET?option=value&...", the first of them for training, a share `held_out` for evaluation.

    The answer is what the data set says it is, or with `whole` its entry as JSON, for the data set's own way of scoring. A question
    that was made before is made again, so that none is in both.

    Raises:
        ConfigError: reasoning-gym is missing, or does not know the data set or an option.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise ConfigError(f"{name} needs the package reasoning-gym; {installing('verify')}") from None
    dataset, _, options = name.removeprefix(PREFIX).partition("?")
    if dataset not in DATASETS:
        raise ConfigError(f"reasoning-gym has no data set {dataset!r}; see https://github.com/open-thought/reasoning-gym")
    try:
        rows = reasoning_gym.create_dataset(dataset, size=20 * count, seed=seed, **{k: _value(v) for k, v in parse_qsl(options)})
    except (TypeError, AssertionError, ValueError) as e:
        raise ConfigError(f"reasoning-gym cannot make {dataset} with {options!r}: {e}") from None
    found: dict[str, Task] = {}
    for number, row in enumerate(rows):
        if row["question"] not in found:
            answer = json.dumps({"dataset": dataset, **row}, default=str) if whole else str(row["answer"])
            found[row["question"]] = Task(name, str(number), row["question"], answer)
        if len(found) == count:
            break
    tasks = list(found.values())
    kept = len(tasks) - round(held_out * len(tasks))
    return tasks[:kept], tasks[kept:]


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text
