"""One judge of three answers at random: `python bench/judges.py`. Reward nets on fragments of Pendulum, learned with a temperature for each
judge, from the majority, and from all answers alike; accuracy on held-out pairs, 10 seeds, two other judges of different worth. Writes
bench/results/judges.{json,md}.
"""

from statistics import mean, stdev

import numpy as np
import torch

import common
from rather.control.environments import environment, inputs
from rather.control.models import ControlPolicy, ControlReward
from rather.control.rollout import ControlSampler, fragments
from rather.core import Comparison, Task, Trajectory
from rather.judges.known import SimulatedJudge, total_reward
from rather.learners.reward import Reward

SEEDS = range(10)
QUESTIONS, HELD_OUT, LENGTH, EPOCHS = 60, 400, 25, 40
NAME = "Pendulum-v1"
JUDGES = ["careful", "usual", "random"]
WAYS = ["a temperature for each judge", "the majority", "all answers alike"]
OTHERS = [(5.0, 15.0), (15.0, 30.0), (30.0, 60.0)]
"""Temperatures of the two who do not answer at random, in units of reward; fragments differ by some 60."""


def pieces(seed: int) -> list[Trajectory]:
    """Fragments of what a random policy does, two for every question."""
    env = environment(NAME)
    policy = ControlPolicy(inputs(env), env.action_space, seed=seed)
    trajectories = ControlSampler(policy, lambda: environment(NAME)).sample([Task(NAME, str(1000 * seed + i)) for i in range(40)], seed)
    return fragments(trajectories, LENGTH, 2 * (QUESTIONS + HELD_OUT), seed)


def learn(seed: int, answered: list[Comparison], judges: list[str]) -> tuple[ControlReward, dict[str, float]]:
    """A reward net from the answers, and what it thinks of the judges."""
    env = environment(NAME)
    model = ControlReward(inputs(env), env.action_space, 1, (64, 64), seed)
    model.see([t for c in answered for t in (*c.a, *c.b)])
    learner = Reward(
        model, answered, list(model.layers), center=0.0, temperatures=bool(judges), steps=EPOCHS * len(answered) // 15, batch_size=15,
        lr=3e-4, schedule="constant", seed=seed, micro_batch_tokens=10**6,
    )  # fmt: skip
    for _ in range(learner.steps):
        learner.step()
    return model, learner.temperatures()


def measure(seed: int, others: tuple[float, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracy on held-out pairs of what was learned in each way, and the temperatures learned."""
    sides = pieces(seed)
    pairs = [Comparison((a,), (b,), key=str(i)) for i, (a, b) in enumerate(zip(sides[::2], sides[1::2], strict=True))]
    asked, held = pairs[:QUESTIONS], pairs[QUESTIONS:]
    temperatures = dict(zip(JUDGES, (*others, 1e9), strict=True))
    votes = {name: SimulatedJudge(name, total_reward, t, seed=seed).judge(asked) for name, t in temperatures.items()}
    each = [Comparison(c.a, c.b, p, c.key, name) for name, answers in votes.items() for c, p in zip(asked, answers, strict=True)]
    majority = [Comparison(c.a, c.b, float(sum(v) > 1.5), c.key) for c, *v in zip(asked, *votes.values(), strict=True)]  # type: ignore[arg-type]
    truth = np.array([total_reward(c.a[0]) > total_reward(c.b[0]) for c in held])
    found, learned = {}, {}
    for way, answered, judges in zip(WAYS, (each, majority * 3, each), (JUDGES, [], []), strict=True):
        model, temperatures = learn(seed, answered, judges)
        learned |= temperatures
        with torch.no_grad():
            scores = model.scores(model.collate([t for c in held for t in (*c.a, *c.b)]))[0]
        found[way] = float(((scores[0::2] > scores[1::2]).numpy() == truth).mean())
    return found, learned


def main() -> None:
    """All panels, all seeds."""
    torch.set_num_threads(1)
    about = common.about("bench/judges.py", f"{QUESTIONS} questions, {HELD_OUT} held-out pairs, {len(SEEDS)} seeds, simulated judges")
    lines = ["# One judge of three answers at random", "", f"{about}. The other two go by P(a) = sigmoid(difference / temperature).", ""]
    lines += [
        "| temperatures of the others | learned from | accuracy on held-out pairs, mean (deviation over seeds) | against the majority, paired |",
        "|---|---|---|---|",
    ]
    data: dict[str, object] = {"about": about}
    said = []
    for others in OTHERS:
        rows = []
        for seed in SEEDS:
            rows.append(measure(seed, others))
            print(others, seed, *rows[-1], flush=True)
        name = f"{others[0]:g} and {others[1]:g}"
        data[name] = rows
        for way in WAYS:
            values = [accuracies[way] for accuracies, _ in rows]
            gain = [100 * (accuracies[way] - accuracies["the majority"]) for accuracies, _ in rows]
            wins = f"{mean(gain):+.1f} points (deviation {stdev(gain):.1f}); better on {sum(g > 0 for g in gain)}, worse on {sum(g < 0 for g in gain)}"
            shown = "" if way == "the majority" else wins
            lines.append(f"| {name} | {way} | {100 * mean(values):.1f} % ({100 * stdev(values):.1f}) | {shown} |")
        middle = {judge: float(np.exp(np.mean([np.log(t[judge]) for _, t in rows]))) for judge in JUDGES}
        said.append(f"{name}: " + ", ".join(f"{judge} {t:.2f}" for judge, t in middle.items()))
    lines += ["", "Temperatures learned (the mean of their inverses is 1; geometric mean over seeds): " + "; ".join(said) + "."]
    common.publish("judges", data, lines)


if __name__ == "__main__":
    main()
