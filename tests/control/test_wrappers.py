import gymnasium
import numpy as np
import pytest

from rather.control import environments
from rather.control.wrappers import FixedHorizon
from rather.errors import ConfigError


def test_cartpole_lasts_as_long_however_soon_the_pole_falls() -> None:
    env = FixedHorizon(gymnasium.make("CartPole-v1"), 60)
    assert env.reset(seed=0)[0].shape == (5,)
    rewards, seen, cut = [], [], False
    while not cut:
        observation, reward, terminated, cut, _ = env.step(0)  # always left: it falls within a dozen steps
        assert not terminated
        rewards.append(reward)
        seen.append(observation)
        assert env.observation_space.contains(observation)
    assert len(rewards) == 60
    fell = int(sum(rewards))
    assert 5 < fell < 15
    assert rewards == [1.0] * fell + [0.0] * (60 - fell)
    assert (np.array(seen)[: fell - 1, 4] == 0).all()
    assert (np.array(seen)[fell - 1 :] == [0, 0, 0, 0, 1]).all()
    assert env.reset(seed=0)[0][4] == 0


def test_discrete_states_get_one_more() -> None:
    env = FixedHorizon(gymnasium.make("FrozenLake-v1", is_slippery=False), 5)
    env.reset(seed=0)
    assert env.observation_space.n == 17
    steps = [env.step(action) for action in (2, 1, 0, 0, 0)]  # right, and down into the hole at cell 5
    assert [step[0] for step in steps] == [1, 16, 16, 16, 16]
    assert all("prob" in step[4] for step in steps), "a gold reward is found at the end, too"


def test_other_observations_are_refused() -> None:
    class Pictures(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 1, (3, 3))

    with pytest.raises(ConfigError, match=r"a Box of one dimension"):
        FixedHorizon(Pictures(), 5)
    with pytest.raises(ConfigError, match="horizon is 0; let an episode last 1 step at least"):
        FixedHorizon(gymnasium.make("CartPole-v1"), 0)


def test_what_is_meant_is_paid_in_place_of_the_reward() -> None:
    plain, gold = environments.environment("rather/CheckpointCar-v0"), environments.environment("rather/CheckpointCar-v0", gold="laps")
    for env in (plain, gold):
        env.reset(seed=0)
    total = 0.0
    for _ in range(200):
        *_, info = plain.step(7)
        total += gold.step(7)[1]
    assert total == pytest.approx(info["laps"])
    assert abs(total) > 0.1
    with pytest.raises(ConfigError, match=r"control.gold is 'lapps', but the environment's info has 'laps'"):
        environments.environment("rather/CheckpointCar-v0", gold="lapps").reset(seed=0)
