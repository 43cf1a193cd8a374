"""Settings that do nothing in a run are named before it begins."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from rather.config import toml
from rather.data import examples
from rather.pipeline.resume import learners
from rather.pipeline.run import Run
from rather.pipeline.unused import unused


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], []),
        (["reward.patience=3"], ['reward.patience does nothing in this run: train.learner is "dpo", and no reward model is learned']),
        (["train.learner=reward", "reward.patience=3"], []),
        (["reward.kind=head", "reward.members=3"], []),
        (["train.learner=reward", "reward.kind=head", "reward.lr=1"], ['reward.lr does nothing in this run: reward.kind is "head", which']),
        (["control.env=x", "model.path=y"], ["model.path does nothing in this run: it is about control, where no language model"]),
        (["ppo.kl=1", "ppo.lam=1", "scale.workers=2"], ['ppo.lam, ppo.kl, scale.workers do nothing in this run: train.learner is "dpo"']),
        (["train.learner=zeroth", "scale.workers=2"], []),
        (["dpo.beta=1", "kto.beta=1"], ['kto.beta does nothing in this run: train.learner is "dpo"']),
        (["train.pessimism=1"], ['train.pessimism does nothing in this run: train.learner is "dpo", which no reward trains']),
        (["train.learner=ppo", "train.reward=labels", "reward.lr=1"], []),
        (["train.learner=ppo", "hack.kl=1"], ['hack.kl does nothing in this run: hack.then is not "mend"']),
        (["train.learner=ppo", "hack.then=mend", "hack.kl=1", "reward.layers=[1]"], []),
        (["judge.function=here:it"], ['judge.function does nothing in this run: judge.kind is "panel"']),
        (["judge.function=here:it", "judge.kind=function"], []),
        (["judge.checkpoint=folder"], ['judge.checkpoint does nothing in this run: judge.kind is "panel"']),
        (["judge.checkpoint=folder", "train.learner=grpo", "train.reward=model"], []),
        (["query.comparisons=9"], ["query.comparisons does nothing in this run: it is about text, where query.questions says how many"]),
        (["query.questions=9", "control.env=x"], ["query.questions does nothing in this run: it is about control, where query.comp"]),
    ],
)
def test_what_does_nothing_is_named_with_its_reason(settings: list[str], said: list[str]) -> None:
    config = toml.load(None, settings)
    found = unused(config, learners(config))
    assert len(found) == len(said)
    assert all(sentence.startswith(beginning) for sentence, beginning in zip(found, said, strict=True))


@pytest.mark.parametrize("name", [*examples.descriptions()])
def test_every_setting_of_an_example_does_something(name: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(examples.settings(name))
    config = toml.load(tmp_path / "run.toml")
    assert unused(config, learners(config)) == []


def test_a_run_says_it_once_and_before_anything_is_sampled(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"q {i}", "split": "train"}) + "\n" for i in range(2)))
    settings = {"model.path": str(tiny), "data.prompts": str(tmp_path / "prompts.jsonl"), "run.folder": str(tmp_path), "ppo.kl": 1.0}
    said = io.StringIO()
    run = Run(toml.load(None, settings), Console(file=said, width=200), **{"sample.max_tokens": 2})
    run.ready(0)
    assert said.getvalue() == 'note: ppo.kl does nothing in this run: train.learner is "dpo"\n'
    run.sample()
    run.label()
    assert said.getvalue().count("ppo.kl") == 1
    run.close()
