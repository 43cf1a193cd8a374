"""Forms of rows: prompts and comparisons, plain and conversational.

Only here and in transfer.py are the sides of a comparison called chosen and rejected, as other tools call them.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rather.core import Comparison, Prompt, Task, Trajectory
from rather.data import examples
from rather.data.readers import read_rows
from rather.errors import DataError

LONGEST_KEY = 150
"""Characters of a prompt's `key`; with what is added to it, it must fit the store."""


def read_tasks(path: str, column: str = "prompt", held_out: float = 0.2) -> tuple[list[Task], list[Task]]:
    """Training and held-out tasks from a prompt file; "package" and "package:topics" come with rather.

    A column `split` ("train" or "held_out") divides them; without it a share of `held_out`, chosen by a hash of the prompt, is
    held out. `answer` is kept for verifiers. A prompt that stands there twice is used once: what names it is what it asks, so that
    prompts with the same `key`, or on the same line of files of the same name, stay apart.

    Raises:
        DataError: see `read_rows`; a row without a prompt; no prompt to train on.
    """
    source = examples.prompt_file(path)
    train, held = [], []
    seen = set()
    for number, row in read_rows(source):
        where = f"line {number} of {source}"
        prompt = _prompt(row.get(column), where, column, row)
        text = json.dumps(prompt)
        if text in seen:
            continue
        seen.add(text)
        answer = row.get("answer")
        key = str(row["key"]) if path == "package" else _key(row, prompt, where)
        task = Task(source.name, key, prompt, None if answer is None else str(answer))
        split = row.get("split")
        if split not in (None, "train", "held_out"):
            raise DataError(f'{where} has split {split!r}; write "train" or "held_out"')
        if split is None:
            split = "held_out" if _share(text) < held_out else "train"
        (train if split == "train" else held).append(task)
    if not train:
        raise DataError(f"{source} has no prompt to train on: all are held out")
    return train, held


def _key(row: dict[str, Any], prompt: Prompt, where: str) -> str:
    """What a prompt is called: its `key`, if it has one, with a digest of what it asks."""
    key = row.get("key")
    digest = hashlib.sha256(json.dumps(prompt).encode()).hexdigest()
    if key in (None, ""):
        return digest[:16]
    if len(str(key)) > LONGEST_KEY:
        raise DataError(f"{where} has a key of {len(str(key))} characters; {LONGEST_KEY} are kept")
    return f"{key}-{digest[:8]}"


def _share(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _prompt(value: Any, where: str, column: str, row: dict[str, Any]) -> Prompt:
    if value is None:
        raise DataError(f"{where} has no {column!r}, only {', '.join(map(repr, row)) or 'nothing'}; set data.column to the right one")
    if isinstance(value, str) and value.strip():
        return value
    messages = value if isinstance(value, list) else None
    if messages and all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in messages):
        return [{"role": str(m["role"]), "content": str(m["content"])} for m in messages]
    raise DataError(f"{where}: the prompt {value!r} is neither text nor a list of messages with role and content")


def read_comparisons(path: Path, skipped: Counter[str] | None = None) -> Iterator[Comparison]:  # noqa: ARG001
    """Comparisons with their preferences from a file, row by row, in one of three forms; `skipped` counts what is left out, by reason.

    - `prompt`, `chosen`, `rejected`: text, or lists of messages (TRL's preference formats);
    - `chosen`, `rejected` alone, whose common beginning is the prompt;
    - `prompt`, `a`, `b` and `preference`, P(a better) in [0, 1].

    In the first two which of them is side a is drawn from a hash of the row, so that no judge can learn from the place.

    Raises:
        DataError: see `read_rows`; a row of another form; a preference outside [0, 1].
    """
    for number, row in read_rows(path):
        where = f"line {number} of {path}"
        if {"a", "b", "preference"} <= set(row):
            prompt, a, b = _prompt(row.get("prompt"), where, "prompt", row), row["a"], row["b"]
            preference, flip = _preference(row["preference"], where), False
        elif {"chosen", "rejected"} <= set(row):
            prompt, a, b = _explicit(row, where)
            preference, flip = 1.0, _share(json.dumps([prompt, a, b])) < 0.5
        else:
            raise DataError(f"{where} has {', '.join(map(repr, row))}; needed are prompt, chosen, rejected or prompt, a, b, preference")
        task = Task(path.name, _key(row, prompt, where), prompt)
        sides = [(Trajectory(task, f"import:{path.name}", _answer(x, where)),) for x in (a, b)]
        comparison = Comparison(*sides, preference=preference, key=f"import/{path.name}/{number}", judge=str(row.get("judge") or ""))
        yield comparison.swapped() if flip else comparison


def _preference(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(f"{where}: the preference {value!r} is no number") from None
    if not 0 <= number <= 1:
        raise DataError(f"{where}: the preference {number:g} is outside [0, 1]")
    return number


def _explicit(row: dict[str, Any], where: str) -> tuple[Prompt, Any, Any]:
    chosen, rejected = row["chosen"], row["rejected"]
    if row.get("prompt") is not None:
        return _prompt(row["prompt"], where, "prompt", row), chosen, rejected
    if type(chosen) is not type(rejected) or not isinstance(chosen, str | list):
        raise DataError(f"{where}: chosen and rejected are neither both text nor both lists of messages")
    common = next((i for i, (x, y) in enumerate(zip(chosen, rejected, strict=False)) if x != y), min(len(chosen), len(rejected)))
    if isinstance(chosen, str):  # cut between words
        common = max(chosen.rfind(" ", 0, common), chosen.rfind("\n", 0, common)) + 1
    if not common:
        raise DataError(f"{where} has no prompt, and chosen and rejected have no common beginning that could be one")
    return _prompt(chosen[:common], where, "prompt", row), chosen[common:], rejected[common:]


def _answer(value: Any, where: str) -> str:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0].get("content")
    if not isinstance(value, str):
        raise DataError(f"{where}: the answer {value!r} is neither text nor a list of one message")
    return value
