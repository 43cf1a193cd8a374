"""`import rather` from a program: language models, comparisons, and the learners over them."""

import json
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import rather
from rather.core import Comparison, Task, Trajectory
from rather.errors import CheckpointError, ConfigError, DataError, JudgeError, ModelError, RatherError, TrainingError
from rather.learners.dpo_settings import DPOOptions, DPOSettings
from rather.learners.grpo_settings import GRPOOptions, GRPOSettings
from rather.learners.kto_settings import KTOOptions, KTOSettings
from rather.learners.ppo_settings import PPOOptions, PPOSettings
from rather.learners.reward_settings import RewardOptions, RewardSettings
from rather.learners.settings import Optimization, OptimizationOptions, Sampling, SamplingOptions
from rather.learners.zeroth_settings import ZerothOptions, ZerothSettings
from rather.losses import bradley_terry_loss
from rather.text.language_model import LanguageModel
from rather.zeroth.order import IN_RUNS

ROWS = [{"prompt": f"q {i}", "chosen": "a" * (3 + i % 3), "rejected": "b" * (3 + i % 2)} for i in range(16)]
QUICK: dict[str, Any] = {"lr": 1e-2, "batch_size": 4, "adapter": rather.LoRA(rank=4)}


@pytest.fixture(scope="module")
def model(tiny: Path) -> LanguageModel:
    return rather.load(tiny, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def pairs() -> list[Comparison]:
    return rather.comparisons(ROWS)


def logprobs(policy: LanguageModel, comparisons: list[Comparison]) -> torch.Tensor:
    with torch.no_grad():
        return policy.evaluate(policy.collate([t for c in comparisons for t in (*c.a, *c.b)]))[0]


def weights(policy: LanguageModel) -> list[torch.Tensor]:
    return [p.clone() for p in policy.weights().values()]  # type: ignore[attr-defined]


def test_importing_rather_loads_nothing_heavy() -> None:
    code = """
import sys, time
start = time.process_time()
import rather
seconds = time.process_time() - start
assert set(rather.__all__) <= set(dir(rather)), dir(rather)
heavy = {"torch", "numpy", "pydantic", "transformers", "sqlalchemy", "rich"} & set(sys.modules)
assert not heavy, heavy
assert seconds < 0.3, seconds
rather.comparisons, rather.LoRA
assert "torch" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_public_name_is_there_and_another_one_is_not() -> None:
    for name in rather.__all__:
        assert getattr(rather, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'DPOTrainer'"):
        _ = rather.DPOTrainer  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "sections"),
    [
        (OptimizationOptions, [Optimization]),
        (SamplingOptions, [Sampling]),
        (DPOOptions, [DPOSettings, Optimization]),
        (KTOOptions, [KTOSettings, Optimization]),
        (RewardOptions, [RewardSettings, Optimization]),
        (PPOOptions, [PPOSettings, Optimization, Sampling]),
        (GRPOOptions, [GRPOSettings, Optimization, Sampling]),
        (ZerothOptions, [ZerothSettings, Sampling]),
    ],
)
def test_keyword_arguments_are_the_settings(options: Any, sections: list[Any]) -> None:
    """`loss` is an argument of DPO by itself, since it may be a function, too, and `answers` one of ZerothOrder."""
    without = {"loss"} if options is DPOOptions else {"answers", *IN_RUNS} if options is ZerothOptions else set()
    fields = {name: field.annotation for section in sections for name, field in section.model_fields.items() if name not in without}
    assert typing.get_type_hints(options) == fields
    assert sum(len(s.model_fields) for s in sections) == len({n for s in sections for n in s.model_fields}), "no name means two things"


def test_the_same_seed_gives_the_same_answers(model: LanguageModel) -> None:
    prompts = ["Name a fruit.", [{"role": "user", "content": "Hello"}]]
    first = model.generate(prompts, max_tokens=8, temperature=0.7, seed=3)
    assert first == model.generate(prompts, max_tokens=8, temperature=0.7, seed=3)
    assert first != model.generate(prompts, max_tokens=8, temperature=0.7, seed=4)
    assert [type(x) for x in first] == [str, str]
    assert all(len(x) <= 8 for x in first)
    assert model.generate(["x"], max_tokens=4, temperature=0) == model.generate(["x"], max_tokens=4, top_k=1, seed=9)


def test_dpo_learns_and_leaves_the_model_as_it_was(model: LanguageModel, pairs: list[Comparison], tmp_path: Path) -> None:
    before, seen = logprobs(model, pairs), []
    dpo = rather.DPO(model, pairs[:12], beta=0.1, epochs=5, callbacks=[lambda step, metrics: seen.append((step, metrics["loss"]))], **QUICK)
    assert dpo.train() is dpo
    assert [step for step, _ in seen] == list(range(1, 16)), "5 epochs of 12 pairs, 4 a step"
    assert seen[0][1] == pytest.approx(0.6931, abs=1e-3)
    assert dpo.evaluate(pairs[12:])["accuracy"] == 1
    assert torch.equal(logprobs(model, pairs), before)
    assert not torch.allclose(logprobs(dpo.policy, pairs), before, atol=0.1)
    dpo.policy.save(tmp_path / "adapter")
    again = rather.load(model.model.description["_name_or_path"], adapter=tmp_path / "adapter", dtype="float32", device="cpu")  # type: ignore[attr-defined]
    assert torch.equal(logprobs(again, pairs), logprobs(dpo.policy, pairs))
    assert torch.equal(logprobs(rather.load(tmp_path / "adapter", dtype="float32", device="cpu"), pairs), logprobs(again, pairs))
    dpo.policy.merge(tmp_path / "merged")
    merged = rather.load(str(tmp_path / "merged"), dtype="float32", device="cpu")
    torch.testing.assert_close(logprobs(merged, pairs), logprobs(again, pairs), atol=1e-4, rtol=1e-4)
    assert not [path for path in tmp_path.iterdir() if path.name not in ("adapter", "merged")]


def test_an_adapter_is_trained_on_in_a_copy_which_begins_as_it_is(model: LanguageModel, pairs: list[Comparison]) -> None:
    first = rather.SFT(model, [{"prompt": "q", "completion": "zz"}] * 4, steps=3, lr=1e-2, batch_size=4).train().policy
    before = logprobs(first, pairs)
    dpo = rather.DPO(first, pairs, steps=2, lr=1e-2)
    assert torch.equal(logprobs(dpo.policy, pairs), before)
    assert dpo.step()["loss"] == pytest.approx(0.6931, abs=1e-4)
    dpo.step()
    assert torch.equal(logprobs(first, pairs), before)
    assert not torch.equal(logprobs(dpo.policy, pairs), before)
    with pytest.raises(ConfigError, match="the model has an adapter"):
        rather.DPO(first, pairs, adapter=rather.LoRA())
    full = rather.DPO(first, pairs, adapter="full", steps=2, lr=1e-3).train().policy
    torch.testing.assert_close(logprobs(first, pairs), before)
    assert full.adapter is None


@pytest.mark.parametrize("learner", ["dpo", "simpo", "reward", "grpo"])
def test_a_stopped_training_goes_on_exactly(model: LanguageModel, pairs: list[Comparison], tmp_path: Path, learner: str) -> None:
    def made(folder: Path | None, stop: int = 0) -> Any:
        more: dict[str, Any] = {"callbacks": [lambda step, metrics: step == stop], "folder": folder, "seed": 1, "steps": 5, "lr": 1e-2}
        if learner in ("dpo", "simpo"):
            return rather.DPO(model, pairs, batch_size=4, loss=learner, **more)
        if learner == "grpo":
            shape = {"group_size": 2, "batch_size": 2, "max_tokens": 4, "temperature": 0.8}
            return rather.GRPO(model, ["a", "b", "c"], reward=lambda completion: completion.count("a") + len(completion), **shape, **more)
        reward = rather.RewardModel(model, members=2, seed=1)
        from rather.learners.reward import Reward

        return Reward(reward, pairs, reward.trained, batch_size=4, **more)

    held_out = None if learner == "grpo" else pairs[:4]
    whole = made(None).train(held_out)
    assert made(tmp_path, stop=2).train(held_out).taken == 2
    rest = made(tmp_path)
    assert [m for m in rest] and rest.taken == 5  # noqa: C416, PT018
    for a, b in zip(whole.parameters, rest.parameters, strict=True):
        assert torch.equal(a, b)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    if learner == "dpo":
        with pytest.raises(CheckpointError, match="was trained with dpo.beta = 0.1, not 0.2; set it back, or train into another folder"):
            rather.DPO(model, pairs, batch_size=4, beta=0.2, seed=1, steps=9, lr=1e-2, folder=tmp_path).train()
        with pytest.raises(CheckpointError, match="was trained with data.comparisons"):
            rather.DPO(model, pairs[1:], batch_size=4, seed=1, steps=9, lr=1e-2, folder=tmp_path).train()


def test_what_a_stopped_training_was_is_in_its_checkpoint(model: LanguageModel, pairs: list[Comparison], tmp_path: Path) -> None:
    def dpo(**changed: Any) -> Any:
        return rather.DPO(model, pairs, steps=2, folder=tmp_path / "dpo", callbacks=[lambda step, values: step == 1], **changed)

    def acting(learner: Any, reward: Any) -> Any:
        few = {"rollout_batch_size": 2} if learner is rather.PPO else {"batch_size": 1, "group_size": 2}
        stop = [lambda step, values: step == 1]
        return learner(model, ["a", "b"], reward, max_tokens=2, steps=2, folder=tmp_path / learner.name, callbacks=stop, **few)

    head = rather.RewardHead(model).fit(pairs)
    asking = rather.OnlineReward(rather.RewardHead(model), lambda prompt, a, b: "a")
    dpo().train()
    for changed, differs in (
        ({"seed": 3}, "learner.seed = 0, not 3"),
        ({"loss": bradley_terry_loss}, "learner.loss = 'dpo', not 'bradley_terry_loss'"),
    ):
        with pytest.raises(CheckpointError, match=f"was trained with {differs}; set it back"):
            dpo(**changed).train()
    with pytest.raises(CheckpointError, match="was trained with learner.name = 'dpo', not 'kto'; set it back"):
        rather.KTO(model, pairs, steps=2, folder=tmp_path / "dpo").train()
    for learner in (rather.PPO, rather.GRPO):
        acting(learner, lambda completion: float(len(completion))).train()
        for other in (head, asking):
            differs = f"learner.reward = 'function', not '{type(other).__name__}'"
            with pytest.raises(CheckpointError, match=f"was trained with {differs}; set it back"):
                acting(learner, other).train()
        assert acting(learner, lambda completion: 1.0).train().taken == 2, "another function may be a better one"


def test_an_older_checkpoint_goes_on(model: LanguageModel, pairs: list[Comparison], tmp_path: Path) -> None:
    rather.DPO(model, pairs, steps=2, folder=tmp_path, callbacks=[lambda step, values: step == 1]).train()
    path = tmp_path / "step-000001" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["settings"]["learner"], manifest["settings"]["dpo"]["sft_weight"]  # which came later
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="was trained with dpo.sft_weight = 0.0, not 1.0"):
        rather.DPO(model, pairs, steps=2, folder=tmp_path, sft_weight=1.0).train()
    with pytest.raises(CheckpointError, match="was trained with kto.beta = None, not 0.1"):
        rather.KTO(model, pairs, steps=2, folder=tmp_path).train()
    assert rather.DPO(model, pairs, steps=2, folder=tmp_path).train().taken == 2


def test_early_stopping_keeps_the_best_weights(model: LanguageModel, pairs: list[Comparison], tmp_path: Path) -> None:
    """The held-out pairs prefer the opposite: what comes before the first step is best, and of what is measured the first."""
    opposite = [Comparison(c.a, c.b, 1 - (c.preference or 0), c.key) for c in pairs[12:]]
    kept: list[tuple[float, list[torch.Tensor]]] = []

    def note(step: int, metrics: dict[str, float]) -> None:
        kept.append((metrics["eval_accuracy"], weights(dpo.policy)))

    for folder in (None, tmp_path):
        kept.clear()
        dpo = rather.DPO(model, pairs[:12], epochs=20, callbacks=[note], folder=folder, **QUICK)
        dpo.train(eval=opposite, patience=3, eval_every=1)
        accuracies = [accuracy for accuracy, _ in kept]
        best = accuracies.index(max(accuracies))
        assert dpo.taken == len(kept) == best + 4 < dpo.steps
        assert all(torch.equal(a, b) for a, b in zip(kept[best][1], weights(dpo.policy), strict=True))
    again = rather.DPO(model, pairs[:12], epochs=20, folder=tmp_path, **QUICK)
    again.train(eval=opposite, patience=3, eval_every=1)
    assert again.taken == dpo.taken, "it was over"
    assert all(torch.equal(a, b) for a, b in zip(weights(again.policy), weights(dpo.policy), strict=True))


def test_a_loss_of_ones_own(model: LanguageModel, pairs: list[Comparison]) -> None:
    named = rather.DPO(model, pairs, steps=3, **QUICK)
    own = rather.DPO(model, pairs, steps=3, loss=bradley_terry_loss, **QUICK)
    each = rather.DPO(model, pairs, steps=3, loss=lambda a, b, p: torch.nn.functional.softplus(torch.where(p > 0.5, b - a, a - b)), **QUICK)
    elsewhere = rather.DPO(model, pairs, steps=3, loss="rather.losses:bradley_terry_loss", **QUICK)
    for _ in range(3):
        loss = named.step()["loss"]
        assert elsewhere.step()["loss"] == loss
        assert own.step()["loss"] == loss
        assert each.step()["loss"] == pytest.approx(loss, abs=1e-5)
    with pytest.raises(TrainingError, match=r"given as loss returned a float for 4 pairs; return a tensor of shape \(\) or \(4,\)"):
        rather.DPO(model, pairs, loss=lambda a, b, p: 0.5, **QUICK).step()  # type: ignore[arg-type, return-value]


def test_a_reward_model_scores_and_comes_back(model: LanguageModel, pairs: list[Comparison], tmp_path: Path) -> None:
    reward = rather.RewardModel(model, members=3, adapter=rather.LoRA(rank=4)).fit(pairs, eval=pairs[:4], lr=1e-2, epochs=4)
    good, bad = reward.score("q 1", ["aaaa", "bbb"])
    assert good > bad + 0.5
    reward.save(tmp_path / "reward")
    for base in (None, model):
        again = rather.RewardModel.load(tmp_path / "reward", base)
        assert again.members == 3
        assert again.score("q 1", ["aaaa", "bbb"]) == pytest.approx([good, bad], abs=0.1 if base is None else 1e-6)  # bfloat16, perhaps
    with pytest.raises(ModelError, match="holds no reward model"):
        rather.RewardModel.load(tmp_path)
    ppo = rather.PPO(model, ["a", "b", "c", "d"], reward=reward, rollout_batch_size=4, batch_size=4, steps=2, max_tokens=4, temperature=0.7)
    assert ppo.policy.temperature == 0.7
    assert model.temperature == 1
    found = list(ppo)
    assert len(found) == 2
    assert found[0]["kl"] == pytest.approx(0, abs=1e-3), "the reference is the model itself, at the same temperature"


def test_grpo_is_paid_by_functions_of_the_row(model: LanguageModel) -> None:
    """Letters that are wanted are likelier afterwards; the column comes with its row, weights count, and None is left out."""
    seen = set()

    def letter(prompt: str, completion: str, wanted: str) -> float | None:
        seen.add((prompt, wanted))
        return None if prompt == "x 3" else sum(c in wanted for c in completion) / 6

    async def brief(completion: str) -> float:
        return -float(len(completion))

    @rather.batched
    def longer(completion: list[str], **columns: list[Any]) -> list[float]:
        return [float(len(c)) for c in completion]

    rows = [{"prompt": f"x {i}", "wanted": "abcdefghijklm"} for i in range(4)]
    shape: dict[str, Any] = {"group_size": 8, "batch_size": 4, "max_tokens": 6, "lr": 3e-2, "schedule": "constant"}
    grpo = rather.GRPO(model, rows, reward=[letter, (brief, 0.0), (longer, 0.0)], steps=10, adapter="full", **shape)
    scores = [m["score"] for m in grpo]
    assert seen == {(f"x {i}", "abcdefghijklm") for i in range(4)}
    assert sum(scores[-3:]) > sum(scores[:3]) + 0.5
    assert grpo.evaluate(rows)["score"] > 0.3
    with pytest.raises(ConfigError, match="reward is or holds 'good'; give a reward model, a function"):
        rather.GRPO(model, rows, reward="good")


def test_sft_takes_rows_of_several_forms(model: LanguageModel, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "abab"}]
    rows = [{"prompt": "q", "completion": "abab"}, {"messages": talk}, {"prompt": "q", "response": "abab"}]
    sft = rather.SFT(model, rows, steps=30, lr=2e-2, adapter="full")
    assert len({(str(t.task.prompt), t.text) for t in sft.trajectories}) == 2
    before = sft.evaluate(sft.trajectories)["loss"]
    (tmp_path / "held_out.jsonl").write_text('{"prompt": "q", "completion": "abab"}\n')
    sft.train(eval=tmp_path / "held_out.jsonl", patience=5)
    assert sft.evaluate(sft.trajectories)["loss"] < before / 2
    assert sft.policy.generate(["q"], temperature=0, max_tokens=4) == ["abab"]


class Dataset:
    """What is iterated over and has a length, as `datasets.Dataset` does."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(ROWS)


def test_comparisons_come_from_rows_files_and_data_sets(pairs: list[Comparison], tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def said(found: list[Comparison]) -> list[Any]:
        return [(c.a[0].text, c.b[0].text, c.preference, c.a[0].task.prompt) for c in found]

    assert said(rather.comparisons(path)) == said(rather.comparisons(str(path))) == said(rather.comparisons(Dataset())) == said(pairs)
    assert {c.preference for c in pairs} == {0.0, 1.0}, "which side is a was drawn"
    with pytest.raises(DataError, match="item 1 of rows has 'prompt', 'chosen'; needed are prompt, chosen, rejected"):
        rather.comparisons([ROWS[0], {"prompt": "x", "chosen": "y"}])


@pytest.mark.parametrize("space", ["steering", "lora"])
def test_zeroth_order_goes_where_a_judge_wants_it(model: LanguageModel, space: Any, tmp_path: Path) -> None:
    """With one answer on a side prompt, a and b are words; what is asked adds up to the answers there are."""
    asked = []

    def judge(prompt: str, a: str, b: str) -> str:
        asked.append(prompt)
        return "a" if sorted(a) < sorted(b) else "b"

    prompts, shape = [f"x {i}" for i in range(6)], {"max_tokens": 12, "side": 1, "directions": 4, "mu": 2.0}
    before = model.generate(prompts, max_tokens=12, seed=1)
    zeroth = rather.ZerothOrder(model, prompts, judge=judge, answers=10, space=space, seed=1, folder=tmp_path, **shape)
    assert [m["answers"] for m in zeroth] == [4, 4, 2]
    assert set(asked) <= set(prompts)
    assert 0 < len(asked) <= 10
    assert model.generate(prompts, max_tokens=12, seed=1) == before
    assert any(p.abs().max() > 0 for p in zeroth.parameters)
    again = rather.ZerothOrder(model, prompts, judge=judge, answers=10, space=space, seed=1, folder=tmp_path, **shape).train()
    assert all(torch.equal(a, b) for a, b in zip(zeroth.parameters, again.parameters, strict=True))
    with pytest.raises(ConfigError, match="ZerothOrder has no argument 'direction'; did you mean directions?"):
        rather.ZerothOrder(model, prompts, judge=judge, direction=4)  # type: ignore[call-arg]


@pytest.mark.parametrize("space", ["steering", "low_rank"])
def test_zeroth_order_is_evaluated_on_held_out_prompts(model: LanguageModel, space: Any) -> None:
    """Against the base policy, ties as half; early stopping puts the best numbers back, and the policy acts from them."""
    prompts, shape = [f"x {i}" for i in range(6)], {"max_tokens": 12, "side": 1, "directions": 4, "mu": 2.0}

    def make(judge: Any, **more: Any) -> rather.ZerothOrder:
        return rather.ZerothOrder(model, prompts, judge, answers=16, space=space, seed=1, **shape, **more)

    held_out = [f"y {i}" for i in range(8)]
    fresh = make(lambda prompt, a, b: float(a > b))
    rate = fresh.evaluate(held_out)["win_rate"]
    against = make(lambda prompt, a, b: float(a < b)).evaluate(held_out)["win_rate"]
    assert rate + against == 1, "the other side wins"
    assert make(lambda prompt, a, b: "tie").evaluate(held_out) == {"win_rate": 0.5}
    assert 0 < make(lambda prompt, a, b: "a").evaluate(held_out)["win_rate"] < 1, "the first side is either's"
    assert make(lambda prompt, a, b: 1 / 0, temperature=0.0).evaluate(held_out) == {"win_rate": 0.5}, "equal answers ask nobody"
    with pytest.raises(JudgeError, match="abstains from all 8 pairs"):
        make(lambda prompt, a, b: None).evaluate(held_out)
    found: list[tuple[float, list[torch.Tensor]]] = []
    zeroth = make(lambda prompt, a, b: float(a > b), lr=5.0, callbacks=[lambda step, m: found.append((m["eval_win_rate"], copied()))])

    def copied() -> list[torch.Tensor]:
        return [p.detach().clone() for p in zeroth.parameters]

    zeroth.train(held_out, patience=4, eval_every=1)
    best = max(range(len(found)), key=lambda i: found[i][0])
    assert len(found) == 4
    assert all(torch.equal(a, b) for a, b in zip(zeroth.parameters, found[best][1], strict=True))
    assert zeroth.evaluate(held_out)["win_rate"] == found[best][0]


def test_a_win_rate_has_its_interval(model: LanguageModel, pairs: list[Comparison]) -> None:
    sft = rather.SFT(model, [{"prompt": "q", "completion": "aaaa"}] * 4, steps=30, lr=2e-2, batch_size=4, adapter="full").train()
    rate = rather.win_rate(sft.policy, model, ["q"] * 12, lambda prompt, a, b: float(a.count("a") > b.count("a")), max_tokens=6)
    assert rate.count == 12
    assert rate.mean > 0.8
    assert rate.low < rate.mean <= rate.high
    same = rather.win_rate(model, model, ["q"] * 12, lambda prompt, a, b: "a", max_tokens=6)
    assert 0.1 < same.mean < 0.9, "the first side is either's"
    with pytest.raises(ConfigError, match="^judge is 'me'; give a function"):
        rather.win_rate(model, model, ["q"], "me")


T = Trajectory(Task("f", "1", "x"), "p", "y")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda m, p: rather.DPO(m, p, bata=1), "^DPO has no argument 'bata'; did you mean beta?"),
        (lambda m, p: rather.DPO(m, p, normalised=True), "^DPO: the argument normalised is called normalized now"),
        (lambda m, p: rather.PPO(m, ["x"], len, answers=4), "^PPO: the argument answers is called rollout_batch_size now"),
        (lambda m, p: rather.GRPO(m, ["x"], len, size=4), "^GRPO: the argument size is called group_size now"),
        (lambda m, p: rather.ZerothOrder(m, ["x"], len, size=4), "^ZerothOrder: the argument size is called components now"),
        (lambda m, p: rather.DPO(m, p, beta=-1), r"^DPO: beta: input should be greater than 0 \(got -1\)"),
        (lambda m, p: rather.DPO(m, p, loss="slic"), '^DPO: loss: take "dpo", .*, "orpo", or "module:name" of a function'),
        (lambda m, p: rather.DPO(m, p, adapter=16), r"^adapter is 16; give rather.LoRA\(rank=16\)"),
        (lambda m, p: rather.DPO(m, p, adapter=rather.LoRA(rank=0)), "^LoRA: rank is 0; set it to a whole number above 0"),
        (lambda m, p: rather.DPO("model", p), "^the policy is a str, not a model; rather.load reads one"),
        (lambda m, p: rather.DPO(m, ROWS), "^item 0 of comparisons is a dict, not a Comparison; rather.comparisons makes them"),
        (lambda m, p: rather.DPO(m, [Comparison((T,), (T,))]), "^item 0 of comparisons has no preference"),
        (lambda m, p: rather.DPO(m, p).train(patience=2), "^patience is 2, but there is no eval"),
        (lambda m, p: rather.DPO(m, p).train(eval=[]), "^eval is empty"),
        (lambda m, p: rather.GRPO(m, p, group_size=1), "^GRPO: group_size: input should be greater than or equal to 2"),
        (lambda m, p: rather.GRPO(m, ["x"], len, temperature=0), "^GRPO: temperature is 0, at which all answers of a group are the same"),
        (lambda m, p: rather.GRPO(m, ["x"], len, gold=3), "^gold is 3; give a function of an answer, a Trajectory, that returns a number"),
        (lambda m, p: rather.GRPO(m, 3), "^prompts is a int; give a list of prompts"),
        (lambda m, p: rather.PPO(m, [3]), "^item 0 of prompts: the prompt 3 is neither text nor a list of messages"),
        (lambda m, p: rather.SFT(m, [{"prompt": "x"}]), "^item 0 of rows has 'prompt'; needed are prompt and completion"),
        (lambda m, p: rather.RewardModel(m, members=0), "^RewardModel: members is 0"),
        (lambda m, p: rather.RewardModel(m).score("q", "a"), "^answers is one text; give a list"),
        (lambda m, p: m.generate("one"), "^prompts is one text; give a list"),
        (lambda m, p: m.generate(["one"], temprature=1), "^generate has no argument 'temprature'; did you mean temperature?"),
        (lambda m, p: rather.load("/no/where"), "^there is no model at /no/where"),
        (lambda m, p: rather.load("/no/where", dtype="int4"), "^load: dtype is 'int4'"),
        (lambda m, p: rather.load(m.model.description["_name_or_path"], date="today"), "^date is 'today'; write it as 2026-11-29"),
        (
            lambda m, p: rather.DPO(m, []),
            "^there is nothing to learn from; give at least one comparison that is no tie, one answer, or one",
        ),
        (
            lambda m, p: rather.GRPO(m, [], float),
            "^there is nothing to learn from; give at least one comparison that is no tie, one answer",
        ),
        (lambda m, p: rather.ZerothOrder(m, [], float), "^ZerothOrder: prompts is empty"),
        (lambda m, p: rather.GRPO(m, ["x"]), "^there is no reward, and answers to prompts bring none; give a reward model, a function"),
        (lambda m, p: rather.PPO(m, ["x"]), "^there is no reward, and answers to prompts bring none; give a reward model, a function"),
        (lambda m, p: rather.GRPO(m, ["x"], [(float, float("nan"))]), "^the weight of a reward function is nan; give a finite number"),
        (lambda m, p: rather.DPO(m, p, loss=3), r"^DPO: loss is 3; give its name, or a function of \(score_a, score_b, preference\)"),
        (lambda m, p: rather.DPO(m, p, callbacks=print), r"^callbacks is <built-in function print>; give a list of functions of \(step"),
        (lambda m, p: rather.DPO(m, p, callbacks=[3]), r"^callbacks is \[3\]; give a list of functions of \(step, metrics\)"),
        (lambda m, p: rather.DPO(m, p).train(p, eval_every=-1), "^eval_every is -1; give a number of steps"),
        (lambda m, p: rather.LoRA(rank=2.5), "^LoRA: rank is 2.5; set it to a whole number above 0"),  # type: ignore[arg-type]
        (lambda m, p: rather.LoRA(alpha="8"), "^LoRA: alpha is '8'; set it above 0"),  # type: ignore[arg-type]
        (lambda m, p: rather.RewardHead("model"), "^the model is a str, not a model; rather.load reads one"),  # type: ignore[arg-type]
        (lambda m, p: rather.BestOf(m, float, n=1.5), "^BestOf: n is 1.5; draw 1 answer or more"),  # type: ignore[arg-type]
        (lambda m, p: rather.OnlineDPO(m, ["x"], float, labels=1.5), "^OnlineDPO: labels is 1.5 and a_step None; give at least 1"),
        (lambda m, p: rather.OnlineDPO(m, ["x"], float, answers=2.5), "^OnlineDPO: answers is 2.5 and updates 1; give at least 2"),
        (
            lambda m, p: rather.ZerothOrder(m, ["x"], float, contrasts=[["Be brief."]]),
            "^ZerothOrder: contrasts.0",
        ),
        (lambda m, p: rather.DPO(m, p, seed="a"), "^seed is 'a'; give a whole number of 0 or more"),  # type: ignore[arg-type]
        (lambda m, p: rather.KTO(m, p, seed=-1), "^seed is -1; give a whole number"),
        (lambda m, p: rather.ZerothOrder(m, ["x"], float, seed=1.5), "^seed is 1.5; give a whole number"),  # type: ignore[arg-type]
        (lambda m, p: rather.DPO(m, p, reference="x"), "^the reference is a str, not a model"),  # type: ignore[arg-type]
        (lambda m, p: rather.KTO(m, p, reference=3), "^the reference is a int, not a model"),  # type: ignore[arg-type]
        (lambda m, p: rather.DPO(m, p, folder=__file__), "^folder is '.*', which is a file; name a folder"),
        (lambda m, p: rather.win_rate(rather.DPO(m, p), m, ["x"], float), "^win_rate: policy is a DPO; give a model or a BestOf"),
    ],
)
def test_bad_input_is_one_sentence(model: LanguageModel, pairs: list[Comparison], wrong: Any, message: str) -> None:
    with pytest.raises(RatherError, match=message) as e:
        wrong(model, pairs)
    assert "\n" not in str(e.value)


def test_no_answers_have_no_scores(model: LanguageModel, pairs: list[Comparison]) -> None:
    for reward in (rather.RewardModel(model), rather.RewardHead(model).fit(pairs)):
        assert reward.score("q", []) == []
