"""Early stopping: a fit ends where the loss on what is held out no longer falls, in Python and in runs, and goes on exactly."""

import io
import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from rather.config import toml
from rather.core import Comparison, Task, Trajectory
from rather.errors import ConfigError
from rather.learners import checkpoint
from rather.learners.learner import Learner
from rather.learners.reward import Reward
from rather.learners.settings import Optimization
from rather.pipeline import resume, state
from test_control_run import RUN
from test_going_on import go, last, rows, stop


class Number(nn.Module):
    """A number, in place of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "value.json").write_text(json.dumps(self.value.tolist()))

    def restore(self, folder: Path) -> None:
        self.value.data = torch.tensor(json.loads((folder / "value.json").read_text()))


class Counting(Learner[Any, list[float]]):
    """Adds 1 to its number in each step, two of which are an epoch; of data, the loss after each epoch, it says the one of now."""

    name = "counting"
    best = ("loss", -1.0)
    epoch = 2

    def __init__(self, steps: int, folder: Path | None = None, **more: Any) -> None:
        super().__init__(Number(), steps, Optimization(checkpoint_every=1), 0, {}, more.get("callbacks", ()), folder)
        self.count = 0

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [self.model.value]

    @property
    def taken(self) -> int:
        return self.count

    def step(self) -> dict[str, float]:
        self.count += 1
        self.model.value.data += 1
        return {"loss": 0.0}

    def evaluate(self, data: list[float]) -> dict[str, float]:
        return {"loss": data[self.count // 2 - 1]}

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


LOSSES = [0.7, 0.5, 0.6, 0.5, 0.1, 0.1]
"""After the second epoch two bring nothing better, since as good is no better; the fifth would."""


@pytest.mark.parametrize(("patience", "taken", "best"), [(1, 6, 4), (2, 8, 4), (3, 12, 10), (None, 12, 12)])
def test_a_fit_ends_by_the_losses_that_were_measured(patience: int | None, taken: int, best: int) -> None:
    learner = Counting(12).train(LOSSES, patience)
    assert (learner.taken, learner.model.value.item()) == (taken, best)


@pytest.mark.parametrize("killed", range(1, 9))
def test_a_fit_that_was_stopped_ends_where_it_would_have(killed: int, tmp_path: Path) -> None:
    """After the last step the checkpoint itself has the best weights."""
    Counting(12, tmp_path, callbacks=[lambda step, values: step == killed]).train(LOSSES, 2)
    learner = Counting(12, tmp_path).train(LOSSES, 2)
    assert (learner.taken, learner.model.value.item()) == (8, 4)
    found = checkpoint.every(tmp_path)[-1]
    assert (found.name, (found / "model" / "value.json").read_text()) == ("step-000008", "[4.0]")


class Known(nn.Module):
    """Two members, which score a text by its length, and by twice its length."""

    members = 2

    def collate(self, trajectories: Any) -> Any:
        from rather.core import Batch

        lengths = torch.tensor([float(len(t.text)) for t in trajectories])
        one = torch.ones(len(lengths), 1)
        return Batch(lengths[:, None], one, one, one, one, one[:, 0].bool(), one[:, 0])

    def scores(self, batch: Any) -> torch.Tensor:
        return torch.stack([batch.observations[:, 0], 2 * batch.observations[:, 0]])


def test_the_loss_on_held_out_comparisons_by_hand() -> None:
    """The mean of the members is 1.5 a letter. "aaa" and "a" differ by 3, "a" and "aa" by -1.5, which are a tie."""

    def side(text: str) -> tuple[Trajectory]:
        return (Trajectory(Task("f", "0", "x"), "p", text),)

    held = [Comparison(side("aaa"), side("a"), 0.0, "0"), Comparison(side("a"), side("aa"), 0.5, "1")]
    learner = Reward(Known(), held, [nn.Parameter(torch.zeros(1))], batch_size=1)  # type: ignore[arg-type]
    wrong, tie = math.log1p(math.exp(3)), 0.5 * (math.log1p(math.exp(1.5)) + math.log1p(math.exp(-1.5)))
    assert learner.evaluate(held) == pytest.approx({"accuracy": 0.0, "loss": (wrong + tie) / 2})


@pytest.fixture
def control(tmp_path: Path) -> list[str]:
    """Fits with a high learning rate, whose loss on held-back questions soon rises."""
    (tmp_path / "run.toml").write_text(RUN)
    loaded = toml.load(tmp_path / "run.toml", [])
    sections = ("query", "control", "train")
    found = [
        f"{section}.{key}={json.dumps(value)}"
        for section in sections
        for key, value in getattr(loaded, section).model_dump(exclude_defaults=True).items()
    ]
    judge = 'judge.panel=[{ name = "expert", utility = "total_reward", temperature = 0.01 }]'
    reward = ["reward.members=2", "reward.lr=0.1", "reward.epochs=20", "reward.batch_size=4", "reward.held_out=0.3", "reward.patience=3"]
    return [*found, judge, *reward, "train.learner=reward", "train.steps=0", "query.strategy=random", f"run.folder={tmp_path}"]


def test_a_run_keeps_the_best_reward_and_goes_on_exactly(control: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("whole", "stopped"):
        go(control, f"run.name={name}", "query.comparisons=16", "loop.rounds=1").sample()
        go(control, f"run.name={name}").label()
    go(control, "run.name=whole").train()
    stop(go(control, "run.name=stopped"), 5, monkeypatch)
    go(control, "run.name=stopped", "query.comparisons=24", "loop.rounds=1").sample()
    go(control, "run.name=stopped").label()  # what is held back of these does not count for what had begun
    first = last(go(control, "run.name=whole"))
    losses = [row["eval_loss"] for row in rows(go(control, "run.name=whole")) if "eval_loss" in row]
    assert len(losses) == losses.index(min(losses)) + 4
    assert first["step"] < first["settings"]["_steps"], "it has ended early"
    run = go(control, "run.name=whole")
    assert run.train() == checkpoint.every(run.checkpoints(0))[-1]
    assert last(run) == first
    learner = run.learner(0, "reward", run.labels(0, "reward"), 0)
    learner.model.restore(checkpoint.every(run.checkpoints(0))[-1] / "model")
    assert learner.evaluate(run.labels(0, "reward", kept=True).comparisons)["loss"] == min(losses)  # type: ignore[attr-defined]

    go(control, "run.name=whole", "query.comparisons=24", "loop.rounds=1").sample()
    go(control, "run.name=whole").label()
    go(control, "run.name=whole").train()
    go(control, "run.name=stopped").train()
    whole, stopped = (last(go(control, f"run.name={name}")) for name in ("whole", "stopped"))
    assert rows(go(control, "run.name=stopped")) == rows(go(control, "run.name=whole"))
    assert stopped["files"] == whole["files"]
    assert [stage["step"] for stage in whole["before"]] == [first["step"]]
    assert whole["step"] > first["step"]


def test_a_fit_that_ended_early_is_finished(control: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    control = [*control, "query.comparisons=16", "loop.rounds=1", "run.name=whole"]
    run = go(control)
    run.console = Console(file=io.StringIO(), width=200)
    run.sample()
    run.label()
    found, said = run.train(), run.console.file.getvalue()  # type: ignore[attr-defined]
    assert last(run)["step"] < last(run)["settings"]["_steps"]
    assert said.count("The reward model orders held-out questions (by which its weights were chosen) right in ") == 1
    monkeypatch.setattr(state.State, "learner", lambda *_: pytest.fail("it was begun again"))
    assert run.train() == found
    assert run.console.file.getvalue().count("The reward model orders") == 1  # type: ignore[attr-defined]
    assert go(control, "reward.epochs=40").train() == found


def test_where_nothing_is_kept_back_a_fit_takes_all_its_steps(control: list[str]) -> None:
    run = go(control, "reward.held_out=0.001")
    run.sample()
    run.label()
    run.train()
    assert last(run)["step"] == last(run)["settings"]["_steps"]


@pytest.mark.parametrize(("reward", "refused"), [("labels", True), ("environment", False)])
def test_patience_is_checked_where_a_reward_model_is_fitted(control: list[str], reward: str, refused: bool) -> None:
    run = go(control, "train.learner=ppo", f"train.reward={reward}", "train.steps=1", "reward.held_out=0.0")
    with pytest.raises(ConfigError, match="reward.held_out is 0") if refused else nullcontext():
        resume.ready_to_learn(run)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        (
            "reward.held_out=0.0",
            "reward.patience = 3 ends a fit by its loss on questions kept back, and reward.held_out is 0; set it to 0.2",
        ),
        ("judge.kind=people", 'with judge.kind = "people" labels come in while it learns; set reward.patience to 0'),
    ],
)
def test_what_cannot_end_a_fit_is_refused_before_anything_is_asked(control: list[str], setting: str, sentence: str) -> None:
    run = go(control, setting)
    with pytest.raises(ConfigError, match=sentence):
        run.sample()
    assert not run.store.keys("run", "train")
