"""Forms of rows: prompts and comparisons, plain and conversational.

Only here, in rankings.py and in transfer.py are the sides of a comparison called chosen and rejected, as other tools call them.
"""

import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from rather.core import Comparison, Message, Prompt, Task, Trajectory
from rather.data import examples, hub, rankings
from rather.data.messages import common, is_messages, read_answer, read_message, read_name, read_prompt, read_turns, short
from rather.data.readers import Row, Rows, format_of, read_rows
from rather.errors import DataError, RatherWarning

LONGEST_KEY = 150
"""Characters of a prompt's `key`; with what is added to it, it must fit the store."""
NEEDED = (
    "needed are prompt, chosen, rejected; or prompt, a, b, preference; or prompt, response and a rating; or prompt, answers and their "
    "ranks; or prompt, completion, label"
)
BEYOND_TEXT = ("image", "images", "audio", "audios", "video", "videos", "tools", "documents")
"""Columns that a question is not the same without, and that a prompt has no place for."""
IN_A_CELL = re.compile(r"""\s*\[\s*\{\s*["'](role["']\s*:.*["']content|content["']\s*:.*["']role)["']\s*:.*\]\s*""", re.DOTALL)
"""Messages as other programs write them into a cell: JSON, or as Python shows them."""


@dataclass(frozen=True)
class _Pair:
    """Two answers to a prompt and P(a better). `free`: the file has no sides, so which of the two is a is up to us.

    `terminated`: whether a, and b, came to its end, rather than being truncated.
    """

    prompt: Prompt
    a: str
    b: str
    preference: float
    free: bool
    terminated: tuple[bool, bool] = (True, True)


def read_tasks(
    path: str, column: str = "prompt", held_out: float = 0.2, verified: bool = True, others: bool = False
) -> tuple[list[Task], list[Task]]:
    """Training and held-out tasks from a prompt file or a data set on the hub; "package" and "package:NAME" come with rather.

    A column `split` ("train" or "held_out") divides them; without it a share of `held_out`, chosen by a hash of the prompt, is held out.
    `answer` is kept for verifiers; `verified` says whether they read it. With `others` the other columns are kept, too, for functions that
    reward answers. A prompt that stands there again is used once, and one warning
    says how many do: what names a prompt is what it asks, so that prompts with the same `key`, or on the same line of files of the same
    name, stay apart.

    Raises:
        DataError: see `read_rows`; a row without a prompt; a prompt with two splits or, if `verified`, two answers; no prompt to train on.
    """
    package = path == "package" or path.startswith(examples.PREFIX)
    source = path if hub.is_name(path) else examples.prompt_file(path)
    train, held, again = [], [], 0
    seen: dict[str, tuple[str, str | None, str, Row]] = {}
    rows = read_rows(source)
    own = {column, "key", "split", "answer"}
    for place, row in rows if package else _understood(rows, source, lambda row: own | (set(row) - set(BEYOND_TEXT) if others else set())):
        if row.get(column) is None:
            have = ", ".join(map(repr, row)) or "nothing"
            raise DataError(f"{place} has no {column!r}, only {have}; set data.column to the right one")
        prompt = read_prompt(row[column], place, column)
        text = json.dumps(prompt)
        answer = None if row.get("answer") is None else read_name(row["answer"], place, "answer")
        split = row.get("split") or ("held_out" if _share(text) < held_out else "train")
        if split not in ("train", "held_out"):
            raise DataError(f'{place} has split {split!r}; write "train" or "held_out"')
        more = {name: value for name, value in row.items() if name not in own} if others else {}
        before, *kept = seen.setdefault(text, (place, answer, split, more))
        if before != place:
            for name, here, there in zip(("answer", "split", "column"), (answer, split, more), kept, strict=True):
                if here != there and (verified or name != "answer"):
                    raise DataError(f"{place} has the prompt of {before} with another {name}: {short(here)}, not {short(there)}; keep one")
            again += 1
            continue
        key = str(row["key"]) if package and "key" in row else _key(row, prompt, place)
        task = Task(name_of(source), key, prompt, answer, more)
        (train if split == "train" else held).append(task)
    if again:
        warnings.warn(f"{again} rows of {source} repeat the prompt of an earlier row and are left out", RatherWarning, stacklevel=2)
    if not train:
        raise DataError(f"{source} has no prompt to train on: all are held out")
    return train, held


def name_of(source: str | Path) -> str:
    """What a file or data set is called in the store."""
    return str(source) if hub.is_name(source) else Path(source).name


def read_comparisons(path: str | Path, skipped: Counter[str] | None = None) -> Iterator[Comparison]:
    """Comparisons with their preferences from a file or a data set on the hub, row by row.

    A row has one of these forms:

    - `prompt`, `chosen`, `rejected`: text or messages, or whole conversations that begin with the prompt; `margin`, if it is there,
      is the log-odds that chosen is better;
    - `chosen`, `rejected` alone, as conversations: what they begin with alike is the prompt, the last message of each the answer;
    - `prompt`, `a`, `b` and `preference`, P(a better) in [0, 1]; `a_terminated`, `b_terminated` false: it was truncated;
    - `prompt`, `completion` and `label`, true or false: one answer alone, which is good or bad, as TRL's KTO has it;
    - `prompt`, `response` and a rating, and `prompt`, `answers` and their ranks or scores: see `rankings`.

    Where the file does not name sides a and b, they are drawn from a hash of the question, so that no judge can learn from the place
    and the same question always has the same sides.

    Rows of these forms that cannot be learned from are left out and counted in `skipped`, by reason; without it the first is an error,
    but for two answers that are the same: they can be scored, and nobody is asked about them.
    Columns that are not understood are named in one warning at the end. The keys are the rows' places, for whoever has no better ones.

    Raises:
        DataError: see `read_rows`; a row of another form; a preference outside [0, 1]; content that is no text.
    """
    yield from compared(path, read_rows(path), skipped)


def compared(path: str | Path, rows: Rows, skipped: Counter[str] | None) -> Iterator[Comparison]:
    """The comparisons that rows say, which come from `path`; see `read_comparisons`."""
    source, numbers = name_of(path), count()
    rated: list[tuple[str, Row]] = []
    # None stands for the end of the file, where the last rated answers are compared.
    for place, row in chain(_understood(rows, path, _columns), [("", None)]):
        if rated and (row is None or not rankings.is_rated(row) or row["prompt"] != rated[0][1]["prompt"]):
            for judged in _by_judge(rated):
                yield from _compared(_rated(judged, skipped), judged[0], source, numbers, skipped)
            rated = []
        if row is None:
            break
        if rankings.is_rated(row):
            rated.append((place, row))
        elif _is_alone(row):
            yield _alone(row, place, source, next(numbers))
        else:
            yield from _compared(_pairs(row, place, skipped), (place, row), source, numbers, skipped)


def _understood(rows: Rows, source: str | Path, columns: Callable[[Row], set[str]]) -> Rows:
    """The rows without their empty columns; what else is there and not understood is named in one warning."""
    left, table = dict[str, None](), format_of(Path(source)) in (".csv", ".tsv")
    for place, row in rows:
        present = {name: value for name, value in row.items() if value is not None}
        understood = columns(present)
        for name in understood & set(present) if table else ():
            if isinstance(present[name], str) and IN_A_CELL.fullmatch(present[name]):
                said = f"a list of messages written as text, {short(present[name])}"
                raise DataError(f"{place}: {name} is {said}; write the file as JSON lines or Parquet, which keep lists")
        for name in set(present) - understood:
            if name in BEYOND_TEXT and present[name] not in ("", []):
                raise DataError(f"{place} has {name!r}, which a prompt of text has no place for; leave such rows or the column out")
            left.setdefault(name)
        yield place, present
    if left:
        names = ", ".join(sorted(map(repr, left)))
        warnings.warn(f"columns of {source} that are left out: {names}", RatherWarning, stacklevel=2)


def _columns(row: Row) -> set[str]:
    """The columns of a row that its form understands."""
    if {"a", "b", "preference"} <= set(row):
        return {"prompt", "a", "b", "preference", "a_terminated", "b_terminated", "key", "judge"}
    if {"chosen", "rejected"} <= set(row):
        return {"prompt", "chosen", "rejected", "margin", "key", "judge"}
    if _is_alone(row):
        return {"prompt", "completion", "label", "key", "judge"}
    return {"key", "judge"} | rankings.columns(row)


def _is_alone(row: Row) -> bool:
    """Whether a row is one answer alone, which is good or bad, and of no other form."""
    return {"prompt", "completion", "label"} <= set(row) and not (
        {"a", "b", "preference"} <= set(row) or {"chosen", "rejected"} <= set(row)
    )


def _alone(row: Row, place: str, source: str, number: int) -> Comparison:
    prompt, good = _prompt(row, place), _truth(row, "label", place, "true where the completion is good, or false")
    task = Task(source, _key(row, prompt, place), prompt)
    answer = Trajectory(task, f"import:{source}", read_answer(row["completion"], place))
    return Comparison((answer,), (), float(good), f"import/{source}/{number}", _judge(row, place))


def _pairs(row: Row, place: str, skipped: Counter[str] | None) -> Iterable[_Pair]:
    if {"a", "b", "preference"} <= set(row):
        a, b = (read_answer(row[name], place) for name in "ab")
        ended = _terminated(row, "a_terminated", place), _terminated(row, "b_terminated", place)
        return [_Pair(_prompt(row, place), a, b, _preference(row["preference"], place), free=False, terminated=ended)]
    if {"chosen", "rejected"} <= set(row):
        sides = _explicit(row, place)
        if sides is None:
            return _leave("its conversations part before the last answer", place, skipped)
        margin = row.get("margin", "")
        return [_Pair(*sides, 1.0 if margin == "" else rankings.log_odds(margin, place), free=True)]
    if rankings.is_ranked(row):
        found = list(rankings.read_ranked(row, place))
        if not found:
            return _leave("it has fewer than two answers", place, skipped)
        return [_Pair(_prompt(row, place), a, b, preference, free=True) for a, b, preference in found]
    raise DataError(f"{place} has {', '.join(map(repr, row)) or 'nothing'}; {NEEDED}")


def _by_judge(rows: list[tuple[str, Row]]) -> Iterable[list[tuple[str, Row]]]:
    """Rated rows of one prompt, each judge's by themselves: nobody is credited with a comparison of two people's ratings."""
    found: dict[str, list[tuple[str, Row]]] = {}
    for place, row in rows:
        found.setdefault(_judge(row, place), []).append((place, row))
    return found.values()


def _judge(row: Row, place: str) -> str:
    """Who answered, without the spaces around a name that a cell shows and nobody sees; "" for nobody in particular."""
    return read_name(row.get("judge", ""), place, "judge").strip()


def _rated(rows: list[tuple[str, Row]], skipped: Counter[str] | None) -> Iterable[_Pair]:
    place, first = rows[0]
    if len(rows) == 1:
        return _leave("it is the only rated answer to its prompt by its judge; answers to one prompt should stand together", place, skipped)
    return [_Pair(_prompt(first, place), a, b, preference, free=True) for a, b, preference in rankings.read_rated(rows)]


def _leave(reason: str, place: str, skipped: Counter[str] | None) -> list[_Pair]:
    if skipped is None:
        raise DataError(f"{place}: {reason}")
    skipped[reason] += 1
    return []


def _compared(
    pairs: Iterable[_Pair], first: tuple[str, Row], source: str, numbers: Iterator[int], skipped: Counter[str] | None
) -> Iterator[Comparison]:
    place, row = first
    for pair in pairs:
        if skipped is not None and pair.a == pair.b and pair.terminated[0] == pair.terminated[1]:
            skipped["its two answers are the same"] += 1
            continue
        task = Task(source, _key(row, pair.prompt, place), pair.prompt)
        texts, preference = (pair.a, pair.b), pair.preference
        if pair.free and _swap(pair):
            texts, preference = texts[::-1], 1.0 - preference
        a, b = [(Trajectory(task, f"import:{source}", *answer),) for answer in zip(texts, pair.terminated, strict=True)]
        yield Comparison(a, b, preference, f"import/{source}/{next(numbers)}", _judge(row, place))


def _swap(pair: _Pair) -> bool:
    """Whether to exchange the sides: by what is asked alone, whichever answer the file puts first."""
    one, other = sorted((pair.a, pair.b))
    return (pair.a == one) == (_share(json.dumps([pair.prompt, one, other])) < 0.5)


def _prompt(row: Row, place: str) -> Prompt:
    if "prompt" not in row:
        raise DataError(f"{place} has {', '.join(map(repr, row))}, but no 'prompt'; {NEEDED}")
    return read_prompt(row["prompt"], place)


def _preference(value: Any, place: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{place}: the preference {value!r} is no number") from None
    if not 0 <= number <= 1:
        raise DataError(f"{place}: the preference {number:g} is outside [0, 1]")
    return number


def _terminated(row: Row, name: str, place: str) -> bool:
    return _truth(row, name, place, "true, or false for an answer that was truncated")


def _truth(row: Row, name: str, place: str, remedy: str) -> bool:
    value = str(row.get(name, True)).lower()
    if value not in ("true", "false"):
        raise DataError(f"{place}: {name} is {row[name]!r}; write {remedy}")
    return value == "true"


def _explicit(row: Row, place: str) -> tuple[Prompt, str, str] | None:
    """Prompt, chosen and rejected answer; None where the conversations part before the last answer."""
    prompt = _prompt(row, place) if row.get("prompt", "") != "" else None
    whole = [_conversation(row[name], f"{place}: {name}", prompt) for name in ("chosen", "rejected")]
    chosen, rejected = whole
    if chosen is None or rejected is None:
        if prompt is None:
            raise DataError(
                f"{place} has no prompt, and chosen and rejected are no conversations, so that where their answers begin is not certain; "
                "add a column prompt"
            )
        return prompt, read_answer(row["chosen"], place), read_answer(row["rejected"], place)
    alike = common(chosen, rejected)
    if len(chosen) != alike + 1 or len(rejected) != alike + 1:
        return None
    begin = chosen[:alike]
    if isinstance(prompt, list) and begin[: len(prompt)] != prompt and begin[:1] and begin[0]["role"] not in ("system", "user"):
        begin = [*prompt, *begin]  # the assistant's next messages, up to the last one
    elif prompt is not None and not _agree(prompt, begin):
        raise DataError(
            f"{place}: chosen and rejected are conversations that do not begin with the prompt {short(prompt)}; mend one of them"
        )
    if not begin:
        raise DataError(f"{place} has no prompt, and chosen and rejected have no common beginning that could be one")
    return begin, read_answer([chosen[-1]], place), read_answer([rejected[-1]], place)


def _agree(prompt: Prompt, begin: list[Message]) -> bool:
    """Whether a conversation begins with its prompt: with its messages, or with a message of the user that says it."""
    if isinstance(prompt, list):
        return begin[: len(prompt)] == prompt
    return any(m["role"] == "user" and m["content"].strip() == prompt.strip() for m in begin)


def _conversation(value: Any, place: str, prompt: Prompt | None) -> list[Message] | None:
    """A whole conversation, or what of one follows the prompt; None for a plain answer."""
    if isinstance(value, str):
        return read_turns(value)
    if not is_messages(value):
        if prompt is not None and isinstance(value, dict):
            return None
        raise DataError(f"{place}: the answer {short(value)} is neither text nor a list of messages with role and content")
    return [read_message(m, place) for m in value] if len(value) > 1 or prompt is None else None


def _key(row: Row, prompt: Prompt, place: str) -> str:
    """What a prompt is called: its `key`, if it has one, with a digest of what it asks."""
    key = row.get("key")
    digest = hashlib.sha256(json.dumps(prompt).encode()).hexdigest()
    if key in (None, ""):
        return digest[:16]
    key = read_name(key, place, "key")
    if len(key) > LONGEST_KEY:
        raise DataError(f"{place} has a key of {len(key)} characters; {LONGEST_KEY} are kept")
    return f"{key}-{digest[:8]}"


def _share(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
