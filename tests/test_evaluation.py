"""An evaluation is its settings: its number never mixes two."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rather.config import toml
from rather.config.schema import Config
from rather.core import Label, Task
from rather.pipeline import evaluation
from rather.pipeline import run as runs
from rather.pipeline.run import Run
from rather.report.report import Report

LONG = 'judge.panel=[{ name = "expert", utility = "thorough", temperature = 0.01 }]'
BRIEF = 'judge.panel=[{ name = "expert", utility = "brief", temperature = 0.01 }]'


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The settings of a run that has been trained."""
    folder = tmp_path_factory.mktemp("trained")
    for name, prompt in (("prompts", "question"), ("others", "something else")):
        rows = [{"prompt": f"{prompt} {i}?", "split": "held_out" if i % 2 else "train"} for i in range(8)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = [f"model.path={tiny}", "model.dtype=float32", f"run.folder={folder}", f"data.prompts={folder / 'prompts.jsonl'}"]
    found += ["sample.max_tokens=8", "train.batch_size=4", "train.lr=1e-2", "train.epochs=1"]
    opened(found).loop()
    return found


def opened(known: list[str], *changed: str) -> Run:
    return runs.Run(toml.load(None, [*known, *changed]), Console(quiet=True))


def evaluated(known: list[str], *changed: str) -> dict[str, Any]:
    run = opened(known, *changed)
    run.evaluate()
    (row,) = run.metrics.read("eval-0")
    return row


def test_every_evaluation_has_a_number_of_its_own(trained: list[str]) -> None:
    """Each is asked twice, with the others in between: what it says depends on its own settings alone."""
    others = f"data.prompts={trained[3].removeprefix('data.prompts=').replace('prompts.jsonl', 'others.jsonl')}"
    asked = [(BRIEF,), (LONG,), (BRIEF, "eval.prompts=2"), (BRIEF, "sample.max_tokens=3"), (BRIEF, "eval.answers=3"), (BRIEF, others)]
    first = [evaluated(trained, *changed) for changed in asked]
    assert [evaluated(trained, *changed) for changed in asked] == first
    assert len({row["evaluation"] for row in first}) == len(asked)
    assert [row["prompts"] for row in first] == [4, 4, 2, 4, 4, 4]
    assert len({row["win_rate"] for row in first}) > 1, "they do not all say the same"


def test_whoever_else_answers_on_the_page_does_not_count(trained: list[str]) -> None:
    row = evaluated(trained, BRIEF)
    run = opened(trained, BRIEF)
    run.store.add_judge("passer-by", "person")
    questions = run.store.questions("run", row["evaluation"])
    run.store.answer_all([Label(q.id, "passer-by", float(q.comparison.a[0].policy.endswith("start"))) for q in questions])
    assert evaluated(trained, BRIEF) == row
    assert f"{100 * row['win_rate']:.0f} %" in Report.of(run).html


def test_what_does_not_matter_is_the_same_evaluation(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(bytes(range(256)) * 1000)
    tasks = [Task("f", "0", "?")]

    def identity(*changed: str) -> str:
        return evaluation.identity(toml.load(None, list(changed)), "abc", (tmp_path / "model.gguf", None), tasks)

    first = identity()
    for changed in ("train.lr=1", "run.name=x", "sample.batch_size=3", "judge.wait_s=4", "log.wandb=x", "dpo.beta=3", "eval.prompts=3"):
        assert identity(changed) == first, changed
    for changed in (
        "judge.instruction=x",
        "judge.name=x",
        "eval.answers=2",
        "sample.top_k=3",
        "run.seed=1",
        "verify.checks=[{kind='number'}]",
    ):
        assert identity(changed) != first, changed
    adapted = tmp_path / "model.gguf", tmp_path / "adapter.safetensors"
    adapted[1].write_bytes(b"1")
    assert evaluation.identity(Config(), "abc", adapted, tasks) != first, "an adapter makes another base policy"
    assert evaluation.identity(Config(), "abd", (tmp_path / "model.gguf", None), tasks) != first
    assert evaluation.identity(Config(), "abc", (tmp_path / "model.gguf", None), [*tasks, Task("f", "1", "?")]) != first
    whole = bytearray((tmp_path / "model.gguf").read_bytes())
    (tmp_path / "other.gguf").write_bytes(whole)
    assert evaluation.identity(Config(), "abc", (tmp_path / "other.gguf", None), tasks) == first, "wherever it lies"
    whole[-1] ^= 1
    (tmp_path / "other.gguf").write_bytes(whole)
    assert evaluation.identity(Config(), "abc", (tmp_path / "other.gguf", None), tasks) != first


def test_a_simulated_reader_who_reads_otherwise_makes_another_evaluation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"1")

    def identity(utility: str) -> str:
        config = toml.load(None, [f'judge.panel=[{{ name = "x", utility = "{utility}" }}]'])
        return evaluation.identity(config, "abc", (tmp_path / "model.gguf", None), [])

    before = [identity("concise"), identity("brief")]
    monkeypatch.setattr("rather.judges.concise.USUAL", (-1.0, 1.0))
    assert identity("concise") != before[0]
    assert identity("brief") == before[1]
