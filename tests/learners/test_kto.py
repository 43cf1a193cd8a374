"""KTO on a tiny random model: its loss, its reference point, which labels it takes, and a run of labels from a file."""

import json
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from test_learners import comparisons, gradient, policies
from trl_peer import losses, needs_trl

import rather
from fixed import fixed
from rather import doctor
from rather.config import toml
from rather.core import UNUSED, Comparison, Label, Task, Trajectory
from rather.data.transfer import import_comparisons
from rather.errors import ConfigError, DataError, TrainingError
from rather.learners import checkpoint
from rather.learners.common import Order
from rather.learners.kto import KTO, judged, mismatched
from rather.losses import kto_loss
from rather.pipeline.run import Run
from rather.report.report import Report
from rather.store import Store

t = torch.tensor


def alone(key: str, text: str, good: float, prompt: str | None = None) -> Comparison:
    return Comparison((Trajectory(Task("f", key, prompt or f"prompt {key}"), "p", text),), (), good, key)


LABELS = [alone("1", "aaab", 1.0), alone("2", "bb", 0.0), alone("3", "ab", 0.8), *comparisons(3)]


def moved(parameters: list) -> None:
    """Another policy than the reference."""
    with torch.no_grad():
        for p in parameters:
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))


def test_loss_by_hand() -> None:
    # good, 1 above the reference point: 1 - sigmoid(1) = 0.268941; bad, 1 above: sigmoid(1) = 0.731059, which counts twice: mean 0.865529
    scores, good = t([1.5, 1.5], requires_grad=True), t([True, False])
    found = kto_loss(scores, good, 0.5, 1.0, 2.0)
    torch.testing.assert_close(found, t(0.865529), atol=1e-6, rtol=1e-5)
    # sigmoid'(1) = 0.196612: the good one's score should rise, the bad one's fall twice as fast
    torch.testing.assert_close(torch.autograd.grad(found, scores)[0], t([-0.098306, 0.196612]), atol=1e-6, rtol=1e-5)


def test_a_label_says_what_is_good() -> None:
    a, b = (Trajectory(Task("f", "1", "x"), "p", text) for text in "ab")
    assert judged(Comparison((a,), (), 0.7)) == [(a, True)]
    assert judged(Comparison((a,), (), 0.0)) == [(a, False)]
    assert judged(Comparison((a,), (b,), 0.2)) == [(a, False), (b, True)]
    assert judged(Comparison((a,), (b,), 0.5)) == []


def test_each_prompt_gets_the_nearest_answer_before_it_to_another_prompt(tiny: Path) -> None:
    _, policy, _ = policies(tiny)
    told = [("x", "abc"), ("x", "b"), ("yy", "cc"), ("zzz", "ddddd")]
    batch = policy.collate([Trajectory(Task("f", str(i), prompt), "p", text) for i, (prompt, text) in enumerate(told)])
    found = mismatched(batch)
    assert found is not None

    def words(row: int) -> tuple[str, str]:
        ids = [[int(n) for n in x[row] if n != UNUSED] for x in (found.observations, found.actions)]
        return tuple(policy.tokens.tokenizer.decode(x) for x in ids)  # type: ignore[return-value]

    asked = [policy.tokens.tokenizer.decode(policy.tokens.encode_prompt(prompt)) for prompt, _ in told]
    assert [words(i) for i in range(4)] == [(asked[0], "ddddd<end>"), (asked[1], "ddddd<end>"), (asked[2], "b<end>"), (asked[3], "cc<end>")]
    assert found.mask.sum(-1).tolist() == [6, 6, 2, 3]
    assert mismatched(batch.select(slice(0, 2))) is None, "all are to one prompt"
    long = policy.collate([Trajectory(Task("f", str(i), p), "p", text) for i, (p, text) in enumerate([("x" * 9, "a"), ("y", "bcdefg")])])
    cut = mismatched(long)
    assert cut is not None
    assert cut.mask.sum(-1).tolist() == [2, 2], "the longest row has so many more tokens than the prompt"
    assert (cut.actions[0] != UNUSED).sum() == 2


def test_the_loss_of_a_step_by_hand(tiny: Path) -> None:
    """From log-probabilities of the same rows one by one; ties are left out, a pair is a good and a bad answer."""
    start, policy, parameters = policies(tiny)
    moved(parameters)
    labels = [alone("1", "aaab", 1.0), alone("2", "bb", 0.2), alone("3", "b", 0.5), replace(comparisons(1)[0], preference=0.0)]
    how = fixed(1, 3, lr=1e-12)
    learner = KTO(policy, labels, start, parameters, **how, beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    order = [c for i in Order(3, 0).take(3) for c in [[labels[0], labels[1], labels[3]][i]]]

    def ratio(task: Task, answer: Trajectory) -> float:
        batch = policy.collate([replace(answer, task=task)])
        with torch.no_grad():
            return float((policy.evaluate(batch)[0] - start.evaluate(batch)[0]).sum())

    answers = [x for c in order for x in judged(c)]
    others = [next(o for o, _ in (answers[i - k] for k in (1, 2, 3)) if o.task.prompt != x.task.prompt) for i, (x, _) in enumerate(answers)]
    point = sum(ratio(x.task, o) for (x, _), o in zip(answers, others, strict=True)) / 4
    assert abs(point) > 0.01
    expected = 0.0
    for x, good in answers:
        gain = t(0.5 * (ratio(x.task, x) - max(point, 0)))
        expected += (2 if good else 3) * float(1 - torch.sigmoid(gain if good else -gain)) / 4
    found = learner.step()
    assert found["reference_point"] == pytest.approx(max(point, 0), abs=1e-5)
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_micro_batches_change_no_gradient_of_kto(tiny: Path) -> None:
    found = []
    for micro in (10_000, 40):
        start, policy, parameters = policies(tiny)
        moved(parameters)
        found.append(
            gradient(KTO(policy, LABELS, start, parameters, **fixed(1, 6, micro_batch_tokens=micro, max_grad_norm=1e9)), parameters)
        )
    assert found[0].norm() > 1e-4
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)


def test_it_learns_which_answers_are_good(tiny: Path) -> None:
    start, policy, parameters = policies(tiny)
    labels = [alone(str(i), "aaaa" if i % 2 else "bbbb", float(i % 2), f"prompt {i // 2}") for i in range(16)]
    learner = KTO(policy, labels, start, parameters, **fixed(8, 8, lr=3e-2))
    first = learner.step()
    assert first["loss"] == pytest.approx(0.5, abs=1e-4), "at the reference"
    for _ in range(7):
        last = learner.step()
    assert last["loss"] < 0.475
    assert last["score_good"] > last["score_bad"] + 0.2


@pytest.mark.parametrize(("good", "kind"), [(1.0, "good"), (0.0, "bad")])
def test_labels_of_one_kind_are_refused(good: float, kind: str) -> None:
    labels = [alone("1", "a", good), alone("2", "b", good), alone("3", "c", 0.5)]
    with pytest.raises(DataError, match=f"^all 2 labels say that an answer is {kind}; KTO needs good and bad ones, or pairs$"):
        rather.KTO(None, labels)  # type: ignore[arg-type]


def test_what_cannot_be_learned_from_is_refused(tiny: Path) -> None:
    model = rather.load(tiny, dtype="float32", device="cpu")
    with pytest.raises(TrainingError, match="^there is nothing to learn from; give at least one comparison that is no tie"):
        rather.KTO(model, [alone("1", "a", 0.5)])
    with pytest.raises(ConfigError, match="^KTO: batch_size is 1; set it to 2 or more"):
        rather.KTO(model, LABELS, batch_size=1)
    with pytest.raises(DataError, match="item 0 of comparisons has no preference; leave it out"):
        rather.KTO(model, [replace(LABELS[0], preference=None)])
    with pytest.raises(DataError, match="item 0 of comparisons has one side only; leave it out, or learn from it by KTO"):
        rather.DPO(model, LABELS)


def test_a_stopped_training_of_kto_goes_on_exactly(tiny: Path, tmp_path: Path) -> None:
    model = rather.load(tiny, dtype="float32", device="cpu")

    def made(folder: Path | None, stop: int = 0) -> KTO[Any]:
        return rather.KTO(model, LABELS, batch_size=3, steps=4, lr=1e-2, folder=folder, callbacks=[lambda step, values: step == stop])

    whole = made(None).train()
    made(tmp_path, stop=2).train()
    rest = made(tmp_path).train()
    assert rest.taken == 4
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, rest.parameters, strict=True))


@pytest.fixture
def run_of_file(tiny: Path, tmp_path: Path) -> Callable[..., Run]:
    """A run and a file as TRL's KTO reads it, with pairs in it, too."""
    rows = [{"prompt": f"question {i}?", "completion": "ab" * (i + 1), "label": i % 2 == 0} for i in range(6)]
    pairs = [{"prompt": f"question {i}?", "chosen": "aa", "rejected": "b" * i} for i in range(6, 8)]
    (tmp_path / "kto.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows + pairs))
    text = f"""
[model]
path = "{tiny}"
dtype = "float32"
rank = 2
[run]
folder = "{tmp_path}"
[train]
learner = "kto"
batch_size = 4
lr = 1e-2
checkpoint_every = 1
[kto]
beta = 0.2
"""
    (tmp_path / "run.toml").write_text(text)
    return lambda *changed: Run(toml.load(tmp_path / "run.toml", changed), Console(quiet=True))


def test_a_file_of_single_answers_is_learned_from(run_of_file: Callable[..., Run], rather: Callable[..., Any]) -> None:
    rather("import", "run.toml", "kto.jsonl")
    rather("train", "run.toml")
    run = run_of_file()
    last = checkpoint.check(checkpoint.every(run.checkpoints(0))[-1])
    assert last["step"] == 4, "two epochs of eight labels, four a step"
    assert len(last["labels"]) == 8
    assert last["settings"]["kto"]["beta"] == 0.2
    assert {row["phase"] for row in run.metrics.read()} == {"train-kto-0"}
    counted = rather("status", "run.toml").stdout
    assert "run: 8 questions" in counted
    assert re.search(r"import:kto.jsonl\W+file\W+8\b", counted)
    assert {"8 labels", "8 questions, 0 % of answers truncated at the limit"} <= {finding.text for finding in doctor.run(run)}
    assert Report.of(run).html.count("import:kto.jsonl") >= 1


def test_a_run_of_kto_goes_on_exactly_and_with_more_labels(run_of_file: Callable[..., Run], tmp_path: Path) -> None:
    import_comparisons(run_of_file().store, "run", tmp_path / "kto.jsonl")
    run_of_file("train.steps=4").train()
    expected = [row["loss"] for row in run_of_file().metrics.read()]
    weights = (checkpoint.every(run_of_file().checkpoints(0))[-1] / "model/adapter_model.safetensors").read_bytes()
    shutil.rmtree(checkpoint.every(run_of_file().checkpoints(0))[-1])
    again = run_of_file("train.steps=4")
    again.train()
    assert [row["loss"] for row in again.metrics.read()] == expected
    assert (checkpoint.every(again.checkpoints(0))[-1] / "model/adapter_model.safetensors").read_bytes() == weights
    again.store.add_judge("ann", "person")
    (number,) = again.store.ask("run", [alone("new", "aab", 1.0)], "unpaired")
    again.store.answer(Label(number, "ann", 1.0, shown="a"))
    more = run_of_file("train.steps=5")
    more.train()
    last = checkpoint.check(checkpoint.every(more.checkpoints(0))[-1])
    assert (last["step"], len(last["labels"])) == (5, 9)


def test_while_people_answer_it_waits_for_good_and_bad_answers(run_of_file: Callable[..., Run]) -> None:
    run = run_of_file("run.name=live", "judge.kind=people", "train.epochs=1", "train.batch_size=2")
    asked = run.store.ask("live", [alone(f"{i}", "ab" * (i + 1), 1.0) for i in range(4)], "unpaired")
    run.store.add_judge("ann", "person")
    run.store.answer(Label(asked[0], "ann", 1.0, shown="a"))

    def answer() -> None:
        store = Store(run.config.store)
        for number, good in zip(asked[1:], (1.0, 0.0, 0.0), strict=True):
            time.sleep(0.2)
            store.answer(Label(number, "ann", good, shown="a"))
        store.close()

    person = threading.Thread(target=answer)
    person.start()
    last = run.train()
    person.join()
    assert checkpoint.check(last)["labels"] == [label.id for label in run.store.labels("live", "unpaired")]
    assert checkpoint.check(last)["step"] == 2


def test_a_live_run_whose_answers_are_all_good_is_refused(run_of_file: Callable[..., Run]) -> None:
    run = run_of_file("run.name=live", "judge.kind=people", "judge.wait_s=0")
    asked = run.store.ask("live", [alone(f"{i}", "ab" * (i + 1), 1.0) for i in range(2)], "unpaired")
    run.store.add_judge("ann", "person")
    run.store.answer_all([Label(number, "ann", 1.0, shown="a") for number in asked])
    with pytest.raises(DataError, match="^all 2 labels say that an answer is good"):
        run.train()


@pytest.mark.slow
@needs_trl
def test_the_loss_is_that_of_trl(tiny: Path, tmp_path: Path) -> None:
    """TRL gets the rows in our order, which it does not shuffle; once the reference point is above 0, once held at 0."""
    rows = [{"prompt": f"prompt {i} ", "completion": "ab" * (1 + i % 3), "label": i % 2 == 0} for i in range(5)]
    model, labels, settings = rather.load(tiny, chat=False, dtype="float32", device="cpu"), rather.comparisons(rows), {"beta": 0.5}
    settings |= {"desirable_weight": 1.5, "undesirable_weight": 2.0}
    likes = rather.SFT(model, rows, adapter="full", steps=5, lr=1e-3).train().policy
    likes.save(tmp_path / "likes")
    for policy, reference, where, other in ((likes, model, tmp_path / "likes", tiny), (model, likes, tiny, tmp_path / "likes")):
        ours = rather.KTO(policy, labels, reference, batch_size=5, steps=1, **settings).step()  # type: ignore[arg-type]
        assert (ours["reference_point"] > 0.1) == (policy is likes)
        theirs = losses(where, other, tmp_path / "out", [rows[i] for i in Order(5, 0).take(5)], {"kto": ["kto", settings]})
        assert ours["loss"] == pytest.approx(theirs["kto"], rel=1e-5)
