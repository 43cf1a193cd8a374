"""Several ranks, processes of their own that torchrun starts and that talk over gloo, do what one does."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import several
from rather.config.schema import Config
from rather.errors import ConfigError
from rather.pipeline.run import Run
from rather.scale import ranks
from test_cli import RUN, VOWELS, Rather

MORE = """
[ppo]
rollout_batch_size = 6
update_epochs = 2
[grpo]
group_size = 4
kl = 0.1
[reward]
members = 2
temperatures = true
[verify]
checks = [{ kind = "python", function = "mine:share" }]
"""
LEARNERS = {
    "dpo": ["train.learner=dpo"],
    "dpo-full": ["train.learner=dpo", "model.train=full", "model.gradient_checkpointing=true"],
    "dpo-each": ["train.learner=dpo", "dpo.reference_logprobs=each", "train.batch_size=1"],
    "kto": ["train.learner=kto", "train.micro_batch_tokens=24"],
    "sft": ["train.learner=sft", "train.micro_batch_tokens=20"],
    "reward": ["train.learner=reward", "model.train=full", "train.micro_batch_tokens=24"],
    "reward-from-head": ["train.learner=reward", "reward.start=head"],
    "grpo": ["train.learner=grpo", "model.train=full", "sample.batch_size=3"],
    "ppo": ["train.learner=ppo", "train.reward=labels", "train.lr=1e-4"],
}
CLOCK = ("seconds", "tokens_per_s", "peak_gib")


@pytest.fixture
def run(rather: Rather, tiny: Path, tmp_path: Path) -> Path:
    """A run's TOML file, its questions asked and answered."""
    rows = [{"prompt": f"question {i}{'?' * (i % 5)}", "split": "train"} for i in range(9)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "mine.py").write_text(VOWELS)
    path = tmp_path / "run.toml"
    path.write_text(RUN.format(model=tiny, more="steps = 4\nmax_grad_norm = 0.1") + MORE)
    rather("sample", path)
    rather("label", path)
    return path


def torchrun(count: int, *what: object) -> subprocess.CompletedProcess[str]:
    """Start ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), *map(str, what)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def metrics(folder: Path) -> list[dict[str, float]]:
    """What was measured in training, the phases one after the other, without what depends on the machine."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = sorted((row for row in rows if row["phase"].startswith("train")), key=lambda row: row["phase"])
    return [{k: v for k, v in row.items() if k not in (*CLOCK, "phase")} for row in rows]


def same(one: Path, two: Path) -> None:
    """Whether two runs measured the same, and ended with the same weights."""
    assert len(metrics(one)) >= 4
    for a, b in zip(metrics(one), metrics(two), strict=True):
        assert a == pytest.approx(b, rel=5e-3, abs=1e-3)
    for folder in (one / "checkpoints").iterdir():
        last = max(folder.iterdir())
        for file in last.rglob("*.safetensors"):
            theirs = load_file(two / file.relative_to(one))
            for key, tensor in load_file(file).items():
                torch.testing.assert_close(tensor, theirs[key], rtol=1e-2, atol=2e-3, msg=lambda m, at=f"{file} {key}": f"{at}: {m}")


@pytest.mark.slow
def test_two_ranks_do_what_one_does(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "runs/tiny/store.db"
    runs = {n: [[f"run.folder={n}-{key}", f"run.store={store}", *changes] for key, changes in LEARNERS.items()] for n in (1, 2)}
    monkeypatch.chdir(tmp_path)
    done = torchrun(2, several.__file__, tmp_path, run, *(" ".join(changes) for changes in runs[2]))
    assert done.returncode == 0, done.stderr[:3000]
    several.train(tmp_path, run, runs[1])
    for key in LEARNERS:
        same(tmp_path / f"1-{key}/tiny", tmp_path / f"2-{key}/tiny")


@pytest.mark.slow
def test_the_command_goes_on_with_another_number_of_ranks(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changes = ["model.train=full", "train.keep=9"]
    done = torchrun(2, "-m", "rather", "train", run, *changes)
    assert done.returncode == 0, done.stderr[:3000]
    assert done.stdout.count("checkpoint: ") == 1
    own = tmp_path / "runs/tiny"
    shutil.copytree(own, tmp_path / "first/tiny")
    shutil.rmtree(own / "checkpoints/dpo-0/step-000004")
    several.train(tmp_path, run, [changes])
    same(tmp_path / "first/tiny", own)
    shutil.rmtree(own / "checkpoints/dpo-0/step-000004")
    done = torchrun(3, "-m", "rather", "train", run, *changes)
    assert done.returncode == 0, done.stderr[:3000]
    same(tmp_path / "first/tiny", own)


@pytest.mark.slow
def test_what_could_not_be_verified_is_counted_on_all_ranks(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def share(text, answer):\n    return len(text) % 5 / 5 or None\n")
    monkeypatch.chdir(tmp_path)
    said = []
    for n in (1, 2):
        done = torchrun(n, "-m", "rather", "train", run, "train.learner=grpo", "train.steps=1", f"run.folder=ranks-{n}")
        assert done.returncode == 0, done.stderr[:3000]
        said.append(re.findall(r"(\d+) answers\s+could not be verified: python", done.stdout))
    assert said[0] == said[1] != []


def test_what_ranks_cannot_share_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ranks.wanted() == 1, "not torchrun's"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    for changes in ({"train": {"learner": "zeroth"}}, {"control": {"env": "CartPole-v1"}}, {"judge": {"kind": "people"}}):
        with pytest.raises(ConfigError, match="several ranks can train on text"):
            Run(Config.model_validate(changes), Console(quiet=True))
    with pytest.raises(ConfigError, match="`rather train` alone can use"):
        Run(Config(), Console(quiet=True))


def test_without_torchrun_there_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with ranks.joined():
        assert (ranks.count(), ranks.rank()) == (1, 0)
        assert list(ranks.mine("abc")) == [("a", 1.0), ("b", 1.0), ("c", 1.0)]
        assert ranks.share("abc") == slice(0, 3)
        assert ranks.everyones(7) == [7]
