"""Each learner on a tiny random model: identities, micro-batches, and that it learns, over three seeds."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fixed import fixed
from rather.core import Comparison, Task, Trajectory
from rather.errors import TrainingError
from rather.learners.common import WITHOUT_GRADIENT, Order, Pairs, Stepper, parts
from rather.learners.dpo import DPO
from rather.learners.reward import Reward
from rather.learners.settings import Optimization
from rather.learners.sft import SFT
from rather.text import load
from rather.text.linear import Linear
from rather.text.policy import TextPolicy, pack_batch
from rather.text.reward_model import RewardModel
from rather.text.transformer import Transformer

CPU = torch.device("cpu")


def comparisons(n: int, seed: int = 0, length: int = 8) -> list[Comparison]:
    """Answers of a's and b's; the one with more a's is preferred."""
    chance = torch.Generator().manual_seed(seed)
    found = []
    for i in range(n):
        task = Task("f", str(i), f"prompt {i % 5}")
        p = torch.rand(2, generator=chance)
        words = ["".join("a" if x < q else "b" for x in torch.rand(length, generator=chance)) for q in p]
        counts = [w.count("a") for w in words]
        preference = 0.5 if counts[0] == counts[1] else float(counts[0] > counts[1])
        sides = [(Trajectory(task, "p", w),) for w in words]
        found.append(Comparison(*sides, preference=preference, key=str(i)))
    return found


def policies(tiny: Path, seed: int = 0, rank: int = 8) -> tuple[TextPolicy, TextPolicy, list]:
    start = load.policy(tiny, CPU, torch.float32, False, 1.0)
    policy, parameters = load.with_adapter(start, "policy", rank, 16.0, seed)
    return start, policy, parameters


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_dpo_learns_what_is_preferred(tiny: Path, seed: int, loss: str) -> None:
    start, policy, parameters = policies(tiny, seed)
    how = fixed(60, batch_size=16, lr=1e-2, seed=seed)
    learner = DPO(policy, comparisons(96, seed), start, parameters, **how, beta=0.1, loss=loss)
    first = learner.step()
    assert first["loss"] == pytest.approx({"dpo": 0.6931, "ipo": 25.0}[loss], rel=1e-3), "at the reference"
    for _ in range(59):
        learner.step()
    unseen = Pairs.of(policy, [c for c in comparisons(200, seed + 100) if c.preference != 0.5])
    with torch.no_grad():
        ratios = policy.evaluate(unseen.batch)[0].sum(-1) - start.evaluate(unseen.batch)[0].sum(-1)
    a, b = unseen.scores(ratios)
    assert ((a > b) == (unseen.preference > 0.5)).float().mean() > 0.85


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("members", [1, 3])
def test_reward_models_learn_what_is_preferred(tiny: Path, seed: int, members: int) -> None:
    _, body, parameters = policies(tiny, seed)
    model = RewardModel(body, members, seed, parameters=[])
    learner = Reward(model, comparisons(96, seed), [*parameters, model.heads], **fixed(60, 16, lr=1e-2, seed=seed))
    found = [learner.step() for _ in range(60)]
    unseen = Pairs.of(model, [c for c in comparisons(200, seed + 100) if c.preference != 0.5])
    with torch.no_grad():
        a, b = unseen.scores(model.scores(unseen.batch).mean(0))
    assert ((a > b) == (unseen.preference > 0.5)).float().mean() > 0.85
    assert ("disagreement" in found[-1]) == (members > 1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sft_raises_the_likelihood(tiny: Path, seed: int) -> None:
    policy = load.policy(tiny, CPU, torch.float32, True, 1.0)
    answers = [Trajectory(Task("f", str(i), f"prompt {i}"), "p", "aaaa") for i in range(16)]
    learner = SFT(policy, answers, load.parameters(policy), **fixed(30, 8, lr=1e-2, seed=seed))
    losses = [learner.step()["loss"] for _ in range(30)]
    assert losses[0] > 4
    assert losses[-1] < 1


def test_a_careless_judge_gets_a_higher_temperature(tiny: Path) -> None:
    chance = torch.Generator().manual_seed(0)
    clear = [c for c in comparisons(120) if c.preference != 0.5]
    each = [Comparison(c.a, c.b, c.preference, c.key, "careful") for c in clear]
    each += [Comparison(c.a, c.b, float(torch.rand(1, generator=chance) < 0.5), c.key, "careless") for c in clear]
    _, body, parameters = policies(tiny)
    model = RewardModel(body, 1, 0, parameters=[])
    learner = Reward(model, each, [*parameters, model.heads], **fixed(80, 32, lr=1e-2), temperatures=True)
    for _ in range(80):
        values = learner.step()
    found = learner.temperatures()
    assert found["careless"] > 4, "who answers at random is hardly listened to"
    assert 0.5 < found["careful"] < 0.6
    assert 1 / found["careless"] + 1 / found["careful"] == pytest.approx(2)
    assert values["temperature/careless"] > 1


@pytest.mark.parametrize("known", [["a"], ["a", "b"]])
def test_judges_who_come_after_a_checkpoint_join_those_that_it_knows(tiny: Path, known: list[str]) -> None:
    """Identity: to load and then follow more is to load with more."""
    asked = [replace(c, judge="abc"[i % 3]) for i, c in enumerate(comparisons(12))]
    old = [c for c in asked if c.judge in known]

    def made(these: list[Comparison]) -> Reward:
        _, body, parameters = policies(tiny)
        model = RewardModel(body, 1, 0, parameters=[])
        learner = Reward(model, these, [*parameters, model.heads], **fixed(9, 4, lr=1e-2))
        learner.follow(these)
        return learner

    first = made(old)
    for _ in range(3):
        first.step()
    state, weights = first.state_dict(), [p.detach().clone() for p in first.stepper.parameters[:-1]]
    found = []
    for these in (old, asked):
        learner = made(these)
        learner.load_state_dict(copy.deepcopy(state))
        with torch.no_grad():
            for p, value in zip(learner.stepper.parameters[:-1], weights, strict=True):
                p.copy_(value)
        learner.follow(asked)
        assert learner.judges == ["a", "b", "c"]
        assert learner.log_temperatures.tolist() == [*first.log_temperatures.tolist(), *[0.0] * (3 - len(known))]
        found.append([learner.step() for _ in range(3)])
    assert found[0] == found[1]
    with pytest.raises(ValueError, match="2 temperatures for the judges a$"):
        made(old).load_state_dict(state | {"judges": ["a"], "log_temperatures": torch.zeros(2)})


def gradient(learner: object, parameters: list) -> torch.Tensor:
    """The gradient of one step, taken off the optimizer's hands."""
    kept = []
    learner.stepper.optimizer.step = lambda: kept.extend(p.grad.clone() for p in parameters)  # type: ignore[attr-defined]
    learner.step()  # type: ignore[attr-defined]
    return torch.cat([g.flatten() for g in kept])


@pytest.mark.parametrize("kind", ["dpo", "ipo", "dpo with sft", "reward", "ensemble", "sft"])
def test_micro_batches_change_no_gradient(tiny: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, forwarded, forward = [], list[tuple[bool, int]](), Transformer.forward

    def noted(*given: Any, **more: Any) -> Any:
        forwarded.append((torch.is_grad_enabled(), len(given[1])))
        return forward(*given, **more)

    monkeypatch.setattr(Transformer, "forward", noted)
    for micro in (10_000, 40, 1):
        start, policy, parameters = policies(tiny)
        with torch.no_grad():
            for p in parameters:
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
        how = fixed(1, 12, micro_batch_tokens=micro, max_grad_norm=1e9)
        asked = comparisons(12)
        if kind in ("dpo", "ipo"):
            learner = DPO(policy, asked, start, parameters, **how, loss=kind)
        elif kind == "dpo with sft":
            asked[0] = replace(asked[0], a=asked[0].a + asked[1].a)
            learner = DPO(policy, asked, start, parameters, **how, sft_weight=1.0)
        elif kind == "sft":
            learner = SFT(policy, [c.a[0] for c in asked], parameters, **how)
        else:
            model = RewardModel(policy, 3 if kind == "ensemble" else 1, 0, parameters=[])
            parameters = [*parameters, model.heads]
            asked = [replace(c, judge="ab"[i % 2]) for i, c in enumerate(asked)]
            learner = Reward(model, asked, parameters, **how)
            with torch.no_grad():
                learner.log_temperatures.copy_(torch.tensor([0.5, -0.5]))
        found.append(gradient(learner, parameters))
        if micro == 40:
            assert 20 < max(count for learning, count in forwarded if learning) <= 40, "tokens of prompts too"
            assert max((count for learning, count in forwarded if not learning), default=0) <= WITHOUT_GRADIENT * 40
        forwarded.clear()
    assert found[0].norm() > 1e-3
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-5, rtol=1e-4)


def test_the_reference_once_and_each_time_are_the_same(tiny: Path) -> None:
    found = []
    for when in ("once", "each"):
        start, policy, parameters = policies(tiny)
        learner = DPO(policy, comparisons(12), start, parameters, **fixed(5, 4, lr=1e-2), reference_logprobs=when)
        found.append([learner.step()["loss"] for _ in range(5)])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_sides_of_several_trajectories_score_their_mean(tiny: Path) -> None:
    _, policy, _ = policies(tiny)
    t = [Trajectory(Task("f", "1", "x"), "p", text) for text in "abcde"]
    pairs = Pairs.of(policy, [Comparison((t[0], t[1]), (t[2],), 1.0), Comparison((t[3],), (t[4],), 0.0)])
    a, b = pairs.scores(torch.tensor([1.0, 3.0, 5.0, 7.0, 9.0]))
    assert (a.tolist(), b.tolist()) == ([2.0, 7.0], [5.0, 9.0])
    parts = list(pairs.split(1))
    assert [told[1:] for told in parts] == [(slice(0, 1), slice(0, 3), 1.0), (slice(1, 2), slice(3, 5), 1.0)]


def test_order_goes_through_everything_before_it_starts_again() -> None:
    order = Order(10, seed=1)
    taken = order.take(7) + order.take(13)
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))
    assert taken[:10] != taken[10:]
    again = Order(10, seed=1)
    again.place = 7
    assert again.take(13) == taken[7:]
    with pytest.raises(TrainingError, match="^there is nothing to learn from; give at least one comparison"):
        Order(0, 0)


def test_schedules() -> None:
    how = Optimization(warmup=2, schedule="linear")
    assert [how.factor(s, 10) for s in (0, 1, 2, 6)] == [0.5, 1.0, 1.0, 0.5]
    assert Optimization(schedule="cosine").factor(5, 10) == pytest.approx(0.5)
    assert Optimization(schedule="constant").factor(9, 10) == 1.0


def test_a_loss_that_is_not_finite_stops_the_run(tiny: Path) -> None:
    start, policy, parameters = policies(tiny)
    learner = DPO(policy, comparisons(8), start, parameters, **fixed(5, 4))
    learner.step()
    with torch.no_grad():
        parameters[0].fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"step 2 is not finite .*lower train.lr"):
        learner.step()


def test_a_cast_weight_follows_what_the_optimizer_does() -> None:
    layer = Linear(8, {"out": 8}, False)
    with torch.no_grad():
        layer.weight.normal_()
    before = layer.cast(torch.bfloat16)
    was = before.clone()
    stepper = Stepper([layer.weight], Optimization(lr=0.1, schedule="constant"), 1)
    layer.weight.square().sum().backward()
    stepper.step(1.0)
    after = layer.cast(torch.bfloat16)
    assert after is before, "it stays where it is"
    assert torch.equal(after, layer.weight.detach().to(torch.bfloat16))
    assert not torch.equal(after, was)


def test_prompts_count_in_a_micro_batch_and_those_that_are_shared_once(tiny: Path) -> None:
    policy = load.policy(tiny, CPU, torch.float32, False, 1.0)
    assert isinstance(policy, TextPolicy)
    tasks = [Task("f", str(i), f"{i}{'?' * 20}") for i in range(4)]
    batch = policy.collate([Trajectory(t, "p", "abc") for t in tasks for _ in range(2)])
    one = len(pack_batch(batch.select(slice(0, 2)), policy.model).ids)
    for tokens, expected in ((one - 1, 8), (one, 4), (2 * one, 2), (10_000, 1)):
        found = parts(batch, tokens)
        assert len(found) == expected
        assert [i for rows in found for i in range(rows.start, rows.stop)] == list(range(8))
    pairs = Pairs.of(policy, [Comparison((Trajectory(t, "p", "abc"),), (Trajectory(t, "p", "abd"),), 1.0) for t in tasks])
    assert [len(part) for part, *_ in pairs.split(2 * one)] == [2, 2]
    assert [len(part) for part, *_ in pairs.split(5)] == [1, 1, 1, 1], "a comparison is never split"
    apart = replace(batch, prompts=torch.stack([torch.arange(8), torch.full((8,), one - 8)], 1))
    assert len(parts(apart, one)) == 8, "as where each answer has its prompt forwarded again"


def test_dpo_measures_a_log_ratio_and_no_kl(tiny: Path) -> None:
    start = load.policy(tiny, CPU, torch.float32, False, 1.0)
    policy, parameters = load.with_adapter(start, "policy", 4, 8.0, 0)
    values = DPO(policy, comparisons(4), start, parameters, **fixed(1, 4)).step()
    assert values["log_ratio"] == pytest.approx(0, abs=1e-5)
    assert "kl" not in values


def test_sft_weight_adds_the_preferred_sides_mean_negative_log_likelihood(tiny: Path) -> None:
    """By hand, over micro-batches; a tie adds nothing."""
    start, policy, parameters = policies(tiny)
    asked = [replace(c, preference=p) for c, p in zip(comparisons(4, length=5), (1.0, 0.2, 0.5, 0.0), strict=True)]
    asked[0] = replace(asked[0], a=(replace(asked[0].a[0], text="longer than the others"),))
    liked = [asked[0].a[0], asked[1].b[0], asked[3].b[0]]
    batch = start.collate(liked)
    with torch.no_grad():
        logprobs = (start.evaluate(batch)[0] * batch.mask).sum(-1) / batch.mask.sum(-1)
    plain, weighted = (
        DPO(policy, asked, start, parameters, **fixed(1, 4, lr=1e-12, micro_batch_tokens=40), sft_weight=weight).step()["loss"]
        for weight in (0.0, 2.0)
    )
    assert weighted - plain == pytest.approx(2 * float(-logprobs.sum()) / 4, rel=1e-5)


def test_sft_weight_keeps_the_preferred_answer_likely(tiny: Path) -> None:
    """The mean log-probability of the preferred sides of all comparisons gains more with the weight than without."""
    gained, asked = list[float](), [c for c in comparisons(32) if c.preference != 0.5]
    for weight in (0.0, 3.0):
        start, policy, parameters = policies(tiny)
        learner = DPO(policy, asked, start, parameters, **fixed(40, len(asked), lr=1e-2), sft_weight=weight)
        values = [learner.step()["logprob_preferred"] for _ in range(40)]
        gained.append(values[-1] - values[0])
    assert gained[1] > gained[0] + 1
    assert gained[1] > 1
