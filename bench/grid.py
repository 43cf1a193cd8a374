"""How many answers zeroth-order optimization takes on a grid whose values are known exactly, by variant, link and number of judges.

`python bench/grid.py [variant]...` writes bench/results/grid.{json,md,svg}. Planner, estimators and learners are the project's; trajectories are
drawn by a vectorised twin of the control sampler, since 24 maps in every variant are some hundred million steps. The judge is simulated: it
prefers by a link of the difference of mean rewards. Settings were chosen on maps from 100 on; these are maps 0 to 23.
"""

import json
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import common
from rather.control.environments import inputs
from rather.control.grid import GridWorld
from rather.control.models import ControlCritic, ControlPolicy, Perceptron
from rather.core import Batch, Comparison, Perturbation, Task, Trajectory, perturbed, row_seed
from rather.judges.known import total_reward
from rather.learners.ppo import PPO
from rather.learners.rollouts import Rollouts
from rather.losses import LINKS
from rather.zeroth.first_order import FirstOrder
from rather.zeroth.learner import Asking, Estimate, Planner, Zeroth
from rather.zeroth.spaces.control import ControlSpace

MAPS = range(24)
SIZE, HORIZON = 5, 20
CENTRE = SIZE**2 // 2
TASKS = [Task("grid", str(i)) for i in range(64)]
PPO_STEPS, PPO_RATE = 40, 0.1


@dataclass(frozen=True)
class Variant:
    """A way of asking and of using what is answered; `link` is the judges' true one, `shared`: twins meet the same chances."""

    asking: Asking
    how: Estimate
    budget: int = 4000
    judges: int = 1
    link: str = "logistic"
    shared: bool = True
    kind: str = "gaussian"
    block: int = 8
    cells: bool = False


MIRRORED = Variant(Asking(mu=3.0, directions=4, side=1), Estimate(lr=0.8))
FOUR = Variant(Asking(mu=3.0, directions=8, side=4), Estimate(lr=2.0))
BEST = Variant(Asking(mu=2.0, directions=24, side=4, best_of=4), Estimate(lr=2.0))
FIRST = Variant(Asking(mu=0.0, directions=8, side=1, perturbed=False), Estimate(lr=0.2, estimator="reinforce", optimizer="Adam"))
PUBLISHED = Variant(Asking(mu=3.0, directions=1, comparisons=100, side=1, mirrored=False), Estimate(lr=1.0), 20_000, shared=False)
ZPG = replace(
    PUBLISHED, asking=replace(PUBLISHED.asking, mu=20.0, comparisons=10), judges=10, how=Estimate(lr=0.5, estimator="zpg"), kind="sphere"
)
MODEL = "reward model, one number a cell, and exact planning"
PAID = "reward model, one number a cell, and PPO"
MODELS = {MODEL: True, PAID: False}
"""Whether planning is exact."""
VARIANTS = {
    "ZSPO as published: one side perturbed, 100 answers a direction": PUBLISHED,
    "ZPG as published: 10 questions to 10 judges a direction on the sphere": ZPG,
    "ZBCPG as published: the same on blocks of 8": replace(
        ZPG, asking=replace(ZPG.asking, mu=6.0), how=replace(ZPG.how, lr=0.2), kind="block"
    ),
    "one side perturbed, a fresh direction an answer": Variant(
        Asking(mu=3.0, directions=8, side=1, mirrored=False), Estimate(lr=1.5), shared=False
    ),
    "mirrored, other chances a side": replace(MIRRORED, shared=False),
    "mirrored, same chances": MIRRORED,
    "mirrored, 4 trajectories a side": FOUR,
    "the best of 4, mirrored, 4 trajectories a side": BEST,
    "mirrored, 4 trajectories a side, 3 judges a direction": replace(FOUR, judges=3, budget=8000),
    "mirrored, 4 trajectories a side, 10 judges a direction": replace(FOUR, judges=10, budget=8000),
    "the same, logistic link inverted": replace(FOUR, judges=10, budget=8000, how=Estimate(lr=8.0, estimator="zpg")),
    "preference REINFORCE (first order)": FIRST,
    "online DPO (first order)": replace(FIRST, how=replace(FIRST.how, estimator="dpo", lr=0.4)),
    **{f"{link} judges, 4 trajectories a side": replace(FOUR, link=link) for link in LINKS if link != "logistic"},
    **{
        f"{link} judges, 4 trajectories a side, 10 a direction, link inverted": replace(
            FOUR, link=link, judges=10, budget=8000, how=Estimate(lr=8.0, estimator="zpg", link=link)
        )
        for link in LINKS
        if link != "logistic"
    },
}
CELLS = {
    "mirrored, same chances": replace(MIRRORED, cells=True),
    "mirrored, 4 trajectories a side": replace(FOUR, cells=True),
    "preference REINFORCE (first order)": replace(FIRST, cells=True),
}


class Grid:
    """A table of 100 numbers on a map of its own."""

    def __init__(self, number: int, variant: Variant) -> None:
        self.v, self.number = variant, number
        chance = np.random.default_rng(number)
        self.env = GridWorld(SIZE, HORIZON, 0.2, chance.uniform(size=(SIZE, SIZE)), start=CENTRE)
        self.cumulative = self.env.transitions.cumsum(-1)
        self.policy = ControlPolicy(inputs(self.env), self.env.action_space, [], normalize=False, seed=number)
        assert isinstance(self.policy.net, Perceptron)
        self.weights, self.biases = self.policy.net.layers
        with torch.no_grad():
            self.weights.zero_()
        how = {} if variant.kind == "gaussian" else {"kind": variant.kind, "block": variant.block}
        self.policy.space = self.space = ControlSpace(self.policy, ("net.layers.0",), **how)
        self.start = ControlPolicy(inputs(self.env), self.env.action_space, [], normalize=False)
        self.start.load_state_dict(self.policy.state_dict())
        self.planner = Planner(TASKS, variant.asking, number)
        if variant.how.estimator in ("dpo", "reinforce"):
            self.learner = FirstOrder(self.policy, self.space, variant.asking, variant.how, self.start)
        else:
            size = 1 if variant.kind == "gaussian" else self.space.size
            self.learner = Zeroth(self.policy, self.space, variant.asking, variant.how, size)
        self.chance = np.random.default_rng([number, 1])

    def value(self) -> float:
        """What is reached: the exact value, or the number of different cells of 400 trajectories."""
        if self.v.cells:
            found = self.episodes([None] * 400, [np.random.default_rng([7, i]) for i in range(400)])
            return float(np.mean([self.worth(t) for t in found]))
        return stationary(self.env, self.table().log())

    def table(self, perturbation: Perturbation | None = None) -> torch.Tensor:
        """Probabilities (S, A)."""
        weights = self.space.values(perturbation)["net.layers.0"].double() + self.biases.detach().double()
        return weights.softmax(-1)

    def episodes(self, perturbations: Sequence[Perturbation | None], chances: list[np.random.Generator]) -> list[Trajectory]:
        """A trajectory under each perturbation."""
        kinds = list(dict.fromkeys(perturbations))
        tables = np.stack([self.table(p).numpy().cumsum(-1) for p in kinds])[[kinds.index(p) for p in perturbations]]
        draws = np.stack([c.random((HORIZON, 2)) for c in chances])
        rows = np.arange(len(perturbations))
        cells = np.full((len(rows), HORIZON + 1), CENTRE)
        actions = np.zeros((len(rows), HORIZON), int)
        for t in range(HORIZON):
            actions[:, t] = (tables[rows, cells[:, t]] < draws[:, t, :1]).sum(-1).clip(0, 3)
            cells[:, t + 1] = (self.cumulative[cells[:, t], actions[:, t]] < draws[:, t, 1:]).sum(-1).clip(0, SIZE**2 - 1)
        eye, rewards = np.eye(SIZE**2, dtype=np.float32), self.env.rewards.ravel()[cells[:, 1:]]
        logprobs = np.log(np.diff(tables, axis=-1, prepend=0)[rows[:, None], cells[:, :-1], actions])
        return [
            Trajectory(TASKS[0], perturbed("p", p), terminated=False, observations=eye[c], actions=a, rewards=r, logprobs=said)
            for p, c, a, r, said in zip(perturbations, cells, actions, rewards, logprobs, strict=True)
        ]

    def sample(self, tasks: Sequence[Task], seed: int, perturbations: Sequence[Perturbation | None] | None = None) -> list[Trajectory]:
        """What PPO asks of a sampler: a trajectory of each task, which is over when its time is."""
        found = self.episodes(
            perturbations or [None] * len(tasks), [np.random.default_rng([self.number, seed, i]) for i in range(len(tasks))]
        )
        return [replace(t, terminated=True) for t in found]

    def sync(self) -> None:
        """Nothing to do: trajectories are drawn by the table as it is."""

    def worth(self, t: Trajectory) -> float:
        """What a trajectory is worth: its rewards, or the number of different cells."""
        return float((visits(t) > 0).sum()) if self.v.cells else total_reward(t)

    def said(self, worth: list[float]) -> tuple[float, int | None]:
        """What a judge says of two sides, by the link, or of several, by Luce's rule of choice: preference and number of the best."""
        if len(worth) > 2:
            best = int(np.argmax(np.array(worth) + self.chance.gumbel(size=len(worth))))
            return float(best == 0), best
        p = float(LINKS[self.v.link].probability(torch.tensor(worth[0] - worth[1])))
        return float(self.chance.random() < p), None

    def update(self, number: int) -> int:
        """Ask and move; returns how many answers were given."""
        d, k, asks = self.v.asking.side, self.v.asking.best_of, self.planner.plan(number)
        wanted = [(p, n * d + i, side) for n, a in enumerate(asks) for side, p in enumerate(a.sides) for i in range(d)]
        common_chances = self.v.shared and self.v.asking.perturbed
        chances = [
            np.random.default_rng(row_seed(self.number, Task("chance", f"{number}/{i}/{0 if common_chances else side}"), 0))
            for _, i, side in wanted
        ]
        found = self.episodes([p for p, _, _ in wanted], chances)
        given, answered = 0, {}
        for n, ask in enumerate(asks):
            a, b, *others = (tuple(found[i : i + d]) for i in range(k * d * n, k * d * (n + 1), d))
            same = all(np.array_equal(actions(x), actions(y)) for side in (b, *others) for x, y in zip(a, side, strict=True))
            worth = [float(np.mean([self.worth(t) for t in side])) for side in (a, b, *others)]
            said = [(0.5, None) if same else self.said(worth) for _ in range(self.v.judges)]
            given += 0 if same else self.v.judges
            asked = [Comparison(a, b, p, ask.key, str(j), tuple(others), best) for j, (p, best) in enumerate(said)]
            answered[ask.key] = [pair for question in asked for pair in question.pairs()]
        self.learner.take(answered)
        self.learner.step()
        return given


def visits(t: Trajectory, start: int = 0) -> np.ndarray:
    """How often each cell (S,) was visited, from a step on."""
    assert t.observations is not None
    return t.observations[start:].sum(0)


def actions(t: Trajectory) -> np.ndarray:
    """What was done, (T,)."""
    assert t.actions is not None
    return t.actions


def stationary(env: GridWorld, logits: torch.Tensor) -> float:
    """Exact value of the policy that is the same at all times."""
    return float(env.values(np.repeat(logits.softmax(-1).detach().numpy()[None], HORIZON, 0))[0, CENTRE])


def best_stationary(env: GridWorld) -> float:
    """The value of the best such policy that gradient ascent on the exact value finds."""
    logits = torch.zeros(SIZE**2, 4, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.2)
    transitions, rewards = torch.tensor(env.transitions), torch.tensor(env.rewards.ravel())
    for _ in range(250):
        value = torch.zeros(SIZE**2, dtype=torch.double)
        p = logits.softmax(-1)
        for _ in range(HORIZON):
            value = (p * (transitions @ (rewards + value))).sum(-1)
        optimizer.zero_grad()
        (-value[CENTRE]).backward()
        optimizer.step()
    return stationary(env, logits.detach())


def curve(job: tuple[Variant, int]) -> list[tuple[int, float]]:
    """Answers and what had been reached by then: the share of the way to the best, or cells."""
    torch.set_num_threads(1)
    variant, number = job
    grid = Grid(number, variant)
    low, cells = grid.value(), variant.cells
    high = 0.0 if cells else best_stationary(grid.env)
    answers, known, update = 0, {0: low if cells else 0.0}, 0  # pairs that are the same on both sides take no answer
    while answers < variant.budget and (cells or known[answers] < 0.9):
        answers += grid.update(update)
        update += 1
        if not cells or update % 50 == 0 or answers >= variant.budget:
            known[answers] = round(grid.value() if cells else (grid.value() - low) / (high - low), 4)
    return list(known.items())


def planned(job: tuple[Variant, int, bool], every: int = 20, budget: int = 400) -> list[tuple[int, float]]:
    """The same for a reward model with one number a cell, fitted to all answers so far, and the best policy under it or that of PPO."""
    from scipy.special import expit

    torch.set_num_threads(1)
    variant, number, exactly = job
    grid = Grid(number, variant)
    table, low = grid.space.initial["net.layers.0"], grid.value()
    high = 0.0 if variant.cells else best_stationary(grid.env)
    counts, said, found = [], [], [(0, low if variant.cells else 0.0)]
    for start in range(0, budget, every):
        table *= 0.7  # what is asked about is drawn a little more widely
        both = grid.episodes([None] * 2 * every, [np.random.default_rng([number, start, i]) for i in range(2 * every)])
        counted, worth = [visits(t, 1) for t in both], [grid.worth(t) for t in both]
        counts += [a - b for a, b in zip(counted[::2], counted[1::2], strict=True)]
        said += [float(grid.chance.random() < expit(a - b)) for a, b in zip(worth[::2], worth[1::2], strict=True)]
        weights = fitted(np.stack(counts), np.array(said))
        if exactly:
            table.copy_(4.0 * torch.tensor(GridWorld(SIZE, HORIZON, 0.2, weights.reshape(SIZE, SIZE)).best()[0]))
        else:
            improved(grid, weights)
        found.append((start + every, grid.value() if variant.cells else (grid.value() - low) / (high - low)))
        if not variant.cells and found[-1][1] >= 0.9:
            break
    return found


def improved(grid: Grid, weights: np.ndarray) -> None:
    """Let the project's PPO find a policy from the uniform one on, paid by what was learned of each cell (S,)."""
    policy, critic = grid.policy, ControlCritic(SIZE**2, [])
    with torch.no_grad():
        for p in policy.parameters():
            p.zero_()
        table = grid.space.initial["net.layers.0"]
        grid.space.initial["net.layers.0"] = grid.weights.data  # the grid acts by what PPO moves
    ppo = PPO(
        policy, reward=Visits(torch.tensor(weights, dtype=torch.float32)), parameters=[*policy.parameters(), *critic.parameters()],
        critic=critic, critic_lr=None, source=Rollouts(policy, grid, lambda _: TASKS, grid.number), update_epochs=4, kl=0.0,
        steps=PPO_STEPS, batch_size=320, lr=PPO_RATE, schedule="constant", max_grad_norm=10.0, seed=grid.number,
    )  # fmt: skip
    for _ in range(PPO_STEPS):
        ppo.step()
    grid.space.initial["net.layers.0"] = table.copy_(grid.weights.data)


@dataclass(frozen=True)
class Visits:
    """A reward model with one number (S,) a cell."""

    weights: torch.Tensor

    def rewards(self, batch: Batch) -> torch.Tensor:
        """What is earned where each action leads, (B, T)."""
        return batch.observations[:, 1:] @ self.weights


def fitted(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Weights of a logistic regression of answers y on differences x of visits, with a little ridge."""
    from scipy.optimize import minimize
    from scipy.special import expit

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        return np.logaddexp(0, x @ w).sum() - y @ (x @ w) + 0.025 * w @ w, x.T @ (expit(x @ w) - y) + 0.05 * w

    return minimize(loss, np.zeros(x.shape[1]), jac=True).x


def reached(found: list[tuple[int, float]]) -> float:
    """Answers to nine tenths of the way."""
    return next((float(n) for n, share in found if share >= 0.9), math.inf)


def main() -> None:
    """Run the variants that are named, beside what is known of the others; or all."""
    wanted = sys.argv[1:] or [*VARIANTS, *MODELS]
    before = json.loads(Path("bench/results/grid.json").read_text()) if sys.argv[1:] else {"curves": {}, "cells": {}}
    about = common.about("bench/grid.py", "two processes of one thread")
    with ProcessPoolExecutor(2) as pool:
        for name in wanted:
            for what, known in (("curves", VARIANTS), ("cells", CELLS)):
                if name in MODELS:
                    jobs = [(replace(MIRRORED, cells=what == "cells"), m, MODELS[name]) for m in MAPS]
                    found = list(pool.map(planned, jobs))
                elif name in known:
                    found = list(pool.map(curve, [(known[name], m) for m in MAPS]))
                else:
                    continue
                before[what][name] = {"about": about, "found": found}
            print(row(name, before["curves"][name]["found"]), flush=True)
    publish(before)


def publish(found: dict[str, dict[str, dict]]) -> None:
    """Write the tables and the picture of what has been found."""
    curves, cells = ({n: found[what][n] for n in [*VARIANTS, *MODELS] if n in found[what]} for what in ("curves", "cells"))
    lines = [
        "# Answers to nine tenths of the way to the best, GridWorld 5 x 5, 100 numbers, 24 maps", "",
        *dict.fromkeys(f"- {r['about']}" for r in curves.values()), "",
        "A simulated judge prefers by a link (logistic, unless another is named) of the difference of mean rewards. The way is that from the",
        "uniform policy to the best stationary one that gradient ascent on the exact value finds. Settings were chosen on other maps.",
        "One answer is one judge's about one pair, or about which of four is best.", "",
        "| variant | median | quartiles | not within the budget |", "|---|---|---|---|", *(row(n, r["found"]) for n, r in curves.items()), "",
        "# Different cells visited, which no reward for a single step expresses", "",
        "The judge prefers by how many different cells a trajectory visits (at most 21).", "",
        "| variant | answers | cells at the start | at the end, median | quartiles |", "|---|---|---|---|---|",
        *(cells_row(n, r["found"]) for n, r in cells.items()),
    ]  # fmt: skip
    common.publish("grid", {"curves": curves, "cells": cells}, lines, indent=None)
    draw({name: r["found"] for name, r in curves.items()})


def cells_row(name: str, found: list) -> str:
    """A line of the second table."""
    ends = sorted(c[-1][1] for c in found)
    low, middle, high = (ends[round(q * (len(ends) - 1))] for q in (0.25, 0.5, 0.75))
    answers, start = np.median([c[-1][0] for c in found]), np.median([c[0][1] for c in found])
    return f"| {name} | {answers:,.0f} | {start:.1f} | {middle:.1f} | {low:.1f} to {high:.1f} |"


def row(name: str, found: list) -> str:
    """A line of the table."""
    counts = sorted(reached(c) for c in found)
    low, middle, high = (counts[round(q * (len(counts) - 1))] for q in (0.25, 0.5, 0.75))
    budget = VARIANTS[name].budget if name in VARIANTS else 400
    said = [f"{n:,.0f}" if n < math.inf else f"> {budget:,}" for n in (middle, low, high)]
    return f"| {name} | {said[0]} | {said[1]} to {said[2]} | {sum(n == math.inf for n in counts)} of {len(counts)} |"


def draw(curves: dict[str, list]) -> None:
    """The median way over answers, as a picture; of rows that were kept without their way, only the table tells."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(11.6, 5), layout="constrained")
    at = np.geomspace(8, 20_000, 80)
    for name, found in curves.items():
        if max(map(len, found)) <= 2 or (" judges" in name and "as published" not in name):
            continue
        shares = [np.interp(at, [n for n, _ in c], [s for _, s in c]) for c in found]
        axes.plot(at, np.median(shares, 0), label=name, linewidth=1.5, linestyle="--" if "as published" in name else "-")
    axes.set(xscale="log", xlabel="answers", ylabel="share of the way to the best policy", ylim=(0, 1))
    axes.axhline(0.9, color="grey", linewidth=0.5)
    figure.legend(fontsize=7, loc="outside right upper")
    figure.savefig("bench/results/grid.svg")


if __name__ == "__main__":
    main()
