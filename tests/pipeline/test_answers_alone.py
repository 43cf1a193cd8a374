"""`query.answers = 1`: a run asks of each answer whether it is good, and KTO learns from what people say."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest
from rich.console import Console

from rather.config import toml
from rather.core import Label
from rather.errors import ConfigError
from rather.learners import checkpoint
from rather.pipeline import build
from rather.pipeline.run import Run
from rather.store.asking import next_question

ALONE = ["query.answers=1", "train.learner=kto", "judge.kind=people", "judge.wait_s=0"]


@pytest.fixture
def settings(tiny: Path, tmp_path: Path) -> list[str]:
    rows = [{"prompt": f"question {i}?", "split": "held_out" if i < 2 else "train"} for i in range(6)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return [
        f"model.path={tiny}", "model.dtype=float32", "model.rank=2", f"run.folder={tmp_path}", f"data.prompts={tmp_path}/prompts.jsonl",
        "sample.max_tokens=6", "train.batch_size=2", "train.steps=2",
    ]  # fmt: skip


def go(known: list[str], *changed: str) -> Run:
    return Run(toml.load(None, [*known, *changed]), Console(quiet=True))


def test_each_answer_is_a_question_which_people_get_and_kto_learns_from(settings: list[str]) -> None:
    run = go([*settings, *ALONE])
    assert build.instruction(run.config).startswith("Is this answer good")
    assert build.instruction(go([*settings, *ALONE], "judge.instruction=Is it kind?").config) == "Is it kind?"
    assert build.instruction(go(settings).config).startswith("Which answer is better")
    assert run.sample() == 4
    assert run.sample() == 0, "they are there"
    asked = run.store.questions("run", "unpaired")
    assert [q.comparison.a[0].task.prompt for q in asked] == [f"question {i}?" for i in range(2, 6)]
    assert all(q.comparison.b == () and q.comparison.key.startswith("round-0/") for q in asked)
    assert not run.store.questions("run", "train")
    assert run.answering.wanted("unpaired", 0) == 4
    run.store.add_judge("ann", "person")
    for i in range(4):
        question = next_question(run.store, "run", "ann", i)
        assert question is not None
        run.store.answer(Label(question.id, "ann", float(i % 2), shown="a"))
    assert checkpoint.check(run.train())["labels"] == [label.id for label in run.store.labels("run", "unpaired")]
    pairs = go(settings, "query.answers=2", "train.learner=kto")
    assert pairs.sample() == 0, "a round that was asked stays as it is"


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ("train.learner=dpo", "which train.learner = 'dpo' does not learn from; take \"kto\", or 2 answers"),
        ("judge.kind=panel", 'which judge.kind = \'panel\' does not say; take "people" or "terminal", or 2 answers'),
        ('sample.contrast=["", "Be brief."]', "and sample.contrast draws two that differ; leave one of them out"),
    ],
)
def test_what_does_not_go_with_one_answer_is_refused(settings: list[str], changed: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^query.answers = 1 asks whether an answer is good, {sentence}$"):
        go([*settings, *ALONE], changed)
    with pytest.raises(ConfigError, match="chooses two of several answers; set query.answers to 3 or more"):
        go([*settings, *ALONE], "query.strategy=double_thompson")


@pytest.mark.slow
def test_a_person_at_the_terminal(settings: list[str], tmp_path: Path, rather: Callable[..., Any]) -> None:
    (tmp_path / "run.toml").write_text("")
    known = [*settings, "query.answers=1", "train.learner=kto", "judge.kind=terminal"]
    assert "4 new questions; 4 in all. Next: rather label run.toml" in rather("sample", "run.toml", *known).stdout
    command = ["-m", "rather", "label", "run.toml", *known]
    child = pexpect.spawn(sys.executable, command, cwd=tmp_path, timeout=60, encoding="utf-8", env={**os.environ, "TERM": "dumb"})
    child.expect("Is this answer good: helpful, correct and clear")
    for i, key in enumerate("1212"):
        child.expect(f"question {i + 1} of 4")
        child.expect("1 good  2 bad")
        time.sleep(0.7)  # what is said within half a second is not learned from
        child.send(key)
    child.expect("4 new answers")
    child.expect(pexpect.EOF)
    assert [label.preference for label in go(known).store.labels("run", "unpaired")] == [1.0, 0.0, 1.0, 0.0]
    assert "kto-0/step-000002" in rather("train", "run.toml", *known).stdout.replace("\n", "")
