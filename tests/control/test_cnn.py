"""The Nature CNN: the numbers it computes, the pictures it takes and refuses, and what learns with it."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import onnxruntime
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.wrappers import FrameStackObservation
from stable_baselines3.common.torch_layers import NatureCNN as Theirs

from rather import batched, control
from rather.control.build import policy, reward_learner, reward_model
from rather.control.cnn import Features, NatureCNN
from rather.control.environments import Eye, environment
from rather.control.exploration import variant
from rather.control.models import collate
from rather.control.settings import PPOSettings, RewardSettings
from rather.errors import ConfigError

CELLS = 9
OWN: dict[str, Any] = {"network": "cnn", "envs": 2, "rollout_segment": 20, "batch_size": 20, "update_epochs": 2}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A second one gains nothing on such small pictures, and on a busy machine it is waited for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Dot(gymnasium.Env):
    """A dot in one of nine places goes left, stays or goes right, and is rewarded under the mark, which is another each episode.

    `toward`: it is rewarded for an action that brings it nearer, or stays at the mark. Pictures are of 36 x 36 pixels.
    """

    def __init__(self, shape: tuple[int, ...] = (36, 36, 1), toward: bool = False) -> None:
        self.observation_space, self.action_space, self.toward = Box(0, 255, shape, np.uint8), Discrete(3), toward

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        (self.dot, self.mark), self.time = self.np_random.integers(0, CELLS, 2), 0
        return self.picture(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        right = action - 1 == np.sign(self.mark - self.dot)
        self.dot, self.time = int(np.clip(self.dot + action - 1, 0, CELLS - 1)), self.time + 1
        return self.picture(), float(right if self.toward else self.dot == self.mark), False, self.time == 10, {}

    def picture(self) -> np.ndarray:
        found = np.zeros((36, 36), np.uint8)
        found[8:12, 4 * self.dot : 4 * self.dot + 4] = 255
        found[24:28, 4 * self.mark : 4 * self.mark + 4] = 200
        return np.broadcast_to(found.reshape(36, 36, *[1] * (len(self.observation_space.shape) - 2)), self.observation_space.shape).copy()


class Shows(gymnasium.Env):
    """Shows something of a space, at random."""

    def __init__(self, space: gymnasium.Space) -> None:
        self.observation_space, self.action_space = space, Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return self.observation_space.sample(), 0.0, False, self.time == 5, {}


def pixels(*shape: int) -> Box:
    return Box(0, 255, shape, np.uint8)


def net(*shape: int) -> Features:
    return Features(pixels(*shape), torch.Generator().manual_seed(3))


def flat(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures.reshape(len(pictures), -1)).float()


PICTURES = np.random.default_rng(1).integers(0, 256, (4, 84, 60, 3), np.uint8)
"""Four pictures, H x W x C."""


def test_the_features_are_those_of_stable_baselines3() -> None:
    """It gives its network channels first and pixels from 0 to 1."""
    ours, theirs = net(84, 60, 3), Theirs(pixels(3, 84, 60))
    weights = list(ours.state_dict().values())
    theirs.load_state_dict(dict(zip(theirs.state_dict(), weights, strict=True)))
    expected = theirs(torch.from_numpy(PICTURES).permute(0, 3, 1, 2) / 255)
    assert (expected > 0).float().mean() > 0.2
    torch.testing.assert_close(ours(flat(PICTURES)), expected)


@pytest.mark.parametrize("axis", [1, 3])
def test_channels_are_first_where_no_dimension_is_smaller(axis: int) -> None:
    shown = np.moveaxis(PICTURES, 3, axis)
    torch.testing.assert_close(net(*shown.shape[1:])(flat(shown)), net(84, 60, 3)(flat(PICTURES)))


def test_a_stack_of_pictures_has_all_their_channels() -> None:
    """Two pictures of three channels are one of six: those of the older one first. Gray ones have one channel each."""
    stack = np.stack([PICTURES, PICTURES[::-1]], 1)
    expected = net(6, 84, 60)(flat(np.concatenate([np.moveaxis(stack[:, i], 3, 1) for i in (0, 1)], 1)))
    torch.testing.assert_close(net(2, 84, 60, 3)(flat(stack)), expected)
    first = np.moveaxis(stack, 4, 2)
    torch.testing.assert_close(net(2, 3, 84, 60)(flat(first)), expected)
    gray = PICTURES[..., 0]
    torch.testing.assert_close(net(84, 60)(flat(gray)), net(1, 84, 60)(flat(gray)))


def test_frames_that_gymnasium_stacks_are_seen_in_their_order() -> None:
    for shape, channels in (((36, 36), 4), ((36, 36, 3), 12)):
        agent = control.PPO(lambda s=shape: FrameStackObservation(Dot(s), 4), **OWN).train(40, bar=False)
        assert agent.policy.net.features.convolutions[0].weight.shape[1] == channels
    env = FrameStackObservation(Dot((36, 36)), 2)
    env.reset(seed=0)
    shown = env.step(2)[0]
    torch.testing.assert_close(net(2, 36, 36)(flat(shown[None])), net(36, 36, 2)(flat(np.moveaxis(shown, 0, 2)[None])))


def test_weights_are_orthogonal_and_biases_0() -> None:
    """Of a gain g: W W^T = g^2 I where there are no more rows than columns; g^2 is 2, for logits 0.01^2."""
    found = NatureCNN(pixels(84, 84, 1), 5, 0.01, torch.Generator().manual_seed(0))
    layers = [m for m in found.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert [tuple(m.weight.shape) for m in layers] == [(32, 1, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136), (5, 512)]
    for layer, square in zip(layers, [2, 2, 2, 2, 1e-4], strict=True):
        rows = layer.weight.flatten(1)
        torch.testing.assert_close(rows @ rows.T, square * torch.eye(len(rows)), atol=square * 1e-5, rtol=1e-5)
        assert not layer.bias.any()
    again = NatureCNN(pixels(84, 84, 1), 5, 0.01, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (pixels(35, 80, 3), 'pictures are 35 x 80 pixels, and network = "cnn" needs 36 x 36 at least; enlarge them, or take "mlp"'),
        (pixels(3, 40, 24), "pictures are 40 x 24 pixels"),
        (pixels(40, 3, 40), "pictures are 40 x 3 pixels"),
        (Box(0, 1, (64, 64, 3), np.float32), "sees one Box of pictures of uint8 from 0 to 255"),
        (Box(-np.inf, np.inf, (64, 64, 3), np.float32), "wrap the environment to show that"),
        (Box(0, 1, (64, 64, 3), np.uint8), "sees one Box of pictures of uint8 from 0 to 255"),
        (pixels(2, 2, 64, 64, 3), "H x W, with channels first or last, or a stack of them"),
        (pixels(128), "sees one Box of pictures"),
        (Box(-1, 1, (3,), np.float32), "sees one Box of pictures"),
        (Dict({"left": pixels(64, 64, 3), "right": pixels(64, 64, 3)}), "sees one Box of pictures"),
    ],
)  # fmt: skip
def test_what_it_cannot_see_is_refused(space: gymnasium.Space, said: str) -> None:
    for make in (partial(control.PPO, **OWN), partial(control.RewardModel, network="cnn")):
        with pytest.raises(ConfigError) as found:
            make(lambda: Shows(space))
        assert said in str(found.value)
        assert "\n" not in str(found.value)


def test_the_smallest_picture_is_seen() -> None:
    assert net(36, 36).linear.weight.shape == (512, 64)


def test_other_layers_beside_it_are_refused() -> None:
    own = torch.nn.Linear(1296, 3)
    with pytest.raises(ConfigError, match=r'hidden is of the "mlp", and network = "cnn" has layers of its own; leave hidden out'):
        control.PPO(Dot, network="cnn", hidden=(8,))
    with pytest.raises(ConfigError, match='network is "cnn", and Linear is given beside it; leave one of them out'):
        control.PPO(Dot, policy=own, network="cnn")
    with pytest.raises(ConfigError, match='network is "cnn", and Linear is given beside it'):
        control.PPO(Dot, critic=torch.nn.Linear(1296, 1), network="cnn")
    with pytest.raises(ConfigError, match='network is "cnn", and Added is given beside it'):
        control.RewardModel(Dot, networks=[Added()], network="cnn")
    with pytest.raises(ConfigError, match="a fixed horizon needs observations in a Box of one dimension"):
        control.PPO(Dot, network="cnn", horizon=5)
    with pytest.raises(ConfigError, match='shows pictures of 36 x 36 x 1, 1,296 numbers a step, 1.2 MiB .*; set control.network = "cnn"'):
        control.PPO(Dot)


class Added(torch.nn.Module):
    def forward(self, x: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return x.sum(-1) + actions.sum(-1)


def test_pictures_are_kept_as_bytes_from_episode_to_minibatch() -> None:
    """A quarter of the memory, and the same numbers as in float32."""
    agent = control.PPO(Dot, **OWN)
    episodes = agent.rollouts(3)
    batch, rollout = agent.policy.collate(episodes), agent.learner.source.collect(0)
    assert {x.dtype for x in (episodes[0].observations, Eye(pixels(2, 2))(np.ones((2, 2), np.uint8)))} == {np.dtype(np.uint8)}
    assert batch.observations.dtype == rollout.observations.dtype == torch.uint8
    wide = collate([replace(t, observations=t.observations.astype(np.float32)) for t in episodes])
    assert wide.observations.dtype == torch.float32
    for a, b in zip(agent.policy.evaluate(batch), agent.policy.evaluate(wide), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(agent.critic.values(batch.observations), agent.critic.values(wide.observations))
    torch.testing.assert_close(agent.policy.evaluate(batch)[0], batch.logprobs, atol=1e-5, rtol=1e-5)


def test_tanh_layers_and_functions_get_floats() -> None:
    """Differences of bytes would wrap around: 0 - 255 = 1."""
    seen = []

    @batched
    def reward(before: np.ndarray, actions: np.ndarray, after: np.ndarray) -> np.ndarray:
        seen.append(after - before)
        return np.zeros(len(actions))

    for normalize in (True, False):
        control.PPO(Dot, reward=reward, pixels=True, normalize=normalize, envs=2, rollout_segment=20).train(80, bar=False)
    assert {x.dtype for x in seen} == {np.dtype(np.float32)}
    assert min(x.min() for x in seen) == -255
    model = control.RewardModel(Dot, pixels=True).fit(control.compare(control.rollouts(control.PPO(Dot, pixels=True), 4), by_return))
    assert all(np.isfinite(model.score(control.PPO(Dot, **OWN).rollouts(2))))


def by_return(a: Any, b: Any) -> str:
    x, y = a.rewards.sum(), b.rewards.sum()
    return "tie" if x == y else "a" if x > y else "b"


def test_ppo_learns_from_pictures() -> None:
    """A dot goes under a mark. Chance is 10 / 9; the best is 10 less the steps on the way, 8.0 for places at random."""
    agent = control.PPO(Dot, network="cnn", envs=8, rollout_segment=40, batch_size=80, update_epochs=4, lr=5e-4, gamma=0.9)
    assert agent.evaluate(40).mean < 2
    assert agent.policy.normalizer is None
    agent.train(4800, bar=False)
    assert agent.evaluate(40).mean > 6


def test_policy_and_critic_begin_with_weights_of_their_own() -> None:
    agent = control.PPO(Dot, **OWN)
    kernels = [net.net.features.convolutions[0].weight for net in (agent.policy, agent.critic)]
    assert not torch.equal(*kernels)


def test_a_saved_agent_and_its_graph_act_alike(tmp_path: Path) -> None:
    agent = control.PPO(Dot, **OWN).train(80, bar=False)
    agent.save(tmp_path)
    again = control.PPO.load(tmp_path, Dot)
    shown = np.concatenate([t.observations for t in agent.rollouts(4)])
    pictures = shown.reshape(-1, 36, 36, 1)
    assert again.settings.network == "cnn"
    assert (agent.predict(pictures) == again.predict(pictures)).all()
    assert torch.equal(agent.critic.values(torch.from_numpy(shown)), again.critic.values(torch.from_numpy(shown)))
    agent.export(tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    for rows in (shown[:1], shown):
        (actions,) = session.run(None, {"observation": rows.astype(np.float32)})
        assert (actions == agent.predict(rows.reshape(-1, 36, 36, 1))).all()
    assert len(set(agent.predict(pictures, deterministic=False))) == 3
    with pytest.raises(ConfigError, match=r"holds tanh layers alone, and this policy is another network; write it as .onnx"):
        agent.export(tmp_path / "policy.npz")


def test_an_agent_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = control.PPO(Dot, **OWN).train(160, bar=False)
    control.PPO(Dot, folder=tmp_path, checkpoint_every=2, **OWN).train(80, bar=False)
    rest = control.PPO(Dot, folder=tmp_path, **OWN)
    assert rest.steps == 80
    rest.train(160, bar=False)
    for a, b in ((whole.policy, rest.policy), (whole.critic, rest.critic)):
        assert all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def test_a_reward_that_depends_on_picture_and_action_together_is_learned() -> None:
    """Left is good where the mark is left, right where it is right.

    A sum of a part of the picture and a part of the action would like the same action best in all 81 pictures, and be right in 36.
    """
    env = Dot(toward=True)
    steps = control.fragments(control.PPO(partial(Dot, toward=True), network="cnn", envs=1).rollouts(150), 1, 600, 0)
    pairs = [steps[i] for i in np.random.default_rng(0).integers(0, len(steps), 3000)]
    model = control.RewardModel(partial(Dot, toward=True), network="cnn", members=1, epochs=10, batch_size=50, lr=1e-3)
    assert not any(model.model.scores(model.model.collate(pairs)).flatten()), "rewards start at 0"
    assert model.model.normalizer is None
    model.fit(control.compare(pairs, by_return))
    right = []
    for env.dot, env.mark in np.ndindex(CELLS, CELLS):
        shown = np.stack([env.picture().reshape(-1)] * 2)
        each = [replace(steps[0], observations=shown, actions=np.array([action])) for action in range(3)]
        right.append(np.argmax(model.score(each)) == 1 + np.sign(env.mark - env.dot))
    assert len(right) == 81
    assert np.mean(right) > 0.9


def test_a_reward_model_is_saved_and_rewards_in_a_wrapper(tmp_path: Path) -> None:
    episodes = control.PPO(Dot, **OWN).rollouts(6)
    model = control.RewardModel(Dot, network="cnn", members=2, epochs=3).fit(control.compare(episodes, by_return))
    model.save(tmp_path)
    again = control.RewardModel.load(tmp_path, Dot)
    assert again.score(episodes) == model.score(episodes)
    env, expected = control.RewardWrapper(Dot(), model), model.rewards(model.model.collate(episodes[:1]))[0]
    env.reset(seed=int(episodes[0].task.key))
    rewards = [env.step(action)[1] for action in episodes[0].actions]
    np.testing.assert_allclose(rewards, expected, atol=1e-6)
    agent = control.PPO(Dot, reward=model, **OWN).train(40, bar=False)
    assert agent.steps == 40


def test_a_batch_of_comparisons_may_be_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches bound the memory that pictures take, and change no gradient."""
    episodes, env, s = control.PPO(Dot, **OWN).rollouts(8), environment(Dot, pixels=True), RewardSettings(network="cnn", members=2)
    found = []
    for tokens in (1000, 20):
        model = reward_model(env, s, 0)
        torch.nn.init.ones_(model.networks[0].last.weight)  # 0, as it is at first, would let no gradient through
        learner = reward_learner(model, control.compare(episodes, by_return), s, 0, steps=1, micro_batch_tokens=tokens)
        monkeypatch.setattr(learner.stepper, "step", lambda _: {})  # it would clear gradients
        learner.step()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert found[0][0].any()
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_variant_prefers_other_actions() -> None:
    """Exploration adds an offset to the logits, and leaves the policy as it was."""
    env = environment(Dot, pixels=True)
    own = policy(env, PPOSettings(network="cnn"), 0)
    x = torch.from_numpy(Dot().reset(seed=0)[0].reshape(1, -1)).float()
    other, before = variant(own, env.action_space, 1), own.net(x)
    assert torch.equal(own.net(x), before)
    torch.testing.assert_close(other.net(x) - before, other.net.last.bias[None])
    assert other.net.last.bias.abs().max() > 0.1
