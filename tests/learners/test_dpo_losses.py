"""The losses of DPO on a tiny random model: what they come to, which settings they take, and that some need no reference."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from test_learners import comparisons, gradient, policies
from trl_peer import another, losses, needs_trl

import rather
from fixed import fixed
from rather.core import Comparison
from rather.data.transfer import import_comparisons
from rather.errors import ConfigError
from rather.learners.common import Pairs
from rather.learners.dpo import DPO
from rather.learners.dpo import LOSSES as TABLE
from rather.learners.dpo_settings import LOSSES, DPOSettings
from rather.pipeline.run import Run
from rather.text.policy import TextPolicy

NEW = ["hinge", "robust", "simpo", "orpo"]
ROWS = [
    {"prompt": f"prompt {i} ", "chosen": "ab" * (1 + i % 3), "rejected": "b" * (2 + i % 4)} for i in range(5)
]  # fmt: skip


def test_every_loss_has_a_function() -> None:
    assert tuple(TABLE) == LOSSES


def made(tiny: Path, loss: str, asked: list[Comparison], steps: int = 1, seed: int = 0, **more: Any) -> tuple[DPO, list]:
    start, policy, parameters = policies(tiny, seed)
    reference = None if loss in ("simpo", "orpo") else start
    return DPO(policy, asked, reference, parameters, loss=loss, **fixed(steps, **more)), parameters


@pytest.mark.slow
@pytest.mark.parametrize("loss", NEW)
def test_a_loss_learns_what_is_preferred(tiny: Path, loss: str) -> None:
    learner, _ = made(tiny, loss, comparisons(64), 30, batch_size=8, lr=2e-2)
    for _ in range(30):
        measured = learner.step()
    assert learner.evaluate(comparisons(60, 100))["accuracy"] > 0.85
    assert ("log_ratio" in measured) == (loss in ("hinge", "robust"))


@pytest.mark.parametrize("loss", NEW)
def test_micro_batches_change_no_gradient_of_a_loss(tiny: Path, loss: str) -> None:
    asked = comparisons(12)
    asked[0] = replace(asked[0], preference=0.5, a=asked[0].a + asked[1].a)
    asked[1] = replace(asked[1], preference=0.7)
    found = []
    for micro in (10_000, 40):
        learner, parameters = made(tiny, loss, asked, batch_size=12, micro_batch_tokens=micro, max_grad_norm=1e9)
        with torch.no_grad():
            for p in parameters:
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
        found.append(gradient(learner, parameters))
    assert found[0].norm() > 1e-3
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("loss", NEW)
def test_swapped_sides_are_the_same_loss(tiny: Path, loss: str) -> None:
    asked = [replace(c, preference=p) for c, p in zip(comparisons(4), (1.0, 0.3, 0.5, 0.0), strict=True)]
    there, back = (made(tiny, loss, pairs, batch_size=4)[0].step()["loss"] for pairs in (asked, [c.swapped() for c in asked]))
    assert there == pytest.approx(back, abs=1e-5)


@pytest.mark.parametrize("loss", ["simpo", "orpo"])
def test_a_loss_without_reference_never_evaluates_one(tiny: Path, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start, policy, parameters = policies(tiny)
    evaluated, evaluate = list[TextPolicy](), TextPolicy.evaluate

    def noted(self: TextPolicy, batch: Any) -> Any:
        evaluated.append(self)
        return evaluate(self, batch)

    monkeypatch.setattr(TextPolicy, "evaluate", noted)
    learner = DPO(policy, comparisons(8), None, parameters, loss=loss, **fixed(1, 4))
    assert not evaluated, "nothing is scored beforehand"
    learner.follow(comparisons(10))
    learner.step()
    learner.evaluate([c for c in comparisons(4) if c.preference != 0.5])
    assert len(evaluated) == 2
    assert all(one is policy for one in evaluated)
    with pytest.raises(ConfigError, match=f"^DPO: the loss {loss} has no reference; leave reference out"):
        DPO(policy, comparisons(8), start, parameters, loss=loss)


def test_scores_without_reference_by_hand(tiny: Path) -> None:
    """SimPO: 2 x the mean log-probability, target margin 1; ORPO: the mean's log-odds, and the preferred sides' likelihood beside it."""
    asked = [replace(c, preference=p) for c, p in zip(comparisons(3, length=5), (1.0, 0.0, 0.5), strict=True)]
    asked[0] = replace(asked[0], a=(replace(asked[0].a[0], text="longer than the others"),))
    _, policy, _ = policies(tiny)
    pairs = Pairs.of(policy, asked)
    with torch.no_grad():
        logprobs = policy.evaluate(pairs.batch)[0].double()
    means = [float(row[: int(n)].sum() / n) for row, n in zip(logprobs, pairs.batch.mask.sum(-1), strict=True)]
    a, b = torch.tensor(means[0::2]), torch.tensor(means[1::2])
    h = 2 * (a - b)
    each = [torch.log1p((1 - h[0]).exp()), torch.log1p((1 + h[1]).exp())]
    each.append((torch.log1p((1 - h[2]).exp()) + torch.log1p((1 + h[2]).exp())) / 2)
    assert made(tiny, "simpo", asked, batch_size=3)[0].step()["loss"] == pytest.approx(float(sum(each) / 3), rel=1e-5)
    odds = a.exp() / (1 - a.exp()) / (b.exp() / (1 - b.exp()))
    ratios = [torch.log1p(1 / odds[0]), torch.log1p(odds[1]), (torch.log1p(1 / odds[2]) + torch.log1p(odds[2])) / 2]
    expected = -(a[0] + b[1]) / 3 + 0.1 * sum(ratios) / 3
    assert made(tiny, "orpo", asked, batch_size=3)[0].step()["loss"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "setting", "value"),
    [
        ("dpo", "flip_rate", 0.2), ("ipo", "simpo_gamma", 0.5), ("hinge", "simpo_beta", 2.5), ("simpo", "beta", 0.2),
        ("orpo", "sft_weight", 1.0), ("simpo", "reference_logprobs", "each"), ("robust", "normalized", True),
        ("module:name", "flip_rate", 0.2),
    ],
)  # fmt: skip
def test_a_setting_that_the_loss_does_not_use_is_refused(loss: str, setting: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^DPO: {setting}: it is of the loss .+, but the loss is {loss}; leave it at .+ \(got "):
        rather.DPO(None, [], loss=loss, **{setting: value})  # type: ignore[arg-type]
    assert DPOSettings.model_validate(DPOSettings(loss=loss).model_dump()).loss == loss, "its default may be said"


def test_a_loss_that_is_not_known_is_refused() -> None:
    with pytest.raises(ConfigError, match='loss: take "dpo", "ipo", "hinge", "robust", "simpo", "orpo", or "module:name" of a function'):
        rather.DPO(None, [], loss="slic", flip_rate=0.2)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", ["simpo", "robust"])
def test_a_run_with_another_loss_goes_on_exactly_and_learns_while_people_answer(loss: str, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(f'[model]\npath = "{tiny}"\ndtype = "float32"\nrank = 2\n[dpo]\nloss = "{loss}"\n')
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    known = {"run.folder": str(tmp_path), "train.batch_size": 2, "train.steps": 4, "train.checkpoint_every": 1, "train.lr": 1e-2}

    def weights(run: Run, last: Path) -> bytes:
        assert [row["step"] for row in run.metrics.read()] == [1, 2, 3, 4]
        return (last / "model/adapter_model.safetensors").read_bytes()

    run = Run(tmp_path / "run.toml", Console(quiet=True), **known)
    import_comparisons(run.store, "run", tmp_path / "pairs.jsonl")
    last = run.train()
    whole = weights(run, last)
    shutil.rmtree(last)
    again = Run(tmp_path / "run.toml", Console(quiet=True), **known)
    assert weights(again, again.train()) == whole
    live = Run(tmp_path / "run.toml", Console(quiet=True), **known | {"run.name": "live", "judge.kind": "people", "judge.wait_s": 0})
    import_comparisons(live.store, "live", tmp_path / "pairs.jsonl")
    assert weights(live, live.train()) != whole, "those that have been used least come first"


@pytest.mark.slow
@needs_trl
def test_losses_are_those_of_trl(tiny: Path, tmp_path: Path) -> None:
    """ORPO: the term of the odds ratio, since TRL's likelihood counts the prompt, too."""
    base = another(tiny, tmp_path / "reference")
    asked: dict[str, Any] = {
        "hinge": ["dpo", {"loss_type": ["hinge"], "beta": 0.5}],
        "robust": ["dpo", {"loss_type": ["robust"], "beta": 0.5, "label_smoothing": 0.2}],
        "simpo": ["cpo", {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0}],
        "orpo": ["orpo", {"beta": 0.1}],
        "orpo, more": ["orpo", {"beta": 1.1}],
    }
    theirs = losses(tiny, base, tmp_path / "out", ROWS, asked)
    model, reference = (rather.load(path, chat=False, dtype="float32", device="cpu") for path in (tiny, base))
    pairs = rather.comparisons(ROWS)

    def ours(loss: str, reference: Any = None, **more: Any) -> float:
        return rather.DPO(model, pairs, reference, loss=loss, batch_size=5, steps=1, **more).step()["loss"]

    assert ours("hinge", reference, beta=0.5) == pytest.approx(theirs["hinge"], rel=1e-5)
    assert ours("robust", reference, beta=0.5, flip_rate=0.2) == pytest.approx(theirs["robust"], rel=1e-5)
    assert ours("simpo") == pytest.approx(theirs["simpo"], rel=1e-5)
    assert ours("orpo", beta=1.1) - ours("orpo", beta=0.1) == pytest.approx(theirs["orpo, more"] - theirs["orpo"], rel=1e-4)
