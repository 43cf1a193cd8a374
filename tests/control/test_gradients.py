"""The gradient by hand is autograd's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from rather.control.gradients import ByHand
from rather.control.models import ControlCritic, ControlPolicy
from rather.core import Batch
from rather.kernels import perceptrons
from rather.learners.common import Means
from rather.learners.ppo import PPO, Credited
from rather.learners.ppo_settings import PPOSettings

SPACES = [Discrete(3, start=2), Box(-1, 1, (2,))]


def pair(space: Any, hidden: tuple[int, ...]) -> tuple[ControlPolicy, ControlCritic]:
    policy = ControlPolicy(4, space, hidden, seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator)
    policy.normalizer.update(2 * torch.randn(50, 4, generator=generator))  # type: ignore[union-attr]
    return policy, ControlCritic(4, hidden, policy.normalizer, seed=1)


def rows(space: Any, count: int) -> Credited:
    generator = torch.Generator().manual_seed(9)
    if isinstance(space, Discrete):
        actions = torch.randint(3, (count, 1), generator=generator) + int(space.start)
    else:
        actions = torch.randn(count, 1, 2, generator=generator)
    logprobs, advantages, returns, values = torch.randn(4, count, 1, generator=generator)
    ones = torch.ones(count, 1)
    batch = Batch(
        torch.randn(count, 1, 4, generator=generator), actions, ones, logprobs - 1.5, ones, torch.zeros(count), torch.arange(count)
    )
    return Credited(batch, batch.observations, advantages, returns, values)


@pytest.mark.parametrize("by", ["c", "c of 8 lanes", "torch"])
@pytest.mark.parametrize("hidden", [(), (8, 6), (64, 64), (130,)])
@pytest.mark.parametrize("space", SPACES, ids=["choice", "gaussian"])
@pytest.mark.parametrize(
    "settings",
    [
        PPOSettings(value_clip=0),
        PPOSettings(value_clip=0.3, clip=0.1, clip_high=0.4, value_weight=0.7),
        PPOSettings(value_clip=0.3, dual_clip=1.5, entropy_weight=0.2),
        PPOSettings(value_clip=20.0),
    ],
    ids=["plain", "clipped", "dual", "wide"],
)
def test_it_is_what_autograd_finds(
    settings: PPOSettings, space: Any, hidden: tuple[int, ...], by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, chosen = rows(space, 200), torch.randperm(200)[:139]
    if by == "torch":
        monkeypatch.setattr(perceptrons, "library", lambda: None)
    elif by == "c of 8 lanes":
        monkeypatch.setattr(perceptrons, "library", perceptrons.library.__wrapped__)
        monkeypatch.setattr(perceptrons.compiled, "COMPILE", [*perceptrons.compiled.COMPILE, "-DNARROW"])
    policy, critic = pair(space, hidden)
    learner = PPO(policy, (), None, None, [*policy.parameters()], critic=critic, source=policy, steps=1, **settings.model_dump())
    means = Means()
    loss = learner._backward(known.select(chosen), learner.own, means)
    own = [*policy.net.layers, *critic.net.layers, *([policy.log_std] if policy.log_std is not None else [])]
    wanted = torch.cat([p.grad.flatten() for p in own])

    by_hand = ByHand(*pair(space, hidden))
    assert (by_hand.compiled is None) == (by == "torch")
    by_hand.take(known)
    found, parts = by_hand.backward(chosen, settings)
    assert found == pytest.approx(float(loss), rel=1e-5)
    assert parts == pytest.approx(means.result(), rel=1e-4, abs=1e-6)
    torch.testing.assert_close(by_hand.parameter.grad, wanted, atol=1e-6, rtol=1e-4)
    assert np.abs(wanted.numpy()).max() > 0.01


def test_policy_and_critic_move_with_the_vector() -> None:
    policy, critic = pair(SPACES[1], (8,))
    parameters = [*policy.parameters(), *critic.parameters()]
    before = [p.detach().clone() for p in parameters]
    by_hand = ByHand(policy, critic)
    torch.testing.assert_close([p.detach() for p in parameters], before, atol=0, rtol=0)
    with torch.no_grad():
        by_hand.parameter += 1
    torch.testing.assert_close([p.detach() for p in parameters], [p + 1 for p in before])
    assert sum(p.numel() for p in parameters) == by_hand.parameter.numel()


def test_a_net_of_more_layers_than_c_takes_is_left_to_pytorch() -> None:
    said = Path("src/rather/kernels/perceptrons.c").read_text()
    assert f"MAX_LAYERS = {perceptrons.MAX_LAYERS} }}" in said
    for layers in (perceptrons.MAX_LAYERS, perceptrons.MAX_LAYERS + 1):
        by_hand = ByHand(*pair(SPACES[0], (3,) * (layers - 1)))
        assert (by_hand.compiled is not None) == (layers <= perceptrons.MAX_LAYERS)
        by_hand.take(rows(SPACES[0], 9))
        by_hand.backward(torch.arange(9), PPOSettings(value_clip=0))
