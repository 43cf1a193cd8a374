"""Files that were written before settings, metrics and tensors got the names of today.

tests/data_old/runs.tar.xz holds five runs of 4 steps (zeroth: 8 updates) by commit 8dd3a1e with `rather loop NAME.toml`, each with the
checkpoint of step 2 as its last one, and measures of all steps: what is made again must be what was measured then.
"""

import json
import shutil
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import safe_open

from rather import renamed
from rather.config import toml
from rather.errors import CheckpointError, ConfigError
from rather.learners import checkpoint
from rather.learners.metrics import CLOCK
from rather.pipeline.run import Run
from rather.report.report import Report
from rather.verify.checker import Checker

RUNS = {"dpo": "dpo", "grpo": "grpo", "ppo": "ppo", "zeroth": "zeroth", "control": "ppo"}
"""The runs and their learners."""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(Path(__file__).parent / "data_old" / "runs.tar.xz") as file:
        file.extractall(folder, filter="data")
    return folder


LATER = {"same_word", "alike", "one_feature"}
"""What is measured since then."""
OTHERWISE = {"score_stderr", "gold_stderr", "gold_correlation", "gold_correlation_stderr"}
"""What is measured otherwise since then: answers to one prompt count together."""


@pytest.fixture
def here(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old runs to go on with, as the current folder: their settings name files in it."""
    shutil.copytree(old, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def today(name: str, *changed: str) -> Run:
    """An old run with the settings that it had, under the names of today."""
    values = renamed.settings(tomllib.loads(Path(f"{name}.toml").read_text()))
    settings = [f"{section}.{key}={_toml(value)}" for section, keys in values.items() for key, value in keys.items()]
    return Run(toml.load(None, [*settings, *changed]), Console(quiet=True))


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_toml(item)}' for key, item in value.items())}}}"
    return json.dumps(value)


def measured(run: Run) -> list[dict[str, Any]]:
    """What was measured while it learned, but for the time it took."""
    rows = [row for row in run.metrics.read() if row["phase"].startswith(("train-", "check-"))]
    return sorted(({k: v for k, v in row.items() if k not in CLOCK} for row in rows), key=lambda row: (row["phase"], row["step"]))


@pytest.mark.parametrize("name", RUNS)
def test_an_old_run_goes_on_as_it_would_have_then(here: Path, name: str) -> None:
    run = today(name)
    before, asked = measured(run), len(run.store.questions(name))
    evaluated = [row for row in run.metrics.read() if row["phase"] == "eval-0"]
    steps = max(row["step"] for row in before)
    assert steps > 2
    last = run.train()
    assert last.name == f"step-{steps:06d}"
    after = measured(run)
    assert [(row["phase"], row["step"]) for row in after] == [(row["phase"], row["step"]) for row in before]
    exactly = True
    for row, was in zip(after, before, strict=True):
        assert row.keys() - LATER == was.keys()
        numbers = {k: v for k, v in was.items() if isinstance(v, float) and k not in OTHERWISE}
        exactly &= {k: row[k] for k in numbers} == numbers
        if name != "ppo":  # which credits answers that were cut otherwise since then
            assert {k: row[k] for k in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-5)
    run.evaluate()
    for judge in run.judges:
        if isinstance(judge, Checker):
            judge.close()
    (again,) = [row for row in run.metrics.read() if row["phase"] == "eval-0"]
    assert again.keys() == evaluated[0].keys()
    if exactly:  # a processor that rounds otherwise makes other weights, whose evaluation is another one
        assert len(run.store.questions(name)) == asked, "the same evaluation: nothing is asked anew"
        assert again.get("evaluation") == evaluated[0].get("evaluation")
    page = Report.of(run).html
    assert "<svg" in page


@pytest.mark.parametrize(
    ("name", "changed"), [("dpo", "dpo.normalized=false"), ("grpo", "grpo.group_size=2"), ("control", "control.envs=1")]
)
def test_an_old_checkpoint_is_not_taken_for_one_with_other_settings(here: Path, name: str, changed: str) -> None:
    setting, _, value = changed.partition("=")
    with pytest.raises(CheckpointError, match=rf"was trained with {setting} = \w+, not {value.title()}"):
        today(name, changed).train()


def test_measures_are_read_under_the_names_of_today(old: Path) -> None:
    lines = [json.loads(line) for name in RUNS for line in (old / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    known = {key for line in lines for key in line}
    assert {"pull", "pull_error", "moved", "norm", "score_error", "return_start", "gold_start_deviation", "score_start_low"} <= known
    rows = [renamed.metrics(line) for line in lines]
    now = {key for row in rows for key in row}
    assert not now & set(renamed.METRICS)
    assert len(now) == len(known), "no two names became one"
    sampled = next(row for row in rows if row["phase"] == "sample-0" and row["settings"].get("control", {}).get("env"))
    assert sampled["settings"]["control"]["normalize"] is True
    row = {"phase": "train-grpo-0", "score_error": 0.1, "grad_norm": 2.0, "calibration_error": 0.3}
    assert renamed.metrics(row) == {"phase": "train-grpo-0", "score_stderr": 0.1, "grad_norm": 2.0, "calibration_error": 0.3}


def test_tensors_are_read_under_the_names_of_today(old: Path) -> None:
    with safe_open(old / "runs/control/checkpoints/ppo-0/step-000002/model/policy.safetensors", "pt") as file:
        assert {"normaliser.mean", "normaliser.square", "normaliser.count"} <= set(file.keys())
    state = renamed.tensors({"normaliser.mean": torch.ones(1), "log_deviation": torch.zeros(2), "net.layers.0": torch.zeros(3)})
    assert list(state) == ["normalizer.mean", "log_std", "net.layers.0"]


def test_every_new_name_is_a_setting_and_no_old_one_is() -> None:
    names = toml.names() | {"verify.checks.partial"}
    assert set(renamed.SETTINGS.values()) <= names
    assert not set(renamed.SETTINGS) & names
    assert len(set(renamed.SETTINGS.values())) == len(renamed.SETTINGS)
    values = {"verify": {"checks": [{"kind": "code", "partly": True}], "workers": 2}, "_steps": 4, "ppo": {"answers": 3, "kl": 0.1}}
    now = {
        "verify": {"checks": [{"kind": "code", "partial": True}], "workers": 2},
        "_steps": 4,
        "ppo": {"rollout_batch_size": 3, "kl": 0.1},
    }
    assert renamed.settings(values) == now
    assert renamed.settings(now) == now
    dotted = {"_contents": {"data.prompts": "abc", "model.path": "def"}}
    assert renamed.settings(dotted) == dotted, "a name with a dot stays whole"
    assert renamed.earlier(now) == values


@pytest.mark.parametrize("old_name", renamed.SETTINGS)
def test_an_old_setting_is_an_error_that_names_the_new_one(old_name: str, tmp_path: Path) -> None:
    section, _, key = old_name.rpartition(".")
    now = renamed.SETTINGS[old_name]
    (tmp_path / "run.toml").write_text(f'[[{section}]]\nkind = "code"\n{key} = 1\n' if section.count(".") else f"[{section}]\n{key} = 1\n")
    with pytest.raises(ConfigError, match=rf"^the setting {section}\.(0\.)?{key} is called {now} now$"):
        toml.load(tmp_path / "run.toml", [])
    if not section.count("."):
        with pytest.raises(ConfigError, match=rf"^the setting {old_name} is called {now} now$"):
            toml.load(None, [f"{old_name}=1"])


def test_the_reward_model_of_an_old_run_is_read(here: Path) -> None:
    saved = checkpoint.every(Path("runs/ppo/checkpoints/reward-0"))[-1]
    assert checkpoint.read(saved)["settings"]["reward"]["center"] == 0.02
    run = today("dpo", "judge.kind=model", f"judge.checkpoint={saved}", "run.name=again", "train.steps=1")
    assert run.loop() is not None
