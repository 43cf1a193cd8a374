"""Rewards for new states, and what learners make of them."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

import rather
from rather.control import PPO, StateEntropy, state_entropy
from rather.control.state_entropy import neighbor_distances
from rather.core import Batch
from rather.errors import ConfigError


def column(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32)[:, None]


def batch(observations: list[Any], mask: list[list[int]]) -> Batch:
    """Observations (B, T + 1, I) of so many actions; only they and the mask count."""
    kept = torch.tensor(mask, dtype=torch.float32)
    nothing = torch.zeros_like(kept)
    ended = torch.zeros(len(kept), dtype=torch.bool)
    return Batch(torch.tensor(observations, dtype=torch.float32), nothing, kept, nothing, nothing, ended, torch.arange(len(kept)))


@pytest.mark.parametrize(
    ("k", "wanted"),
    [
        # from 0: 1, 3, 7; from 3: 2, 3, 4; from 5, which was not visited: 2, 2, 4, 5
        (1, [1, 2, 2]),
        (2, [3, 3, 2]),
        (3, [7, 4, 4]),
        (4, [7, 4, 5]),  # the farthest of three others
    ],
)
def test_distances_on_a_line(k: int, wanted: list[float]) -> None:
    assert neighbor_distances(column(0, 3, 5), column(0, 1, 3, 7), k).tolist() == wanted


def test_distances_in_the_plane() -> None:
    """From (0, 0): 2, 5 and 10; from (3, 4): sqrt(13) = 3.606, 5 and 5."""
    visited = torch.tensor([[0, 0], [3, 4], [0, 2], [6, 8.0]])
    found = [neighbor_distances(visited[:2], visited, k).tolist() for k in (1, 2, 3)]
    assert found == [[2, pytest.approx(math.sqrt(13))], [5, 5], [10, 5]]


def test_equal_states_are_neighbors_but_for_one() -> None:
    """Of three ones each has two equal neighbors, and 4 has all three 3 away."""
    visited = column(1, 1, 1, 4)
    assert [neighbor_distances(visited, visited, k).tolist() for k in (1, 2, 3)] == [[0, 0, 0, 3], [0, 0, 0, 3], [3, 3, 3, 3]]


def test_a_state_without_neighbors_is_at_distance_0() -> None:
    assert neighbor_distances(column(2), column(2), 5).tolist() == [0]
    assert neighbor_distances(column(2), column(5), 5).tolist() == [3]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = torch.Generator().manual_seed(0)
    visited, others = (torch.randn(n, 3, generator=chance) for n in (101, 7))
    states = torch.cat([visited[:20], others])
    wanted = []
    for i, state in enumerate(states.double().numpy()):
        distances = np.sort(np.linalg.norm(visited.double().numpy() - state, axis=1))
        wanted.append(distances[5 if i < 20 else 4])
    whole = neighbor_distances(states, visited, 5)
    np.testing.assert_allclose(whole.numpy(), wanted, rtol=1e-5)
    monkeypatch.setattr(state_entropy, "DISTANCES", 250)
    assert torch.equal(neighbor_distances(states, visited, 5), whole)


def test_rewards_by_hand() -> None:
    """States 0, 1 and 3 are reached, from a 9 that is not; a second number is always 5, and a third step is padding.

    Standard deviation of 0, 1, 3: sqrt(14 / 9) = 1.24722. Nearest: 1, 1 and 2, scaled 0.80178, 0.80178, 1.60357. Logarithms of 1 more:
    0.58878, 0.58878, 0.95689, of standard deviation 0.17353. Rewards: 3.3930, 3.3930, 5.5143.
    """
    reward = StateEntropy(k=1)
    found = reward.rewards(batch([[[9, 5], [0, 5], [1, 5]], [[9, 5], [3, 5], [77, 77]]], [[1, 1], [1, 0]]))
    np.testing.assert_allclose(found.numpy(), [[3.3930, 3.3930], [5.5143, 0]], rtol=1e-4)
    assert reward.visited.tolist() == [[0, 5], [1, 5], [3, 5]]
    assert reward.metrics() == {"state_entropy": pytest.approx((0.58878 + 0.58878 + 0.95689) / 3, rel=1e-4)}
    assert reward.metrics() == {}


def test_the_standard_deviations_are_those_of_all_that_was_visited() -> None:
    """Then 7 is reached: of 0, 1, 3, 7 the standard deviation is sqrt(7.1875) = 2.68095, and 3 is 4 away, scaled 1.49201.

    log(2.49201) = 0.91309; of 0.58878, 0.58878, 0.95689 and 0.91309 the standard deviation is 0.17381, so that the reward is 5.2535.
    """
    reward = StateEntropy(k=1)
    reward.rewards(batch([[[9, 5], [0, 5], [1, 5]], [[9, 5], [3, 5], [77, 77]]], [[1, 1], [1, 0]]))
    np.testing.assert_allclose(reward.rewards(batch([[[0, 5], [7, 5]]], [[1]])).numpy(), [[5.2535]], rtol=1e-4)


def test_a_state_that_was_often_seen_is_rewarded_with_nothing() -> None:
    """One-hot states: of A there are four, of B one; k = 3."""
    reward, a, b = StateEntropy(k=3), [1, 0], [0, 1]
    found = reward.rewards(batch([[a, a, a, b, a, a]], [[1] * 5]))
    assert (found[0, [0, 1, 3, 4]] == 0).all()
    assert found[0, 2] > 0
    same = StateEntropy(k=3)
    assert (same.rewards(batch([[a, a, a, a]], [[1] * 3])) == 0).all()


def test_what_is_remembered_is_bounded_and_drawn_evenly() -> None:
    """Of the numbers 0 to 999 in batches of 7; the mean of 50 has a standard error of 41, of 20 seeds one of 9."""
    means = []
    for seed in range(20):
        reward = StateEntropy(k=1, states=50, seed=seed)
        for first in range(0, 1000, 7):
            numbers = range(first, min(first + 7, 1000))
            reward.rewards(batch([[[0.0], *([float(n)] for n in numbers)]], [[1] * len(numbers)]))
        kept = reward.visited[:, 0]
        assert len(kept) == len(np.unique(kept)) == 50
        assert reward.count == 1000
        means.append(kept.mean())
    assert abs(np.mean(means) - 499.5) < 40


def test_too_many_states_are_thinned_out_evenly() -> None:
    """Of ten states three at most: numbers 0, 4 and 8, from which 1 is 1 away. Their standard deviation is sqrt(32 / 3)."""
    reward = StateEntropy(k=1, states=3)
    (found,) = reward.among(column(1), column(*range(10))).tolist()
    assert found == pytest.approx(math.log1p(1 / math.sqrt(32 / 3)))


@pytest.mark.parametrize("options", [{"k": 0}, {"k": 5, "states": 5}])
def test_impossible_numbers_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="take k of 1 or more, and more states than that"):
        StateEntropy(**options)


class Corridor(gymnasium.Env):
    """21 places in a row, from the middle; pays for staying there, `pay` a step; 20 steps."""

    observation_space, action_space = Discrete(21), Discrete(3)

    def __init__(self, pay: float = 1.0) -> None:
        self.pay = pay

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.time = 10, 0
        return self.place, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.place, self.time = min(max(self.place + int(action) - 1, 0), 20), self.time + 1
        return self.place, self.pay * (self.place == 10), False, self.time >= 20, {}


def weights(agent: PPO) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in agent.policy.parameters()])


def test_it_explores_whatever_the_environment_pays() -> None:
    """An untrained policy walks at random; one that was trained to visit new states goes on to where it has seldom been."""

    def reached(agent: PPO) -> float:
        """How far from the middle episodes end, in the mean."""
        ends = [t.observations[-1].argmax() for t in agent.rollouts(40)]  # type: ignore[index]
        return float(np.abs(np.array(ends) - 10).mean())

    agent = PPO(Corridor, reward=StateEntropy(), envs=4, lr=3e-3)
    before = reached(agent)
    agent.train(4_000, bar=False)
    assert before < 4
    assert reached(agent) > before + 2
    other = PPO(lambda: Corridor(-5.0), reward=StateEntropy(), envs=4, lr=3e-3).train(4_000, bar=False)
    assert torch.equal(weights(agent), weights(other))


def test_an_agent_goes_on_from_its_checkpoint_with_what_was_visited(tmp_path: Path) -> None:
    def agent(folder: Path, last: list[dict[str, float]]) -> PPO:
        options: dict[str, Any] = {"envs": 2, "rollout_segment": 30, "batch_size": 20, "checkpoint_every": 1}
        keep = lambda _, values: last.append({k: values[k] for k in ("state_entropy", "score", "loss")})  # noqa: E731
        return PPO(Corridor, reward=StateEntropy(states=100), folder=folder, callbacks=[keep], **options)

    whole, first, then = list[dict[str, float]](), list[dict[str, float]](), list[dict[str, float]]()
    a = agent(tmp_path / "whole", whole).train(240, bar=False)
    agent(tmp_path / "cut", first).train(120, bar=False)
    b = agent(tmp_path / "cut", then).train(240, bar=False)
    assert first + then == whole
    assert torch.equal(weights(a), weights(b))


def test_a_wrapped_environment_rewards_new_states() -> None:
    env = rather.control.RewardWrapper(Corridor(), StateEntropy(k=1))
    env.reset(seed=0)
    assert [env.step(action)[1] > 0 for action in (1, 2, 1)] == [False, True, False]


def test_numbers_of_a_box_may_be_constant() -> None:
    """A number that never changes has a standard deviation of 0."""

    class Constant(Corridor):
        observation_space = Box(-9, 99, (2,), np.float32)

        def reset(self, **given: Any) -> Any:
            return np.array([super().reset(**given)[0], 3], np.float32), {}

        def step(self, action: int) -> Any:
            place, *others = super().step(action)
            return np.array([place, 3], np.float32), *others

    found = PPO(Constant, reward=StateEntropy(), envs=2).train(256, bar=False)
    assert torch.isfinite(weights(found)).all()


def test_a_number_that_was_never_seen_before_is_scaled_by_what_is_new() -> None:
    """Of three states at 0, 2 and 0, 0 that are known and one at (0, 4): 4 over the std of 0, 0, 0 and 4, sqrt(3), is 4 / sqrt(3)."""
    visited = torch.tensor([[0, 0], [0, 0], [0, 0.0]])
    found = StateEntropy(k=1).among(torch.tensor([[0, 4.0]]), visited)
    assert found.tolist() == pytest.approx([math.log1p(4 / math.sqrt(3))]), "of one reward there is no standard deviation"


@pytest.mark.parametrize("wrong", [{"k": 2.5}, {"k": True}, {"k": 0}, {"states": "x"}, {"states": 5}, {"seed": -1}, {"seed": 1.5}])
def test_what_is_no_number_of_neighbors_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="StateEntropy: k is"):
        StateEntropy(**wrong)


def test_a_memory_is_of_one_environment_and_of_one_setting() -> None:
    entropy = StateEntropy(k=1)
    entropy.rewards(batch([[[0], [1], [2]]], [[1, 1]]))
    with pytest.raises(ConfigError, match="knows states of 1 numbers, and these have 2"):
        entropy.rewards(batch([[[0, 0], [1, 1], [2, 2]]], [[1, 1]]))
    for other in ({"k": 2}, {"k": 1, "states": 60}, {"k": 1, "seed": 3}):
        with pytest.raises(ValueError, match="StateEntropy had"):
            StateEntropy(**other).recall(entropy.memory())


def test_pictures_and_the_class_itself_are_refused() -> None:
    pictures = batch([[[0], [1], [2]]], [[1, 1]])
    with pytest.raises(ConfigError, match="says little of pictures"):
        StateEntropy().rewards(replace(pictures, observations=pictures.observations.to(torch.uint8)))
    with pytest.raises(ConfigError, match=r"give an object of it, such as StateEntropy\(\)"):
        PPO(Corridor, reward=StateEntropy)
