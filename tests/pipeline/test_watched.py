"""Trainings that end at the alarm: the car, on its hand-written reward, whose laps do not rise with it."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from rather.config import toml
from rather.errors import CheckpointError, ConfigError
from rather.hacking.watch import Watch
from rather.learners import checkpoint
from rather.pipeline import resume
from rather.pipeline.run import Run

STEPS = 30
CAR = [
    "control.env=rather/CheckpointCar-v0", "control.gold=laps", "control.envs=8", "control.rollout_segment=100", "control.horizon=100",
    "train.learner=ppo", "train.reward=environment", f"train.steps={STEPS}", "train.batch_size=200", "train.lr=1e-3",
    "train.checkpoint_every=2", "ppo.update_epochs=5", "ppo.gamma=0.97", "ppo.kl=0.0", "ppo.entropy_weight=0.01", "run.name=car",
]  # fmt: skip


def run(folder: Path, *more: str) -> Run:
    return Run(toml.load(None, [*CAR, f"run.folder={folder}", *more]), Console(quiet=True))


def steps(folder: Path) -> list[int]:
    return [checkpoint.check(path)["step"] for path in checkpoint.every(folder / "car" / "checkpoints" / "ppo-0")]


def weights(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted((path / "model").iterdir()))


def test_stop_and_back_and_on(tmp_path: Path) -> None:
    last = run(tmp_path, "hack.then=stop").train()
    note = tmp_path / "car" / "checkpoints" / "ppo-0" / "alarm.json"
    told = json.loads(note.read_text())
    alarm = told["alarm"]
    assert told["kept"] == alarm["step"]
    assert alarm["sign"] == "stays"
    assert alarm["step"] == steps(tmp_path)[-1] < STEPS
    rows = run(tmp_path).metrics.read("train-ppo-0")
    assert len(rows) == alarm["step"], "nothing was done after it"
    assert rows[-1]["return"] > rows[0]["return"] + rows[0]["return_std"] / 2

    assert run(tmp_path, "hack.then=stop").train() == last, "it has ended"
    note.unlink()  # killed before it was noted
    assert run(tmp_path, "hack.then=stop").train() == last
    assert json.loads(note.read_text()) == told
    assert len(run(tmp_path).metrics.read("train-ppo-0")) == alarm["step"]

    other = tmp_path / "other"
    back = run(other, "hack.then=back").train()
    assert checkpoint.check(back)["step"] == max(step for step in range(0, STEPS, 2) if step <= alarm["best"])
    assert steps(other)[-1] == checkpoint.check(back)["step"]
    aside = sorted(path.name for path in back.parent.glob("hacked-step-*"))
    assert aside[-1] == f"hacked-step-{alarm['step']:06d}", "what came after it is put aside"
    assert run(other, "hack.then=back").train() == back

    (back.parent / "alarm.json").unlink()  # killed before it was noted, and trained to the alarm again
    assert weights(run(other, "hack.then=back").train()) == weights(back)
    assert sorted(path.name for path in back.parent.glob("hacked-step-*")) == aside

    whole = tmp_path / "whole"
    undisturbed = run(whole).train()
    assert checkpoint.check(undisturbed)["step"] == STEPS
    gone_on = run(tmp_path, "hack.then=nothing").train()
    assert checkpoint.check(gone_on)["step"] == STEPS
    assert weights(gone_on) == weights(undisturbed), "as one that was never watched"
    assert not note.exists()
    assert run(tmp_path, "hack.then=back").train() == gone_on, "it has come to its end"
    assert steps(tmp_path)[-1] == STEPS
    assert not (whole / "car" / "checkpoints" / "ppo-0" / "alarm.json").exists()

    note.write_text(json.dumps(told))  # as if it had been killed while it went on
    assert run(tmp_path, "hack.then=back").train() == gone_on
    assert steps(tmp_path)[-1] == STEPS, "the note is about another checkpoint"

    (other / "car" / "checkpoints" / "ppo-0" / "alarm.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"alarm.json cannot be read .*; delete it, and the training goes on"):
        run(other, "hack.then=back").train()


def test_an_alarm_that_could_not_go_off_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set control.gold, without which no alarm can go off in control"):
        run(tmp_path, "hack.then=stop", "control.gold=").train()
    with pytest.raises(ConfigError, match="set hack.gold, or hack.checks, without which nobody knows where it was best"):
        resume.check_watched(toml.load(None, ["train.learner=grpo", "hack.then=back"]))
    with pytest.raises(ConfigError, match='train.learner "dpo" has no reward that can be hacked'):
        run(tmp_path, "hack.then=back", "train.learner=dpo").train()


def test_it_is_a_callback_of_any_training() -> None:
    watch = Watch()
    own = {"score_stderr": 0.01, "score_std": 1.0, "gold_stderr": 0.01, "gold_std": 1.0}
    ended = [watch(i, {"score": 0.2 * i, "gold": 0.1 * min(i, 20) - 0.1 * max(0, i - 20)} | own) for i in range(40)]
    assert watch.raised is not None
    assert ended.index(True) == watch.raised.step
    assert all(ended[watch.raised.step :])
    on = Watch([[{"step": i, "score": 0.2 * i, "gold": 0.1 * min(i, 20) - 0.1 * max(0, i - 20)} | own for i in range(15)]])
    again = [on(i, {"score": 0.2 * i, "gold": 0.1 * min(i, 20) - 0.1 * max(0, i - 20)} | own) for i in range(15, 40)]
    assert ended[15:] == again, "as if it had not been stopped"
    assert not Watch()(1, {"loss": 0.5}), "nothing to see"
