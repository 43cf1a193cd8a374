"""An environment as an off-policy learner sees it: flat observations, a learned reward, and a record by which it is resumed exactly.

Shape letter: I numbers of an observation.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box

from rather.control.environments import Eye, inputs
from rather.control.models import ControlReward
from rather.control.reward_wrappers import StepReward
from rather.errors import ConfigError, DataError


class Recorded(gymnasium.Wrapper):
    """Observations laid flat, a learned `reward` in place of the environment's own where there is one, and all that brings it back to now.

    Each episode's reset seed comes from `seed` and how many there were.
    """

    def __init__(self, env: gymnasium.Env, reward: ControlReward | None, seed: Sequence[int], gold: str) -> None:
        super().__init__(env)
        self.eye, self.of_steps = Eye(env.observation_space), None if reward is None else StepReward(reward, env)
        self.observation_space = Box(-np.inf, np.inf, (inputs(env),), np.float32)
        self.own_seed, self.gold, self.episode = [*seed], gold, -1
        self.taken, self.now = list[np.ndarray](), np.zeros(0, np.float32)
        self.score, self.own = 0.0, 0.0
        self.ended = list[tuple[float, float, float, int]]()
        """Of every episode that has ended: the sums of what it was rewarded with and of the environment's own, its gold, and its steps."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start the next episode."""
        del seed
        self.episode += 1
        self.taken, self.score, self.own = [], 0.0, 0.0
        number = np.random.SeedSequence([*self.own_seed, self.episode]).generate_state(1)[0]
        observation, info = self.env.reset(seed=int(number), options=options)
        self.now = self.eye(observation)
        return self.now, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Act, and keep what was done."""
        observation, own, terminated, truncated, info = self.env.step(action)
        before, self.now, reward = self.now, self.eye(observation), float(own)
        if not (np.isfinite(self.now).all() and np.isfinite(reward)):
            raise DataError(f"{self.env} returned an observation or a reward that is no finite number; both must be finite")
        if self.of_steps is not None:
            reward = float(self.of_steps(before[None], self.of_steps.allowed(np.asarray(action)[None]), self.now[None])[0])
        self.taken.append(np.array(action, np.float32))
        self.score, self.own = self.score + reward, self.own + float(own)
        if terminated or truncated:
            self.ended.append((self.score, self.own, self._gold(info), len(self.taken)))
        return self.now, reward, terminated, truncated, info

    def state_dict(self) -> dict[str, Any]:
        """Which episode it is in, and what was done in it."""
        return {"episode": self.episode, "taken": torch.from_numpy(np.array(self.taken, np.float32)), "now": torch.from_numpy(self.now)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Bring it back to where it was, by doing again what was done.

        Raises:
            DataError: it does not come out there: it is not decided by its seed and actions.
        """
        self.episode = state["episode"] - 1
        self.reset()
        for action in state["taken"].numpy():
            self.step(action)
        if not np.array_equal(self.now, state["now"].numpy()):
            raise DataError(f"{self.env} cannot be resumed: the same seed and actions lead elsewhere than before")

    def _gold(self, info: dict[str, Any]) -> float:
        if not self.gold:
            return float("nan")
        if self.gold not in info:
            raise ConfigError(f"control.gold is {self.gold!r}, but the environment's info has {', '.join(map(repr, info)) or 'nothing'}")
        return float(info[self.gold])
