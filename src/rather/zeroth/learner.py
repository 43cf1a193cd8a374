"""Zeroth-order policy optimization: perturb the policy, ask which behaves better, move (SZPO); no gradient, no reward, no critic.

With the link between values and preferences known it is ZPG or ZBCPG (Zhang and Ying 2025, ICLR), with the sign alone ZSPO (Zhang and
Ying 2025, arXiv 2506.03066). By default the two sides are mirrored twins on the same tasks with the same noise, every answer is about
a fresh direction, and several trajectories stand on a side: per answer that goes furthest (docs/concepts/zeroth-order.md).

Shape letters: K directions an update, N comparisons of each, M judges, D trajectories a side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rather.core import Comparison, Model, Perturbation, Space, Task, Trajectory, perturbation_of, row_seed
from rather.errors import ConfigError
from rather.learners.common import Order, put
from rather.losses import LINKS, Link, sign_weights, zpg_weights


@dataclass(frozen=True)
class Asking:
    """What is asked in an update: `directions` K, `comparisons` N of each, `side` D; perturbed by `mu`, on both sides if `mirrored`.

    A question is which of `best_of` sides is best: they share its directions, half as many if `mirrored`, else one less. Unless
    `perturbed` all sides are trajectories of the policy itself, which is what the first-order counterpart asks about.
    """

    mu: float
    directions: int = 8
    comparisons: int = 1
    side: int = 4
    mirrored: bool = True
    perturbed: bool = True
    best_of: int = 2

    @property
    def together(self) -> int:
        """Directions in a question."""
        return self.best_of // 2 if self.mirrored else self.best_of - 1


@dataclass(frozen=True)
class Ask:
    """A question to be asked: the perturbation of each side's policy, and the tasks that all sides meet."""

    key: str
    sides: list[Perturbation | None]
    tasks: list[Task]


class Planner:
    """What is asked in each update; it depends on `seed` and the number of the update alone."""

    def __init__(self, tasks: Sequence[Task], how: Asking, seed: int) -> None:
        if how.mu <= 0 and how.perturbed:
            raise ConfigError(f"zeroth.mu is {how.mu:g}; without a perturbation both sides are the same, so set it above 0")
        if how.side < 1:
            raise ConfigError(f"zeroth.side is {how.side}; a side needs at least one trajectory")
        if how.best_of < 2 or (how.mirrored and how.best_of % 2) or how.directions % how.together:
            reason = "mirrored twins need an even number of sides, and zeroth.directions is shared out among the questions"
            raise ConfigError(f"zeroth.best_of = {how.best_of} does not go with zeroth.directions = {how.directions}: {reason}")
        self.how, self.seed, self.tasks, self.order = how, seed, tasks, Order(len(tasks), seed)

    def plan(self, update: int, again: int = 0) -> list[Ask]:
        """The questions of an update; `again` gives the same directions other tasks, for what nobody could answer."""
        h, found = self.how, list[Ask]()
        for q in range(questions := h.directions // h.together):
            sides: list[Perturbation | None] = []
            for k in range(q * h.together, (q + 1) * h.together):
                seed = self.chances(update, k)
                sides += [Perturbation(seed, h.mu), *([Perturbation(seed, -h.mu)] if h.mirrored else [])]
            sides = [*sides, *([] if h.mirrored else [None])] if h.perturbed else [None] * h.best_of
            for n in range(h.comparisons):
                place = ((update * questions + q) * h.comparisons + n) * h.side + again * 7919
                tasks = [self.tasks[i] for i in self.order.at(place, h.side)]
                found.append(Ask(f"{update}/{q}/{n}" + "/again" * again, sides, tasks))
        return found

    def chances(self, update: int, k: int | None = None) -> int:
        """The seed of an update's roll-outs, or of its direction k."""
        return row_seed(self.seed, Task("update", f"{update}/{'' if k is None else k}"), 0)


@dataclass(frozen=True)
class Estimate:
    """What answers mean and how large their update is: `radius` bounds the root mean square of the space's numbers.

    `link` is the name of one in `losses.LINKS`, or a function with its inverse. `optimizer` is the name of one in torch.optim; SGD's step
    is lr times the estimate.
    """

    lr: float
    estimator: Literal["sign", "zpg", "dpo", "reinforce"] = "sign"
    link: str | Link = "logistic"
    trim: float = 0.05
    radius: float = math.inf
    optimizer: str = "SGD"


class Zeroth:
    """Moves `space` by what judges said of its directions; `take` brings an update's answers, `step` moves."""

    def __init__(self, model: Model, space: Space, asking: Asking, how: Estimate, dimensions: int = 1) -> None:
        if isinstance(how.link, str) and how.link not in LINKS:
            raise ConfigError(f"there is no link {how.link!r}; take one of {', '.join(LINKS)}")
        self.link = LINKS[how.link] if isinstance(how.link, str) else how.link
        ends = self.link.inverse(torch.tensor([how.trim, 1 - how.trim]))
        if how.estimator == "zpg" and not (0 < how.trim < 0.5 and ends.isfinite().all()):
            name = how.link if isinstance(how.link, str) else "given"
            raise ConfigError(f"the {name} link has no finite inverse at zeroth.trim = {how.trim:g}; set it between 0 and 0.5")
        if how.radius <= 0:
            raise ConfigError(f"zeroth.radius is {how.radius:g}, so the policy could not move; set it above 0")
        kind = getattr(torch.optim, how.optimizer, None)
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            raise ConfigError(f"torch.optim has no optimizer {how.optimizer!r}; take SGD or Adam")
        if how.estimator == "zpg" and asking.best_of > 2:
            raise ConfigError(f"the link of zpg is about two sides, but zeroth.best_of is {asking.best_of}; take the sign")
        self.model, self.space, self.asking, self.how, self.dimensions = model, space, asking, how, dimensions
        self.optimizer: torch.optim.Optimizer = kind(space.parameters, lr=how.lr)  # pyright: ignore[reportCallIssue]
        self.answered: dict[str, list[Comparison]] = {}
        self.log: list[list[Any]] = []
        """All updates of the numbers, from which they can be made again elsewhere; see `replay`."""
        self.best_rate, self.best = -math.inf, list[Tensor]()
        self.beyond = 1.0
        """How many times as far as the trust region lets the steps lead."""

    def take(self, answered: dict[str, list[Comparison]]) -> None:
        """The answers of an update: by the question's key one comparison a judge, none where nobody answered."""
        self.answered = answered

    def step(self) -> dict[str, float]:
        """Move by the answers that were taken."""
        before = [p.detach().clone() for p in self.space.parameters]
        self.move()
        steps = [p.detach() - b for p, b in zip(self.space.parameters, before, strict=True)]
        known = {(c.key, c.judge): c.preference for judged in self.answered.values() for c in judged if c.preference is not None}
        return {
            "answers": float(len(known)), "ties": float(list(known.values()).count(0.5)),
            "unanswered": float(sum(not judged for judged in self.answered.values())),
            "update_norm": rms(steps), "parameter_norm": rms(self.space.parameters),
        }  # fmt: skip

    def move(self) -> None:
        """Move along the directions, by what was said of them, averaged over the questions."""
        seeds, preferences = preference_tensor(self.answered)
        h = self.how
        if h.estimator == "sign":
            weights = sign_weights(preferences)
        else:
            weights = zpg_weights(preferences, self.asking.mu, self.link, h.trim, self.asking.mirrored, self.dimensions)
        self.replay([["along", seeds, [float(w) for w in weights * self.asking.together / max(len(seeds), 1)]]])

    def replay(self, events: Sequence[list[Any]]) -> None:
        """Do what `log` says was done elsewhere: a step along directions, a check of the win rate, a way back towards the base policy."""
        for kind, *numbers in events:
            match kind:
                case "along":
                    uphill = self.space.combined([Perturbation(seed, 1.0) for seed in numbers[0]], numbers[1])
                    for parameter, found in zip(self.space.parameters, uphill, strict=True):
                        parameter.grad = -found
                    self.descend()
                case "checked":
                    self._check(*numbers)
                case "shrunk":
                    self._shrink(*numbers)
                case _:
                    raise ValueError(f"there is no event {kind!r}")
        self.log += events

    def descend(self) -> None:
        """Follow the gradient that is on the space's parameters, and come as near to where it leads as the trust region lets.

        Steps add up outside of it (dual averaging, Xiao 2010): early answers count as much as late ones at its edge, too.
        """
        self._scale(self.beyond)
        self.optimizer.step()
        self.beyond = max(1.0, rms(self.space.parameters) / self.how.radius)
        self._scale(1 / self.beyond)
        self.space.sync()

    def checked(self, win_rate: float, error: float) -> bool:
        """Remember the best point; go back to it, and say so, where the win rate has fallen from its by more than `error`."""
        self.log.append(["checked", win_rate, error])
        return self._check(win_rate, error)

    def shrink(self, factor: float) -> None:
        """Go back towards the base policy, to `factor` times the way from it."""
        self.log.append(["shrunk", factor])
        self._shrink(factor)

    def _check(self, win_rate: float, error: float) -> bool:
        if win_rate >= self.best_rate:
            self.best_rate, self.best = win_rate, [p.detach().clone() for p in self.space.parameters]
        if win_rate >= self.best_rate - error:
            return False
        put(self.best, self.space.parameters)
        self.beyond = 1.0
        self.space.sync()
        return True

    def _shrink(self, factor: float) -> None:
        self.beyond = 1.0
        self._scale(factor)
        self.space.sync()

    def _scale(self, factor: float) -> None:
        if factor != 1:
            with torch.no_grad():
                for parameter in self.space.parameters:
                    parameter.mul_(factor)

    def state_dict(self) -> dict[str, Any]:
        """The numbers, the best ones so far, and the optimizer's moments."""
        state = self.optimizer.state_dict()["state"]
        moments = [{k: v for k, v in state.get(i, {}).items() if v is not None} for i in range(len(self.space.parameters))]
        numbers = [p.detach() for p in self.space.parameters]
        scalars = {"best_rate": str(self.best_rate), "beyond": self.beyond}
        return {"numbers": numbers, "moments": moments, "best": list(self.best), "log": list(self.log), **scalars}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state` back."""
        put(state["numbers"], self.space.parameters)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": {i: m for i, m in enumerate(state["moments"]) if m}, "param_groups": groups})
        self.best_rate, self.best, self.log = float(state["best_rate"]), list(state["best"]), list(state["log"])
        self.beyond = float(state["beyond"])
        self.space.sync()


def preference_tensor(answered: dict[str, list[Comparison]]) -> tuple[list[int], Tensor]:
    """Directions' seeds (K,), and P(theta + mu v better) of each comparison and judge, (K, N, M); NaN where there is no answer.

    The best of several sides has won against each other one: as many comparisons count for a direction or against it. Where mirrored
    twins are among them, both directions of which neither twin was the best come out even.
    """
    by_seed: dict[int, list[list[float]]] = {}
    for judged in answered.values():
        found: dict[int, list[float]] = {}
        for comparison in judged:
            for seed, preference in direction_preferences(comparison):
                found.setdefault(seed, []).append(preference)
        for seed, row in found.items():
            by_seed.setdefault(seed, []).append(row)
    n = max((len(rows) for rows in by_seed.values()), default=1)
    m = max((len(row) for rows in by_seed.values() for row in rows), default=1)
    preferences = np.full((len(by_seed), n, m), np.nan, np.float32)
    for k, rows in enumerate(by_seed.values()):
        for i, row in enumerate(rows):
            preferences[k, i, : len(row)] = row
    return list(by_seed), torch.as_tensor(preferences)


def direction_preferences(comparison: Comparison) -> list[tuple[int, float]]:
    """Seed and P(theta + mu v better) of each direction that a comparison is about, NaN without an answer.

    Its sides may be twins, or stand for two directions; those of two trajectories of the policy itself are about none.
    """
    preference, found = math.nan if comparison.preference is None else comparison.preference, dict[int, float]()
    for side, better in ((comparison.b, 1 - preference), (comparison.a, preference)):
        if (perturbation := perturbation_of(side[0].policy)) is not None:
            found[perturbation.seed] = better if perturbation.scale > 0 else 1 - better
    return list(found.items())


def answer_preferences(comparisons: Sequence[Comparison]) -> list[dict[int, float]]:
    """What each answer says of its directions: by their seed 1, 0, or where it leaves them even 1/2."""
    answers: dict[tuple[str, str], dict[int, list[float]]] = {}
    for c in comparisons:
        answer = answers.setdefault((c.key, c.judge), {})
        for seed, preference in direction_preferences(c):
            answer.setdefault(seed, []).append(preference)
    return [{seed: sum(said) / len(said) for seed, said in answer.items()} for answer in answers.values()]


def alike(question: Comparison) -> bool:
    """Whether all sides did the same."""
    return all(_behavior(x) == _behavior(y) for side in question.sides[1:] for x, y in zip(question.a, side, strict=True))


def _behavior(t: Trajectory) -> tuple[object, object]:
    if t.text is not None:
        return t.text, t.terminated
    # Of actions beyond the bounds of their space nobody sees a difference: what was shown and its reward say what was done.
    return np.asarray(t.observations).tobytes(), np.asarray(t.rewards).tobytes()


def rms(numbers: Sequence[Tensor]) -> float:
    """Root mean square of all entries."""
    return math.sqrt(sum(float(x.detach().double().square().sum()) for x in numbers) / sum(x.numel() for x in numbers))
