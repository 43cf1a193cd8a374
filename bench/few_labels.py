"""Reward nets from few labels: accuracy on 1,000 new pairs of 25-step fragments of Pendulum, with each option alone and without any.

`python bench/few_labels.py [seed]...` prints a table. An untrained policy acts; the true return answers. Settings of the reward are those
of the example pendulum-sac. What is labeled and unlabeled is cut from 16 episodes, the new pairs from 50 others.
"""

import sys
from collections.abc import Sequence

import numpy as np
import torch

from rather import control
from rather.control.rollout import fragments
from rather.core import Comparison, Trajectory

LENGTH, COUNTS, NEW = 25, (25, 100), 1_000
SETTINGS = {"members": 3, "epochs": 100, "batch_size": 25, "lr": 1e-3}
OPTIONS = {
    "none": {},
    "patience 5, a fifth held back": {},
    "crop 0.75": {"crop": 0.75},
    "pseudo_labels 4": {"pseudo_labels": 4},
    "crop 0.75, pseudo_labels 4": {"crop": 0.75, "pseudo_labels": 4},
    "dynamics 1": {"dynamics": 1.0},
}


def higher(a: Trajectory, b: Trajectory) -> str:
    """The side with the higher true return."""
    return "a" if np.sum(a.rewards) > np.sum(b.rewards) else "b"  # type: ignore[arg-type]


def pairs(episodes: Sequence[Trajectory], count: int, seed: int) -> list[Comparison]:
    """Distinct fragments as comparisons."""
    return control.compare(fragments(episodes, LENGTH, 2 * count, seed), higher)


def accuracy(name: str, count: int, seed: int) -> float:
    """The share of new pairs that the model orders right."""
    episodes, others = (control.rollouts("Pendulum-v1", n, seed=s) for n, s in ((16, seed), (50, 1_000 + seed)))
    asked, new = pairs(episodes, count, seed), pairs(others, NEW, seed)
    model = control.RewardModel("Pendulum-v1", seed=seed, **SETTINGS, **OPTIONS[name])  # pyright: ignore[reportArgumentType]
    if name.startswith("patience"):
        model.fit(asked[count // 5 :], asked[: count // 5], patience=5)
    else:
        model.fit(asked, unlabeled=episodes if OPTIONS[name].keys() & {"pseudo_labels", "dynamics"} else None)
    a, b = (model.score([side[0] for side in sides]) for sides in zip(*((c.a, c.b) for c in new), strict=True))
    return float(np.mean([(x > y) == (c.preference == 1) for x, y, c in zip(a, b, new, strict=True)]))


def main() -> None:
    """Print a row for each option."""
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in sys.argv[1:]] or [0, 1, 2]
    for count in COUNTS:
        for name in OPTIONS:
            found = [accuracy(name, count, seed) for seed in seeds]
            print(f"| {count} | {name} | {np.mean(found):.3f} | {', '.join(f'{x:.3f}' for x in found)} |", flush=True)


if __name__ == "__main__":
    main()
