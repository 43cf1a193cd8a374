from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary
from torch.distributions import Categorical, Normal

from rather.control.models import ControlCritic, ControlPolicy, ControlReward, Perceptron, collate
from rather.control.normalizer import Normalizer
from rather.core import Task, Trajectory
from rather.errors import ConfigError

CHOICES, BOX = Discrete(3, start=5), Box(-1, 1, (2,))


def moved(policy: ControlPolicy) -> ControlPolicy:
    """Away from the starting weights, which make every choice alike."""
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return policy


def episode(policy: ControlPolicy, steps: int, key: str = "0") -> Trajectory:
    chance = np.random.default_rng(steps)
    observations = chance.standard_normal((steps + 1, 4)).astype(np.float32)
    noise = chance.random((steps, policy.noises))
    actions, logprobs = policy.numpy_policy()(observations[:-1], noise)
    return Trajectory(Task("e", key), "p", None, True, observations, actions, logprobs, np.ones(steps, np.float32))


@pytest.mark.parametrize("space", [CHOICES, BOX])
def test_what_was_kept_while_acting_is_what_a_learner_computes(space) -> None:
    policy = moved(ControlPolicy(4, space))
    policy.normalizer.update(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1)
    batch = policy.collate([episode(policy, 30), episode(policy, 3, "1"), episode(policy, 5)])
    assert batch.groups.tolist() == [0, 1, 0]
    logprobs, entropy = policy.evaluate(batch)
    torch.testing.assert_close(logprobs, batch.logprobs, atol=1e-6, rtol=1e-6)
    seen = policy.normalizer(batch.observations[:, :-1])
    out = policy.net(seen)
    if space is CHOICES:
        expected, entropies = Categorical(logits=out).log_prob((batch.actions - 5).clamp(min=0)), Categorical(logits=out).entropy()
        assert set(batch.actions[batch.mask.bool()].tolist()) == {5, 6, 7}
    else:
        normal = Normal(out, policy.log_std.exp())
        expected, entropies = normal.log_prob(batch.actions).sum(-1), normal.entropy().sum(-1)
    torch.testing.assert_close(logprobs, expected * batch.mask)
    torch.testing.assert_close(entropy, entropies * batch.mask)
    assert (logprobs[1, 3:] == 0).all()


def test_choices_come_as_often_as_they_should() -> None:
    policy = moved(ControlPolicy(4, CHOICES, hidden=(), normalize=False))
    observation = np.array([[0.5, -1.0, 2.0, 0.1]], np.float32)
    noise = (np.arange(10_000)[:, None] + 0.5) / 10_000
    chosen, _ = policy.numpy_policy()(observation.repeat(10_000, 0), noise)
    expected = policy.net(torch.from_numpy(observation)).softmax(-1)[0]
    found = torch.bincount(torch.from_numpy(chosen) - 5, minlength=3) / 10_000
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_normaliser_knows_the_mean_and_deviation_of_all_it_was_shown() -> None:
    normalizer = Normalizer(2)
    x = torch.tensor([[1.0, 0.0], [3.0, 4.0], [5.0, 8.0], [7.0, 0.0]])
    assert torch.equal(normalizer(x), x), "before it has been shown anything"
    normalizer.update(x[:1])
    normalizer.update(x[1:])
    torch.testing.assert_close(normalizer(x), (x - x.mean(0)) / x.std(0, correction=0))
    assert normalizer(torch.tensor([[1e6, 0.0]]))[0, 0] == 10


def test_saved_and_restored_with_its_statistics(tmp_path: Path) -> None:
    policy = moved(ControlPolicy(4, BOX))
    policy.normalizer.update(torch.randn(9, 4))
    policy.save(tmp_path / "p")
    other = ControlPolicy(4, BOX, seed=1)
    other.restore(tmp_path / "p")
    batch = policy.collate([episode(policy, 6)])
    torch.testing.assert_close(other.evaluate(batch), policy.evaluate(batch), atol=0, rtol=0)


def test_without_hidden_layers_a_one_hot_state_has_a_row_of_its_own() -> None:
    net = Perceptron(3, (), 2, 1.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(torch.eye(3)), net.layers[0] + net.layers[1])


@pytest.mark.parametrize("hidden", [(), (5,), (5, 6)])
def test_the_layers_are_those_of_torch_and_so_are_their_gradients(hidden) -> None:
    net = Perceptron(3, hidden, 2, 1.0, torch.Generator().manual_seed(0)).double()
    x = torch.randn(4, 7, 3, dtype=torch.float64, requires_grad=True)
    expected = x
    for i in range(0, len(net.layers), 2):
        expected = (expected.tanh() if i else expected) @ net.layers[i] + net.layers[i + 1]
    torch.testing.assert_close(net(x), expected)
    every = [x, *net.parameters()]
    weigh = torch.randn(4, 7, 2, dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad((net(x) * weigh).sum(), every), torch.autograd.grad((expected * weigh).sum(), every))


def test_a_critic_values_every_state_and_the_last() -> None:
    policy = ControlPolicy(4, CHOICES)
    critic = ControlCritic(4, normalizer=policy.normalizer)
    batch = collate([episode(policy, 4), episode(policy, 2)])
    before = critic.values(batch.observations)
    assert before.shape == (2, 5)
    torch.testing.assert_close(before[1, 2:], before[1, 2].expand(3), msg="after the end the last state stays")
    policy.normalizer.update(torch.randn(20, 4) * 5)
    assert (critic.values(batch.observations) != before).all(), "it sees what the policy sees"
    assert not [name for name in critic.state_dict() if "normalizer" in name]


def test_other_actions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"not MultiBinary\(3\)"):
        ControlPolicy(4, MultiBinary(3))


def fragment(space, rng: np.random.Generator, steps: int = 10) -> Trajectory:
    observations = rng.standard_normal((steps + 1, 4)).astype(np.float32)
    actions = rng.integers(5, 8, steps) if space is CHOICES else rng.standard_normal((steps, 2)).astype(np.float32)
    return Trajectory(Task("e", "0"), "p", None, True, observations, actions, np.zeros(steps), np.zeros(steps))


@pytest.mark.parametrize("space", [CHOICES, BOX])
def test_members_of_an_ensemble_are_nets_of_their_own(space) -> None:
    rng = np.random.default_rng(0)
    model = ControlReward(4, space, members=3, hidden=(8,), seed=0)
    pieces = [fragment(space, rng), fragment(space, rng, 4)]
    model.see(pieces)
    batch = model.collate(pieces)
    assert model.each(batch).abs().max() == 0, "before the first answer every step is worth the same"
    with torch.no_grad():
        model.layers[-2].normal_(generator=torch.Generator().manual_seed(1))
    each = model.each(batch)
    assert each.shape == (3, 2, 10)
    for k in range(3):  # by hand, member by member
        seen = model.normalizer(batch.observations[:, :-1])
        acted = torch.nn.functional.one_hot((batch.actions - 5).clamp(min=0), 3).float() if space is CHOICES else batch.actions.clamp(-1, 1)
        x = torch.cat([seen, acted], -1)
        w1, b1, w2, b2 = (p[k] for p in model.layers)
        torch.testing.assert_close(each[k], ((x @ w1 + b1).tanh() @ w2 + b2)[..., 0] * batch.mask)
    torch.testing.assert_close(model.scores(batch), each.sum(-1))
    torch.testing.assert_close(model.rewards(batch), each.mean(0))
    assert model.scores(batch).std(0).min() > 1e-3


def test_a_reward_is_of_the_actions_that_the_environment_got() -> None:
    from dataclasses import replace

    def rewards(space: Box, actions: list[list[float]]) -> torch.Tensor:
        model = ControlReward(4, space, hidden=(8,), seed=0)
        with torch.no_grad():
            model.layers[-2].normal_(generator=torch.Generator().manual_seed(1))
        piece = replace(fragment(BOX, np.random.default_rng(0), 2), actions=np.array(actions, np.float32))
        return model.rewards(model.collate([piece]))

    assert torch.equal(rewards(BOX, [[1.7, 0.2], [-9.0, 1.0]]), rewards(BOX, [[1.0, 0.2], [-1.0, 1.0]])), "held within the bounds"
    assert not torch.equal(rewards(BOX, [[0.7, 0.2], [0.0, 1.0]]), rewards(BOX, [[1.0, 0.2], [0.0, 1.0]]))
    whole = Box(0, 5, (2,), np.int64)
    assert torch.equal(rewards(whole, [[1.7, 9.0], [-9.0, 1.2]]), rewards(whole, [[2.0, 5.0], [0.0, 1.0]])), "whole numbers"
    assert set(ControlReward(4, BOX).state_dict()) == set(ControlReward(4, CHOICES).state_dict()), "bounds are not saved"


@pytest.mark.parametrize("seed", range(3))
def test_a_reward_is_learnt_from_comparisons_of_fragments(seed: int, tmp_path: Path) -> None:
    from fixed import fixed
    from rather.core import Comparison
    from rather.learners.common import Pairs
    from rather.learners.reward import Reward

    rng = np.random.default_rng(seed)

    def value(t: Trajectory) -> float:
        return float((t.observations[:-1, 0] * (t.actions == 6)).sum())

    pieces = [fragment(CHOICES, rng) for _ in range(600)]
    pairs = [
        Comparison((a,), (b,), float(value(a) > value(b)), str(i)) for i, (a, b) in enumerate(zip(pieces[::2], pieces[1::2], strict=True))
    ]
    model = ControlReward(4, CHOICES, members=3, hidden=(32,), seed=seed)
    model.see(pieces)
    learner = Reward(model, pairs[:200], list(model.layers), **fixed(200, 50, lr=5e-3, micro_batch_tokens=10_000))
    for _ in range(200):
        learner.step()
    held = Pairs.of(model, pairs[200:])
    with torch.no_grad():
        a, b = held.scores(model.scores(held.batch).mean(0))
    assert ((a > b) == (held.preference > 0.5)).float().mean() > 0.8
    model.save(tmp_path / "r")
    other = ControlReward(4, CHOICES, members=3, hidden=(32,), seed=seed + 1)
    other.restore(tmp_path / "r")
    assert torch.equal(other.scores(held.batch), model.scores(held.batch))
