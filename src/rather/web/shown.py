"""What the page shows of a question: its prompt and its sides, as HTML or as clips."""

import json
from collections.abc import Iterator
from html import escape
from typing import Any

from rather.core import Message, Prompt, Trajectory
from rather.store import Question, Store
from rather.store.clips import facts
from rather.store.people import Person
from rather.store.rows import LETTERS
from rather.web import words

ROLES = ("system", "developer", "user", "assistant", "tool")
LONG = 400
"""Characters of a system message past which it is folded."""

NOT_DRAWN = {"frames": 1, "columns": 1, "width": 1, "height": 1, "milliseconds": 1000}
"""Of a clip that is gone: the page finds no picture, and says so."""


def shown(store: Store, question: Question, order: str, who: Person) -> dict[str, Any]:
    """A question as the page of somebody gets it, its sides in an order of letters such as "ba" or "cadb"."""
    filmed = question.comparison.a[0].text is None
    asked = [prompt_html(t.task.prompt) for t in question.comparison.a]
    alone = len(set(asked)) == 1  # else every trajectory stands under its own prompt
    clips = facts(store, [number for numbers in question.trajectories for number in numbers]) if filmed else {}
    sides = [
        [
            _trajectory(t, number, clips.get(number), who) | ({} if alone or filmed else {"prompt": prompt_html(t.task.prompt)})
            for t, number in zip(trajectories, numbers, strict=True)
        ]
        for trajectories, numbers in zip(question.comparison.sides, question.trajectories, strict=True)
    ]
    return {"id": question.id, "prompt": asked[0] if alone else "", "sides": [sides[LETTERS.index(letter)] for letter in order]}


def _trajectory(t: Trajectory, number: int, clip: dict[str, int] | None, who: Person) -> dict[str, Any]:
    """One trajectory as the page shows it; a simulated judge, who cannot look at clips, gets its return."""
    if t.text is not None:
        return {"html": answer_html(t.text), "text": t.text, "cut": not t.terminated}
    reward = {"reward": float(t.rewards.sum())} if who.simulated and t.rewards is not None else {}
    return {"clip": {"url": f"api/clips/{number}?as={who.invitation}", **(clip or NOT_DRAWN)}} | reward


def answer_html(text: str) -> str:
    """Safe HTML of an answer; one with nothing to see says so."""
    if words.is_empty(text):
        return _note("This answer has nothing but spaces." if text else "This answer is empty.")
    return words.html(text)


def prompt_html(prompt: Prompt | None) -> str:
    """Safe HTML of a prompt: a text, or a conversation turn by turn. One message of a user is shown as its text."""
    if prompt is None or isinstance(prompt, str):
        return words.html(prompt or "")
    if len(prompt) == 1 and set(prompt[0]) == {"role", "content"} and prompt[0]["role"] == "user":
        return "".join(_contents(prompt[0]["content"], _Room()))
    room = _Room()
    return "".join(_turn(message, room) for message in prompt)


class _Room:
    """How many characters of a conversation may still be rendered as Markdown."""

    def __init__(self) -> None:
        self.left = words.LONGEST

    def html(self, text: str) -> str:
        self.left -= len(text)
        return words.html(text) if self.left >= 0 else words.plain(text, words.TOO_LONG)


def _turn(message: Message, room: _Room) -> str:
    role, content = str(message.get("role", "")), message.get("content")
    named = f"{_name(role)} {_name(message['name'])}" if isinstance(message.get("name"), str) else _name(role)
    parts = [*_contents(content, room)]
    parts += [_call(call) for call in _listed(message.get("tool_calls"))]
    parts += [_folded(_name(key), _json(value)) for key, value in message.items() if key not in ("role", "content", "name", "tool_calls")]
    kind = role if role in ROLES else "other"
    inside = "".join(parts) or _note("This message is empty.")
    if role == "tool" or (role in ("system", "developer") and len(str(content)) > LONG):
        return f'<details class="turn {kind}"><summary class="role">{named}</summary>{inside}</details>'
    return f'<div class="turn {kind}"><p class="role">{named}</p>{inside}</div>'


def _contents(content: Any, room: _Room) -> Iterator[str]:
    """A message's content: text, or parts of it; what is no text is named."""
    text = ""
    for part in [content] if isinstance(content, str) else _listed(content):
        said = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
        if isinstance(said, str):
            text += said
            continue
        if text:
            yield room.html(text)
        kind = part.get("type", "no type") if isinstance(part, dict) else type(part).__name__
        yield f'<p class="note">Here is a part that cannot be shown: {_name(str(kind))}</p>'
        text = ""
    if text:
        yield room.html(text) if not words.is_empty(text) else _note("There is nothing but spaces.")


def _call(call: Any) -> str:
    """A tool call: the function's name, and its arguments; all of it, where it is of a form that nobody knows."""
    known = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(known, dict) or not isinstance(known.get("name"), str) or set(known) - {"name", "arguments", "id", "type"}:
        return _folded("tool call", _json(call))
    return _folded(f"tool call {_name(known['name'])}", _json(known.get("arguments", {})))


def _json(value: Any) -> str:
    """A value as JSON to read; text that is JSON likewise, other text as it is."""
    if isinstance(value, str):
        try:
            value = json.loads(value, object_pairs_hook=_object)
        except (ValueError, RecursionError):
            return words.plain(value)
    written = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False, default=str)
    return f'<pre dir="ltr" class="scroll"><code>{escape(words.visible(written))}</code></pre>'


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name stands twice")
    return made


def _folded(summary: str, inside: str) -> str:
    return f"<details><summary>{summary}</summary>{inside}</details>"


def _note(sentence: str) -> str:
    return f'<p class="note">{sentence}</p>'


def _name(text: str) -> str:
    return f"<bdi>{escape(words.visible(text))}</bdi>"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
