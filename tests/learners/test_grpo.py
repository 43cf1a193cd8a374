import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fixed import fixed
from rather.control import environments
from rather.control.grid import GridWorld
from rather.control.models import ControlPolicy
from rather.control.rollout import ControlSampler
from rather.core import Batch, Task
from rather.errors import RatherWarning
from rather.learners import checkpoint
from rather.learners.checkpoint import Lineage
from rather.learners.grpo import GRPO
from rather.learners.rollouts import Rollouts
from rather.losses import group_advantages, ppo_clip_loss


def grid() -> GridWorld:
    return GridWorld(size=3, horizon=6, slip=0.1, timed=True)


def groups(number: int) -> Sequence[Task]:
    """Four groups of eight: the same reset seed."""
    return [Task("grid", str(4 * number + i)) for i in range(4) for _ in range(8)]


def learner(settings: dict[str, Any] | None = None, seed: int = 0, micro_batch_tokens: int = 10_000, **more: Any) -> GRPO:
    env = grid()
    policy = ControlPolicy(environments.inputs(env), env.action_space, (), False, seed)
    how = fixed(1000, lr=5e-2, max_grad_norm=0.5, micro_batch_tokens=micro_batch_tokens, seed=seed)
    source = Rollouts(policy, ControlSampler(policy, grid, rows=32), groups, seed)
    return GRPO(policy, parameters=list(policy.parameters()), source=source, **how, **(settings or {}), **more)


def value(policy: ControlPolicy) -> float:
    env = grid()
    with torch.no_grad():
        chances = policy._outputs(torch.eye(env.observation_space.n)).softmax(-1).view(env.horizon, env.size**2, 4)
    return float(env.values(chances.double().numpy())[0, 0])


@pytest.mark.parametrize("seed", range(3))
def test_it_comes_near_the_best_policy(seed: int) -> None:
    grpo = learner(seed=seed)
    best, start = float(grid().values()[0, 0]), value(grpo.model)
    assert start < 0.2 * best
    for _ in range(100):
        grpo.step()
    assert value(grpo.model) > 0.7 * best


def test_before_the_first_update_the_policy_is_the_one_that_acted() -> None:
    grpo = learner()
    for _ in range(3):
        found = grpo.step()
        assert found["ratio"] == pytest.approx(1, abs=1e-6)
        assert found["clipped"] == 0
    assert learner({"updates": 4}).step()["ratio"] != pytest.approx(1, abs=1e-6)


class Paid:
    """Pays each trajectory what `scores` says, at its first action; a batch may come in parts."""

    def __init__(self, scores: Sequence[float]) -> None:
        self.scores, self.place = scores, 0

    def rewards(self, batch: Batch) -> torch.Tensor:
        rewards = torch.zeros_like(batch.mask)
        rewards[:, 0] = torch.tensor([self.scores[(self.place + i) % len(self.scores)] for i in range(len(batch))])
        self.place += len(batch)
        return rewards


def gradient(settings: dict[str, Any], scores: Sequence[float], **more: Any) -> torch.Tensor:
    grpo = learner(settings, reward=Paid(scores), **more)
    kept = []
    grpo.stepper.step = lambda loss: kept.append(torch.cat([p.grad.flatten() for p in grpo.model.parameters()])) or {}
    grpo.step()
    return kept[0]


MIXED = [1.0, 0, 0, 0, 1, 0, 0, 0] + [1.0] * 8 + [0.0] * 8 + [1.0, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("mean", ["token", "sequence", "constant"])
def test_groups_without_variance_are_counted_and_not_forwarded(mean: str) -> None:
    grpo = learner({"mean": mean, "max_tokens": 10}, reward=Paid(MIXED))
    forwarded, evaluate = [], grpo.model.evaluate
    grpo.model.evaluate = lambda batch: forwarded.append(len(batch)) or evaluate(batch)
    assert grpo.step()["groups_without_variance"] == 0.5
    assert forwarded == [16]
    # the mean is over all that was sampled: the gradient is what it would be had all been forwarded
    fresh = learner()
    policy, batch = fresh.model, fresh.source.collect(0)
    advantages = group_advantages(torch.tensor(MIXED), batch.groups)
    over = "sequence" if mean == "sequence" else "token"
    ppo_clip_loss(policy.evaluate(batch)[0], batch.logprobs, advantages, batch.mask, mean=over).backward()
    expected = torch.cat([p.grad.flatten() for p in policy.parameters()])
    scale = 6 / 10 if mean == "constant" else 1
    torch.testing.assert_close(gradient({"mean": mean, "max_tokens": 10}, MIXED), scale * expected)


@pytest.mark.parametrize("mean", ["token", "sequence"])
def test_micro_batches_change_no_gradient(mean: str) -> None:
    drifted = learner(seed=1).model
    settings = {"mean": mean, "kl": 0.5}
    with torch.no_grad():
        drifted.net.layers[0].add_(0.3 * torch.randn(drifted.net.layers[0].shape, generator=torch.Generator().manual_seed(3)))
    whole, split = (gradient(settings, MIXED, micro_batch_tokens=n, reference=drifted) for n in (10_000, 13))
    torch.testing.assert_close(whole, split)
    assert not torch.allclose(whole, gradient({"mean": mean}, MIXED), atol=1e-4), "the penalty counts"


def test_an_unjudged_attempt_is_left_out() -> None:
    scores = [*MIXED]
    scores[1] = float("nan")
    grpo = learner(reward=Paid(scores))
    found = grpo.step()
    assert found["unjudged"] == pytest.approx(1 / 32)
    assert found["score"] == pytest.approx(sum(MIXED) / 31)
    assert torch.isfinite(torch.cat([p.flatten() for p in grpo.model.parameters()])).all()


def test_groups_without_variance_are_sampled_again() -> None:
    class Second(Paid):
        calls = 0

        def rewards(self, batch: Batch) -> torch.Tensor:
            self.calls += 1
            self.scores = [0.0] * 32 if self.calls == 1 else MIXED
            return super().rewards(batch)

    grpo = learner({"max_resample": 5}, reward=Second(MIXED))
    found = grpo.step()
    assert found["groups_sampled_again"] == 2, "0 of 4 wanted groups, then 2, then 4"
    assert grpo.number == 3
    assert found["score"] == pytest.approx(2 * sum(MIXED) / 96), "over all that was sampled"
    assert learner({"max_resample": 5}, reward=Paid([0.0] * 32)).step()["groups_sampled_again"] == 5


def test_ten_steps_of_nothing_are_said() -> None:
    grpo = learner(reward=Paid([1.0] * 32))
    before = [p.clone() for p in grpo.model.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(9):
            assert "loss" not in grpo.step()
    with pytest.warns(RatherWarning, match=r"all trajectories of each task scored the same.*grpo\.group_size"):
        grpo.step()
    assert all(torch.equal(a, b) for a, b in zip(before, grpo.model.parameters(), strict=True))


def test_resumed_it_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    lineage = Lineage({}, 0, [])
    whole, first, second = (learner() for _ in range(3))
    for _ in range(4):
        expected = whole.step()
    for _ in range(2):
        first.step()
    checkpoint.load(checkpoint.save(tmp_path, 2, first, lineage, 1), second)
    for _ in range(2):
        found = second.step()
    assert found == expected
    for a, b in zip(whole.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_one_that_has_learnt_nothing_yet_goes_on_all_the_same(tmp_path: Path) -> None:
    idle, second = learner(reward=Paid([1.0] * 32)), learner(reward=Paid(MIXED))
    idle.step()
    checkpoint.load(checkpoint.save(tmp_path, 1, idle, Lineage({}, 0, []), 1), second)
    assert (second.stepper.steps, second.number, second.idle) == (0, 1, 1)
    assert second.step()["grad_norm"] > 0
