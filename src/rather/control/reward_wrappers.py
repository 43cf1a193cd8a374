"""Environments that return a learned reward, so that any learner for Gymnasium can train on it.

Shape letters: N environments, I numbers of an observation, A of an action.
"""

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import iterate

from rather.control.environments import Eye
from rather.control.reward_model import RewardModel
from rather.control.rewards import Reward, reward_of
from rather.core import Batch
from rather.errors import ConfigError, DataError, TrainingError

OWN = "environment_reward"
"""Key of the environment's own reward in `info`."""
SEVERAL = (
    "a gymnasium.vector.VectorEnv to VectorRewardWrapper; environments that Stable-Baselines3 puts together are wrapped one by one"
    " (make_vec_env(..., wrapper_class=rather.control.RewardWrapper))"
)
"""Which wrapper several environments have, in messages."""


class StepReward:
    """Rewards steps in an environment of these spaces: of a `RewardModel`, a network or a function; see `control.PPO`."""

    def __init__(self, reward: Reward, env: Any) -> None:
        if reward is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise ConfigError("reward is None; give a RewardModel, an nn.Module, or a function of (observation, action, next_observation)")
        if isinstance(reward, RewardModel) and not reward.fitted:
            raise TrainingError("the reward model has not been fitted, and would reward everything by 0; call fit(comparisons) first")
        self.source, self.eye, self.space = reward_of(reward, env), Eye(env.observation_space), env.action_space

    def __call__(self, before: np.ndarray, actions: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Rewards (N,) of steps from observations (N, I) by actions (N,) or (N, A) to observations (N, I)."""
        assert self.source is not None
        count = len(before)
        zeros = torch.zeros(count, 1)
        batch = Batch(
            observations=torch.from_numpy(np.stack([before, after], 1)),
            actions=torch.from_numpy(actions[:, None]),
            mask=torch.ones(count, 1),
            logprobs=zeros,
            rewards=zeros,
            terminated=torch.zeros(count, dtype=torch.bool),
            groups=torch.arange(count),
        )
        rewards = self.source.rewards(batch)[:, 0].double().numpy(force=True)
        if not np.isfinite(rewards).all():
            raise DataError(f"the learned reward of a step is {rewards[~np.isfinite(rewards)][0]}; look at the model's training")
        return rewards

    def allowed(self, actions: np.ndarray) -> np.ndarray:
        """Actions (N,) or (N, A) in the shape of the space.

        Raises:
            DataError: they are none that the space can hold.
        """
        try:
            found = actions.reshape(len(actions), *(self.space.shape or ()))
        except ValueError:
            raise DataError(f"actions of shape {actions.shape[1:]} are none of {self.space}") from None
        choices = isinstance(self.space, Discrete)
        if choices and not ((found >= self.space.start) & (found < self.space.start + self.space.n)).all():
            raise DataError(f"actions {found.tolist()} are not all in {self.space}")
        if isinstance(self.space, Box) and not np.isfinite(found).all():
            raise DataError(f"actions {found.tolist()} are not all finite")
        return found


class RewardWrapper(gymnasium.Wrapper):
    """Returns a learned reward in place of the environment's own, which stands in `info["environment_reward"]`.

    `reward` is a fitted `rather.control.RewardModel`, an `nn.Module` or a function (observation, action, next_observation), as
    `control.PPO` takes it. After another `fit`, a reward model rewards by what it has learned then.

        env = rather.control.RewardWrapper(gymnasium.make("Pendulum-v1"), reward)
        stable_baselines3.SAC("MlpPolicy", env).learn(20_000)

    Raises:
        ConfigError: the reward does not fit the environment, or is nothing that can reward.
        TrainingError: the reward model has not been fitted.
    """

    def __init__(self, env: gymnasium.Env, reward: Reward) -> None:
        if not isinstance(env, gymnasium.Env):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"env is {env!r:.80}; give one gymnasium.Env, and {SEVERAL}")
        super().__init__(env)
        self.reward_fn = StepReward(reward, env)
        self.before: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.before = self.reward_fn.eye(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act, for the learned reward."""
        if self.before is None:
            raise DataError("the environment was not reset before its first step")
        actions = self.reward_fn.allowed(np.asarray(action)[None])
        observation, own, terminated, truncated, info = self.env.step(action)
        after = self.reward_fn.eye(observation)
        before, self.before = self.before, after
        reward = float(self.reward_fn(before[None], actions, after[None])[0])
        return observation, reward, terminated, truncated, info | {OWN: float(own)}


class VectorRewardWrapper(VectorWrapper):
    """`RewardWrapper` for Gymnasium's vector environments: all N steps are rewarded in one batch.

    The reward of a step that resets an environment (`AutoresetMode.NEXT_STEP`) is 0. Where the last observation stands in `info`
    (`SAME_STEP`), the reward is that of the step to it.

    Raises:
        ConfigError: the reward does not fit the environments, or is nothing that can reward.
        TrainingError: the reward model has not been fitted.
    """

    def __init__(self, env: VectorEnv, reward: Reward) -> None:
        if not isinstance(env, VectorEnv):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"env is {env!r:.80}; give a single environment to RewardWrapper, and {SEVERAL}")
        super().__init__(env)
        self.reward_fn = StepReward(reward, _One(env))
        self.mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        self.before, self.ended = np.zeros((0, 0), np.float32), np.zeros(env.num_envs, bool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start episodes; with a `reset_mask` in `options` those that it says."""
        mask = np.array((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))  # which gymnasium takes out of the options
        observations, infos = self.env.reset(seed=seed, options=options)
        self.before, self.ended = self._flat(observations), self.ended & ~mask
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Act in all environments, for the learned reward."""
        if not len(self.before):
            raise DataError("the environments were not reset before their first step")
        taken = self.reward_fn.allowed(np.asarray(actions))
        observations, own, terminated, truncated, infos = self.env.step(actions)
        after = shown = self._flat(observations)
        ended = np.logical_or(terminated, truncated)
        if self.mode is AutoresetMode.SAME_STEP and ended.any():
            after = shown.copy()
            for i in np.flatnonzero(ended):
                after[i] = self.reward_fn.eye(infos["final_obs"][i])
        before, self.before = self.before, shown
        rewards = self.reward_fn(before, taken, after)
        if self.mode is AutoresetMode.NEXT_STEP:
            rewards, self.ended = np.where(self.ended, 0.0, rewards), ended
        return observations, rewards, terminated, truncated, infos | {OWN: np.asarray(own, np.float64)}

    def _flat(self, observations: Any) -> np.ndarray:
        return np.stack([self.reward_fn.eye(row) for row in iterate(self.env.observation_space, observations)])


class _One:
    """One of the environments, as far as spaces go."""

    def __init__(self, env: VectorEnv) -> None:
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space
