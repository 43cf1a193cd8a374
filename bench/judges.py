"""One judge of three answers at random: `python bench/judges.py`. Reward nets on fragments of Pendulum, learnt with a temperature for each
judge, from the majority, and from all answers alike; accuracy on held-out pairs, 10 seeds. Writes bench/results/judges.{json,md}.
"""

from statistics import mean, stdev

import numpy as np
import torch

import common
from rather.control.models import ControlPolicy, ControlReward
from rather.control.rollout import ControlSampler, environment, fragments, inputs
from rather.core import Comparison, Task, Trajectory
from rather.judges.known import SimulatedJudge, total_reward
from rather.learners.common import Optimisation
from rather.learners.reward import Reward

SEEDS = range(10)
QUESTIONS, HELD_OUT, LENGTH, EPOCHS = 60, 400, 25, 40
NAME = "Pendulum-v1"
PANEL = {"careful": 5.0, "usual": 15.0, "random": 1e9}
"""Temperatures of the judges, in units of reward; fragments differ by some 60."""


def pieces(seed: int) -> list[Trajectory]:
    """Fragments of what a random policy does, two for every question."""
    env = environment(NAME)
    policy = ControlPolicy(inputs(env), env.action_space, seed=seed)
    attempts = ControlSampler(policy, lambda: environment(NAME)).sample([Task(NAME, str(1000 * seed + i)) for i in range(40)], seed)
    return fragments(attempts, LENGTH, 2 * (QUESTIONS + HELD_OUT), seed)


def learn(seed: int, answered: list[Comparison], judges: list[str]) -> tuple[ControlReward, dict[str, float]]:
    """A reward net from the answers, and what it thinks of the judges."""
    env = environment(NAME)
    model = ControlReward(inputs(env), env.action_space, 1, (64, 64), seed)
    model.see([t for c in answered for t in (*c.a, *c.b)])
    how = Optimisation(EPOCHS * len(answered) // 15, 15, 3e-4, seed=seed, micro_tokens=10**6)
    learner = Reward(model, answered, list(model.layers), how, 0.0, judges)
    for _ in range(how.steps):
        learner.step()
    return model, learner.temperatures()


def main() -> None:
    """All seeds."""
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {"a temperature for each judge": [], "majority": [], "all answers alike": []}
    temperatures: list[dict[str, float]] = []
    for seed in SEEDS:
        sides = pieces(seed)
        pairs = [Comparison((a,), (b,), key=str(i)) for i, (a, b) in enumerate(zip(sides[::2], sides[1::2], strict=True))]
        asked, held = pairs[:QUESTIONS], pairs[QUESTIONS:]
        panel = [SimulatedJudge(name, total_reward, temperature, seed=seed) for name, temperature in PANEL.items()]
        votes = {j.name: j.judge(asked) for j in panel}
        each = [Comparison(c.a, c.b, p, c.key, name) for name, answers in votes.items() for c, p in zip(asked, answers, strict=True)]
        majority = [Comparison(c.a, c.b, float(sum(v) > 1.5), c.key) for c, *v in zip(asked, *votes.values(), strict=True)]  # type: ignore[arg-type]
        for way, answered, judges in zip(found, (each, majority * 3, each), (list(PANEL), [], []), strict=True):
            model, learnt = learn(seed, answered, judges)
            temperatures += [learnt] if learnt else []
            with torch.no_grad():
                scores = model.scores(model.collate([t for c in held for t in (*c.a, *c.b)]))[0]
            right = (scores[0::2] > scores[1::2]).numpy() == np.array([total_reward(c.a[0]) > total_reward(c.b[0]) for c in held])
            found[way].append(float(right.mean()))
        print(seed, {k: f"{v[-1]:.3f}" for k, v in found.items()}, temperatures[-1], flush=True)
    about = common.about("bench/judges.py", f"{QUESTIONS} questions, {HELD_OUT} held-out pairs, {len(SEEDS)} seeds, simulated judges")
    lines = ["# One judge of three answers at random", "", f"{about}.", ""]
    lines += [
        "| learnt from | accuracy on held-out pairs, mean (deviation over seeds) | better than by majority, paired |",
        "|---|---|---|",
    ]
    for way, values in found.items():
        gain = [100 * (a - b) for a, b in zip(values, found["majority"], strict=True)]
        wins = f"{sum(g > 0 for g in gain)} of {len(gain)} seeds, {mean(gain):+.1f} points (deviation {stdev(gain):.1f})"
        lines.append(f"| {way} | {100 * mean(values):.1f} % ({100 * stdev(values):.1f}) | {'' if way == 'majority' else wins} |")
    middle = {name: float(np.exp(np.mean([np.log(t[name]) for t in temperatures]))) for name in PANEL}
    lines += ["", "Temperatures learnt (geometric mean over seeds): " + ", ".join(f"{k} {v:.2f}" for k, v in middle.items()) + "."]
    common.publish("judges", {"about": about, "accuracy": found, "temperatures": temperatures}, lines)


if __name__ == "__main__":
    main()
