"""What an environment needs before whole trajectories can be compared fairly."""

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple

from rather.errors import ConfigError

MOST_COMBINATIONS = 1024
ABSORBING = "absorbing"
"""Name of the part that `FixedHorizon` adds to a Dict of observations."""


class CombinedActions(gymnasium.ActionWrapper):
    """Makes one Discrete choice of a MultiDiscrete or MultiBinary action: each combination is a choice, the last part counts fastest.

    So a policy knows any dependence between the parts. `rather.control` puts such an environment into it by itself.

    Raises:
        ConfigError: actions are of no such kind, or there are more than 1,024 combinations.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        space = env.action_space
        if not isinstance(space, MultiDiscrete | MultiBinary):
            raise ConfigError(f"actions are {space}; CombinedActions takes MultiDiscrete and MultiBinary ones, and others need it not")
        self.parts, shape = space, space.shape
        self.sizes = [2] * math.prod(shape) if isinstance(space, MultiBinary) else [int(n) for n in space.nvec.flatten()]
        count = math.prod(self.sizes)
        if count > MOST_COMBINATIONS:
            raise ConfigError(f"actions {space} have {count:,} combinations, and a policy chooses among {MOST_COMBINATIONS:,} at most")
        self.action_space = Discrete(count)

    @property
    def choices(self) -> np.ndarray:
        """All combinations (K, ...), by their number."""
        return np.stack([self.action(i) for i in range(int(self.action_space.n))])  # type: ignore[attr-defined]

    def action(self, action: Any) -> np.ndarray:
        """The combination of that number, as the environment takes it."""
        chosen = np.array(np.unravel_index(int(action), self.sizes)).reshape(self.parts.shape)
        first = self.parts.start if isinstance(self.parts, MultiDiscrete) else 0
        return (chosen + first).astype(self.parts.dtype)


def nothing(space: Space) -> Any:
    """What is observed where there is nothing: zeros, or the number in a space that is next to zero."""
    if isinstance(space, Dict):
        return {key: nothing(part) for key, part in space.spaces.items()}
    if isinstance(space, Tuple):
        return tuple(nothing(part) for part in space.spaces)
    if isinstance(space, Discrete):
        return int(space.start)
    if isinstance(space, Box):
        return np.clip(np.zeros(space.shape), space.low, space.high).astype(space.dtype)
    return np.zeros(space.shape or (), space.dtype) + (space.start if isinstance(space, MultiDiscrete) else 0)


class FixedHorizon(gymnasium.Wrapper):
    """Every episode lasts `horizon` steps: after the task's own end the agent stays in an absorbing state without reward.

    Without it the length of an episode gives its return away: in CartPole a reward model that only counts steps would win
    (Kostrikov et al. 2019, as in `seals`). Observations get one number more, 1 in the absorbing state, a Dict of them a part `absorbing`;
    Discrete ones get a state more. In the absorbing state the info is the last one of the task.

    Raises:
        ConfigError: there is no step, or observations are of another kind.
    """

    def __init__(self, env: gymnasium.Env, horizon: int) -> None:
        super().__init__(env)
        if horizon < 1:
            raise ConfigError(f"horizon is {horizon}; let an episode last 1 step at least")
        self.horizon = horizon
        space = env.observation_space
        if isinstance(space, Discrete):
            self.observation_space = Discrete(int(space.n) + 1, start=int(space.start))
        elif isinstance(space, Dict):
            if ABSORBING in space.spaces:
                raise ConfigError(f"observations have a part {ABSORBING!r} already, as a fixed horizon would give them; rename it")
            self.observation_space = Dict({**space.spaces, ABSORBING: Box(0, 1, (1,), np.float32)})
        elif isinstance(space, Box) and len(space.shape) == 1:
            low, high = np.append(space.low, 0), np.append(space.high, 1)
            self.observation_space = Box(low.astype(space.dtype), high.astype(space.dtype), dtype=space.dtype.type)  # type: ignore[arg-type]
        else:
            raise ConfigError(f"a fixed horizon needs observations in a Box of one dimension, a Discrete space or a Dict, not {space}")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start the task."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.time, self.over, self.last_info = 0, False, info
        return self._extended(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Move, or stay where there is nothing more to do. An episode is never terminated, only cut at the horizon."""
        self.time += 1
        cut = self.time >= self.horizon
        if self.over:
            return self._extended(None), 0.0, False, cut, {**self.last_info}
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.last_info = info
        self.over = terminated
        return self._extended(None if terminated else observation), reward, False, cut or (truncated and not terminated), info

    def _extended(self, observation: Any) -> Any:
        space = self.observation_space
        if isinstance(space, Discrete):
            return int(space.start + space.n - 1) if observation is None else observation
        if isinstance(space, Dict):
            parts = nothing(self.env.observation_space) if observation is None else observation
            return {**parts, ABSORBING: np.full(1, observation is None, np.float32)}
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
        self.before = gold_of(info, self.name)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Move; the reward is the growth since the last step."""
        observation, _, terminated, truncated, info = self.env.step(action)
        before, self.before = self.before, gold_of(info, self.name)
        return observation, self.before - before, terminated, truncated, info


def gold_of(info: dict[str, Any], name: str) -> float:
    """The gold reward called `name` in an environment's info; no name: NaN.

    Raises:
        ConfigError: there is none of that name.
    """
    if not name:
        return math.nan
    if name not in info:
        raise ConfigError(f"control.gold is {name!r}, but the environment's info has {', '.join(map(repr, info)) or 'nothing'}")
    return float(info[name])
