"""Control straight from comparisons: linear policies moved by what a simulated judge of whole episodes says, and by the gradient.

`python bench/straight.py [task]...` writes bench/results/straight-TASK.{json,md}; HalfCheetah-v5 and Hopper-v5 need
`pip install "gymnasium[mujoco]"`. Five seeds, 5 to 9; settings were chosen on seed 0. These are the environments of the ZSPO paper.
"""

import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import common

SEEDS = range(5, 10)
SHARED = [
    "train.learner=zeroth", "control.hidden=[]", "control.normalize=false", "zeroth.check_every=0", "query.episodes=64", "eval.prompts=20",
    'judge.panel=[{ name = "sim", utility = "total_reward", temperature = 1.0 }]', "train.checkpoint_every=1000", "run.threads=1",
]  # fmt: skip
BUDGETS = {"CartPole-v1": (100, 200), "HalfCheetah-v5": (200, 400), "Hopper-v5": (200, 400)}
STEP = {
    "CartPole-v1": ["zeroth.side=4", "zeroth.mu=1.0", "zeroth.lr=0.5"],
    "HalfCheetah-v5": ["zeroth.side=1", "zeroth.mu=0.03", "zeroth.lr=0.03", "sample.temperature=0"],
    "Hopper-v5": ["zeroth.side=1", "zeroth.mu=0.1", "zeroth.lr=0.1", "sample.temperature=0"],
}
GRADIENT = {
    "CartPole-v1": ["zeroth.side=4", "zeroth.lr=0.6"],
    "HalfCheetah-v5": ["zeroth.side=1", "zeroth.lr=0.005"],
    "Hopper-v5": ["zeroth.side=1", "zeroth.lr=0.02"],
}
SIDES = {
    "zeroth order, mirrored pairs": (STEP, []),
    "zeroth order, one side perturbed": (STEP, ["zeroth.mirrored=false"]),
    "preference REINFORCE (first order)": (GRADIENT, ["zeroth.estimator=reinforce", "zeroth.optimizer=Adam"]),
}


def one(job: tuple[str, str, int, int]) -> dict[str, float]:
    """Mean return of deterministic actions on held-out seeds after so many answers, and before."""
    env, side, answers, seed = job
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "run.toml").write_text(f'[control]\nenv = "{env}"\n')
        how, more = SIDES[side]
        said = [*SHARED, *how[env], *more, f"zeroth.answers={answers}", f"run.seed={seed}", f"run.folder={folder}", f"run.name=r{answers}"]
        subprocess.run([sys.executable, "-m", "rather", "loop", f"{folder}/run.toml", *said], check=True, capture_output=True)
        rows = [json.loads(line) for line in (Path(folder) / f"r{answers}" / "metrics.jsonl").read_text().splitlines()]
    last = [r for r in rows if r["phase"].startswith("eval")][-1]
    return {"return": last["return_policy"], "start": last["return_base"]}


def main() -> None:
    """Run the tasks that are named, or all."""
    for env in sys.argv[1:] or BUDGETS:
        data = {}
        with ThreadPoolExecutor(2) as pool:
            for side in SIDES:
                for answers in BUDGETS[env]:
                    data[f"{side}/{answers}"] = list(pool.map(one, [(env, side, answers, seed) for seed in SEEDS]))
        publish(env, common.about(f"bench/straight.py {env}", "one thread a run, two at a time"), data)


def publish(env: str, about: str, data: dict[str, list[dict[str, float]]]) -> None:
    """Write what has been found of a task."""
    lines = []
    for name, found in data.items():
        returns = [f["return"] for f in found]
        each = ", ".join(f"{r:.0f}" for r in returns)
        start = np.mean([f["start"] for f in found])
        lines.append(f"| {name.replace('/', ' | ')} | {np.median(returns):.0f} | {each} | {start:.0f} |")
    head = [
        f"# {env} straight from comparisons", "", f"{about}.", "",
        "Linear policy of the plain observations; a simulated judge sees the total reward of each side's episodes. Mean return of 20 held-out episodes",
        "with deterministic actions.", "",
        "| side | answers | median return | each seed | before |", "|---|---|---|---|---|",
    ]  # fmt: skip
    common.publish(f"straight-{env.lower()}", {"about": about, "found": data}, [*head, *lines])


if __name__ == "__main__":
    main()
