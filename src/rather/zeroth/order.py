"""Zeroth-order optimization from a program: a language model, prompts, and a judge that is asked as it goes."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Unpack

from torch import Tensor, nn

from rather.core import Comparison
from rather.data.rows import Prompts, tasks
from rather.errors import ConfigError
from rather.judges.best import answers as best_of
from rather.judges.given import JudgeLike, judge_of
from rather.learners.learner import Learner, digest
from rather.learners.settings import Optimization, Sampling
from rather.learners.train import Callback
from rather.learners.zeroth_settings import ZerothOptions, ZerothSettings
from rather.report.compare import compared
from rather.settings import check_seed, given
from rather.text.language_model import LanguageModel
from rather.text.policy import TextPolicy
from rather.zeroth.first_order import made
from rather.zeroth.learner import Ask, Planner, alike
from rather.zeroth.spaces.text import perturbable

IN_RUNS = ("check_every", "checks", "kl")
"""Settings about comparisons on held-out prompts, which runs alone make."""


class ZerothOrder(Learner[TextPolicy, Prompts]):
    """Perturbs the policy, asks `judge` which behaves better, and moves: no gradient, no reward (see `zeroth.learner`).

    The given `policy` stays as it is. `judge` is a function of (prompt, a, b), a reward model or any judge. On each side of a question
    stand answers to `side` prompts, so that prompt, a and b are lists unless `side` is 1. There are as many updates as `answers` questions
    make; sides that are the same count as a tie, and nobody is asked.

    Raises:
        ConfigError: an argument is not known, or its value is wrong.
        DataError: a prompt cannot be read.
    """

    name = "zeroth"
    best = ("win_rate", 1.0)

    def __init__(
        self,
        policy: LanguageModel,
        prompts: Prompts,
        judge: JudgeLike,
        answers: int = 120,
        *,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        folder: Path | str | None = None,
        **options: Unpack[ZerothOptions],
    ) -> None:
        for name in IN_RUNS:
            if name in options:
                raise ConfigError(f"ZerothOrder has no argument {name!r}; compare by rather.win_rate in a callback")
        z, sampling = given("ZerothOrder", {**options, "answers": answers}, ZerothSettings, Sampling)
        self.own, self.judge, reading = z, judge_of(judge), tasks(prompts)
        check_seed(seed)
        if not reading:
            raise ConfigError("ZerothOrder: prompts is empty; give prompts to compare on")

        def own(what: Literal["lora", "full"]) -> TextPolicy:
            copy, _ = policy.trainable("full" if what == "full" else None, seed)
            assert isinstance(copy, TextPolicy)
            return copy

        model = perturbable(z, policy, reading, policy.sampler(sampling.model_copy(update={"temperature": 0.0})), own)
        model.temperature, self.sampler = sampling.temperature or 1.0, model.sampler(sampling)
        self.base_sampler = policy.sampler(sampling)
        self.learner = made(z, model, model.space, policy)
        self.planner = Planner(reading, self.learner.asking, seed)
        self.questions = len(self.planner.plan(0))
        self.done = 0
        settings = {"zeroth": z, "sample": sampling, "data": {"prompts": digest([t.prompt for t in reading])}}
        super().__init__(model, math.ceil(z.answers / self.questions), Optimization(), seed, settings, callbacks, folder)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The numbers that are moved."""
        return self.learner.space.parameters

    @property
    def taken(self) -> int:
        """Updates that have been made."""
        return self.done

    def evaluate(self, data: Prompts) -> dict[str, float]:
        """How often the judge prefers the policy to the base policy, in one answer to each of other prompts; see `compare.win_rate`.

        Raises:
            JudgeError: it abstains from all of them.
        """
        return {"win_rate": compared(self.sampler, self.base_sampler, tasks(data), self.judge, self.seed).mean}

    def put_back(self, values: Sequence[Tensor]) -> None:
        """Give the numbers other values, and let the policy know."""
        super().put_back(values)
        self.learner.space.sync()

    def step(self) -> dict[str, float]:
        """Ask an update's questions, and move by the answers."""
        left = self.own.answers - self.done * self.questions
        asks = self.planner.plan(self.done)[: left if left > 0 else None]
        self.learner.take(self._answered(asks))
        values = self.learner.step()
        self.done += 1
        return values

    def state_dict(self) -> dict[str, Any]:
        """The numbers, and how many updates have been made."""
        return {"learner": self.learner.state_dict(), "taken": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        self.learner.load_state_dict(state["learner"])
        self.done = state["taken"]

    def _answered(self, asks: Sequence[Ask]) -> dict[str, list[Comparison]]:
        """What the judge says to each question, by its key; none where it abstains."""
        wanted = [(task, p) for ask in asks for p in ask.sides for task in ask.tasks]
        found = self.sampler.sample([t for t, _ in wanted], self.planner.chances(self.done), [p for _, p in wanted])
        each = iter(found)
        questions = list[Comparison]()
        for ask in asks:
            a, b, *others = [tuple(next(each) for _ in ask.tasks) for _ in ask.sides]
            questions.append(Comparison(a, b, key=ask.key, judge=self.judge.name, others=tuple(others)))
        same = {q.key for q in questions if alike(q)}
        answered = {q.key: [replace(q, preference=0.5)] for q in questions if q.key in same}
        open_ = [q for q in questions if q.key not in same]
        for question, (preference, best) in zip(open_, best_of(self.judge, open_), strict=True):
            said = replace(question, preference=preference, best=best)
            answered[question.key] = [] if preference is None else said.pairs()
        return answered
