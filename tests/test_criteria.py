"""Criteria in a run: which names are taken, and that what is learned is the one that train.criterion names."""

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from rather.config import toml
from rather.core import Comparison, Label, Task, Trajectory
from rather.errors import CheckpointError, ConfigError, TrainingError
from rather.learners import checkpoint
from rather.learners.common import Pairs
from rather.pipeline.run import Run
from rather.store import Store

PEOPLE = "judge.kind=people"


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ('["helpful", "Helpful"]', "judge.criteria has the name 'Helpful', which is hard to tell from 'helpful'; take another one"),
        ('["straße", "STRASSE"]', "judge.criteria has the name 'STRASSE', which is hard to tell from 'straße'; take another one"),
        ('["Overall"]', "judge.criteria has the name 'Overall', which is what is asked last; take another one"),
        ('["a", "b", "c", "d", "e", "f", "g"]', "judge.criteria has 7 names; a question is asked on at most 6"),
        ('[""]', "judge.criteria has the name ''; give 1 to 40 characters that can be seen, without spaces around"),
        ('["  "]', "judge.criteria has the name '  '; give 1 to 40 characters that can be seen, without spaces around"),
        ('["a "]', "judge.criteria has the name 'a '; give 1 to 40 characters that can be seen, without spaces around"),
        ('["a\\u200bb"]', "judge.criteria has the name 'a\\u200bb'; give 1 to 40 characters that can be seen, without spaces around"),
        (f'["{41 * "a"}"]', f"judge.criteria has the name '{41 * 'a'}'; give 1 to 40 characters that can be seen, without spaces around"),
    ],
)
def test_names_that_cannot_be_told_apart_or_shown_are_refused(names: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}$"):
        toml.load(None, [PEOPLE, f"judge.criteria={names}"])


def test_names_as_people_write_them_are_taken_as_they_are() -> None:
    names = ["hilfreich & ehrlich", "有帮助", "مفيد", f"{40 * 'x'}", "C++", "100 %"]
    for kind in ("people", "terminal"):
        assert toml.load(None, [f"judge.kind={kind}", f"judge.criteria={names}"]).judge.criteria == names


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ([], 'only people answer on judge.criteria, and judge.kind is "panel"; set it to "people" or "terminal", or give no criteria'),
        (
            [PEOPLE, "train.learner=zeroth", "zeroth.best_of=4"],
            "judge.criteria compares two sides, and zeroth.best_of is 4; set that to 2, or give no criteria",
        ),
        (
            [PEOPLE, "train.learner=grpo", "train.criterion=helpful"],
            'grpo has no reward from labels: leave train.criterion empty, or set train.reward to "labels"',
        ),
    ],
)
def test_criteria_that_nobody_would_be_asked_for_are_refused(changed: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}$"):
        toml.load(None, ["judge.criteria=['helpful']", *changed])


# Learning


def pairs(count: int, seed: int) -> list[Comparison]:
    """Answers of a's and b's; the preference is for more a's."""
    chance, found = torch.Generator().manual_seed(seed), []
    for i in range(count):
        task = Task("f", str(i), f"prompt {i % 5}")
        words = ["".join("a" if x < q else "b" for x in torch.rand(8, generator=chance)) for q in torch.rand(2, generator=chance)]
        counts = [w.count("a") for w in words]
        if counts[0] != counts[1]:
            sides = [(Trajectory(task, "p", w),) for w in words]
            found.append(Comparison(*sides, preference=float(counts[0] > counts[1]), key=f"{seed}-{i}"))
    return found


@pytest.fixture
def base(tiny: Path, tmp_path: Path) -> list[str]:
    """Settings of a run whose people have answered: on "as" one thing, on "bs" the opposite, on the whole that it is a tie."""
    store = Store(str(tmp_path / "store.db"))
    store.add_judge("ann", "person")
    asked = pairs(110, 0)
    said = [Label(n, "ann", 0.5, criteria={"as": c.preference or 0.0, "bs": 1 - (c.preference or 0.0)})
            for n, c in zip(store.ask("run", asked), asked, strict=True)]  # fmt: skip
    store.answer_all(said)
    store.close()
    return [
        f"model.path={tiny}", "model.dtype=float32", "model.rank=8", "model.alpha=16", f"run.store={tmp_path}/store.db", "train.steps=25",
        "train.batch_size=16", "train.lr=2e-2", "train.checkpoint_every=25", "train.schedule=constant", "judge.wait_s=0",
    ]  # fmt: skip


def go(base: list[str], folder: Path, *changed: str) -> Run:
    return Run(toml.load(None, [*base, f"run.folder={folder}", *changed]), Console(quiet=True))


def likes(run: Run) -> float:
    """Of pairs that were not learned from, the share whose side with more a's the policy prefers."""
    policy, start = run.policy(1), run.domain.base_policy
    unseen = Pairs.of(policy, pairs(80, 100))
    with torch.no_grad():
        ratios = policy.evaluate(unseen.batch)[0].sum(-1) - start.evaluate(unseen.batch)[0].sum(-1)
    a, b = unseen.scores(ratios)
    return ((a > b) == (unseen.preference > 0.5)).float().mean().item()


@pytest.mark.slow
def test_dpo_learns_opposite_things_from_criteria_that_contradict_each_other(base: list[str], tmp_path: Path) -> None:
    for name in ("as", "bs"):
        go(base, tmp_path / name, f"train.criterion={name}").train()
    more, less = (likes(go(base, tmp_path / name, f"train.criterion={name}")) for name in ("as", "bs"))
    assert more > 0.8
    assert less < 0.2


@pytest.mark.slow
def test_dpo_learns_from_people_who_are_still_answering_by_their_criterion(base: list[str], tmp_path: Path) -> None:
    go(base, tmp_path, PEOPLE, "judge.criteria=['as', 'bs']", "train.criterion=bs").train()
    assert likes(go(base, tmp_path, "train.criterion=bs")) < 0.2


@pytest.mark.slow
def test_a_reward_model_is_learnt_and_measured_on_its_criterion(base: list[str], tmp_path: Path) -> None:
    run = go(base, tmp_path, "train.learner=reward", "train.criterion=bs", "reward.held_out=0.3")
    run.train()
    (row,) = run.metrics.read("reward-eval")
    assert row["accuracy"] > 0.85
    other = checkpoint.every(run.checkpoints(0))[-1] / "manifest.json"
    assert '"criterion": "bs"' in other.read_text()


@pytest.mark.slow
def test_another_criterion_is_another_training(base: list[str], tmp_path: Path) -> None:
    go(base, tmp_path, "train.criterion=as", "train.steps=1").train()
    for command in ("train", "sample", "loop"):
        with pytest.raises(CheckpointError, match=r"train\.criterion"):
            getattr(go(base, tmp_path, "train.criterion=bs", "train.steps=1"), command)()


@pytest.mark.parametrize("command", ["train", "sample", "label", "loop"])
def test_a_criterion_that_there_is_nothing_on_is_refused_before_any_work(base: list[str], tmp_path: Path, command: str) -> None:
    run = go([*base, "model.path=nowhere"], tmp_path, PEOPLE, "judge.criteria=['helpful']", "train.criterion=helpfull")
    sentence = (
        "train.criterion is 'helpfull', but the criteria are helpful, as, bs; name one of them, add it to judge.criteria, or leave it empty"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}$"):
        getattr(run, command)()


def test_a_nudge_learns_from_what_it_asks_alone(base: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train.criterion is 'as', but the criteria are none"):
        go(base, tmp_path, "train.learner=zeroth", "train.criterion=as").train()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["people", "terminal"])
@pytest.mark.parametrize("learner", ["dpo", "sft", "reward"])
def test_where_no_answer_says_anything_on_it_there_is_one_sentence(base: list[str], tmp_path: Path, kind: str, learner: str) -> None:
    run = go(base, tmp_path, f"judge.kind={kind}", f"train.learner={learner}", "judge.criteria=['brave']", "train.criterion=brave")
    sentence = "there is nothing to learn from: no answer that counts says anything on 'brave', which train.criterion names"
    with pytest.raises(TrainingError, match=f"^{sentence}$"):
        run.train()


NUDGE = """
[run]
name = "grid"
[control]
env = "rather/GridWorld-v0"
hidden = []
normalize = false
[judge]
kind = "people"
criteria = ["more", "less"]
[train]
learner = "zeroth"
steps = 1
[query]
episodes = 50
[zeroth]
answers = 60
directions = 6
side = 2
mu = 1.0
lr = 1.0
check_every = 0
names = ["net.layers.0"]
"""


def answer(store: Store, stop: threading.Event) -> None:
    """Answer whatever is asked: on the whole a tie, on "more" what was paid more, on "less" the opposite."""
    while not stop.is_set():
        for q in store.questions("grid", "train", unanswered_by="ann"):
            a, b = (sum(float(t.rewards.sum()) for t in side) for side in q.comparison.sides)  # type: ignore[union-attr]
            better = 0.5 if a == b else float(a > b)
            store.answer(Label(q.id, "ann", 0.5, criteria={"more": better, "less": 1 - better}))
        time.sleep(0.05)


def moved(folder: Path, criterion: str) -> dict[str, Any]:
    """Where one update with answers on that criterion leads to."""
    folder.mkdir()
    (folder / "run.toml").write_text(NUDGE)
    run = Run(toml.load(folder / "run.toml", [f"run.folder={folder}", f"train.criterion={criterion}"]), Console(quiet=True))
    run.store.add_judge("ann", "person")
    stop = threading.Event()
    thread = threading.Thread(target=answer, args=(run.store, stop))
    thread.start()
    try:
        last = run.train()
    finally:
        stop.set()
        thread.join()
    return load_file(last / "learner.safetensors")


def test_a_nudge_goes_where_its_criterion_leads(tmp_path: Path) -> None:
    more, less = (moved(tmp_path / name, name) for name in ("more", "less"))
    assert more.keys() == less.keys()
    assert float(more[".numbers.0"].abs().max()) > 0
    assert torch.equal(more[".numbers.0"], -less[".numbers.0"])


# Export


def test_one_criterion_is_exported_to_be_learnt_elsewhere(
    base: list[str], tmp_path: Path, rather: Callable[..., CompletedProcess[str]]
) -> None:
    (tmp_path / "run.toml").write_text(f'[run]\nstore = "{tmp_path}/store.db"\n')
    for name, better in (("as", 1), ("bs", 0)):
        done = rather("export", "run.toml", f"{name}.jsonl", "--form", "trl", "--criterion", name)
        assert "rows in" in done.stdout
        rows = [toml.json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert rows
        assert {int(r["chosen"].count("a") > r["rejected"].count("a")) for r in rows} == {better}
    done = rather("export", "run.toml", "x.jsonl", "--criterion", "as", code=2)
    assert "the form all has every criterion in its column criteria" in " ".join(done.stderr.split())
    done = rather("export", "run.toml", "x.jsonl", "--form", "trl", "--criterion", "cs", code=2)
    assert "no answer says anything on 'cs'; the criteria in the store are as, bs" in " ".join(done.stderr.split())
    assert not (tmp_path / "x.jsonl").exists()
