"""The bound on the KL of GRPO, on a tiny random model."""

from pathlib import Path
from typing import Any

import pytest
import torch

import rather
from rather.control.grid import GridWorld
from rather.control.models import ControlPolicy
from rather.core import Task, Trajectory
from rather.errors import ConfigError
from rather.learners.settings import Sampling
from rather.text.language_model import LanguageModel

PROMPTS = ["say a", "say b", "say c"]
FAST: dict[str, Any] = {"batch_size": 3, "group_size": 4, "max_tokens": 6, "lr": 2e-2, "schedule": "constant", "adapter": "full"}
BOUND = 0.05


@pytest.fixture(scope="module")
def model(tiny: Path) -> LanguageModel:
    return rather.load(tiny, dtype="float32", device="cpu")


def learner(model: LanguageModel, **more: Any) -> Any:
    return rather.GRPO(model, PROMPTS, lambda completion: sum(map(ord, completion)) / 99, **{"steps": 12, **FAST, **more})


@torch.no_grad()
def far(policy: Any, reference: LanguageModel) -> float:
    """KL in nats a token on 150 fresh answers (k1)."""
    answers = policy.sampler(Sampling(max_tokens=6)).sample([Task("t", "0", p) for p in PROMPTS for _ in range(50)], 77)
    batch = policy.collate(answers)
    return float((policy.evaluate(batch)[0] - reference.evaluate(batch)[0]).sum() / batch.mask.sum())


def test_the_policy_stays_within_the_bound(model: LanguageModel) -> None:
    free, held = learner(model), learner(model, kl_bound=BOUND)
    for _ in range(8):
        before, weight = [p.detach().clone() for p in held.parameters], held.kl
        values = held.step()
        assert values["kl_token"] <= BOUND
        assert all(torch.equal(a, b) for a, b in zip(before, held.parameters, strict=True)) == bool(values["undone"])
        near = values["kl_token"] < BOUND / 1.5
        assert values["kl_weight"] == (max(2 * weight, 0.04) if values["undone"] else weight / 2 if near else weight)
        assert "kl_token" not in free.step()
    assert held.kl > 0, "some steps were undone"
    assert BOUND / 10 < far(held.policy, model) < 1.3 * BOUND
    assert far(free.policy, model) > 4 * BOUND


@pytest.mark.slow
def test_what_is_measured_is_the_kl_over_the_whole_vocabulary(model: LanguageModel) -> None:
    """Answers of one token to one prompt: one state, in which every action can be looked at."""
    grpo = learner(model, max_tokens=1, kl_bound=9.0, batch_size=1, group_size=6, lr=1e-2)
    task = Task("t", "0", PROMPTS[0])
    every = [Trajectory(task, "p", actions=torch.tensor([i]).numpy()) for i in range(len(model.tokens.tokenizer))]

    def exact() -> float:
        with torch.no_grad():
            new, old = (p.evaluate(model.collate(every))[0][:, 0] for p in (grpo.policy, model))
        return float((new.exp() * (new - old)).sum())

    for _ in range(4):
        grpo.step()
    was, sampler = exact(), grpo.policy.sampler(Sampling(max_tokens=1))
    batch = model.collate(sampler.sample([task] * 2000, 5))
    assert grpo._distances([batch], 2000.0) == pytest.approx((was, was), rel=0.1)
    for _ in range(4):
        grpo.step()
    now, parts = exact(), [batch.select(slice(0, 300)), batch.select(slice(300, 2000))]
    assert now > 2 * was
    assert grpo._distances(parts, 2000.0) == pytest.approx((was, now), rel=0.1)


def test_a_policy_that_is_outside_comes_back(model: LanguageModel) -> None:
    away = learner(model, steps=6).train().policy
    parameters = list(away.model.parameters())
    assert far(away, model) > 2 * BOUND
    grpo = learner(away, reference=model, parameters=parameters, kl_bound=BOUND, kl=1.0, adapter=None, lr=5e-3, steps=30)
    for values in grpo:
        if values["kl_token"] <= BOUND:
            break
    assert far(away, model) < 1.3 * BOUND


def test_a_stopped_training_goes_on_exactly(model: LanguageModel, tmp_path: Path) -> None:
    def made(folder: Path | None, stop: int = 0) -> Any:
        return learner(model, kl_bound=0.02, steps=6, folder=folder, callbacks=[lambda step, metrics: step == stop])

    whole, first = made(None), made(tmp_path, 4)
    assert sum(values["undone"] for values in whole) > 0
    first.train()
    assert first.kl > 0
    rest = made(tmp_path).train()
    assert rest.kl == whole.kl
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, rest.parameters, strict=True))


def test_a_bound_needs_a_reference() -> None:
    policy = ControlPolicy(2, GridWorld().action_space, (), False, 0)
    with pytest.raises(ConfigError, match=r"kl_bound is 0.1, but there is no reference"):
        rather.GRPO(policy, parameters=list(policy.parameters()), source=object(), kl_bound=0.1)  # type: ignore[arg-type]
