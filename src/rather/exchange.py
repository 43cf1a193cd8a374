"""Files in and out: prompts and comparisons as JSONL, CSV or Parquet, in plain and in conversational form.

Only here are the sides of a comparison called chosen and rejected, as other tools call them.
"""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rather.core import Comparison, Prompt, Task, Trajectory
from rather.errors import DataError
from rather.store import Store
from rather.store.rows import LETTERS

FORMATS = (".jsonl", ".csv", ".parquet")


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file with their line numbers (Parquet: row numbers), from 1.

    Raises:
        DataError: the file is missing, empty, of another format, or a line is broken; the message names the line.
    """
    if path.suffix not in FORMATS:
        raise DataError(f"{path} is none of {', '.join(FORMATS)}")
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    read = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}[path.suffix]
    empty = True
    for number, row in read(path):
        empty = False
        yield number, row
    if empty:
        raise DataError(f"{path} is empty")


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode())
            except (ValueError, UnicodeDecodeError) as e:
                raise DataError(f"line {number} of {path} is no JSON: {e}") from None
            if not isinstance(row, dict):
                raise DataError(f'line {number} of {path} is {type(row).__name__}, not an object like {{"prompt": ...}}')
            yield number, row


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"line {reader.line_num} of {path} has not as many cells as the heading")
                yield reader.line_num, row
        except (csv.Error, UnicodeDecodeError) as e:
            raise DataError(f"line {reader.line_num + 1} of {path} is no CSV: {e}") from None


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as e:
        raise DataError(f"{path} is no Parquet file that can be read: {e}") from None
    for batch in table.to_batches():
        yield from enumerate(batch.to_pylist(), 1)


def read_tasks(path: str, column: str = "prompt", held_out: float = 0.2) -> tuple[list[Task], list[Task]]:
    """Training and held-out tasks from a prompt file; "package" names the prompts that come with rather.

    A column `split` ("train" or "held_out") divides them; without it a share of `held_out`, chosen by a hash of the prompt, is
    held out. `key` names a prompt (default: its line), `answer` is kept for verifiers. A prompt that stands there twice is used once.

    Raises:
        DataError: see `read_rows`; a row without a prompt; no prompt to train on.
    """
    source = files("rather") / "data" / "prompts.jsonl" if path == "package" else Path(path)
    train, held = [], []
    seen = set()
    for number, row in read_rows(Path(str(source))):
        where = f"line {number} of {source}"
        prompt = _prompt(row.get(column), where, column, row)
        text = json.dumps(prompt)
        if text in seen:
            continue
        seen.add(text)
        answer = row.get("answer")
        task = Task(Path(str(source)).name, str(row.get("key", number)), prompt, None if answer is None else str(answer))
        split = row.get("split")
        if split not in (None, "train", "held_out"):
            raise DataError(f'{where} has split {split!r}; write "train" or "held_out"')
        if split is None:
            split = "held_out" if _share(text) < held_out else "train"
        (train if split == "train" else held).append(task)
    if not train:
        raise DataError(f"{source} has no prompt to train on: all are held out")
    return train, held


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


def read_comparisons(path: Path) -> list[Comparison]:
    """Comparisons with their preferences from a file, in one of three forms.

    - `prompt`, `chosen`, `rejected`: text, or lists of messages (TRL's preference formats);
    - `chosen`, `rejected` alone, whose common beginning is the prompt;
    - `prompt`, `a`, `b` and `preference`, P(a better) in [0, 1].

    In the first two which of them is side a is drawn from a hash of the row, so that no judge can learn from the place.

    Raises:
        DataError: see `read_rows`; a row of another form; a preference outside [0, 1].
    """
    comparisons = []
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
        task = Task(path.name, str(row.get("key", number)), prompt)
        sides = [(Trajectory(task, f"import:{path.name}", _answer(x, where)),) for x in (a, b)]
        comparison = Comparison(*sides, preference=preference, key=f"import/{path.name}/{number}", judge=str(row.get("judge", "")))
        comparisons.append(comparison.swapped() if flip else comparison)
    return comparisons


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


def import_comparisons(store: Store, run: str, path: Path, purpose: str = "train") -> int:
    """Put a file's comparisons and their preferences into the store; returns how many are new.

    With the purpose "gold" they become gold questions: people are asked them like any other, and what they say is held against the file.
    """
    from rather.core import Label

    comparisons = read_comparisons(path)
    before = store.keys(run, purpose)
    if purpose == "gold":
        comparisons = [replace(c, key=f"gold/{c.key}") for c in comparisons]
    numbers = store.ask(run, comparisons, purpose, why="import")
    new = [(n, c) for n, c in zip(numbers, comparisons, strict=True) if c.key not in before]
    if purpose == "gold":
        for number, c in new:
            assert c.preference is not None
            store.probe(number, c.preference)
        return len(new)
    judges = {c.judge or f"import:{path.name}" for _, c in new}
    for judge in judges:
        if judge not in store.judges():
            store.add_judge(judge, "file")
    store.answer_all([Label(n, c.judge or f"import:{path.name}", c.preference) for n, c in new])
    return len(new)


def export(store: Store, run: str, path: Path, form: str = "all") -> int:
    """Write a run's answers to `path` (.jsonl, .csv or .parquet); returns the number of rows.

    `form` "all" is every row ever written, undone ones too, with both sides and where they come from; "comparisons" is one row a
    question with the mean preference, which `read_comparisons` reads; "trl" is prompt, chosen, rejected of the clear ones.

    Raises:
        DataError: another form or format.
    """
    forms = {"all": _all_rows, "comparisons": _comparison_rows, "trl": _trl_rows}
    if form not in forms:
        raise DataError(f"there is no form {form!r}; take one of {', '.join(forms)}")
    return write_rows(path, forms[form](store, run))


def _all_rows(store: Store, run: str) -> Iterator[dict[str, Any]]:
    questions = {q.comparison.key: q for q in store.questions(run)}
    flags = {x.id: list(x.flags) for x in store.labels(run)}
    for row in store.history(run):
        q = questions[row["key"]]
        named = list(zip(LETTERS, q.comparison.sides, strict=False))
        sides = {f"{name}_{what}": [getattr(t, what) for t in side] for name, side in named for what in ("text", "policy")}
        task = q.comparison.a[0].task
        row["flags"] = flags.get(row["id"], row["flags"])
        yield {**row, "run": run, "why": q.why, "task": task.key, "source": task.source, "prompt": task.prompt, **sides}


def _comparison_rows(store: Store, run: str) -> Iterator[dict[str, Any]]:
    for c in store.answered(run).comparisons:
        if len(c.a) == len(c.b) == 1:
            task = c.a[0].task
            yield {"key": c.key, "prompt": task.prompt, "a": c.a[0].text, "b": c.b[0].text, "preference": c.preference}


def _trl_rows(store: Store, run: str) -> Iterator[dict[str, Any]]:
    for c in store.answered(run).comparisons:
        if len(c.a) == len(c.b) == 1 and c.preference not in (None, 0.5):
            better = c if c.preference > 0.5 else c.swapped()  # type: ignore[operator]
            prompt, answers = better.a[0].task.prompt, [better.a[0].text, better.b[0].text]
            if not isinstance(prompt, str):
                answers = [[{"role": "assistant", "content": text}] for text in answers]
            yield {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows, whole or not at all. In CSV a cell that a spreadsheet would run as a formula is escaped."""
    if path.suffix not in FORMATS:
        raise DataError(f"{path} is none of {', '.join(FORMATS)}")
    kept = list(rows)
    names = list(dict.fromkeys(name for row in kept for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    if path.suffix == ".jsonl":
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([{k: _cell(row.get(k)) for k in names} for row in kept]), temporary)
    else:
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows({k: _inert(_cell(v)) for k, v in row.items()} for row in kept)
    temporary.replace(path)
    return len(kept)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _inert(value: Any) -> Any:
    return "'" + value if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
