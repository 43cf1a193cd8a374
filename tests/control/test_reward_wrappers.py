"""Environments that return a learned reward: to a learner of Gymnasium's world they are environments like any other."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rather import control
from rather.errors import ConfigError, DataError, TrainingError

SMALL: dict[str, Any] = {"members": 2, "hidden": (8,), "epochs": 2, "batch_size": 10, "lr": 1e-2}


class Slope(gymnasium.Env):
    """Shows where it is, and moves by -0.3, 0 or 0.3, up to 4 steps; rewards by 7."""

    observation_space = Box(-3, 3, (1,), np.float32)
    action_space = Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = float(self.np_random.uniform(-1, 1)), 0
        return np.array([self.place], np.float32), {"at": "first"}

    def step(self, action):
        self.place, self.time = self.place + 0.3 * (action - 1), self.time + 1
        return np.array([self.place], np.float32), 7.0, False, self.time == 4, {}


class Parts(Slope):
    """The same in two parts."""

    observation_space = Dict({"place": Box(-3, 3, (1,), np.float32), "time": Discrete(5)})

    def reset(self, *, seed=None, options=None):
        shown, info = super().reset(seed=seed)
        return {"place": shown, "time": self.time}, info

    def step(self, action):
        shown, *others = super().step(action)
        return {"place": shown, "time": self.time}, *others


def higher(a: Any, b: Any) -> str:
    return "a" if a.observations.sum() > b.observations.sum() else "b"


def lower(a: Any, b: Any) -> str:
    return higher(b, a)


def fitted(env: Any = Slope) -> control.RewardModel:
    episodes = control.rollouts(env, 20)
    pairs = control.compare(episodes, higher)
    return control.RewardModel(env, **SMALL).fit(pairs)


@pytest.mark.parametrize("env", [Slope, Parts])
def test_it_rewards_by_what_the_model_says_of_the_same_steps(env: Any) -> None:
    model = fitted(env)
    (episode,) = control.rollouts(env, 1, seed=5)
    wrapped = control.RewardWrapper(env(), model)
    _, info = wrapped.reset(seed=int(episode.task.key))
    assert info == {"at": "first"}
    paid = list[float]()
    assert episode.actions is not None
    for action in episode.actions:
        _, reward, terminated, truncated, info = wrapped.step(int(action))
        paid.append(reward)
        assert info["environment_reward"] == 7.0
    assert truncated
    assert not terminated
    assert sum(paid) == pytest.approx(model.score([episode])[0], abs=1e-5)
    assert np.std(paid) > 0


def test_a_model_that_is_fitted_again_rewards_by_what_it_has_learned_then() -> None:
    model = fitted()
    wrapped = control.RewardWrapper(Slope(), model)
    wrapped.reset(seed=0)
    before = wrapped.step(2)[1]
    model.fit(control.compare(control.rollouts(Slope, 20, seed=9), lower))
    wrapped.reset(seed=0)
    assert wrapped.step(2)[1] != before


def rise(observation: Any, action: Any, after: Any) -> float:
    return float(after[0] - observation[0])


def test_a_function_sees_the_step() -> None:
    wrapped = control.RewardWrapper(Slope(), rise)
    wrapped.reset(seed=0)
    assert [round(wrapped.step(a)[1], 4) for a in (2, 1, 0)] == [0.3, 0.0, -0.3]


def test_an_environment_that_shows_the_same_array_again() -> None:
    class Reused(Slope):
        shown = np.zeros(1, np.float32)

        def reset(self, *, seed=None, options=None):
            self.shown[:], info = super().reset(seed=seed)
            return self.shown, info

        def step(self, action):
            self.shown[:], *others = super().step(action)
            return self.shown, *others

    wrapped = control.RewardWrapper(Reused(), rise)
    wrapped.reset(seed=0)
    assert [round(wrapped.step(a)[1], 4) for a in (2, 1, 0)] == [0.3, 0.0, -0.3]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("env", [Slope, Parts])
def test_several_environments_are_rewarded_together(mode: AutoresetMode, env: Any) -> None:
    """Each step of an episode rises by 0.3, whatever stands in the observation once it has ended."""
    reward: Any = rise if env is Slope else lambda before, action, after: float(after[0] - before[0])
    several = control.VectorRewardWrapper(SyncVectorEnv([env] * 3, autoreset_mode=mode), reward)
    several.reset(seed=0)
    paid = np.array([several.step(np.array([2, 2, 2]))[1] for _ in range(5)])
    assert paid[:4] == pytest.approx(0.3, abs=1e-5)
    assert paid[4] == pytest.approx(0.0 if mode is AutoresetMode.NEXT_STEP else 0.3, abs=1e-5)
    *_, infos = several.step(np.array([0, 1, 2]))
    assert infos["environment_reward"].shape == (3,)


def test_episodes_that_are_reset_by_hand() -> None:
    several = control.VectorRewardWrapper(SyncVectorEnv([Slope] * 2, autoreset_mode=AutoresetMode.DISABLED), rise)
    several.reset(seed=0)
    for _ in range(4):
        paid = several.step(np.array([2, 0]))[1]
    assert paid == pytest.approx([0.3, -0.3], abs=1e-5)
    several.reset(seed=1, options={"reset_mask": np.array([True, True])})
    assert several.step(np.array([2, 0]))[1] == pytest.approx([0.3, -0.3], abs=1e-5)


def test_what_cannot_reward_is_refused() -> None:
    with pytest.raises(TrainingError, match="has not been fitted"):
        control.RewardWrapper(Slope(), control.RewardModel(Slope, **SMALL))
    with pytest.raises(ConfigError, match="reward is a model of 1 numbers"):
        control.RewardWrapper(gymnasium.make("CartPole-v1"), fitted())
    with pytest.raises(ConfigError, match="reward is None"):
        control.RewardWrapper(Slope(), None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="give a RewardModel"):
        control.VectorRewardWrapper(SyncVectorEnv([Slope]), 3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="not reset before its first step"):
        control.RewardWrapper(Slope(), rise).step(0)
    with pytest.raises(DataError, match="not reset before their first step"):
        control.VectorRewardWrapper(SyncVectorEnv([Slope]), rise).step(np.array([0]))


def test_stable_baselines3_takes_it_as_an_environment_and_learns() -> None:
    import stable_baselines3
    from stable_baselines3.common.env_checker import check_env
    from stable_baselines3.common.env_util import make_vec_env

    check_env(control.RewardWrapper(gymnasium.make("Pendulum-v1"), fitted("Pendulum-v1")), warn=False)
    wrapper: Any = control.RewardWrapper
    several = make_vec_env(Slope, n_envs=4, wrapper_class=wrapper, wrapper_kwargs={"reward": rise}, seed=0)
    ppo = stable_baselines3.PPO("MlpPolicy", several, n_steps=64, batch_size=64, learning_rate=3e-3, seed=0, device="cpu").learn(3000)
    assert ppo.predict(np.zeros((1, 1), np.float32), deterministic=True)[0] == 2, "up, as the reward says, though the environment says 7"


def test_soft_actor_critic_learns_from_it() -> None:
    import stable_baselines3

    env = control.RewardWrapper(gymnasium.make("Pendulum-v1"), lambda observation, action, after: -abs(float(np.ravel(action)[0])))
    sac = stable_baselines3.SAC(
        "MlpPolicy", env, learning_starts=100, buffer_size=1000, policy_kwargs={"net_arch": [32, 32]}, gamma=0.0, learning_rate=3e-3,
        seed=0, device="cpu",
    ).learn(400)  # fmt: skip
    state = np.array([[1.0, 0.0, 0.0]], np.float32)
    assert abs(float(np.ravel(sac.predict(state, deterministic=True)[0])[0])) < 0.5, "idle, as the reward says"


class Lasts(Slope):
    """Ends after some steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def step(self, action):
        shown, reward, over, _, info = super().step(action)
        return shown, reward, over, self.time >= self.steps, info


def test_a_partial_reset_leaves_the_others_as_they_were() -> None:
    several = control.VectorRewardWrapper(SyncVectorEnv([lambda: Lasts(2), lambda: Lasts(4)]), rise)
    several.reset(seed=0)
    for _ in range(2):
        several.step(np.array([2, 2]))
    several.reset(seed=1, options={"reset_mask": np.array([False, True])})
    assert several.step(np.array([2, 2]))[1] == pytest.approx([0.0, 0.3], abs=1e-5), "the first one is reset by this step"


def test_observations_in_a_tuple() -> None:
    class Pair(Slope):
        observation_space = Tuple([Box(-9, 9, (2,), np.float32), Box(-9, 9, (2,), np.float32)])  # type: ignore[assignment]

        def seen(self):
            return np.full(2, self.time, np.float32), np.zeros(2, np.float32)

        def reset(self, *, seed=None, options=None):
            _, info = super().reset(seed=seed)
            return self.seen(), info

        def step(self, action):
            _, *others = super().step(action)
            return self.seen(), *others

    several = control.VectorRewardWrapper(SyncVectorEnv([Pair] * 3), rise)
    several.reset(seed=0)
    assert several.step(np.array([0, 1, 2]))[1].tolist() == [1.0, 1.0, 1.0]


def test_actions_that_are_none_of_the_space_are_refused() -> None:
    wrapped = control.RewardWrapper(Slope(), fitted())
    wrapped.reset(seed=0)
    assert np.isfinite(wrapped.step(np.int64(2))[1])
    for wrong in (7, -1):
        with pytest.raises(DataError, match=r"are not all in Discrete\(3\)"):
            wrapped.step(wrong)
    pendulum = control.RewardWrapper(gymnasium.make("Pendulum-v1"), lambda o, a, n: 0.0)
    pendulum.reset(seed=0)
    with pytest.raises(DataError, match="are not all finite"):
        pendulum.step(np.array([np.nan], np.float32))


def test_after_an_error_a_step_is_one_step() -> None:
    calls = []

    def failing(observation: Any, action: Any, after: Any) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("once")
        return rise(observation, action, after)

    wrapped = control.RewardWrapper(Slope(), failing)
    wrapped.reset(seed=0)
    wrapped.step(2)
    with pytest.raises(DataError, match="once"):
        wrapped.step(2)
    assert wrapped.step(2)[1] == pytest.approx(0.3, abs=1e-5)


def test_a_reward_model_with_a_horizon_fits_an_environment_with_one() -> None:
    episodes = control.PPO("CartPole-v1", envs=1, horizon=30).rollouts(10)
    model = control.RewardModel("CartPole-v1", horizon=30, **SMALL).fit(control.compare(episodes, higher))
    with pytest.raises(ConfigError, match="rather.control.FixedHorizon gives an environment one"):
        control.RewardWrapper(gymnasium.make("CartPole-v1"), model)
    wrapped = control.RewardWrapper(control.FixedHorizon(gymnasium.make("CartPole-v1"), 30), model)
    wrapped.reset(seed=0)
    assert np.isfinite(wrapped.step(1)[1])


def test_each_wrapper_names_the_other() -> None:
    with pytest.raises(ConfigError, match="a gymnasium.vector.VectorEnv to VectorRewardWrapper; .* Stable-Baselines3 .* one by one"):
        control.RewardWrapper(SyncVectorEnv([Slope]), rise)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a single environment to RewardWrapper"):
        control.VectorRewardWrapper(Slope(), rise)  # type: ignore[arg-type]
