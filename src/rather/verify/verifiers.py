"""What can be checked without a judge: verifiers score an answer against what the task says, 1 right, 0 wrong.

A verifier is a function of the answer's words, the task's answer (never shown to a policy) and its settings. To add one, write
the function and name it in VERIFIERS. None of them believes what an answer says of itself.
"""

import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rather.errors import ConfigError, DataError
from rather.verify import sandbox
from rather.verify.functions import BATCHED, Answer, load_function, reward

NUMBER = re.compile(r"[-+\N{MINUS SIGN}]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Check:
    """One verifier of a run: its kind (a name in VERIFIERS), its weight, and what that kind needs."""

    kind: str
    weight: float = 1.0
    tolerance: float = 0.0
    pattern: str = ""
    schema_file: str = ""
    function: str = ""
    partial: bool = False
    timeout_s: float = 5.0
    memory_mb: int = 512


def number(text: str, answer: str, check: Check) -> float:
    """Is the last number of the answer the task's, within `tolerance` of its size? A list of guesses is judged by its end."""
    try:
        wanted = _value(answer)
    except ValueError:
        raise DataError(f"the task's answer {answer!r} is no number; take another verifier for it") from None
    found = NUMBER.findall(text)
    return float(bool(found) and math.isclose(_value(found[-1]), wanted, rel_tol=check.tolerance, abs_tol=1e-9))


def _value(text: str) -> float:
    return float(text.replace(",", "").replace("\N{MINUS SIGN}", "-"))


def boxed(text: str, answer: str, check: Check) -> float:
    r"""Is what stands in \boxed{} the same mathematics as the task's answer, by math-verify? Boxes that differ are no answer."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that nobody watches the time; checker.py does
    boxes = {box.strip() for box in _boxes(text)}
    if len(boxes) != 1:
        return 0.0
    given = boxes.pop()
    wanted = _boxes(answer)[-1] if _boxes(answer) else answer
    if not given or len(given) > 200:
        return 0.0
    gold, found = (parse(rf"\boxed{{{x}}}", parsing_timeout=0, fallback_mode="no_fallback") for x in (wanted, given))
    if not gold:
        raise DataError(f"math-verify cannot read the task's answer {answer!r}")
    return float(verify(gold, found, timeout_seconds=0))


def _boxes(text: str) -> list[str]:
    found = []
    for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text):
        depth, start = 1, match.end()
        for place in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if not depth:
                found.append(text[start:place])
                break
    return found


def pattern(text: str, answer: str, check: Check) -> float:
    """Fits the regular expression `pattern` once, and does its group `answer`, if it has one, hold the task's answer?"""
    if not check.pattern:
        raise ConfigError('a verifier of kind "pattern" needs its pattern, a regular expression')
    matches = list(_compiled(check.pattern).finditer(text))
    if len(matches) != 1:
        return 0.0
    given = matches[0].groupdict().get("answer")
    return float(given is None or " ".join(given.split()) == " ".join(answer.split()))


@cache
def _compiled(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text, re.DOTALL | re.MULTILINE)
    except re.error as e:
        raise ConfigError(f"the pattern {text!r} is no regular expression: {e}") from None


def schema(text: str, answer: str, check: Check) -> float:
    """Is the answer (or its one fenced block) JSON by the JSON schema in `schema_file`, or else in the task's answer?"""
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for

    source = Path(check.schema_file).read_text() if check.schema_file else answer
    blocks = re.findall(r"```(?:json)?\s*\n(.*?)```", text, re.DOTALL)
    if len(blocks) > 1:
        return 0.0
    try:
        wanted = json.loads(source)
        validator_for(wanted).check_schema(wanted)
    except (ValueError, SchemaError) as e:
        raise DataError(f"the JSON schema {check.schema_file or source[:80]!r} cannot be used: {str(e).splitlines()[0]}") from None
    try:
        given = json.loads(blocks[0] if blocks else text, parse_constant=_no_constant, object_pairs_hook=_distinct)
    except (ValueError, RecursionError):
        return 0.0
    return float(validator_for(wanted)(wanted).is_valid(given))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands there twice")
    return dict(pairs)


def code(text: str, answer: str, check: Check) -> float:
    """Does the answer's Python program pass the task's tests (see `sandbox.cases`)? With `partly`, the share that it passes."""
    limits = sandbox.Limits(check.timeout_s, check.memory_mb * 2**20)
    found = sandbox.passed(sandbox.program(text), sandbox.cases(answer), limits)
    return sum(found) / len(found) if check.partial else float(all(found))


def python(text: str, answer: str, check: Check) -> float | None:
    """What `function` ("module:name") makes of an answer (see `functions.reward`): a score, or None if it cannot judge."""
    return together(check, [{"text": text, "answer": answer, "prompt": "", "columns": {}}])[0]


def together(check: Check, rows: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """What a user's function makes of many answers; a batched one gets them all at once."""
    answers = [Answer(row["prompt"], row["text"], {**row["columns"], "answer": row["answer"]}) for row in rows]
    return reward(_function(check.function), answers)


def is_batched(check: Check) -> bool:
    """Whether a verifier is a function of many answers at once.

    Raises:
        ConfigError: it is a function that cannot be loaded.
    """
    return check.kind == "python" and hasattr(_function(check.function), BATCHED)


@cache
def _function(name: str) -> Callable[..., Any]:
    return load_function(name, "function of verify.checks")


def reasoning_gym(text: str, answer: str, check: Check) -> float:
    """The score of the answer by the data set of reasoning-gym that made the task; what stands in <answer></answer>, or all of it."""
    from reasoning_gym.utils import extract_answer

    entry = json.loads(answer)
    scored = _gym(entry["dataset"])
    given = extract_answer(text) if "<answer>" in text else text.strip()
    return float(scored.score_answer(given, entry))


@cache
def _gym(name: str) -> Any:
    import reasoning_gym as gym

    return gym.create_dataset(name, size=1, seed=0)


VERIFIERS: dict[str, Callable[..., float | None]] = {
    "number": number, "boxed": boxed, "pattern": pattern, "schema": schema, "code": code, "python": python,
    "reasoning_gym": reasoning_gym,
}  # fmt: skip
