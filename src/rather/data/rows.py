"""What a program hands over: rows in memory, a file, or a data set of the package `datasets`, as comparisons, tasks and answers."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rather.core import Comparison, Prompt, Task, Trajectory
from rather.data import forms
from rather.data.messages import is_messages, read_answer, read_name, read_prompt
from rather.data.readers import Rows, read_rows
from rather.errors import DataError

HERE = "rows"
"""What rows in memory are called, as a file is by its name."""

Prompts = str | Path | Iterable[Prompt | Mapping[str, Any] | Task]
"""What `tasks` reads."""
Answers = str | Path | Iterable[Mapping[str, Any]] | Sequence[Trajectory]
"""What `answers` reads."""


def comparisons(rows: str | Path | Iterable[Mapping[str, Any]]) -> list[Comparison]:
    """Comparisons with their preferences, from rows of any form that `data.forms.read_comparisons` knows.

    `rows` is a file (.jsonl, .csv, .parquet), the name of a data set on the hub (hf://datasets/ORG/NAME), a `datasets.Dataset`, or a list
    of dictionaries, such as {"prompt": ..., "chosen": ..., "rejected": ...}.

    Raises:
        DataError: a row is of another form, or cannot be learned from; the message says which.
    """
    return list(forms.compared(*_source("rows", rows), None))


def tasks(prompts: Prompts) -> list[Task]:
    """What a policy is to answer: prompts, conversations, rows with a `prompt` and other columns, or a file of such rows.

    The other columns are for reward functions; no policy sees them.

    Raises:
        DataError: one of them cannot be read; the message says which.
    """
    if isinstance(prompts, str | Path):
        train, held_out = forms.read_tasks(str(prompts), held_out=0.0, others=True)
        return train + held_out
    if not isinstance(prompts, Iterable):
        raise DataError(f"prompts is a {type(prompts).__name__}; give a list of prompts, or a file")
    return [_task(item, f"item {i} of prompts", str(i)) for i, item in enumerate(prompts)]


def answers(rows: Answers) -> list[Trajectory]:
    """Answers to learn from: trajectories, rows with a `prompt` and a `completion` (or `response`), or rows with a conversation `messages`
    that ends with the answer.

    Raises:
        DataError: a row is of another form; the message says which.
    """
    if isinstance(rows, Sequence) and (given := [row for row in rows if isinstance(row, Trajectory)]) and len(given) == len(rows):
        return given
    source, found = _source("rows", rows)
    return [_answer(row, place, str(source), str(i)) for i, (place, row) in enumerate(found)]


def _source(name: str, rows: str | Path | Iterable[Any]) -> tuple[str | Path, Rows]:
    """What rows are called, and the rows with their places."""
    if isinstance(rows, str | Path):
        return rows, read_rows(rows)
    if not isinstance(rows, Iterable) or isinstance(rows, Mapping):
        raise DataError(f"{name} is a {type(rows).__name__}; give a list of dictionaries, a file, or a datasets.Dataset")
    return HERE, _placed(name, rows)


def _placed(name: str, rows: Iterable[Any]) -> Rows:
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(f"item {i} of {name} is a {type(row).__name__}, not a dictionary such as {{'prompt': ..., 'chosen': ...}}")
        yield f"item {i} of {name}", dict(row)


def _task(item: Any, place: str, key: str) -> Task:
    if isinstance(item, Task):
        return item
    if isinstance(item, Mapping):
        if item.get("prompt") is None:
            raise DataError(f"{place} has no 'prompt', only {', '.join(map(repr, item)) or 'nothing'}")
        answer = item.get("answer")
        more = {name: value for name, value in item.items() if name not in ("prompt", "key", "answer", "split")}
        prompt = read_prompt(item["prompt"], place)
        name = key if item.get("key") is None else read_name(item["key"], place, "key")
        return Task(HERE, name, prompt, None if answer is None else read_name(answer, place, "answer"), more)
    return Task(HERE, key, read_prompt(item, place))


def _answer(row: Mapping[str, Any], place: str, source: str, key: str) -> Trajectory:
    prompt, answer = _conversation(row, place)
    return Trajectory(Task(forms.name_of(source), key, prompt), f"import:{forms.name_of(source)}", answer)


def _conversation(row: Mapping[str, Any], place: str) -> tuple[Prompt, str]:
    messages = row.get("messages")
    if is_messages(messages) and len(messages) > 1:
        return read_prompt(messages[:-1], place), read_answer([messages[-1]], place)
    for name in ("completion", "response"):
        if row.get("prompt") is not None and row.get(name) is not None:
            return read_prompt(row["prompt"], place), read_answer(row[name], place)
    have = ", ".join(map(repr, row)) or "nothing"
    raise DataError(f"{place} has {have}; needed are prompt and completion, or messages that end with the assistant's answer")
