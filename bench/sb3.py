"""PPO for control beside Stable-Baselines3 2.9.2, at its zoo's settings: return at equal steps, and environment steps a CPU second.

`python bench/sb3.py [TASK]...` runs both sides, seed by seed in turn, and writes bench/results/control.{json,md}. HalfCheetah needs mujoco.
"""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import common

SEEDS = range(5)
CARTPOLE = {
    "env": "CartPole-v1",
    "steps": 100_000,
    "segment": 32,
    "batch": 256,
    "epochs": 20,
    "gamma": 0.98,
    "lam": 0.8,
    "lr": 1e-3,
    "fade": True,
}
TASKS = {
    "CartPole-v1, 8 environments": CARTPOLE | {"envs": 8},
    "CartPole-v1, 16 environments": CARTPOLE | {"envs": 16},
    "Pendulum-v1, 4 environments": {
        "env": "Pendulum-v1", "steps": 100_000, "envs": 4, "segment": 1024, "batch": 64, "epochs": 10, "gamma": 0.9, "lam": 0.95, "lr": 1e-3,
        "sde": True,
    },
    "HalfCheetah-v5, 4 environments": {
        "env": "HalfCheetah-v5", "steps": 100_000, "envs": 4, "segment": 512, "batch": 64, "epochs": 10, "gamma": 0.99, "lam": 0.95, "lr": 3e-4,
        "normalize": True,
    },
}  # fmt: skip
HEADLINES = dict(zip(TASKS, ("cartpole_8_envs_vs_sb3", "cartpole_16_envs_vs_sb3", "pendulum_vs_sb3", "halfcheetah_vs_sb3"), strict=True))


def ours(name: str, seed: int) -> tuple[float, list[float]]:
    """CPU seconds of training, and returns of 20 episodes with deterministic actions."""
    import torch

    from rather.control.collect import RolloutSegments
    from rather.control.environments import environment, inputs
    from rather.control.gradients import ByHand
    from rather.control.models import ControlCritic, ControlPolicy
    from rather.control.rollout import ControlSampler
    from rather.core import Task
    from rather.judges.known import total_reward
    from rather.learners.ppo import PPO

    torch.set_num_threads(1)
    t = TASKS[name]
    name, fade = t["env"], t.get("fade", False)
    env = environment(name)
    policy = ControlPolicy(inputs(env), env.action_space, normalize=t.get("normalize", False), seed=seed)
    critic = ControlCritic(inputs(env), normalizer=policy.normalizer, seed=seed)
    rows = t["envs"] * t["segment"]
    rounds = -(-t["steps"] // rows)
    source = RolloutSegments(policy, lambda: environment(name), t["envs"], t["segment"], seed)
    by_hand = ByHand(policy, critic)
    learner = PPO(
        policy, parameters=[by_hand.parameter], critic=critic, source=source, by_hand=by_hand, critic_lr=None, rollout_batch_size=rows,
        update_epochs=t["epochs"], gamma=t["gamma"], lam=t["lam"], value_clip=0.0, value_weight=1.0, kl=0.0, steps=rounds,
        batch_size=t["batch"], lr=t["lr"], schedule="linear" if fade else "constant", max_grad_norm=0.5, eps=1e-5,
        micro_batch_tokens=rows, seed=seed,
    )  # fmt: skip
    start = time.process_time()
    for _ in range(rounds):
        learner.step()
    seconds = time.process_time() - start
    tasks = [Task(name, str(10_000 + 100 * seed + i)) for i in range(20)]
    found = ControlSampler(policy, lambda: environment(name), deterministic=True).sample(tasks, 0)
    return seconds / (rounds * rows), [total_reward(x) for x in found]


def theirs(name: str, seed: int) -> tuple[float, list[float]]:
    """The same of Stable-Baselines3."""
    import warnings

    warnings.filterwarnings("ignore")
    import torch
    from stable_baselines3 import PPO  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.env_util import make_vec_env  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.evaluation import evaluate_policy  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.vec_env import VecNormalize  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    t = TASKS[name]
    lr, clip = (lambda left: left * t["lr"], lambda left: left * 0.2) if t.get("fade") else (t["lr"], 0.2)
    more = {"use_sde": True, "sde_sample_freq": 4} if t.get("sde") else {}

    def made(count: int, first: int) -> Any:
        envs = make_vec_env(t["env"], n_envs=count, seed=first)
        return VecNormalize(envs, norm_reward=False) if t.get("normalize") else envs

    model = PPO(
        "MlpPolicy", made(t["envs"], seed), seed=seed, device="cpu", n_steps=t["segment"], batch_size=t["batch"],
        n_epochs=t["epochs"], gamma=t["gamma"], gae_lambda=t["lam"], learning_rate=lr, clip_range=clip, ent_coef=0.0, **more,
    )  # fmt: skip
    start = time.process_time()
    model.learn(t["steps"])
    seconds = time.process_time() - start
    acting, trained = made(1, 10_000 + seed), model.get_vec_normalize_env()
    if trained is not None:
        acting.obs_rms, acting.training = trained.obs_rms, False
    returns, _ = evaluate_policy(model, acting, 20, deterministic=True, return_episode_rewards=True)
    return seconds / model.num_timesteps, list(map(float, returns))  # pyright: ignore[reportArgumentType]


def middle(values: list[float]) -> float:
    """Interquartile mean."""
    kept = np.sort(values)[len(values) // 4 : len(values) - len(values) // 4]
    return float(kept.mean())


def interval(values: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the interquartile mean over seeds."""
    rng = np.random.default_rng(0)
    found = [middle(list(rng.choice(values, len(values)))) for _ in range(2000)]
    return float(np.percentile(found, 2.5)), float(np.percentile(found, 97.5))


def main() -> None:
    """Run both sides in turn."""
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    wanted, path = sys.argv[1:] or [*TASKS], Path("bench/results/control.json")
    rows = [row for row in json.loads(path.read_text())["rows"] if row["task"] not in wanted and row["task"] in TASKS]  # measured before
    for name in wanted:
        for seed in SEEDS:
            for side in ("rather", "sb3"):
                command = [sys.executable, __file__, "--one", side, name, str(seed)]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                rows.append(
                    {"task": name, "seed": seed, "side": side, **json.loads(done.stdout.splitlines()[-1]), "commit": common.commit()}
                )
                print(rows[-1]["task"], seed, side, f"{rows[-1]['steps_per_cpu_s']:.0f}", f"{np.mean(rows[-1]['returns']):.1f}", flush=True)
    named = " ".join(["bench/sb3.py", *map(repr, sys.argv[1:])])
    about = common.about(named, f"{platform.processor() or platform.machine()}, one thread")
    lines = [
        "# PPO for control beside Stable-Baselines3 2.9.2", "", about + ".", "",
        "Settings of rl-baselines3-zoo, of HalfCheetah the defaults with scaled observations (on our side the clip range is not faded, and there is no",
        "state-dependent exploration); returns of 20 episodes with deterministic actions after 100,000 steps: interquartile",
        "mean over seeds, its 95 % bootstrap interval, and the least and the most.", "",
        "| task | side | return | interval | least to most | steps a CPU second (median) | ratio (median, least to most) |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name in dict.fromkeys(r["task"] for r in rows):
        of = {side: [r for r in rows if (r["task"], r["side"]) == (name, side)] for side in ("rather", "sb3")}
        ratios = [a["steps_per_cpu_s"] / b["steps_per_cpu_s"] for a, b in zip(*of.values(), strict=True)]
        spread = [round(min(ratios), 2), round(max(ratios), 2)]
        if name in wanted:
            common.headline(
                HEADLINES[name], round(float(np.median(ratios)), 2), spread, "x", named, platform.processor() or platform.machine()
            )
        for side, found in of.items():
            means = [float(np.mean(r["returns"])) for r in found]
            low, high = interval(means)
            speed = np.median([r["steps_per_cpu_s"] for r in found])
            ratio = f"{np.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})" if side == "rather" else ""
            cells = [
                name,
                side,
                f"{middle(means):.1f}",
                f"{low:.1f} to {high:.1f}",
                f"{min(means):.1f} to {max(means):.1f}",
                f"{speed:.0f}",
                ratio,
            ]
            lines.append("| " + " | ".join(cells) + " |")
    common.publish("control", {"about": about, "rows": rows}, lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        _, _, side, name, seed = sys.argv
        per_step, returns = (ours if side == "rather" else theirs)(name, int(seed))
        print(json.dumps({"steps_per_cpu_s": 1 / per_step, "returns": returns}))
    else:
        main()
