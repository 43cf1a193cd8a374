"""Conversations: messages of strangers' files as messages that a chat template renders, with nothing left out in silence."""

import re
from collections.abc import Sequence
from typing import Any, TypeGuard

from rather.core import Message, Prompt
from rather.errors import DataError

HH_TURN = re.compile(r"\n\n(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}


def read_prompt(value: object, place: str, column: str = "prompt") -> Prompt:
    r"""A prompt: text, messages, or a text of turns `\n\nHuman: ... \n\nAssistant:`, which becomes messages.

    Raises:
        DataError: it is none of them, or a message holds what cannot be kept.
    """
    if isinstance(value, str) and value.strip():
        turns = read_turns(value)
        if turns and turns[-1] == {"role": "assistant", "content": ""} and len(turns) > 1:
            return turns[:-1]
        return value
    if is_messages(value):
        return [read_message(m, f"{place}: {column}") for m in value]
    raise DataError(f"{place}: the {column} {short(value)} is neither text nor a list of messages with role and content")


def is_messages(value: object) -> TypeGuard[list[dict[str, Any]]]:
    """Whether a value is a list of messages, by its looks."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)


def read_message(value: dict[str, Any], place: str) -> Message:
    """A message of text. Fields beside role and content (name, tool_calls, reasoning_content, ...) are kept as they are.

    A field that is null or an empty list counts as absent; the content of a message that only calls tools is empty text.

    Raises:
        DataError: it has no role or no content, or its content is more than text.
    """
    present = {k: v for k, v in value.items() if v is not None and v != []}
    role, content = present.pop("role", None), present.pop("content", None)
    if not isinstance(role, str) or not role:
        raise DataError(f"{place} has a message without a role: {short(value)}")
    if content is None and present.get("tool_calls"):
        content = ""
    if isinstance(content, list):
        content = "".join(_part(part, place) for part in content)
    if not isinstance(content, str):
        raise DataError(f"{place} has a message of the role {role!r} whose content is {short(content)}, neither text nor text parts")
    for key, field in present.items():
        _plain(field, f"{place}: the field {key!r} of a message")
    return {"role": role, "content": content, **present}


def _part(part: object, place: str) -> str:
    if isinstance(part, str):
        return part
    present = {k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else {}
    if present.get("type", "text") == "text" and isinstance(present.get("text"), str):
        if extra := sorted(set(present) - {"type", "text"}):
            raise DataError(f"{place} has a text part with {extra[0]!r}, which cannot be kept; take it out")
        return present["text"]
    name = present.get("type", next(iter(present), type(part).__name__))
    raise DataError(f"{place} has content of the type {name!r}; models are given text alone, so leave such rows out")


def _plain(value: object, place: str) -> None:
    if isinstance(value, dict):
        for item in value.values():
            _plain(item, place)
    elif isinstance(value, list):
        for item in value:
            _plain(item, place)
    elif value is not None and not isinstance(value, str | int | float | bool):
        raise DataError(f"{place} holds a {type(value).__name__}; write it as text")


def read_answer(value: object, place: str) -> str:
    """An answer: text, or one message of the assistant that is text alone.

    Raises:
        DataError: it is something else; the message names the role or the field.
    """
    if isinstance(value, str):
        return value
    messages = [value] if isinstance(value, dict) else value
    if not is_messages(messages) or len(messages) != 1:
        raise DataError(f"{place}: the answer {short(value)} is neither text nor one message with role and content")
    message = read_message(messages[0], f"{place}: the answer")
    if message["role"] != "assistant":
        raise DataError(f"{place}: the answer is a message of the role {message['role']!r}; it should be the assistant's")
    if extra := sorted(set(message) - {"role", "content"}):
        raise DataError(f"{place}: the answer has the field {extra[0]!r}; only text is learned, so write it into the content")
    return message["content"]


def read_name(value: object, place: str, column: str) -> str:
    """A name or a right answer: text, or a number as text; a whole number has no point, as it had none before a table made it a float.

    Raises:
        DataError: it is something else, such as a list or NaN.
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if not isinstance(value, str | int | float) or value != value:
        raise DataError(f"{place}: the {column} {short(value)} is neither text nor a number; write it as text, or leave it out")
    return str(value)


def read_turns(text: str) -> list[Message] | None:
    r"""The messages of a text of turns `\n\nHuman: ... \n\nAssistant: ...` (Bai et al. 2022, HH-RLHF); None if it is no such text."""
    if not text.startswith("\n\nHuman:"):
        return None
    _, *pieces = HH_TURN.split(text)
    return [{"role": HH_ROLES[who], "content": words.removeprefix(" ")} for who, words in zip(pieces[::2], pieces[1::2], strict=True)]


def common(first: Sequence[Message], second: Sequence[Message]) -> int:
    """How many messages two conversations begin with alike, the last of each aside."""
    upto = min(len(first), len(second)) - 1
    return next((i for i in range(upto) if first[i] != second[i]), upto)


def short(value: object) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
