"""Rewards from few labels: accuracy on 1,000 new pairs of fragments, with each option of `control.RewardModel` alone and without any.

`python bench/few_labels.py [ENVIRONMENT] [seed]...` prints a table. The true return answers. In Pendulum (25 steps) an untrained policy
acts, in Reacher (10 steps) variants of one, as `query.exploration = 1` has it. What is labeled and unlabeled is cut from some episodes,
the new pairs from others.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rather import control
from rather.control.exploration import explored
from rather.control.rollout import fragments
from rather.core import Comparison, Task, Trajectory

NEW = 1_000
NETS: dict[str, Any] = {"members": 3, "epochs": 100, "batch_size": 25, "lr": 1e-3}
"""The settings of the example pendulum-sac."""
OPTIONS: dict[str, dict[str, Any]] = {
    "none": NETS,
    "patience 5, a fifth held back": NETS,
    "crop 0.75": NETS | {"crop": 0.75},
    "pseudo_labels 4": NETS | {"pseudo_labels": 4},
    "crop 0.75, pseudo_labels 4": NETS | {"crop": 0.75, "pseudo_labels": 4},
    "dynamics 1": NETS | {"dynamics": 1.0},
    "a head": {"kind": "head"},
}


@dataclass(frozen=True)
class Measured:
    """Steps of a fragment, numbers of labels, episodes that they and that new pairs are from, whether variants act, and `OPTIONS`."""

    length: int
    counts: tuple[int, ...]
    episodes: int
    others: int
    varied: bool
    options: tuple[str, ...]


TASKS = {
    "Pendulum-v1": Measured(25, (25, 100), 16, 50, False, (*OPTIONS,)),
    "Reacher-v5": Measured(10, (50, 100, 200, 700), 300, 400, True, ("none", "a head")),
}


def acted(env: str, count: int, seed: int) -> list[Trajectory]:
    """So many episodes."""
    if not TASKS[env].varied:
        return control.rollouts(env, count, seed=seed)
    agent = control.PPO(env, envs=1, seed=seed)
    return explored(agent.policy, [Task(env, str(10_000 * seed + i)) for i in range(count)], agent.make, seed)


def higher(a: Trajectory, b: Trajectory) -> str:
    """The side with the higher true return."""
    return "a" if np.sum(a.rewards) > np.sum(b.rewards) else "b"  # type: ignore[arg-type]


def pairs(episodes: Sequence[Trajectory], length: int, count: int, seed: int) -> list[Comparison]:
    """Distinct fragments as comparisons."""
    return control.compare(fragments(episodes, length, 2 * count, seed), higher)


def accuracies(env: str, name: str, seed: int) -> list[float]:
    """The share of new pairs that the model orders right, for each number of labels."""
    task, found = TASKS[env], list[float]()
    episodes, others = acted(env, task.episodes, seed), acted(env, task.others, 1_000 + seed)
    new = pairs(others, task.length, NEW, seed)
    for count in task.counts:
        asked = pairs(episodes, task.length, count, seed)
        model = control.RewardModel(env, seed=seed, **OPTIONS[name])
        if name.startswith("patience"):
            model.fit(asked[count // 5 :], asked[: count // 5], patience=5)
        else:
            model.fit(asked, unlabeled=episodes if OPTIONS[name].keys() & {"pseudo_labels", "dynamics"} else None)
        a, b = (model.score([side[0] for side in sides]) for sides in zip(*((c.a, c.b) for c in new), strict=True))
        found.append(float(np.mean([(x > y) == (c.preference == 1) for x, y, c in zip(a, b, new, strict=True)])))
    return found


def main() -> None:
    """Print a row for each option and number of labels."""
    torch.set_num_threads(1)
    env, *seeds = sys.argv[1:] or ["Pendulum-v1"]
    for name in TASKS[env].options:
        found = np.array([accuracies(env, name, int(seed)) for seed in seeds or (0, 1, 2)])
        for count, each in zip(TASKS[env].counts, found.T, strict=True):
            print(f"| {count} | {name} | {np.mean(each):.3f} | {', '.join(f'{x:.3f}' for x in each)} |", flush=True)


if __name__ == "__main__":
    main()
