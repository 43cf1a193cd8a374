"""Whether prompts and answers fit the model, measured before anything is sampled, asked or learned."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from rather.core import Comparison, Task, Trajectory
from rather.errors import ConfigError, DataError
from rather.text.tokens import Tokens

SHOWN = 5
"""Rows that an error names."""

Overlong = Literal["error", "skip", "truncate"]


def instructed(task: Task, instruction: str) -> Task:
    """The task with an instruction behind its prompt, or its last message, if there is one."""
    return suffixed(task, f" {instruction}" if instruction else "")


def suffixed(task: Task, suffix: str) -> Task:
    """The task with `suffix` behind its prompt, or its last message."""
    if not suffix:
        return task
    if isinstance(task.prompt, str):
        return replace(task, prompt=task.prompt + suffix)
    assert task.prompt is not None
    *before, last = task.prompt
    return replace(task, prompt=[*before, {**last, "content": last["content"] + suffix}])


class Fit:
    """Measures rows against a context of `context` tokens; answers that are still to be sampled have up to `max_tokens`.

    What to do with a row that is too long is `overlong`: refuse all, leave it out, or take tokens from the beginning of its prompt,
    which `Tokens.cut` does for the sampler and `collate`. `tell` gets a sentence about what was done, once. Training prompts are sampled
    with each instruction of `contrast`.
    """

    def __init__(
        self,
        tokens: Tokens,
        context: int,
        max_tokens: int,
        overlong: Overlong,
        tell: Callable[[str], None],
        contrast: tuple[str, ...] | None = None,
    ) -> None:
        self.contrast = contrast or ("",)
        self.tokens, self.context, self.max_tokens, self.overlong, self.tell = tokens, context, max_tokens, overlong, tell
        self.learnable: dict[str, bool] = {}
        """Of every question that was looked at, whether it can be learned from."""
        self.long: dict[str, tuple[Task, int]] = {}
        self.alone: dict[str, tuple[Task, int]] = {}
        """Questions that are too long, and those whose answer is by itself."""
        self.same, self.empty = set[str](), set[str]()
        self.reported = ""

    def tasks(self, train: Sequence[Task], held_out: Sequence[Task]) -> tuple[list[Task], list[Task]]:
        """The tasks to sample answers to, for training and held out.

        Raises:
            DataError: a prompt is refused by the chat template or leaves no room for an answer; with `overlong` "skip" if none is left.
            ConfigError: no prompt could leave room for `max_tokens`.
        """
        room, context = self.context - self.max_tokens, self.context
        if room < 1:
            raise ConfigError(
                f"sample.max_tokens is {self.max_tokens}, which leaves no room for a prompt in the model's context of {context}"
            )
        sized = [(t, max(self._size(instructed(t, i), room) for i in self.contrast)) for t in train]
        long = [(t, size) for t, size in (*sized, *((t, self._size(t, room)) for t in held_out)) if size > room]
        if not long:
            return [*train], [*held_out]
        count = len(train) + len(held_out)
        what = f"{len(long)} of {count} prompts leave no room for {self.max_tokens} of answer in the model's context of {context}"
        if self.overlong == "error":
            raise DataError(f"{what}: {_listed(long)}; {REMEDY}, or sample.max_tokens lower")
        if self.overlong == "truncate":
            self.tell(f"{what}; their beginnings are truncated (data.overlong)")
            return [*train], [*held_out]
        out = {id(t) for t, _ in long}
        kept = [t for t in train if id(t) not in out]
        if not kept:
            raise DataError(f'{what}, so that none is left to train on; set data.overlong to "truncate" or sample.max_tokens lower')
        self.tell(f"{what} and are left out (data.overlong)")
        return kept, [t for t in held_out if id(t) not in out]

    def wanted(self, question: Comparison) -> bool:
        """Whether a question can be learned from: its sides differ, if it has two, and fit or are made to; `report` says what was found."""
        if question.key not in self.learnable:
            self.learnable[question.key] = self._look(question)
        return self.learnable[question.key]

    def report(self) -> None:
        """Say what was left out, if that has changed.

        Raises:
            DataError: with `overlong` "error", a question is too long.
        """
        count, sentences = len(self.learnable), list[str]()
        if self.same:
            sentences.append(
                f"{len(self.same)} of {count} questions have the same answer on both sides ({len(self.empty)} of them an empty one) "
                "and are left out of training"
            )
        if self.long:
            what = f"{len(self.long)} of {count} questions are longer than the model's context of {self.context} tokens"
            if self.overlong == "error":
                raise DataError(f"{what}: {_listed([*self.long.values()])}; {REMEDY}")
            if self.overlong == "truncate" and self.alone:
                raise DataError(f'{what}, some by an answer alone: {_listed([*self.alone.values()])}; set data.overlong to "skip"')
            done = "are left out of training" if self.overlong == "skip" else "lose the beginning of their prompts"
            sentences.append(f"{what} and {done} (data.overlong)")
        if sentences and (message := "; ".join(sentences)) != self.reported:
            self.reported = message
            self.tell(message)

    def ready(self, comparisons: Sequence[Comparison]) -> list[Comparison]:
        """The comparisons that `wanted` questions have become, as they are learned from; see `report` for what it says and raises."""
        self.report()
        return [self._cut(c) for c in comparisons if _texts(c.a) != _texts(c.b)]

    def _cut(self, c: Comparison) -> Comparison:
        """The comparison with the same prompt on both sides, cut until the longer answer fits, if it has to be."""
        if c.key not in self.long:
            return c
        rows = [self.tokens.encode(t.task.prompt or "", t.text or "", t.terminated) for side in c.sides for t in side]
        room = self.context - max(len(answer) for _, answer in rows)

        def shorter(t: Trajectory) -> Trajectory:
            return replace(t, observations=np.array(self.tokens.cut(self.tokens.encode_prompt(t.task.prompt or ""), room)))

        return replace(c, a=tuple(map(shorter, c.a)), b=tuple(map(shorter, c.b)))

    def _look(self, question: Comparison) -> bool:
        texts = {_texts(side) for side in question.sides}
        if len(texts) == 1 and question.b:
            self.same.add(question.key)
            if not any(next(iter(texts))):
                self.empty.add(question.key)
            return False
        rows = [(t, self._size(t.task, self.context, t)) for side in question.sides for t in side]
        row, size = max(rows, key=lambda each: each[1])
        if size <= self.context:
            return True
        self.long[question.key] = row.task, size
        answers = [len(self.tokens.encode(t.task.prompt or "", t.text or "", t.terminated)[1]) for t, _ in rows]
        if max(answers) >= self.context:
            self.alone[question.key] = row.task, max(answers)
        return self.overlong == "truncate"

    def _size(self, task: Task, room: int, said: Trajectory | None = None) -> int:
        """The tokens of a prompt, and of an answer if there is one; or a bound on them that is no more than `room`."""
        prompt, answer = task.prompt or "", "" if said is None else said.text or ""
        try:
            bound = self.tokens.at_most(prompt, answer)
            if bound <= room:
                return bound
            if said is None:
                return len(self.tokens.encode_prompt(prompt))
            return sum(map(len, self.tokens.encode(prompt, answer, said.terminated)))
        except DataError as e:
            raise DataError(f"prompt {_named(task)}: {e}") from None


REMEDY = 'set data.overlong to "skip" or "truncate"'


def _texts(side: Sequence[Trajectory]) -> tuple[str, ...]:
    """The words of a side; those that are all empty are equal."""
    return tuple((t.text or "") if (t.text or "").strip() else "" for t in side)


def _named(task: Task) -> str:
    prompt = task.prompt
    words = " ".join((prompt if isinstance(prompt, str) else str(prompt[-1].get("content", "")) if prompt else "").split())
    return f"{task.key!r} ({words if len(words) <= 40 else words[:40] + '...'})"


def _listed(rows: Sequence[tuple[Task, int]]) -> str:
    named = [f"{_named(task)} has {size} tokens" for task, size in rows[:SHOWN]]
    return ", ".join(named) + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")
