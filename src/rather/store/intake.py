"""A question that a program asks about answers that it has."""

import hashlib
import json
import random
import re
from collections.abc import Sequence

from rather.core import Comparison, Prompt, Task, Trajectory
from rather.errors import DataError
from rather.store.rows import LETTERS


def asked(prompt: Prompt, answers: Sequence[str], source: str) -> Comparison:
    """The question which of several answers to a prompt is best; in which order they stand is drawn from what they are.

    Its key says the prompt and the answers, in any order: the same question is asked once.

    Raises:
        DataError: the prompt says nothing or is no conversation, or there are not 2 to 8 different answers that say something.
    """
    _check_prompt(prompt)
    if isinstance(answers, str) or not isinstance(answers, Sequence) or not 2 <= len(answers) <= len(LETTERS):
        raise DataError(f"answers is {answers!r:.80}; give a list of 2 to {len(LETTERS)} answers")
    for i, answer in enumerate(answers):
        if not isinstance(answer, str) or not answer.strip():
            raise DataError(f"answers[{i}] is {answer!r:.80}; give words")
        if answer in answers[:i]:
            raise DataError(f"answers[{i}] is the same as answers[{list(answers).index(answer)}]; there is nothing to compare")
        check_characters(answer, f"answers[{i}]")
    digest = hashlib.sha256(json.dumps([prompt, sorted(answers)]).encode()).hexdigest()
    task = Task(source, hashlib.sha256(json.dumps(prompt).encode()).hexdigest()[:16], prompt)
    sides = [(Trajectory(task, f"program:{source}", answer),) for answer in answers]
    sides.sort(key=lambda side: side[0].text or "")
    random.Random(digest).shuffle(sides)
    a, b, *others = sides
    return Comparison(a, b, key=f"asked/{digest[:32]}", others=tuple(others))


def _check_prompt(prompt: Prompt) -> None:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise DataError("prompt is empty; give words, or a list of messages with role and content")
        check_characters(prompt, "prompt")
        return
    if not isinstance(prompt, list) or not prompt:
        raise DataError(f"prompt is {prompt!r:.80}; give words, or a list of messages with role and content")
    for i, message in enumerate(prompt):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise DataError(f"prompt[{i}] is {message!r:.80}; a message has a role and a content, both of them words")
        try:
            json.dumps(message, allow_nan=False)
        except (TypeError, ValueError) as e:
            raise DataError(f"prompt[{i}] has a field that cannot be kept ({e}); write it as text") from None
        check_characters(message, f"prompt[{i}]")


def check_characters(value: object, what: str) -> None:
    """Refuse texts that no database keeps: NUL, and half of a character that UTF-16 writes in two."""
    if isinstance(value, dict | list):
        for each in [*value, *value.values()] if isinstance(value, dict) else value:
            check_characters(each, what)
    elif isinstance(value, str) and (bad := re.search("[\0\ud800-\udfff]", value)):
        raise DataError(f"{what} holds the character U+{ord(bad[0]):04X}, which databases do not keep; take it out")
