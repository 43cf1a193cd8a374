"""What an environment needs before whole trajectories can be compared fairly."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from rather.errors import ConfigError


class FixedHorizon(gymnasium.Wrapper):
    """Every episode lasts `horizon` steps: after the task's own end the agent stays in an absorbing state without reward.

    Without it the length of an episode gives its return away: in CartPole a reward model that only counts steps would win
    (Kostrikov et al. 2019, as in `seals`). Observations get one number more, 1 in the absorbing state; Discrete ones a state more.
    """

    def __init__(self, env: gymnasium.Env, horizon: int) -> None:
        super().__init__(env)
        self.horizon = horizon
        space = env.observation_space
        if isinstance(space, Discrete):
            self.observation_space = Discrete(int(space.n) + 1, start=int(space.start))
        elif isinstance(space, Box) and len(space.shape) == 1:
            low, high = np.append(space.low, 0), np.append(space.high, 1)
            self.observation_space = Box(low.astype(space.dtype), high.astype(space.dtype), dtype=space.dtype.type)  # type: ignore[arg-type]
        else:
            raise ConfigError(f"a fixed horizon needs observations in a Box of one dimension or a Discrete space, not {space}")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start the task."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.time, self.over = 0, False
        return self._extended(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Move, or stay where there is nothing more to do. An episode is never terminated, only cut at the horizon."""
        self.time += 1
        cut = self.time >= self.horizon
        if self.over:
            return self._extended(None), 0.0, False, cut, {}
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.over = terminated
        return self._extended(None if terminated else observation), reward, False, cut or (truncated and not terminated), info

    def _extended(self, observation: Any) -> Any:
        space = self.observation_space
        if isinstance(space, Discrete):
            return int(space.start + space.n - 1) if observation is None else observation
        if observation is None:
            return np.append(np.zeros(space.shape[0] - 1), 1).astype(space.dtype)  # type: ignore[index]
        return np.append(observation, 0).astype(space.dtype)


class GoldReward(gymnasium.Wrapper):
    """Rewards the growth of `info[name]`, the gold reward, in place of the environment's own reward: for simulated judges."""

    def __init__(self, env: gymnasium.Env, name: str) -> None:
        super().__init__(env)
        self.name = name

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start the task."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.before = self._now(info)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Move; the reward is the growth since the last step."""
        observation, _, terminated, truncated, info = self.env.step(action)
        before, self.before = self.before, self._now(info)
        return observation, self.before - before, terminated, truncated, info

    def _now(self, info: dict[str, Any]) -> float:
        if self.name not in info:
            raise ConfigError(f"control.gold is {self.name!r}, but the environment's info has {', '.join(map(repr, info)) or 'nothing'}")
        return float(info[self.name])
