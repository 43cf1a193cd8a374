import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from rather.control.collect import RolloutSegments
from rather.control.environments import environment, inputs
from rather.control.models import ControlPolicy
from rather.errors import DataError


def source(name: str = "CartPole-v1", rows: int = 3, steps: int = 25, seed: int = 0, **more: object) -> RolloutSegments:
    env = environment(name)
    return RolloutSegments(ControlPolicy(inputs(env), env.action_space), lambda: environment(name), rows, steps, seed, **more)


class Counting(gymnasium.Env):
    """Shows how many steps there were since the reset, pays as much, ends after 4, or is cut after 4 if told to."""

    observation_space = Box(0, 100, (1,), np.float32)
    action_space = Discrete(2)

    def __init__(self, cut: bool = False, drifting: bool = False) -> None:
        self.cut, self.drifting, self.made = cut, drifting, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.made = 0, self.made + 1
        return self.look(), {}

    def look(self):
        return np.array([self.time + (self.made if self.drifting else 0)], np.float32)

    def step(self, action):
        self.time += 1
        over = self.time == 4
        return self.look(), float(self.time), over and not self.cut, over and self.cut, {"gold": 10 * self.time}


def counting(steps: int, rows: int = 1, gold: str = "", **more: bool) -> RolloutSegments:
    return RolloutSegments(ControlPolicy(1, Discrete(2), normalize=False), lambda: Counting(**more), rows, steps, 0, gold)


@pytest.mark.parametrize("cut", [False, True])
def test_a_stretch_is_cut_where_attempts_end_and_goes_on_where_it_was(cut: bool) -> None:
    segments = counting(6, gold="gold", cut=cut)
    first = segments.collect(0)
    assert first.observations[:, :, 0].tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 2, 2]]
    assert first.rewards.tolist() == [[1, 2, 3, 4], [1, 2, 0, 0]]
    assert first.mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert first.terminated.tolist() == [not cut, False]
    assert segments.metrics(torch.zeros(0), torch.zeros(0)) == {
        "return": 10,
        "return_std": 0,
        "trajectory_length": 4,
        "gold": 40,
        "gold_std": 0,
    }
    second = segments.collect(1)
    assert second.observations[:, :, 0].tolist() == [[2, 3, 4, 4, 4], [0, 1, 2, 3, 4]]
    assert second.terminated.tolist() == [not cut, not cut]


def test_what_was_kept_is_what_the_policy_says() -> None:
    segments = source()
    for number in range(3):
        batch = segments.collect(number)
        torch.testing.assert_close(segments.policy.evaluate(batch)[0], batch.logprobs, atol=1e-6, rtol=0)
        segments.sync()
    assert segments.policy.normalizer.count == 225


def test_the_same_seed_gives_the_same_and_another_one_another() -> None:
    first, again, other = (source(seed=s).collect(0) for s in (0, 0, 1))
    assert torch.equal(first.observations, again.observations)
    assert first.observations.shape != other.observations.shape or not torch.equal(first.observations, other.observations)


def test_it_goes_on_from_its_state_as_if_it_had_not_been_stopped() -> None:
    whole, first, second = source(), source(), source()
    for number in range(3):
        expected = whole.collect(number)
        whole.ended.clear()
    for number in range(2):
        first.collect(number)
    second.load_state_dict(first.state_dict())
    found = second.collect(2)
    for name in ("observations", "actions", "logprobs", "rewards", "mask", "terminated"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert second.returns.tolist() == whole.returns.tolist()


def test_an_environment_that_does_not_follow_its_seed_is_not_resumed() -> None:
    first, second = counting(6, drifting=True), counting(6, drifting=True)
    first.collect(0)
    first.collect(1)
    with pytest.raises(DataError, match="cannot be resumed: the same seed and actions lead elsewhere"):
        second.load_state_dict(first.state_dict())


def test_what_is_no_number_is_refused() -> None:
    segments = counting(6)
    segments.envs[0].look = lambda: np.array([np.nan], np.float32)
    with pytest.raises(DataError, match="must be finite"):
        segments.collect(0)
