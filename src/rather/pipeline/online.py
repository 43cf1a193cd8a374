"""Questions about answers of the present policy, which a judge is asked while the policy learns."""

# PyTorch says in part alone what `from_numpy` takes.
# pyright: reportUnknownMemberType=false

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rather.core import Comparison, Task, Trajectory, row_seed
from rather.errors import CheckpointError, ConfigError
from rather.judges.given import JudgeLike, judge_of
from rather.learners.common import drawn
from rather.learners.head import Array, Raw, learn
from rather.learners.inputs import check_comparisons
from rather.pipeline.strategies import JOINT, PAIRWISE, best, wishes
from rather.scale import ranks
from rather.text.head.model import RewardHead


class Questions:
    """Two of several answers to each prompt are shown to `judge`, until `labels` questions have been answered.

    `strategy` chooses the two, by what a reward `head` believes, and of several prompts those that are asked about where `a_step` or what
    is left are fewer. The head learns from all comparisons, among them those that there were `before`. Equal answers are never compared,
    and a question that the judge abstains from is no label.

    Raises:
        ConfigError: an argument is wrong; the message names `caller`.
    """

    def __init__(
        self,
        caller: str,
        judge: JudgeLike,
        labels: int,
        strategy: str,
        seed: int,
        head: RewardHead | None,
        a_step: int | None = None,
        before: Sequence[Comparison] = (),
    ) -> None:
        if strategy not in (*JOINT, *PAIRWISE):
            raise ConfigError(f"{caller}: strategy is {strategy!r}; take one of {', '.join((*JOINT, *PAIRWISE))}")
        if any(not isinstance(x, int) or x < 1 for x in (labels, 1 if a_step is None else a_step)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"{caller}: labels is {labels!r} and a_step {a_step!r}; give at least 1 (a_step None: one a prompt)")
        if ranks.wanted() > 1:
            raise ConfigError(f"{caller} asks and learns in one process; start it without torchrun")
        if head is None and strategy != "random":
            raise ConfigError(f"{caller}: the strategy {strategy!r} goes by what a reward head believes; give a rather.RewardHead as head")
        if not isinstance(head, RewardHead | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"{caller}: head is {head!r:.80}; give a rather.RewardHead")
        if head is not None and head.known is not None:
            raise ConfigError(f"{caller}: the head has learned already; give a new rather.RewardHead, and what it knew as comparisons")
        self.judge, self.labels, self.strategy, self.seed = judge_of(judge), labels, strategy, seed
        self.head, self.a_step, self.before = head, a_step, check_comparisons(before)
        self.features: list[Raw] = [] if head is None else [*head.sides(self.before)]
        """Raw features (2, G, C) of the sides of each comparison."""
        self.answered = list[Comparison]()
        """What the judge has answered."""
        self.asked, self.said = 0, list[float | None]()
        """How many questions were asked, those from which the judge abstained too; and what was said to the last ones."""
        self._fit()

    @property
    def left(self) -> int:
        """Labels that may still be asked for."""
        return max(0, self.labels - len(self.answered))

    @property
    def comparisons(self) -> list[Comparison]:
        """All comparisons that there are."""
        return [*self.before, *self.answered]

    def ask(self, answers: Sequence[Trajectory], features: Raw | None) -> None:
        """Have pairs of these answers compared, and the head learn from what the judge said; `features` (N, G, C) are its raw ones."""
        pairs = self._choose(answers, features) if self.left else []
        questions = [
            Comparison((answers[a],), (answers[b],), key=f"{self.asked + n}/{answers[a].task.key}", judge=self.judge.name)
            for n, (a, b) in enumerate(pairs)
        ]
        self.said = self.judge.judge(questions) if questions else []
        self.asked += len(questions)
        for pair, q, preference in zip(pairs, questions, self.said, strict=True):
            if preference is not None:
                self.answered.append(Comparison(q.a, q.b, preference, q.key, q.judge))
                self.features += [] if features is None else [features[[*pair]]]
        if any(preference is not None for preference in self.said):
            self._fit()

    def metrics(self) -> dict[str, float]:
        """Answers, ties among them, and abstentions of the last time; and what the head's fit to all comparisons came to."""
        given = [p for p in self.said if p is not None]
        found = {"answers": len(given), "ties": given.count(0.5), "unanswered": len(self.said) - len(given)}
        known = {} if self.head is None or self.head.known is None else self.head.known.metrics()
        own = {name: known[name] for name in ("ridge", "evidence") if name in known}
        return {name: float(value) for name, value in found.items()} | {"comparisons": float(len(self.comparisons))} | own

    def state_dict(self) -> dict[str, Any]:
        """What was asked and answered, and the raw features (n, 2, G, C) of the sides: another batch would change their last bits."""
        new = self.features[len(self.before) :]
        own = {"strategy": self.strategy, "seed": self.seed, "a_step": self.a_step, "asked": self.asked}
        features = torch.from_numpy(np.stack(new)) if new else None
        return own | {"answered": [_written(c) for c in self.answered], "features": features}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back; there may be more labels to ask for than there were.

        Raises:
            CheckpointError: questions were chosen in another way.
        """
        for name in ("strategy", "seed", "a_step"):
            if state[name] != getattr(self, name):
                was, now = state[name], getattr(self, name)
                raise CheckpointError(f"the checkpoint was trained with {name} = {was!r}, not {now!r}, of questions; set it back")
        self.asked, self.answered = state["asked"], [_read(c) for c in state["answered"]]
        if self.head is not None and state["features"] is not None:
            self.features = [*self.features[: len(self.before)], *state["features"].numpy(force=True)]
        self._fit()

    def _choose(self, answers: Sequence[Trajectory], features: Raw | None) -> list[tuple[int, int]]:
        """The pairs (a, b) of answers to ask about, by their numbers, the most wanted first; at most one a prompt.

        Before the head has learned anything, and without one, they are random.
        """
        groups = dict[tuple[str, str], dict[str | None, int]]()
        for i, t in enumerate(answers):
            groups.setdefault((t.task.source, t.task.key), {}).setdefault(t.text, i)
        strategy, mean, covariance = self._believed(len(answers), features)
        found = list[tuple[float, list[int]]]()
        for own in (list(group.values()) for group in groups.values() if len(group) > 1):
            seed = row_seed(self.seed, answers[own[0]].task, self.asked)
            wished = wishes(strategy, mean[own], covariance[np.ix_(own, own)], seed)
            pair = best(wished)
            found.append((float(wished[pair]), [own[i] for i in pair]))
        found.sort(key=lambda each: -each[0])
        pairs = [pair for _, pair in found[: min(self.left, self.a_step or self.left)]]
        return [(j, i) if drawn(self.seed, str(self.asked + n)) < 0.5 else (i, j) for n, (i, j) in enumerate(pairs)]

    def _believed(self, count: int, features: Raw | None) -> tuple[str, Array, Array]:
        """The strategy to choose by now, and means (N,) and covariance (N, N) of the scores of so many answers."""
        known = None if self.head is None else self.head.known
        if known is None or features is None or self.strategy == "random":
            return "random", np.zeros(count), np.zeros((count, count))
        x = known.choice.of(features)
        return self.strategy, known.posterior.mean(x), known.posterior.covariance(x)

    def _fit(self) -> None:
        """Fit the head to all comparisons: from nothing, so that it depends on them alone, bit for bit, and not on when they came."""
        if self.head is not None and self.features:
            preference = np.array([c.preference for c in self.comparisons], np.float64)
            self.head.known = learn(np.stack(self.features), preference, [c.judge for c in self.comparisons], [self.head.groups])


def _written(c: Comparison) -> dict[str, Any]:
    """A comparison of two answers as JSON, with their tokens."""
    sides = [_answer(side[0]) for side in (c.a, c.b)]
    return {"sides": sides, "preference": c.preference, "key": c.key, "judge": c.judge}


def _answer(t: Trajectory) -> dict[str, Any]:
    tokens = {name: None if x is None else x.tolist() for name, x in (("observations", t.observations), ("actions", t.actions))}
    task = {"source": t.task.source, "key": t.task.key, "prompt": json.dumps(t.task.prompt)}
    return task | tokens | {"policy": t.policy, "text": t.text, "terminated": t.terminated}


def _read(state: dict[str, Any]) -> Comparison:
    """What `_written` wrote."""
    a, b = (
        Trajectory(
            Task(x["source"], x["key"], json.loads(x["prompt"])), x["policy"], x["text"], x["terminated"],
            **{name: None if x[name] is None else np.array(x[name], np.int64) for name in ("observations", "actions")},
        )
        for x in state["sides"]
    )  # fmt: skip
    return Comparison((a,), (b,), state["preference"], state["key"], state["judge"])
