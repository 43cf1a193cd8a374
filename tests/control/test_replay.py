"""Replay buffers of the real Stable-Baselines3, rewarded again."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import stable_baselines3
from gymnasium.spaces import Box, Dict, Discrete
from stable_baselines3.common.env_util import make_vec_env

from rather import control
from rather.errors import ConfigError


def settings() -> dict[str, Any]:
    return {"learning_starts": 10_000, "buffer_size": 600, "policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 0}


class Line(gymnasium.Env):
    """A place on a line that actions move; shown as `kind` says."""

    def __init__(self, kind: str = "box", choices: bool = True) -> None:
        self.kind = kind
        spaces = {"box": Box(-50, 50, (2,), np.float32), "state": Discrete(9, start=2)}
        self.observation_space = spaces.get(kind) or Dict({"place": spaces["box"], "state": Discrete(9)})
        self.action_space = Discrete(3) if choices else Box(np.array([-3], np.float32), np.array([1], np.float32))

    def seen(self) -> Any:
        place, state = np.array([self.place, self.time], np.float32), int(abs(self.place)) % 9
        return {"box": place, "state": state + 2}.get(self.kind, {"place": place, "state": state})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.time = float(self.np_random.normal()), 0
        return self.seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place, self.time = self.place + float(np.asarray(action).flatten()[0]) - 1, self.time + 1
        return self.seen(), 0.0, False, self.time >= 7, {}


def judged(observation: np.ndarray, action: Any, after: np.ndarray) -> float:
    return float(observation.sum() + 10 * np.asarray(action).sum() + 100 * after.sum())


@pytest.mark.parametrize("envs", [1, 3])
@pytest.mark.parametrize(("kind", "learner"), [("box", "DQN"), ("state", "DQN"), ("dict", "DQN"), ("box", "SAC"), ("dict", "TD3")])
def test_what_is_in_the_buffer_gets_the_rewards_of_now(kind: str, learner: str, envs: int) -> None:
    """A buffer that was filled with one reward becomes, with another one, that which the other would have filled."""
    policy = "MultiInputPolicy" if kind == "dict" else "MlpPolicy"

    def filled(reward: Any) -> Any:
        vector = make_vec_env(lambda: control.RewardWrapper(Line(kind, learner == "DQN"), reward), n_envs=envs, seed=0)
        return getattr(stable_baselines3, learner)(policy, vector, **settings()).learn(900 if envs == 1 else 120)

    plain, wanted = filled(lambda o, a, n: 0.0), filled(judged)
    count = 600 if envs == 1 else 120
    assert control.relabel(plain, judged) == count
    steps = count // envs
    assert np.abs(wanted.replay_buffer.rewards[:steps]).max() > 100
    np.testing.assert_allclose(plain.replay_buffer.rewards[:steps], wanted.replay_buffer.rewards[:steps], rtol=1e-4, atol=1e-3)
    assert not plain.replay_buffer.rewards[steps:].any(), "what is not filled is left"


def test_a_reward_that_is_fitted_again_relabels_and_goes_on() -> None:
    def better(sign: int) -> Any:
        return lambda a, b: float(sign * a.observations[-1, 0] > sign * b.observations[-1, 0])

    trajectories = control.rollouts(Line, 60)
    reward = control.RewardModel(Line, hidden=(16,), epochs=60, lr=3e-3).fit(control.compare(trajectories, better(1)))
    dqn = stable_baselines3.DQN("MlpPolicy", control.RewardWrapper(Line(), reward), **settings()).learn(300)
    actions = dqn.replay_buffer.actions[:300, 0, 0]  # type: ignore[union-attr]

    def paid(action: int) -> float:
        return float(dqn.replay_buffer.rewards[:300, 0][actions == action].mean())  # type: ignore[union-attr]

    assert paid(2) > paid(0)
    reward.fit(control.compare(trajectories, better(-1)))
    assert paid(2) > paid(0)
    assert control.relabel(dqn, reward) == 300
    assert paid(2) < paid(0)
    dqn.learn(20, reset_num_timesteps=False)


def test_what_has_no_such_buffer_is_refused() -> None:
    env = control.RewardWrapper(Line(), judged)
    with pytest.raises(ConfigError, match="PPO has no replay buffer of steps"):
        control.relabel(stable_baselines3.PPO("MlpPolicy", env, device="cpu"), judged)
    small = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    with pytest.raises(ConfigError, match="DQN has no replay buffer .*, having optimize_memory_usage"):
        control.relabel(stable_baselines3.DQN("MlpPolicy", env, **settings(), **small), judged)
    with pytest.raises(ConfigError, match="reward is 3; give a RewardModel"):
        control.relabel(stable_baselines3.DQN("MlpPolicy", env, **settings()), 3)  # type: ignore[arg-type]
