"""Runs that explore before the first questions, from the command line."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from rather.config import toml
from rather.errors import ConfigError, RatherError, TrainingError
from rather.learners import checkpoint
from rather.learners.metrics import CLOCK
from rather.pipeline import control_domain
from rather.pipeline.exploring import explore
from rather.pipeline.run import Run
from rather.settings import UNSUPERVISED
from test_off_policy_run import RUN

OWN = ["control.unsupervised_steps=2"]
LEARNERS = ["ppo", "sb3:SAC"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    return path


def rows(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in (*CLOCK, "checkpoint")} for row in found]


def policies(path: Path, *settings: str) -> set[str]:
    """Names of the policies whose fragments the first round's questions are about."""
    opened = Run(toml.load(path, [*OWN, f"run.folder={path.parent}/runs", *settings]), Console(quiet=True))
    asked = [q.comparison for q in opened.store.questions("sac", "train") if (q.comparison.key or "").startswith("round-0/")]
    opened.close()
    return {t.policy for c in asked for side in (c.a, c.b) for t in side}


@pytest.mark.parametrize("learner", LEARNERS)
def test_the_first_questions_are_about_a_policy_that_has_explored(rather, run: Path, tmp_path: Path, learner: str) -> None:
    own, folder = [*OWN, f"train.learner={learner}", "query.exploration=0.0"], tmp_path / "runs/sac"
    rather("loop", run, *own)
    found = rows(folder)
    phases = list(dict.fromkeys(row["phase"] for row in found))
    assert phases[:3] == ["train-unsupervised-0", "sample-0", "train-reward-0"]
    explored = [row for row in found if row["phase"] == phases[0]]
    assert [(row["step"], row["tokens"]) for row in explored] == [(1, 90), (2, 90)]
    assert all(0 < row["state_entropy"] < 3 and "return" in row for row in explored)
    assert not any("state_entropy" in row for row in found if row["phase"] != phases[0])
    assert policies(run, *own) == {"sac@unsupervised-2"}
    assert "training" not in rather("loop", run, *own).stdout, "a finished run has nothing to do"
    assert "sac: 12 questions" in rather("status", run, *own).stdout
    assert "nothing odd in the metrics" in rather("doctor", run, *own).stdout
    rather("report", run, *own)
    assert "Mean return of an episode (unsupervised)" in (folder / "report.html").read_text()


def test_the_replay_buffer_goes_on_and_the_steps_of_exploration_are_rewarded_by_the_labels(rather, run: Path, tmp_path: Path) -> None:
    rather("loop", run, *OWN, "loop.rounds=1")
    sizes = [row["replay_buffer_size"] for row in rows(tmp_path / "runs/sac") if row["phase"] == "train-sb3:SAC-0"]
    assert sizes == [270, 360], "180 steps of exploration, and 90 in each step"


@pytest.mark.parametrize("learner", LEARNERS)
def test_exploration_goes_on_from_its_last_checkpoint(rather, run: Path, tmp_path: Path, learner: str) -> None:
    """The one of step 2 is lost; the first questions stay."""
    own, folder = [*OWN, f"train.learner={learner}", "loop.rounds=1"], tmp_path / "runs/sac/checkpoints"
    rather("sample", run, *own)
    last = folder / "unsupervised-0/step-000002"
    wanted, before = {p.name: p.read_bytes() for p in last.rglob("*.safetensors")}, rows(folder.parent)
    shutil.rmtree(last)
    rather("sample", run, *own)
    assert {p.name: p.read_bytes() for p in last.rglob("*.safetensors")} == wanted
    assert [row for row in rows(folder.parent) if "unsup" in row["phase"]] == [row for row in before if "unsup" in row["phase"]]


@pytest.mark.slow
@pytest.mark.parametrize("learner", LEARNERS)
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(rather, run: Path, tmp_path: Path, learner: str) -> None:
    """Killed in the exploration and in the first round."""
    own = ["control.unsupervised_steps=8", f"train.learner={learner}", "train.steps=8"]
    rather("loop", run, "run.name=whole", *own)
    metrics = tmp_path / "runs/killed/metrics.jsonl"
    for phase in ("unsupervised", learner):
        process = subprocess.Popen(
            [sys.executable, "-m", "rather", "loop", str(run), "run.name=killed", *own],
            cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while not metrics.exists() or metrics.read_text().count(f'"train-{phase}-0"') < 3:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    rather("loop", run, "run.name=killed", *own)
    assert rows(tmp_path / "runs/killed") == rows(tmp_path / "runs/whole")
    for phase in ("unsupervised-0", f"{learner.replace(':', '-')}-1"):
        whole, killed = (tmp_path / f"runs/{n}/checkpoints/{phase}/step-000008/learner.safetensors" for n in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes()


def test_other_settings_are_refused_before_more_is_asked_until_it_explores_again(rather, run: Path, tmp_path: Path) -> None:
    rather("sample", run, *OWN)
    said = "unsupervised-0/step-000002 was trained with sb3.gamma = 0.99, not 0.5"
    assert said in " ".join(rather("loop", run, *OWN, "sb3.gamma=0.5", code=2).stderr.split())
    assert "control.unsupervised_steps = 2, not 3" in " ".join(rather("loop", run, "control.unsupervised_steps=3", code=2).stderr.split())
    rather("label", run, *OWN)
    rather("train", run, *OWN, "sb3.gamma=0.5", "--fresh")
    assert {path.name for path in (tmp_path / "runs/sac/checkpoints").iterdir()} >= {"unsupervised-0", "unsupervised-0-old-1"}


def test_with_the_environments_reward_it_explores_before_the_first_round(rather, run: Path, tmp_path: Path) -> None:
    """Nothing is asked there."""
    rather("loop", run, *OWN, "train.reward=environment", "loop.rounds=1")
    assert list(dict.fromkeys(row["phase"] for row in rows(tmp_path / "runs/sac")))[:2] == ["train-unsupervised-0", "train-sb3:SAC-0"]


def test_the_twin_on_the_true_reward_has_as_many_steps(run: Path) -> None:
    """2 of exploration, and 2 in each of 2 rounds."""
    twin = Run(toml.load(run, OWN), Console(quiet=True)).domain.twin()
    assert twin is not None
    assert (twin.train.steps, twin.control.unsupervised_steps) == (6, 0)


@pytest.mark.parametrize("learner", LEARNERS)
def test_the_base_policy_stays_untrained(run: Path, tmp_path: Path, learner: str) -> None:
    settings = [f"run.folder={tmp_path}/runs", f"train.learner={learner}"]
    explored, plain = (Run(toml.load(run, [*own, *settings]), Console(quiet=True)) for own in (OWN, []))
    explore(explored)
    wanted, base, first = (r.state_dict() for r in (plain.policy(0), explored.domain.base_policy, explored.policy(0)))  # type: ignore[attr-defined]
    assert all(bool((base[name] == x).all()) for name, x in wanted.items())
    assert not all(bool((first[name] == x).all()) for name, x in wanted.items())


@pytest.mark.parametrize("learner", LEARNERS)
def test_the_first_round_begins_with_what_has_explored_and_with_untrained_critics(run: Path, tmp_path: Path, learner: str) -> None:
    """Exploration has taught them another reward's values; control.keep_critic is about rounds."""
    settings = [*OWN, f"run.folder={tmp_path}/runs", f"train.learner={learner}", "control.keep_critic=true"]
    opened = Run(toml.load(run, settings), Console(quiet=True))
    explore(opened)
    last, critics = checkpoint.every(opened.checkpoints(0, UNSUPERVISED))[-1], list[torch.Tensor]()
    for number, before in ((0, last), (0, None), (1, last)):
        made: Any = opened.domain.improver(number, opened.policy(0), None, 2, opened.config, before)
        critic = made.sb3.critic if learner == "sb3:SAC" else made.critic
        critics.append(torch.cat([p.detach().flatten().clone() for p in critic.parameters()]))
        explored: Any = opened.policy(0)
        assert all(torch.equal(x, y) for x, y in zip(made.model.parameters(), explored.parameters(), strict=True))
    assert torch.equal(critics[0], critics[1])
    assert not torch.equal(critics[0], critics[2])


def test_what_was_not_explored_yet_is_said(run: Path, tmp_path: Path) -> None:
    opened = Run(toml.load(run, [*OWN, f"run.folder={tmp_path}/runs"]), Console(quiet=True))
    with pytest.raises(TrainingError, match="unsupervised exploration has no checkpoint in .*unsupervised-0; run `rather sample` first"):
        opened.policy(0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["train.learner=reward"],
            "control.unsupervised_steps is for ppo, sb3:SAC and sb3:TD3, and train.learner is 'reward'; set it to 0",
        ),
        (
            ["train.learner=zeroth"],
            "control.unsupervised_steps is for ppo, sb3:SAC and sb3:TD3, and train.learner is 'zeroth'; set it to 0",
        ),
        (["train.steps=0"], "train.steps is 0"),
        (["train.reward=verify"], "control has no verifiers"),
        (["sb3.learning_starts=180"], "sb3.learning_starts is 180, and a policy has 180 steps; it would learn nothing"),
        (["control.unsupervised_steps=-1"], "control.unsupervised_steps: input should be greater than or equal to 0"),
    ],
)
def test_bad_input(rather, run: Path, tmp_path: Path, settings: list[str], said: str) -> None:
    """Refused before anything is done."""
    assert said in " ".join(rather("loop", run, *OWN, *settings, code=2).stderr.split())
    assert not list((tmp_path / "runs/sac").glob("checkpoints/*"))


def test_it_needs_an_environment() -> None:
    with pytest.raises(ConfigError, match="unsupervised_steps is of an environment, and control.env is empty"):
        toml.load(None, OWN)


@pytest.mark.parametrize(
    ("own", "steps", "rounds", "wanted"),
    [
        ("", 3, 4, 12),
        ("control.restart=true", 3, 4, 3),
        ("control.unsupervised_steps=5", 3, 4, 5),
        ("control.unsupervised_steps=5 control.restart=true", 3, 4, 3),
        ("control.unsupervised_steps=2 control.restart=true", 3, 4, 2),
        ("", 0, 4, 0),
    ],
)
def test_a_policy_learns_in_so_many_steps_at_least(own: str, steps: int, rounds: int, wanted: int) -> None:
    c = toml.load(None, ["control.env=Pendulum-v1", "control.envs=1", "control.rollout_segment=1", *own.split()]).control
    assert c.policy_steps(steps, rounds) == wanted


def test_settings_of_the_rounds_leave_the_exploration_as_it_is(rather, run: Path, tmp_path: Path) -> None:
    own, folder = [*OWN, "train.learner=ppo"], tmp_path / "runs/sac/checkpoints/unsupervised-0"
    rather("sample", run, *own)
    began = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    rather("sample", run, *own, 'train.judges=["o*"]', "control.keep_critic=true", "train.steps=3")
    rather("label", run, *own)
    rather("train", run, *own, "--fresh")
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == began
    assert not folder.with_name("unsupervised-0-old-1").exists()


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("query.fragment=500", "no episode has 500 steps"),
        ("judge.kind=terminal", "a terminal shows no clips"),
        ("control.gold=laps", "has nothing"),
    ],
)
def test_what_cannot_be_asked_about_is_refused_before_the_policy_explores(run: Path, tmp_path: Path, setting: str, why: str) -> None:
    opened = Run(toml.load(run, [*OWN, "train.learner=ppo", f"run.folder={tmp_path}/runs", setting]), Console(quiet=True))
    with pytest.raises(RatherError, match=why):
        explore(opened)
    assert not (tmp_path / "runs/sac/checkpoints/unsupervised-0").exists()
    opened.close()


def test_the_first_round_has_other_episodes_than_the_exploration(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Run(toml.load(run, [*OWN, "train.learner=ppo", f"run.folder={tmp_path}/runs"]), Console(quiet=True))
    seeds = list[int]()
    made = control_domain.RolloutSegments

    def segments(*given: Any) -> Any:
        seeds.append(given[4])
        return made(*given)

    monkeypatch.setattr(control_domain, "RolloutSegments", segments)
    explore(opened)
    opened.domain.improver(0, opened.policy(0), None, 2, opened.config, None)
    opened.close()
    assert len(set(seeds)) == 2
