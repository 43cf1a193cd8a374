"""How few comparisons are enough: `rather loop` on control tasks, beside the same PPO paid by the true reward and beside imitation 1.0.1.

`python bench/labels.py [task]...` writes bench/results/labels-TASK.{json,md}; imitation lives in .venv-imitation (Python 3.11 or older:
`pip install imitation==1.0.1`) and is left out where that is missing. Seeds 5 to 9; settings were chosen on seeds 0 to 4.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import common

SEEDS = range(5, 10)
PEER = Path(".venv-imitation/bin/python")
TASKS = {
    "pendulum": {"config": "src/rather/data/examples/pendulum.toml", "comparisons": [25], "peer": "Pendulum-v1"},
    "cartpole": {"config": "src/rather/data/examples/cartpole.toml", "comparisons": [100], "peer": ""},
    "reacher": {"config": "src/rather/data/examples/reacher.toml", "comparisons": [100, 200, 700], "peer": ""},
    "pendulum-sac": {"config": "src/rather/data/examples/pendulum-sac.toml", "comparisons": [25, 100], "peer": ""},
    "halfcheetah": {"config": "src/rather/data/examples/halfcheetah.toml", "comparisons": [200, 700], "peer": ""},
    "hopper": {
        "config": "src/rather/data/examples/halfcheetah.toml", "comparisons": [200, 700], "peer": "",
        "changes": ["control.env=Hopper-v5", "control.kwargs={terminate_when_unhealthy=false}"],
    },
}  # fmt: skip
"""Hopper goes on when it has fallen: an episode's end would say what the reward does not."""
TRUE = ["train.reward=environment", "loop.rounds=1"]
HEADLINES, SHARES = ("reacher",), ("halfcheetah", "hopper")
"""Tasks whose median returns are headlines, or those of what the same steps on the true reward come to."""
PEERS = {"imitation": (10, 1), "imitation x 3": (30, 1), "imitation of 5": (10, 5), "imitation of 5 x 3": (30, 5)}
"""Epochs of a fit and members of the reward net: imitation's documentation has the first."""
NAMES = {
    "true reward": "the same learner on the true reward", "rather": "rather", "imitation": "imitation 1.0.1",
    "imitation x 3": "the same, 3 x the epochs", "imitation of 5": "imitation 1.0.1, an ensemble of 5",
    "imitation of 5 x 3": "the same, 3 x the epochs",
}  # fmt: skip


def ours(config: str, seed: int, *changes: str) -> dict[str, Any]:
    """Mean return of the trained policy on the run's held-out seeds, and what it took."""
    import tomllib

    settings = tomllib.loads(Path(config).read_text())
    if changes[0] == TRUE[0]:  # as many steps in one go as the rounds have together
        changes = (*changes, f"train.steps={settings['train']['steps'] * settings['loop']['rounds']}")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "rather", "loop", config, f"run.folder={folder}", f"run.seed={seed}", "run.threads=1", *changes]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"})
        seconds = time.perf_counter() - start
        (metrics,) = Path(folder).glob("*/metrics.jsonl")
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = sum(r["tokens"] for r in rows if r["phase"].startswith(("train-ppo", "train-sb3", "train-unsupervised")))
    last = [r for r in rows if r["phase"].startswith("eval")][-1]
    return {"return": last["return_policy"], "start": last["return_base"], "steps": steps, "seconds": seconds}


def theirs(env: str, seed: int, comparisons: int, epochs: int, members: int) -> dict[str, Any]:
    """The same of imitation's preference comparisons, else at the settings of its documentation; runs in its own environment."""
    import random
    import warnings

    warnings.filterwarnings("ignore")
    import torch
    from imitation.algorithms import preference_comparisons as pc  # pyright: ignore[reportMissingImports]
    from imitation.policies.base import FeedForward32Policy, NormalizeFeaturesExtractor  # pyright: ignore[reportMissingImports]
    from imitation.rewards.reward_nets import BasicRewardNet, RewardEnsemble  # pyright: ignore[reportMissingImports]
    from imitation.util.networks import RunningNorm  # pyright: ignore[reportMissingImports]
    from imitation.util.util import make_vec_env  # pyright: ignore[reportMissingImports]
    from stable_baselines3 import PPO  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.evaluation import evaluate_policy  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    random.seed(seed)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    venv = make_vec_env(env, rng=rng, n_envs=8)
    nets = [BasicRewardNet(venv.observation_space, venv.action_space, normalize_input_layer=RunningNorm) for _ in range(members)]
    net = nets[0] if members == 1 else RewardEnsemble(venv.observation_space, venv.action_space, nets)
    agent = PPO(
        FeedForward32Policy, venv, seed=seed, n_steps=2048 // 8, batch_size=64, ent_coef=0.01, learning_rate=2e-3, clip_range=0.1,
        gae_lambda=0.95, gamma=0.97, n_epochs=10,
        policy_kwargs={"features_extractor_class": NormalizeFeaturesExtractor, "features_extractor_kwargs": {"normalize_class": RunningNorm}},
    )  # fmt: skip
    make = pc.BasicRewardTrainer if members == 1 else pc.EnsembleTrainer
    trainer = make(preference_model=pc.PreferenceModel(net), loss=pc.CrossEntropyRewardLoss(), epochs=epochs, rng=rng)
    learner = pc.PreferenceComparisons(
        pc.AgentTrainer(algorithm=agent, reward_fn=net, venv=venv, exploration_frac=0.05, rng=rng), net, num_iterations=5,
        fragmenter=pc.RandomFragmenter(warning_threshold=0, rng=rng), preference_gatherer=pc.SyntheticGatherer(rng=rng),
        reward_trainer=trainer, fragment_length=100, transition_oversampling=1, initial_comparison_frac=0.1, initial_epoch_multiplier=4,
        query_schedule="hyperbolic",
    )  # fmt: skip
    start = time.perf_counter()
    learner.train(total_timesteps=50_000, total_comparisons=comparisons)
    seconds = time.perf_counter() - start
    mean, _ = evaluate_policy(agent.policy, make_vec_env(env, rng=np.random.default_rng(seed + 1000), n_envs=1), 50, deterministic=True)
    return {"return": float(mean), "steps": 50_000.0, "seconds": seconds}  # pyright: ignore[reportArgumentType]


def row(side: str, found: list[dict[str, Any]]) -> str:
    """A line of the table."""
    returns = [f["return"] for f in found]
    name, _, comparisons = side.rpartition(" ") if side not in NAMES else (side, "", "")
    each = ", ".join(f"{r:.1f}" for r in returns)
    before = f"{np.mean([f['start'] for f in found]):.1f}" if "start" in found[0] else ""
    steps, seconds = np.median([f["steps"] for f in found]), np.median([f["seconds"] for f in found])
    return f"| {NAMES[name]} | {comparisons} | {before} | {np.mean(returns):.1f} | {np.median(returns):.1f} | {each} | {steps:,.0f} | {seconds:.0f} |"


def publish(name: str, about: str, settings: str, found: dict[str, list[dict[str, Any]]]) -> None:
    """Write what has been found of a task with these settings."""
    changed = "".join(f" `{change}`" for change in TASKS[name].get("changes", []))
    lines = [
        f"# Label efficiency: {name}", "", f"{about}; runs of commits {', '.join(sorted({str(run['commit']) for runs in found.values() for run in runs}))}.", "",
        f"Comparisons are answered by a simulated oracle that knows the true reward. Settings: `{TASKS[name]['config']}`{changed}, chosen on seeds 0 to 4; these",
        "are seeds 5 to 9. True return of 50 or more held-out episodes with deterministic actions; before: the mean before training.", "",
        "| side | comparisons | before | mean | median | each seed | environment steps | seconds a run |", "|---" * 8 + "|",
        *(row(side, runs) for side, runs in found.items() if runs),
    ]  # fmt: skip
    for side, runs in found.items():
        if side.startswith("rather") and len(runs) == len(SEEDS) and name in HEADLINES:
            returns, what = [run["return"] for run in runs], f"{name}_{side.split()[1]}"
            spread = [round(min(returns), 1), round(max(returns), 1)]
            common.headline(what, round(float(np.median(returns)), 1), spread, "return", f"bench/labels.py {name}", "one thread a run")
    if name in SHARES and all(len(found.get(side, [])) == len(SEEDS) for side in ("true reward", "rather 700")):
        true = float(np.median([run["return"] for run in found["true reward"]]))
        shares = sorted(run["return"] / true for run in found["rather 700"])
        spread = [round(shares[0], 2), round(shares[-1], 2)]
        share = round(float(np.median(shares)), 2)
        common.headline(f"{name}_700_share", share, spread, "of the true reward's return", f"bench/labels.py {name}", "one thread a run")
    common.publish(f"labels-{name}", {"about": about, "settings": settings, "found": found}, lines)


def runs(name: str) -> Iterator[tuple[str, int, Callable[[], dict[str, Any]]]]:
    """What a task wants: the side, the seed, and the run."""
    task = TASKS[name]
    changes = task.get("changes", [])
    for seed in SEEDS:
        yield "true reward", seed, partial(ours, task["config"], seed, *TRUE, *changes)
        for count in task["comparisons"]:
            yield f"rather {count}", seed, partial(ours, task["config"], seed, f"query.comparisons={count}", *changes)
            for peer, how in PEERS.items():
                if task["peer"] and PEER.exists():
                    yield f"{peer} {count}", seed, partial(apart, task["peer"], seed, count, *how)


def apart(env: str, *numbers: int) -> dict[str, Any]:
    """`theirs`, in its own environment."""
    command = [PEER, __file__, "--peer", env, *map(str, numbers)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    """Run the tasks that are named, or all; runs that were finished with these settings are kept and not run again."""
    for name in sys.argv[1:] or TASKS:
        path, task = Path(f"bench/results/labels-{name}.json"), TASKS[name]
        settings = hashlib.sha256(Path(task["config"]).read_bytes() + "".join(task.get("changes", [])).encode()).hexdigest()[:8]
        data = json.loads(path.read_text()) if path.exists() else {}
        before: dict[str, list[dict[str, Any]]] = data.get("found", {})
        found = (
            before if data.get("settings") == settings else {side: kept for side, kept in before.items() if side.startswith("imitation")}
        )
        for side, seed, run in runs(name):
            done = found.setdefault(side, [])
            if len(done) == SEEDS.index(seed):
                done.append(run() | {"commit": common.commit()})
                print(name, side, seed, done[-1], file=sys.stderr, flush=True)
                publish(name, common.about(f"bench/labels.py {name}", "one thread a run"), settings, found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        print(json.dumps(theirs(sys.argv[2], *map(int, sys.argv[3:7]))))
    else:
        main()
