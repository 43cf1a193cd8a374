"""Training a reward net on pairs of 100-step fragments of Pendulum: comparisons a CPU second, beside imitation 1.0.1.

`python bench/rewards.py` runs both sides in turn and writes bench/results/rewards.{json,md}; imitation lives in .venv-imitation (see
labels.py). One net of two layers of 32 on each side, 200 comparisons, batches of 32, 10 epochs.
"""

import os
import subprocess
import sys
import time

import numpy as np

import common

TURNS = 5
PEER = ".venv-imitation/bin/python"
COUNT, LENGTH, BATCH, EPOCHS = 200, 100, 32, 10


def data(seed: int) -> list[np.ndarray]:
    """Observations (2 COUNT, LENGTH + 1, 3), actions (2 COUNT, LENGTH, 1), rewards (2 COUNT, LENGTH): random, as timing does not mind."""
    rng = np.random.default_rng(seed)
    shapes = [(2 * COUNT, LENGTH + 1, 3), (2 * COUNT, LENGTH, 1), (2 * COUNT, LENGTH)]
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def ours(seed: int, members: int) -> float:
    """CPU seconds of all epochs."""
    import gymnasium
    import torch

    from rather.control.models import ControlReward
    from rather.core import Comparison, Task, Trajectory
    from rather.judges.known import total_reward
    from rather.learners.reward import Reward

    torch.set_num_threads(1)
    sides = [
        Trajectory(Task("bench", str(i)), "p", None, False, o, a, np.zeros(LENGTH, np.float32), r)
        for i, (o, a, r) in enumerate(zip(*data(seed), strict=True))
    ]
    prefer = [float(total_reward(a) > total_reward(b)) for a, b in zip(sides[::2], sides[1::2], strict=True)]
    comparisons = [Comparison((a,), (b,), p, judge="oracle") for a, b, p in zip(sides[::2], sides[1::2], prefer, strict=True)]
    model = ControlReward(3, gymnasium.spaces.Box(-2, 2, (1,)), members, (32, 32), seed)
    start = time.process_time()
    model.see(sides)
    steps = EPOCHS * COUNT // BATCH
    learner = Reward(
        model, comparisons, list(model.layers), center=0.0, temperatures=False, steps=steps, batch_size=BATCH, lr=1e-3,
        schedule="constant", micro_batch_tokens=10**6, seed=seed,
    )  # fmt: skip
    for _ in range(steps):
        learner.step()
    return time.process_time() - start


def theirs(seed: int) -> float:
    """The same of imitation's BasicRewardTrainer, which goes through a batch pair by pair."""
    import gymnasium
    import torch
    from imitation.algorithms import preference_comparisons as pc  # pyright: ignore[reportMissingImports]
    from imitation.data.types import TrajectoryWithRew  # pyright: ignore[reportMissingImports]
    from imitation.rewards.reward_nets import BasicRewardNet  # pyright: ignore[reportMissingImports]
    from imitation.util.networks import RunningNorm  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    sides = [TrajectoryWithRew(o, a, None, True, r) for o, a, r in zip(*data(seed), strict=True)]
    prefer = np.array([float(a.rews.sum() > b.rews.sum()) for a, b in zip(sides[::2], sides[1::2], strict=True)], np.float32)
    box = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    net = BasicRewardNet(box, gymnasium.spaces.Box(-2, 2, (1,), np.float32), normalize_input_layer=RunningNorm)
    trainer = pc.BasicRewardTrainer(pc.PreferenceModel(net), pc.CrossEntropyRewardLoss(), rng=rng, batch_size=BATCH, epochs=EPOCHS)
    dataset = pc.PreferenceDataset()
    dataset.push(list(zip(sides[::2], sides[1::2], strict=True)), prefer)
    start = time.process_time()
    trainer.train(dataset)
    return time.process_time() - start


def main() -> None:
    """Run both sides in turn."""
    sides = {"rather, 1 net": (sys.executable, "1"), "rather, ensemble of 5": (sys.executable, "5"), "imitation 1.0.1, 1 net": (PEER, "0")}
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(TURNS):
        for name, (python, members) in sides.items():
            done = subprocess.run(
                [python, __file__, "--one", str(turn), members], check=True, capture_output=True, text=True,
                env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            found[name].append(EPOCHS * COUNT / float(done.stdout.splitlines()[-1]))
            print(name, f"{found[name][-1]:.0f}", flush=True)
    about = common.about("bench/rewards.py", f"one thread, {TURNS} turns")
    lines = ["# Training a reward net", "", f"{about}.", "", *(__doc__ or "").split("\n\n")[1].splitlines()[-2:], ""]
    lines += ["| side | comparisons a CPU second, median | least to most | ratio to imitation, paired |", "|---|---|---|---|"]
    for name, values in found.items():
        ratios = np.divide(values, found["imitation 1.0.1, 1 net"])
        ratio = f"{np.median(ratios):.1f} x ({min(ratios):.1f} to {max(ratios):.1f})"
        lines.append(f"| {name} | {np.median(values):.0f} | {min(values):.0f} to {max(values):.0f} | {ratio} |")
    common.publish("rewards", {"about": about, "comparisons_per_cpu_s": found}, lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        seed, members = map(int, sys.argv[2:])
        for _ in range(2):  # the first time loads what is needed, and does not count
            seconds = ours(seed, members) if members else theirs(seed)
        print(seconds)
    else:
        main()
