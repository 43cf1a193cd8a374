"""Questions about answers of the present policy, which a judge is asked while the policy learns."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from rather.core import Comparison, Task, Trajectory, row_seed
from rather.errors import CheckpointError, ConfigError
from rather.judges.given import JudgeLike, judge_of
from rather.learners.common import drawn
from rather.learners.head import Array
from rather.pipeline.strategies import JOINT, PAIRWISE, best, wishes
from rather.scale import ranks


class Questions:
    """Two of several answers to each prompt are shown to `judge`, until `labels` questions have been answered.

    `strategy` chooses the two, and of several prompts those that are asked about where `a_step` or what is left are fewer. Equal answers
    are never compared, and a question that the judge abstains from is no label.

    Raises:
        ConfigError: an argument is wrong; the message names `caller`.
    """

    def __init__(self, caller: str, judge: JudgeLike, labels: int, strategy: str, a_step: int | None, seed: int) -> None:
        if strategy not in (*JOINT, *PAIRWISE):
            raise ConfigError(f"{caller}: strategy is {strategy!r}; take one of {', '.join((*JOINT, *PAIRWISE))}")
        if labels < 1 or (a_step is not None and a_step < 1):
            raise ConfigError(f"{caller}: labels is {labels!r} and a_step {a_step!r}; give at least 1 (a_step None: one a prompt)")
        if ranks.wanted() > 1:
            raise ConfigError(f"{caller} asks and learns in one process; start it without torchrun")
        self.judge, self.labels, self.strategy, self.a_step, self.seed = judge_of(judge), labels, strategy, a_step, seed
        self.comparisons = list[Comparison]()
        """All that the judge has answered."""
        self.asked = 0
        """Questions that were asked, those from which the judge abstained too."""

    @property
    def left(self) -> int:
        """Labels that may still be asked for."""
        return max(0, self.labels - len(self.comparisons))

    def choose(self, answers: Sequence[Trajectory], believed: tuple[Array, Array] | None) -> list[tuple[int, int]]:
        """The pairs (a, b) of answers to ask about, by their numbers, the most wanted first; at most one a prompt.

        `believed` are means (N,) and covariance (N, N) of the scores of the answers; None: nothing is known, and pairs are random.
        """
        groups = dict[tuple[str, str], dict[str | None, int]]()
        for i, t in enumerate(answers):
            groups.setdefault((t.task.source, t.task.key), {}).setdefault(t.text, i)
        strategy = "random" if believed is None else self.strategy
        mean, covariance = (np.zeros(len(answers)), np.zeros((len(answers),) * 2)) if believed is None else believed
        found = list[tuple[float, list[int]]]()
        for own in (list(group.values()) for group in groups.values() if len(group) > 1):
            seed = row_seed(self.seed, answers[own[0]].task, self.asked)
            wished = wishes(strategy, mean[own], covariance[np.ix_(own, own)], seed)
            pair = best(wished)
            found.append((float(wished[pair]), [own[i] for i in pair]))
        found.sort(key=lambda each: -each[0])
        pairs = [pair for _, pair in found[: min(self.left, self.a_step or self.left)]]
        return [(j, i) if drawn(self.seed, str(self.asked + n)) < 0.5 else (i, j) for n, (i, j) in enumerate(pairs)]

    def ask(self, pairs: Sequence[tuple[Trajectory, Trajectory]]) -> list[float | None]:
        """P(a better) of each pair (a, b), None where the judge abstains; the others are among `comparisons` from now on."""
        questions = [Comparison((a,), (b,), key=f"{self.asked + n}/{a.task.key}", judge=self.judge.name) for n, (a, b) in enumerate(pairs)]
        said = self.judge.judge(questions) if questions else []
        self.asked += len(questions)
        for q, preference in zip(questions, said, strict=True):
            if preference is not None:
                self.comparisons.append(Comparison(q.a, q.b, preference, q.key, q.judge))
        return said

    def state_dict(self) -> dict[str, Any]:
        """All that was asked and answered."""
        own = {"strategy": self.strategy, "seed": self.seed, "a_step": self.a_step}
        return own | {"asked": self.asked, "comparisons": [_written(c) for c in self.comparisons]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back; there may be more labels to ask for than there were.

        Raises:
            CheckpointError: questions were chosen in another way.
        """
        for name in ("strategy", "seed", "a_step"):
            if state[name] != getattr(self, name):
                was, now = state[name], getattr(self, name)
                raise CheckpointError(f"the checkpoint was trained with {name} = {was!r}, not {now!r}, of questions; set it back")
        self.asked, self.comparisons = state["asked"], [_read(c) for c in state["comparisons"]]


def counted(said: Sequence[float | None]) -> dict[str, float]:
    """Answers, ties among them, and abstentions, as metrics."""
    known = [p for p in said if p is not None]
    return {"answers": float(len(known)), "ties": float(known.count(0.5)), "unanswered": float(len(said) - len(known))}


def _written(c: Comparison) -> dict[str, Any]:
    """A comparison of two answers as JSON, with their tokens."""
    sides = [_answer(side[0]) for side in (c.a, c.b)]
    return {"sides": sides, "preference": c.preference, "key": c.key, "judge": c.judge}


def _answer(t: Trajectory) -> dict[str, Any]:
    tokens = {name: None if x is None else x.tolist() for name, x in (("observations", t.observations), ("actions", t.actions))}
    prompt = json.dumps(t.task.prompt)
    task = {"source": t.task.source, "key": t.task.key, "prompt": prompt}
    return task | tokens | {"policy": t.policy, "text": t.text, "terminated": t.terminated}


def _read(state: dict[str, Any]) -> Comparison:
    a, b = (
        Trajectory(
            Task(x["source"], x["key"], json.loads(x["prompt"])), x["policy"], x["text"], x["terminated"],
            **{name: None if x[name] is None else np.array(x[name], np.int64) for name in ("observations", "actions")},
        )
        for x in state["sides"]
    )  # fmt: skip
    return Comparison((a,), (b,), state["preference"], state["key"], state["judge"])
