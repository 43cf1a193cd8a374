"""What the page shows of a question: its prompt and its sides, as HTML or as clips."""

from typing import Any

from rather.core import Prompt, Trajectory
from rather.store import Question, Store
from rather.store.clips import facts
from rather.store.rows import LETTERS
from rather.web.words import html


def shown(store: Store, question: Question, order: str, simulated: bool = False) -> dict[str, Any]:
    """A question as the page gets it, its sides in an order of letters such as "ba" or "cadb"."""
    filmed = question.comparison.a[0].text is None
    asked = [_prompt(t.task.prompt) for t in question.comparison.a]
    alone = len(set(asked)) == 1  # else every attempt stands under its own prompt
    clips = facts(store, [number for numbers in question.trajectories for number in numbers]) if filmed else {}
    sides = [
        [
            _attempt(t, number, clips.get(number), simulated) | ({} if alone or filmed else {"prompt": _prompt(t.task.prompt)})
            for t, number in zip(attempts, numbers, strict=True)
        ]
        for attempts, numbers in zip(question.comparison.sides, question.trajectories, strict=True)
    ]
    return {"id": question.id, "prompt": asked[0] if alone else "", "sides": [sides[LETTERS.index(letter)] for letter in order]}


def _attempt(t: Trajectory, number: int, clip: dict[str, int] | None, simulated: bool) -> dict[str, Any]:
    """One attempt as the page shows it; a simulated judge, who cannot look at clips, is told what the attempt was paid."""
    if clip is None:
        return {"html": html(t.text or ""), "text": t.text or "", "cut": not t.terminated}
    paid = {"reward": float(t.rewards.sum())} if simulated and t.rewards is not None else {}
    return {"clip": {"url": f"/api/clips/{number}", **clip}} | paid


def _prompt(prompt: Prompt | None) -> str:
    if prompt is None or isinstance(prompt, str):
        return html(prompt or "")
    return html("\n\n".join(f"**{m['role']}:** {m['content']}" if len(prompt) > 1 else m["content"] for m in prompt))
