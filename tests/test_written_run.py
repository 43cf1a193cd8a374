"""A run whose people write better answers: it learns from them, and waits for nobody because of them."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from rather.config import toml
from rather.core import Label
from rather.errors import TrainingError
from rather.pipeline.run import Run
from rather.store.better import write
from rather.store.quality import Asking

SETTINGS = """
[run]
name = "tiny"
store = "{folder}/store.db"
folder = "{folder}/runs"
[model]
path = "{model}"
dtype = "float32"
rank = 4
[data]
prompts = "{folder}/prompts.jsonl"
held_out = 0.0
[sample]
max_tokens = 12
[judge]
kind = "people"
wait_s = 600
[train]
learner = "{learner}"
batch_size = 4
epochs = 1
[reward]
held_out = 0.0
"""


def run_of(folder: Path, tiny: Path, learner: str) -> Run:
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(4)))
    (folder / "run.toml").write_text(SETTINGS.format(folder=folder, model=tiny, learner=learner))
    return Run(toml.load(folder / "run.toml", []), Console(quiet=True))


@pytest.mark.parametrize(("learner", "items"), [("dpo", 12), ("reward", 16), ("sft", 12)])
def test_it_learns_two_pairs_and_does_not_wait(tiny: Path, tmp_path: Path, learner: str, items: int) -> None:
    run = run_of(tmp_path, tiny, learner)
    run.sample()
    run.store.set_asking("tiny", Asking(overlap=2))
    asked = [q.id for q in run.store.questions("tiny")]
    for name in ("ann", "ben"):
        run.store.add_judge(name, "person")
    for number in asked:
        write(run.store, Label(number, "ann", 0.5), f"a better answer {number}")
    assert run.answering.wanted("train") == 4, "ben's answers to what was sampled"
    for number in asked:
        run.store.answer(Label(number, "ben", 0.5))
    assert run.answering.wanted("train") == 0
    answered = run.labels(0, learner)
    assert len(answered.comparisons) == items, "a reward model sees each answer, others the mean of those to two sides"
    own = [c for c in answered.comparisons if c.a[0].policy == "person"]
    assert [c.preference for c in own] == [1.0] * 8
    run.train(0)
    rows = [row for row in run.metrics.read() if row["phase"].startswith(f"train-{learner}") or row["phase"].startswith("train-")]
    assert rows
    learned = run.learner(0, learner, answered, 1)
    if learner == "sft":
        assert sorted(t.text for t in learned.trajectories) == sorted(f"a better answer {number}" for number in asked)
    run.store.close()


def test_answers_to_a_later_round_belong_to_that_round(tiny: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, tiny, "dpo")
    run.sample()
    run.store.add_judge("ann", "person")
    first = run.store.questions("tiny")[0]
    (later,) = run.store.ask("tiny", [run.question("round-1/x", first.comparison.a, first.comparison.b)])
    write(run.store, Label(later, "ann", 0.5), "better")
    assert run.labels(0, "dpo").comparisons == []
    assert len(run.labels(1, "dpo").comparisons) == 3
    run.store.close()


def test_what_is_said_of_one_alone_teaches_no_learner_of_comparisons(tiny: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, tiny, "dpo")
    run.store.add_judge("ann", "person")
    (tmp_path / "alone.jsonl").write_text('{"prompt": "p", "completion": "x", "label": true}\n')
    from rather.data.transfer import import_comparisons

    import_comparisons(run.store, "tiny", tmp_path / "alone.jsonl")
    with pytest.raises(TrainingError, match="labels of single answers are learned from by kto alone"):
        run.train(0)
    run.store.close()
