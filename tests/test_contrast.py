"""`sample.contrast`: each answer of a question is drawn with an instruction of its own, and kept as an answer to the prompt without it."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from rather.config import toml
from rather.config.schema import Config
from rather.core import Task, Trajectory
from rather.errors import ConfigError, DataError
from rather.pipeline import build
from rather.pipeline.run import Run


@pytest.fixture
def config(tiny: Path, tmp_path: Path) -> Config:
    rows = [{"prompt": f"question {i}?", "split": "held_out" if i < 2 else "train"} for i in range(8)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    where = [f"model.path={tiny}", f"run.folder={tmp_path}", f"data.prompts={tmp_path}/prompts.jsonl"]
    how = ["model.dtype=float32", "sample.max_tokens=6", "sample.temperature=1", 'sample.contrast=["", "In short."]']
    return toml.load(None, [*where, *how])


def suffixed(config: Config, suffix: str) -> list[Task]:
    return build.tasks(config.model_copy(update={"data": config.data.model_copy(update={"suffix": suffix})}))[0]


def test_one_answer_is_drawn_with_either_instruction_and_kept_without(config: Config) -> None:
    run = Run(config, Console(quiet=True))
    run.sample()
    asked = [q.comparison for q in run.store.questions(config.run.name, "train")]
    plain, instructed = suffixed(config, ""), suffixed(config, " In short.")
    sampler = build.sampler(config, build.base_policy(config), lambda n: None)
    drawn = sampler.sample([t for both in zip(plain, instructed, strict=True) for t in both], build.seed(config, "sample", 0))
    assert len({t.text for t in drawn}) == 12
    expected = {t.prompt: {a.text, b.text} for t, a, b in zip(plain, drawn[0::2], drawn[1::2], strict=True)}
    assert {c.a[0].task.prompt: {c.a[0].text, c.b[0].text} for c in asked} == expected


def test_more_answers_take_the_instructions_in_turn(config: Config) -> None:
    cold = config.model_copy(update={"sample": config.sample.model_copy(update={"temperature": 0.2})})
    sampler = build.sampler(cold, build.base_policy(cold), lambda n: None)
    plain, instructed = suffixed(cold, ""), suffixed(cold, " In short.")
    expected = sampler.sample([t for both in zip(plain, instructed, plain, strict=True) for t in both], 0)
    groups = build.answers(cold, sampler, plain, 0, 3)
    assert [t.text for group in groups for t in group] == [t.text for t in expected]
    assert [group[2].task for group in groups] == plain


def test_what_was_drawn_after_another_prompt_keeps_no_tokens_of_it(config: Config) -> None:
    policy, tasks = build.base_policy(config), build.tasks(config)[0]
    pairs = build.answers(config, build.sampler(config, policy, lambda n: None), tasks, 0)
    answers: Sequence[Trajectory] = [t for pair in pairs for t in pair]
    assert all(t.observations is t.actions is t.logprobs is None for t in answers)
    without = config.model_copy(update={"sample": config.sample.model_copy(update={"contrast": None})})
    own = [t for pair in build.answers(without, build.sampler(without, policy, lambda n: None), tasks, 0) for t in pair]
    assert (policy.collate(answers).observations == policy.collate(own).observations).all(), (
        "it is learned as an answer to the plain prompt"
    )


def test_a_prompt_that_is_too_long_with_an_instruction_is_found_before_anything_is_sampled(config: Config) -> None:
    long = config.model_copy(update={"sample": config.sample.model_copy(update={"contrast": ("", "In short. " * 100)})})
    run = Run(long, Console(quiet=True))
    with pytest.raises(DataError, match="6 of 8 prompts leave no room for 6 of answer"):
        run.sample()
    assert not run.store.keys(config.run.name, "train")


def test_a_contrast_is_of_two() -> None:
    with pytest.raises(ConfigError, match="sample.contrast"):
        toml.load(None, ['sample.contrast=["In short."]'])
