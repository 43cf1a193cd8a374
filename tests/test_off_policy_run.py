"""Runs about control that a learner of Stable-Baselines3 trains, from the command line."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from rather.learners.metrics import CLOCK

RUN = """
[run]
name = "sac"
[control]
env = "Pendulum-v1"
horizon = 30
envs = 2
rollout_segment = 45
hidden = [16]
[query]
comparisons = 12
fragment = 10
episodes = 6
exploration = 0.5
[judge]
panel = [{ name = "oracle", utility = "total_reward", temperature = 0.01 }]
[train]
learner = "sb3:SAC"
reward = "labels"
steps = 2
checkpoint_every = 1
[sb3]
learning_starts = 20
batch_size = 32
gradient_steps = 1
[reward]
members = 2
epochs = 3
batch_size = 6
held_out = 0.0
[eval]
prompts = 3
[loop]
rounds = 2
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    return path


def rows(folder: Path) -> list[dict]:
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_loop_asks_learns_a_reward_and_trains_from_round_to_round(rather, run: Path, tmp_path: Path) -> None:
    out = rather("loop", run).stdout
    assert "on 3 held-out seeds; before: mean return" in " ".join(out.split())
    found = [row for row in rows(tmp_path / "runs/sac") if row["phase"].startswith("train-sb3:SAC")]
    assert [(row["phase"][-1], row["step"]) for row in found] == [("0", 1), ("0", 2), ("1", 1), ("1", 2)]
    assert [row["replay_buffer_size"] for row in found] == [90, 180, 270, 360]
    assert all(row["tokens"] == 90 for row in found)
    assert all("score" in row and "return" in row for row in found)
    buffers = [load_file(tmp_path / f"runs/sac/checkpoints/sb3-SAC-{n}/step-000002/learner.safetensors") for n in (0, 1)]
    first, second = ({key.removeprefix(".buffer."): x for key, x in b.items() if "buffer" in key} for b in buffers)
    (name,) = [key for key in first if key.endswith("rewards") and "own" not in key]
    seen = name.replace("rewards", "observations")
    assert bool((first[seen] == second[seen][:90]).all()), "what was seen is kept"
    assert not np.allclose(first[name], second[name][:90]), "and is rewarded by the second reward model"
    assert "training" not in rather("loop", run).stdout, "a finished run has nothing to do"
    rather("report", run)
    page = (tmp_path / "runs/sac/report.html").read_text()
    assert "Pendulum-v1, trained with sb3:SAC" in page
    assert "Steps a trajectory (reward)" in page
    assert "Tokens" not in page
    assert "Episode 1: return" in rather("play", run, "--episodes", "1").stdout
    rather("export-policy", run, tmp_path / "policy.onnx")
    assert "nothing odd in the metrics" in rather("doctor", run).stdout
    assert "sac: 12 questions" in rather("status", run).stdout


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["sb3:SAC", "sb3:TD3"])
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(rather, run: Path, tmp_path: Path, learner: str) -> None:
    """Killed once in each round."""
    own = [f"train.learner={learner}", "train.steps=8"]
    rather("loop", run, "run.name=whole", *own)
    metrics = tmp_path / "runs/killed/metrics.jsonl"
    for wanted in ("-0", "-1"):
        process = subprocess.Popen(
            [sys.executable, "-m", "rather", "loop", str(run), "run.name=killed", *own],
            cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while not metrics.exists() or metrics.read_text().count(f'"train-{learner}{wanted}"') < 3:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    rather("loop", run, "run.name=killed", *own)
    whole, killed = (
        [{k: v for k, v in r.items() if k not in (*CLOCK, "checkpoint")} for r in rows(tmp_path / f"runs/{name}")]
        for name in ("whole", "killed")
    )
    assert killed == whole
    folder = learner.replace(":", "-")
    first, second = (
        (tmp_path / f"runs/{n}/checkpoints/{folder}-1/step-000008/learner.safetensors").read_bytes() for n in ("whole", "killed")
    )
    assert first == second


@pytest.mark.slow
def test_it_learns_the_task_from_the_true_reward(rather, run: Path, tmp_path: Path) -> None:
    """4,000 steps of a pendulum; before it is about -1200."""
    shape = ["control.horizon=0", "control.envs=1", "control.rollout_segment=1000", "control.hidden=[64,64]", "query.fragment=0"]
    own = ["sb3.learning_rate=1e-3", "train.reward=environment", "train.steps=5", "loop.rounds=1", "eval.prompts=10"]
    rather("loop", run, *shape, *own)
    (last,) = [row for row in rows(tmp_path / "runs/sac") if row["phase"] == "eval-0"]
    assert last["return_policy"] > -400
    assert last["return_base"] < -800


def test_another_reward_model_is_not_taken_in_the_middle(rather, run: Path, tmp_path: Path) -> None:
    for name, seed in (("one", "0"), ("two", "1")):
        rather("sample", run, f"run.name={name}", f"run.seed={seed}")
        rather("label", run, f"run.name={name}", f"run.seed={seed}")
        rather("train", run, f"run.name={name}", f"run.seed={seed}", "train.learner=reward")
    model = ["train.reward=model", "loop.rounds=1"]
    saved = [max((tmp_path / f"runs/{name}/checkpoints/reward-0").glob("step-*")) for name in ("one", "two")]
    first, second = (f"judge.checkpoint={folder}" for folder in saved)
    rather("train", run, *model, first)
    assert "judge.checkpoint" in rather("train", run, *model, second, "train.steps=4", code=2).stderr


def test_doctor_says_what_sac_cannot_choose(rather, run: Path) -> None:
    assert "SAC and TD3 choose numbers between bounds" in " ".join(rather("doctor", run, "control.env=CartPole-v1", code=1).stdout.split())


@pytest.mark.parametrize(
    ("settings", "said"),
    [(["train.reward=verify"], "control has no verifiers"), (["train.steps=0"], "train.steps is 0")],
)
def test_doctor_says_what_the_learner_refuses(rather, run: Path, settings: list[str], said: str) -> None:
    assert said in " ".join(rather("doctor", run, *settings, code=1).stdout.split())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["control.env="], "control.env is empty"),
        (
            ["control.policy_network=a:b", "query.exploration=0.0"],
            "has networks of its own; leave control.policy_network and critic_network out",
        ),
        (["control.network=cnn", "control.hidden=[64,64]"], 'train.learner = "sb3:SAC" cannot train control.network = "cnn"; take "ppo"'),
        (["sb3.gama=0.9"], "did you mean sb3.gamma"),
        (["sb3.buffer_size=-1"], "sb3.buffer_size: input should be greater than or equal to 1"),
        (["control.env=CartPole-v1"], "SAC and TD3 choose numbers between bounds, and actions are Discrete(2)"),
        (["train.learner=sb3:A2C"], "train.learner: input should be 'sft'"),
        (["sb3.train_freq=7"], "sb3.train_freq is 7, which does not divide control.rollout_segment = 45"),
        (["sb3.buffer_size=1"], "sb3.buffer_size is 1, which does not hold one step of each of control.envs = 2"),
        (["sb3.learning_starts=360"], "sb3.learning_starts is 360, and a policy has 360 steps; it would learn nothing"),
        (["sb3.learning_starts=180", "control.restart=true"], "sb3.learning_starts is 180, and a policy has 180 steps"),
        (["sb3.gradient_steps=0"], "sb3.gradient_steps: without updates nothing is learned"),
        (["sb3.ent_coef=-1"], "sb3.ent_coef"),
        (["train.reward=verify"], "control has no verifiers"),
        (["train.steps=0"], "train.steps is 0"),
    ],
)
def test_bad_input(rather, run: Path, settings: list[str], said: str) -> None:
    """Refused before anything is asked."""
    done = rather("loop", run, *settings, code=2)
    found = " ".join(done.stderr.split())
    assert said in found
    assert "compares" not in done.stdout + done.stderr
    assert "(got {" not in found, "a whole run is no message"
