"""People at the terminal: two answers side by side, one key each."""

import time
from collections.abc import Collection, Sequence

import click
from rich.columns import Columns
from rich.console import Console, Group
from rich.markdown import Markdown
from rich.panel import Panel
from rich.text import Text

from rather.core import Label, Trajectory
from rather.judges.language import words
from rather.store import Question, Store
from rather.store.decisions import decided
from rather.store.rows import LETTERS

KEYS = "[b]1[/b], [b]2[/b] ... the one that is best  [b]=[/b] tie  [b]s[/b] skip  [b]u[/b] undo  [b]q[/b] stop"
KEYS_ALONE = "[b]1[/b] good  [b]2[/b] bad"
LEASE_S = 3600


def ask(
    store: Store, run: str, judge: str, purpose: str, instruction: str, console: Console, guidelines: str = "", criteria: Sequence[str] = ()
) -> int:
    """Put a run's open questions to the person at the terminal until none is left or they stop; returns how many they answered.

    The guidelines, which are Markdown, stand before the first question. Each answer is on disk before the next question appears. The order
    of the sides changes from question to question and is recorded. Of two sides it is said first which is more of each of the `criteria`.
    """
    store.add_judge(judge, "person")
    total = len(store.questions(run, purpose))
    answered = 0
    if guidelines:
        console.print(Markdown(clean(guidelines.expandtabs())))
        console.print()
    console.print(f"[bold]{instruction}[/bold]\n{KEYS}\n")
    while (question := store.lease(run, judge, purpose, overlap=total + 1, seconds=LEASE_S)) is not None:
        assert question.lease is not None
        shown = question.lease.shown
        done = len([x for x in store.labels(run, purpose) if x.judge == judge])
        count = len(shown)
        _show(question, shown, f"{done + 1} of {total}", console)
        if count == 1:
            console.print(KEYS_ALONE)
        start = time.monotonic()
        key, said = _keys(count, criteria if count == 2 else (), console)
        if key == "q":
            store.release(question.id, judge)
            break
        if key == "u":
            store.release(question.id, judge)
            undone = store.undo(run, judge)
            console.print("Nothing to undo." if undone is None else "The last answer is withdrawn; here it is again.")
            answered -= undone is not None
            continue
        preference, best = _meaning(key, shown)
        on = {} if preference is None else {name: p for name, k in said.items() if (p := _meaning(k, shown)[0]) is not None}
        reason = "skipped" if preference is None else ""
        label = Label(
            question.id, judge, preference, reason, time.monotonic() - start, shown, best=best if count > 2 else None, criteria=on
        )
        store.answer(label)
        answered += 1
    return answered


def left(store: Store, run: str, purpose: str, judge: str) -> int:
    """How many questions of a purpose are still open for somebody; what an owner has decided is asked of nobody."""
    return len({q.id for q in store.questions(run, purpose, unanswered_by=judge)} - decided(store, run).keys())


def _keys(count: int, criteria: Sequence[str], console: Console) -> tuple[str, dict[str, str]]:
    """The key that answers the question, and those that were pressed before it on each of the criteria; u goes one of them back."""
    said, steps = dict[str, str](), [*criteria, ""]
    while True:
        name = steps[len(said)]
        if criteria:
            console.print(Text(f"Which is more: {name}?" if name else "Which is better overall?"))
        key = _key(count)
        if key == "u" and said:
            said.popitem()
        elif name and key not in "suq":
            said[name] = key
        else:
            return key, said


def _meaning(key: str, shown: str) -> tuple[float | None, int | None]:
    """The preference for a that a key says, and the side that it picks."""
    if not key.isdigit():
        return {"=": 0.5}.get(key), None
    if len(shown) == 1:  # good or bad
        return float(key == "1"), None
    best = LETTERS.index(shown[int(key) - 1])
    return float(best == 0), best


def _key(count: int) -> str:
    return pressed([*"suq", *"="[: count - 1], *map(str, range(1, max(count, 2) + 1))])


def pressed(keys: Collection[str]) -> str:
    """The key of `keys` that the person presses."""
    while True:
        key = click.getchar()
        if key in ("\x03", "\x04", ""):
            raise KeyboardInterrupt
        if key.lower() in keys:
            return key.lower()


def _show(question: Question, shown: str, progress: str, console: Console) -> None:
    """What strangers wrote goes through `Text`, which reads no markup; control characters are dropped."""
    sides = [question.comparison.sides[LETTERS.index(letter)] for letter in shown]
    console.rule(f"question {progress}")
    alone = len({words(t.task.prompt or "") for t in sides[0]}) == 1  # else every answer stands under its own prompt
    if alone:
        console.print(_asked(sides[0][0]))
    width = max(30, console.width // 2 - 1)
    panels = []
    for number, side in enumerate(sides, 1):
        answers = [Text(clean(t.text or "") + ("" if t.terminated else " ...")) for t in side]
        parts = answers if alone else [part for t, said in zip(side, answers, strict=True) for part in (_asked(t), said, "")]
        panels.append(Panel(Group(*parts), title=str(number), width=width))
    console.print(Columns(panels))


def _asked(trajectory: Trajectory) -> Text:
    return Text(clean(words(trajectory.task.prompt or "")), style="italic")


def clean(text: str) -> str:
    """A text without control characters, which a terminal would obey."""
    return "".join(c for c in text if c == "\n" or c.isprintable())
