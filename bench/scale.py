"""Zeroth-order optimization spread over 1, 2 and 4 Ray workers on this machine: seconds and bytes an update.

`python bench/scale.py` writes bench/results/scale.{json,md}. What is timed is `Pool.sample`, an update's roll-outs, on GridWorld and CartPole
with 64 directions; the answers are a simulated judge's. With two cores, more than two workers cannot be faster.
"""

import time
from statistics import median

import cloudpickle

import common
from rather.config import toml
from rather.core import Comparison
from rather.judges.known import total_reward
from rather.pipeline.nudge import Replica, acting, made
from rather.pipeline.run import Run
from rather.scale.pool import Pool

WORKERS, DIRECTIONS, UPDATES = (0, 1, 2, 4), 64, 6
TASKS = {
    "rather/GridWorld-v0": ["control.hidden=[]", "control.normalize=false"],
    "CartPole-v1": ["control.hidden=[32, 32]", "control.normalize=false", "control.allow_uneven=true", "control.horizon=200"],
}


def measure(env: str, workers: int, folder: str) -> dict[str, float]:
    """Median seconds of an update's roll-outs, and the bytes that travel for it."""
    from rich.console import Console

    from rather.zeroth.learner import Planner

    said = [f"control.env={env}", *TASKS[env], "train.learner=zeroth", f"zeroth.directions={DIRECTIONS}", "zeroth.side=4", "zeroth.mu=0.5"]
    run = Run(toml.load(None, [*said, f"run.folder={folder}", "run.threads=1"]), Console(quiet=True))
    who = acting(run.domain, run.policy(0), 0)
    learner = made(run.config, who)
    planner = Planner(run.domain.tasks[0], learner.asking, 0)
    pool = Pool(Replica, (run.config.model_dump(),), workers) if workers else None
    seconds, out, back = [], 0, 0
    for update in range(UPDATES):
        asks = planner.plan(update)
        wanted = [(t, p) for a in asks for p in a.sides for t in a.tasks]
        asked = [t for t, _ in wanted], planner.chances(update), [p for _, p in wanted]
        start = time.perf_counter()
        sampler = who.sampler(who.policy, lambda n: None)
        found = pool.sample(learner.log, f"p@{update}", *asked) if pool else sampler.sample(*asked)
        seconds.append(time.perf_counter() - start)
        out, back = len(cloudpickle.dumps((learner.log[-1:], asked))), len(cloudpickle.dumps(found))
        answered = {}
        for i, a in enumerate(asks):
            sides = tuple(found[8 * i : 8 * i + 4]), tuple(found[8 * i + 4 : 8 * i + 8])
            better = sum(map(total_reward, sides[0])) > sum(map(total_reward, sides[1]))
            answered[a.key] = [Comparison(*sides, float(better), a.key)]
        learner.take(answered)
        learner.step()
    if pool:
        pool.close()
    (numbers,) = learner.space.parameters
    return {"seconds": median(seconds[1:]), "out": out, "back": back, "norm": float(numbers.detach().norm())}


def main() -> None:
    """Measure all."""
    import tempfile

    lines, data = [], {}
    for env in TASKS:
        for workers in WORKERS:
            with tempfile.TemporaryDirectory() as folder:
                row = data[f"{env}/{workers}"] = measure(env, workers, folder)
            assert row["norm"] == data[f"{env}/0"]["norm"], "the same numbers with any number of workers"
            said = f"{row['out'] / DIRECTIONS:,.0f} | {row['back'] / DIRECTIONS:,.0f}"
            speed = data[f"{env}/0"]["seconds"] / row["seconds"]
            lines.append(f"| {env} | {workers or 'none, this process'} | {row['seconds']:.2f} | {speed:.2f} x | {said} |")
            print(lines[-1], flush=True)
    about = common.about("bench/scale.py", "two cores, Ray 2.60.0")
    head = [
        "# Directions spread over workers", "", f"{about}.", "",
        f"{DIRECTIONS} directions an update, 4 trajectories a side, mirrored; medians of {UPDATES - 1} updates after the first. Bytes are those that are sent for a",
        "direction (seeds, tasks, what was answered) and that come back (what was done).", "",
        "| task | workers | seconds an update | against none | bytes out a direction | bytes back |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    common.publish("scale", {"about": about, "rows": data}, [*head, *lines])


if __name__ == "__main__":
    main()
