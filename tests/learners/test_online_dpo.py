"""Online DPO with a judge, on a tiny random model."""

import json
import math
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from test_online_reward import Likes

import rather
from rather.core import Comparison
from rather.errors import CheckpointError, ConfigError
from rather.learners.dpo_settings import LOSSES
from rather.text.language_model import LanguageModel

PEER = Path(__file__).parent.parent.parent / ".venv-bench/bin/python"
PROMPTS = [f"say {c}" for c in "abcdef"]
SHORT: dict[str, Any] = {"batch_size": 2, "max_tokens": 6, "lr": 1e-2, "adapter": rather.LoRA(rank=4)}


@pytest.fixture(scope="module")
def model(tiny: Path) -> LanguageModel:
    return rather.load(tiny, dtype="float32", device="cpu")


def online(model: LanguageModel, judge: Any = None, labels: int = 8, **more: Any) -> rather.OnlineDPO:
    return rather.OnlineDPO(model, PROMPTS, judge or Likes(), labels, **{**SHORT, **more})


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters, b.parameters, strict=True))


def test_with_one_update_each_step_is_a_step_of_dpo_on_its_own_pairs(model: LanguageModel) -> None:
    """The steps of DPO on the same comparisons in the same order; the first loss is log 2, the policy being the reference."""
    judge = Likes()
    learner = online(model, judge)
    values = [learner.step() for _ in range(4)]
    assert learner.steps == 4, "two labels a step"
    assert values[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert values[1]["loss"] != pytest.approx(0.693147, abs=1e-4)
    assert [v["comparisons"] for v in values] == [2, 4, 6, 8]
    dpo = rather.DPO(model, learner.comparisons[:2], steps=4, **{k: v for k, v in SHORT.items() if k != "max_tokens"})
    for i in range(4):
        dpo.follow(learner.comparisons[2 * i : 2 * i + 2])
        assert dpo.step()["loss"] == pytest.approx(values[i]["loss"], abs=1e-6)
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(dpo.parameters, learner.parameters, strict=True))
    assert len({a.task.key for c in judge.asked for a in c.a}) == 6, "the prompts are taken in turn"


def test_the_loss_is_that_of_the_equation(model: LanguageModel) -> None:
    """-log sigmoid(beta (log pi/pi_ref of the preferred answer - that of the other)), a tie half of each; the squared loss beside it."""
    for loss, beta in (("dpo", 0.3), ("ipo", 0.5)):
        learner = online(model, Likes(lambda n: 0.5 if n == 3 else ""), loss=loss, beta=beta)
        learner.step()
        after = learner.model.weights()  # type: ignore[attr-defined]
        before = {name: value.clone() for name, value in after.items()}
        value = learner.step()["loss"]
        with torch.no_grad():
            for name, p in after.items():
                p.copy_(before[name])
            ratios = [
                [
                    float(learner.model.evaluate(b)[0].sum() - learner.reference.evaluate(b)[0].sum())
                    for b in (learner.model.collate(side) for side in (c.a, c.b))
                ]
                for c in learner.comparisons[2:]
            ]
        expected = 0.0
        for (a, b), c in zip(ratios, learner.comparisons[2:], strict=True):
            d, p = torch.tensor(a - b), c.preference
            assert p is not None
            up, down = (-torch.nn.functional.logsigmoid(beta * s * d) if loss == "dpo" else (s * d - 0.5 / beta) ** 2 for s in (1, -1))
            expected += float(p * up + (1 - p) * down) / 2
        assert value == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not PEER.exists(), reason="no TRL: `make bench` installs it")
@pytest.mark.parametrize(("loss", "name"), [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_loss_and_gradient_are_those_of_trl(model: LanguageModel, tiny: Path, tmp_path: Path, loss: str, name: str) -> None:
    learner = online(model, Likes(lambda n: float(n % 3 == 0)), loss=loss, beta=0.2, adapter="full", lr=3e-3, max_grad_norm=1e9)
    learner.step()
    learner.policy.save(tmp_path / "policy")
    values = learner.step()
    pairs = [
        {
            "prompt": c.a[0].observations.tolist(),  # type: ignore[union-attr]
            "a": c.a[0].actions.tolist(),  # type: ignore[union-attr]
            "b": c.b[0].actions.tolist(),  # type: ignore[union-attr]
            "preference": c.preference,
        }
        for c in learner.comparisons[2:]
    ]
    given = {"policy": str(tmp_path / "policy"), "reference": str(tiny), "pairs": pairs, "beta": 0.2, "loss": name}
    script = Path(__file__).parent / "trl_online_dpo.py"
    done = subprocess.run([PEER, script], input=json.dumps(given), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert values["loss"] == pytest.approx(found["loss"], rel=1e-4)
    assert values["grad_norm"] == pytest.approx(found["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_of_dpo_learns(model: LanguageModel, loss: str) -> None:
    """A loss without reference is given none, which DPO would refuse."""
    learner = online(model, loss=loss)
    before = [p.clone() for p in learner.parameters]
    assert all(math.isfinite(learner.step()["loss"]) for _ in range(2))
    assert not all(torch.equal(x, y) for x, y in zip(before, learner.parameters, strict=True))


def test_further_updates_learn_from_what_has_been_used_least(model: LanguageModel) -> None:
    learner = online(model, updates=2)
    for i in range(4):
        assert learner.step()["tokens"] > 0
        uses = Counter(learner.dpo.order.place.values())  # type: ignore[union-attr]
        assert sum(n * count for n, count in uses.items()) == 4 * (i + 1)
        assert min(uses) >= 1
        assert max(uses) <= 2 + (i == 3), "the first update is on the new pairs, the second on pairs that have been used once"
    assert learner.dpo.stepper.steps == 8  # type: ignore[union-attr]


def test_abstentions_and_answers_that_are_alike_make_no_pair(model: LanguageModel) -> None:
    silent = online(model, Likes(lambda n: None if n < 2 else ""))
    before = [p.clone() for p in silent.parameters]
    values = silent.step()
    assert values == {"answers": 0, "ties": 0, "unanswered": 2, "comparisons": 0}
    assert all(torch.equal(a, b) for a, b in zip(before, silent.parameters, strict=True))
    assert silent.step()["comparisons"] == 2
    judge = Likes()
    alike = online(model, judge, temperature=1e-5)
    assert alike.step()["comparisons"] == 0
    assert judge.asked == []
    with pytest.raises(ConfigError, match="^OnlineDPO: temperature is 0, at which all answers to a prompt are the same"):
        online(model, judge, temperature=0.0)


def test_when_the_labels_are_used_up_it_goes_on_without_asking(model: LanguageModel) -> None:
    judge = Likes()
    learner = online(model, judge, labels=3, steps=4)
    values = [learner.step() for _ in range(4)]
    assert [v["answers"] for v in values] == [2, 1, 0, 0]
    assert len(judge.asked) == 3
    assert sum(learner.dpo.order.place.values()) == 8, "an older pair fills the second step"  # type: ignore[union-attr]


def test_of_several_answers_the_head_chooses_two(model: LanguageModel) -> None:
    judge = Likes()
    learner = online(model, judge, answers=4, strategy="bald", head=rather.RewardHead(model, layers=[1, 2]))
    for i in range(2):
        assert learner.step()["comparisons"] == 2 * (i + 1)
    assert learner.questions.head is not None
    assert len(learner.questions.head.learned.posterior.answers.z) == 4
    drawn = online(model, judge, answers=4)
    assert drawn.step()["comparisons"] == 2


@pytest.mark.parametrize("more", [{"updates": 2}, {"answers": 3, "strategy": "double_thompson", "head": True}], ids=["updates", "head"])
def test_a_stopped_online_training_goes_on_exactly(model: LanguageModel, tmp_path: Path, more: dict[str, Any]) -> None:
    def made(judge: Likes, folder: Path | None, stop: int = 0) -> rather.OnlineDPO:
        own = {"head": rather.RewardHead(model, layers=[1, 2])} if "head" in more else {}
        return online(model, judge, folder=folder, callbacks=[lambda step, metrics: step == stop], **{**more, **own})

    def judge() -> Likes:
        return Likes(lambda n: None if n == 1 else "")

    once, first, second = judge(), judge(), Likes()
    whole = made(once, None).train()
    made(first, tmp_path, stop=2).train()
    rest = made(second, tmp_path).train()
    assert same(whole, rest)
    texts = [[(c.key, c.a[0].text, c.b[0].text) for c in some] for some in (once.asked, [*first.asked, *second.asked])]
    assert texts[0] == texts[1]
    assert [c.preference for c in whole.comparisons] == [c.preference for c in rest.comparisons]


def test_it_is_evaluated_by_the_judge(model: LanguageModel) -> None:
    judge = Likes(lambda n: 0.5)
    assert online(model, judge).evaluate(PROMPTS) == {"win_rate": 0.5}
    assert {t.policy for c in judge.asked for t in (*c.a, *c.b)} == {"policy", "base"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_the_policy_learns_to_please(model: LanguageModel, seed: int) -> None:
    def letters(policy: LanguageModel) -> float:
        said = policy.generate(PROMPTS * 8, max_tokens=6, seed=5)
        return sum(x.isalpha() for text in said for x in text) / len(said)

    shape: dict[str, Any] = {"batch_size": 4, "max_tokens": 6, "lr": 1e-2, "adapter": "full", "schedule": "constant"}
    learner = rather.OnlineDPO(model, PROMPTS, Likes(), 80, updates=2, seed=seed, **shape).train()
    assert letters(learner.policy) > letters(model) + 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 2}, "OnlineDPO has no argument 'epochs'; give steps"),
        ({"reference_logprobs": "once"}, "OnlineDPO has no argument 'reference_logprobs'"),
        ({"answers": 1}, "answers is 1 and updates 1"),
        ({"updates": 0}, "answers is 2 and updates 0"),
        ({"strategy": "bald"}, "the strategy 'bald' goes by what a reward head believes"),
        ({"head": 3}, "head is 3; give a rather.RewardHead"),
        ({"beta": -1}, "OnlineDPO: beta"),
        ({"betta": 1}, "OnlineDPO has no argument"),
    ],
)
def test_wrong_arguments(model: LanguageModel, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        online(model, **wrong)


def test_comparisons_keep_the_tokens_that_were_drawn(model: LanguageModel) -> None:
    learner = online(model)
    learner.step()
    learner.load_state_dict(json.loads(json.dumps(learner.state_dict(), default=lambda x: None)) | {"dpo": None})
    (c, _) = learner.comparisons
    assert isinstance(c, Comparison)
    assert c.a[0].actions is not None
    assert torch.from_numpy(c.a[0].actions).dtype == torch.int64


def test_a_policy_that_has_gone_too_far_is_taken_back(model: LanguageModel, tmp_path: Path) -> None:
    """Where the KL of the answers is k times the bound, what was learned is multiplied by k^(-1/2)."""
    free, bound = online(model, lr=3e-2, updates=3), 0.001
    held = online(model, lr=3e-2, updates=3, kl_bound=bound)
    first = held.step()
    assert (first["kl_token"], first["taken_back"]) == (0.0, 0.0), "it begins at the reference"
    free.step()
    assert same(free, held)
    start = [p.detach().clone() for p in online(model).parameters]
    before = [p.detach().clone() for p in held.parameters]
    answers = held.sampler.sample([held.prompts[i] for i in held.order.at(2, 2) for _ in range(2)], held.done)
    now = held.model.collate(answers)
    with torch.no_grad():
        r = held.reference.evaluate(now)[0] - now.logprobs
    kl = float(((r.exp() - 1 - r) * now.mask).sum() / now.mask.sum())
    assert kl > 2 * bound
    second = held._hold(answers, bound)
    assert second["kl_token"] == pytest.approx(kl, rel=1e-4)
    share = math.sqrt(bound / (kl / 2))  # half of it is that of the first step, 0
    assert second["taken_back"] == pytest.approx(1 - share, rel=1e-4)
    for p, was, began in zip(held.parameters, before, start, strict=True):
        assert torch.allclose(p, began + share * (was - began), atol=1e-6)
    near, far = (online(model, lr=1e-2, updates=3, kl_bound=b, labels=16, seed=1).train() for b in (0.0005, 100.0))
    moved = [sum(float((p.detach() - s).norm()) for p, s in zip(x.parameters, x.start, strict=True)) for x in (near, far)]
    assert moved[0] < 0.8 * moved[1]
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="give nats a token above 0"):
            online(model, kl_bound=wrong)
    with pytest.raises(ConfigError, match="leave out the reference, or the bound"):
        online(model, kl_bound=1.0, reference=online(model, lr=3e-2).train().policy)


def test_with_a_bound_it_goes_on_exactly(model: LanguageModel, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"lr": 3e-2, "updates": 2, "kl_bound": 0.02, "labels": 6, "steps": 6, "checkpoint_every": 1}
    whole = online(model, folder=tmp_path / "whole", **shape).train()
    online(model, folder=tmp_path / "parts", callbacks=[lambda step, values: step == 3], **shape).train()
    assert same(online(model, folder=tmp_path / "parts", **shape).train(), whole)
    assert 0 < whole.kl <= 0.02 * 1.001, "it ends within the bound"
    with pytest.raises(CheckpointError, match="kl_bound"):
        online(model, folder=tmp_path / "parts", **{**shape, "kl_bound": None, "steps": 7}).train()
    assert same(online(model, **{**shape, "kl_bound": 1e9}).train(), online(model, **{**shape, "kl_bound": None}).train())
