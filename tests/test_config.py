import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rather.config import toml
from rather.config.schema import Config
from rather.data import examples
from rather.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lerning_rate=1", r"there is no setting train.lerning_rate"),
        ("train.batchsize=1", r"there is no setting train.batchsize; did you mean train.batch_size\?"),
        ("train.micro_tokens=1", r"there is no setting train.micro_tokens; did you mean train.micro_batch_tokens\?"),
        ("trian.lr=1", r"there is no setting trian; did you mean train\?"),
        ("train.lr=-1", r"train.lr: input should be greater than 0 \(got -1\)"),
        (
            "train.learner=pdo",
            r"train.learner: input should be 'sft', 'reward', 'dpo', .*, 'sb3:SAC', 'sb3:TD3' or 'zeroth' \(got 'pdo'\)",
        ),
        ("train.epochs=lots", r"train.epochs: .*number.* \(got 'lots'\)"),
        ("nonsense", "is no setting; write section.key=value"),
        ("run.name=a/b", "run.name"),
        ("run.name=..", r"run.name: .*\(got '..'\)"),
        ("run.name=.", r"run.name: .*\(got '.'\)"),
        ("run.date=2026-02-30", r"run.date: .*day is out of range"),
        ("model.template=x", r"model.template: .*dictionary"),
    ],
)
def test_wrong_settings_name_the_key_and_the_remedy(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        toml.load(None, [override])


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('[train]\nlr = 0.1\nepochs = 3\n[model]\npath = "x"\n')
    found = toml.load(tmp_path / "run.toml", ["train.lr=2e-3", "run.name=other", "model.chat=false", "judge.panel=[{name='a'}]"])
    assert (found.train.lr, found.train.epochs, found.run.name, found.model.path) == (2e-3, 3, "other", "x")
    assert found.model.chat is False
    assert [p.name for p in found.judge.panel] == ["a"]


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file .*run.toml; `rather config"):
        toml.load(tmp_path / "run.toml", [])
    (tmp_path / "run.toml").write_text("[train\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        toml.load(tmp_path / "run.toml", [])


def test_the_printed_settings_can_be_read_back_and_all_are_described(tmp_path: Path) -> None:
    changed = toml.load(None, ["train.lr=0.5", "model.path='a\"b'", "run.date=2026-02-03", "model.template={enable_thinking=false, x='y'}"])
    assert (changed.run.date, changed.model.template) == ("2026-02-03", {"enable_thinking": False, "x": "y"})
    text = toml.document(changed)
    (tmp_path / "run.toml").write_text(text)
    assert toml.load(tmp_path / "run.toml", []) == changed
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            assert "#" in line, f"{line} is not described"
    assert set(tomllib.loads(text)) == set(Config.model_fields)


@pytest.mark.parametrize(
    "override",
    [
        'sample.contrast=["", "Be brief."]',
        'zeroth.contrasts=[["a\\\\b", "x\\n\\"y"]]', "train.judges=[]", "judge.panel=[]",
        'judge.instruction="one\\r\\ntwo\\u007f\\u0001"', 'data.suffix="\\tÜ ☃ 🙂"',
    ],
)  # fmt: skip
def test_lists_and_words_of_all_kinds_can_be_read_back(tmp_path: Path, override: str) -> None:
    changed = toml.load(None, [override])
    assert changed != toml.load(None, [])
    (tmp_path / "run.toml").write_text(toml.document(changed))
    assert toml.load(tmp_path / "run.toml", []) == changed


@pytest.mark.parametrize("learner", ["sb3:SAC", "sb3:TD3"])
def test_a_learner_for_environments_needs_one(learner: str) -> None:
    with pytest.raises(ConfigError, match=f'^train.learner = "{learner}" learns in an environment, and control.env is empty'):
        toml.load(None, [f"train.learner={learner}"])


def test_settings_of_an_environment_need_one() -> None:
    """A run about text would ignore them."""
    for setting in ("control.hidden=[]", "control.envs=4", "control.gold=laps", "control.restart=true", "control.kwargs={g = 1.0}"):
        name = setting.partition("=")[0].removeprefix("control.")
        with pytest.raises(
            ConfigError, match=f"control: {name} is of an environment, and control.env is empty; set it, or leave {name} out"
        ):
            toml.load(None, [setting])
        assert toml.load(None, ["control.env=Pendulum-v1", setting])
    assert toml.load(None, ["control.envs=16"]), "as it stands in every file that `rather config` writes"


def test_the_configurations_that_come_with_rather(tmp_path: Path) -> None:
    for name in examples.descriptions():
        (tmp_path / "run.toml").write_text(examples.settings(name))
        assert toml.load(tmp_path / "run.toml", []).run.name == name


def test_what_train_says_is_how_a_learner_optimizes() -> None:
    from rather.pipeline import build

    said = {
        "steps": 7, "batch_size": 3, "lr": 0.5, "warmup": 2, "schedule": "cosine", "weight_decay": 0.25, "max_grad_norm": 0.125,
        "micro_batch_tokens": 99,
    }  # fmt: skip
    found = build.optimization(Config.model_validate({"train": said, "run": {"seed": 5}}), "dpo", 7)
    assert found.items() >= (said | {"seed": 5}).items()


def test_an_example_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ConfigError, match="no example 'demos'; take one of car, cartpole, demo, "):
        examples.settings("demos")
    with pytest.raises(ConfigError, match="'package:topic' comes with rather; take one of package:prompts, package:questions, "):
        examples.prompt_file("package:topic")


def test_settings_are_printed_with_changes_and_examples_as_they_are(rather: Callable[..., Any]) -> None:
    printed = tomllib.loads(rather("config", "train.lr=0.5", "run.seed=7").stdout)
    assert (printed["train"]["lr"], printed["run"]["seed"]) == (0.5, 7)
    assert rather("config", "--example", "pendulum").stdout == examples.settings("pendulum")
    assert "--example prints a file as it is" in rather("config", "run.seed=7", "--example", "pendulum", code=2).stderr


def test_a_byte_order_mark_is_no_setting(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('\ufeff[run]\nname = "grün"\n', encoding="utf-8")
    assert toml.load(tmp_path / "run.toml", []).run.name == "grün"
    (tmp_path / "run.toml").write_text('[run]\nname = "grün"\n', encoding="utf-16")
    with pytest.raises(ConfigError, match="cannot be read"):
        toml.load(tmp_path / "run.toml", [])
