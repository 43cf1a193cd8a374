"""An environment as an off-policy learner sees it: flat observations, a learned reward, and a record by which it is resumed exactly.

Shape letters: I numbers of an observation, A of an action.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box

from rather.control.environments import Eye, allowed, inputs
from rather.control.models import ControlReward
from rather.control.reward_wrappers import StepReward
from rather.control.wrappers import gold_of
from rather.errors import DataError, TrainingError


@dataclass(frozen=True)
class Ended:
    """An episode that has ended: the sums of what it was rewarded with and of the environment's own rewards, its gold, and its steps."""

    score: float
    environment_return: float
    gold: float
    length: int


class ResumableEnv(gymnasium.Wrapper):
    """Observations (I,) laid flat, a learned `reward` in place of the environment's own where there is one, and all that brings it back.

    Each episode's reset seed comes from `seed`, the run's and which copy of the environment this is, and how many episodes there were.
    `gold` names the gold reward in the environment's info; "": there is none. `ended` are the episodes since it was cleared.
    """

    def __init__(self, env: gymnasium.Env, reward: ControlReward | None, seed: Sequence[int], gold: str) -> None:
        super().__init__(env)
        self.eye, self.reward_fn = Eye(env.observation_space), None if reward is None else StepReward(reward, env)
        self.observation_space = Box(-np.inf, np.inf, (inputs(env),), np.float32)
        self.seed, self.gold, self.episode = tuple(seed), gold, -1
        self.actions, self.observation = list[np.ndarray](), np.zeros(inputs(env), np.float32)
        self.score, self.environment_return, self.ended = 0.0, 0.0, list[Ended]()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start the next episode; another `seed` is not heeded."""
        del seed
        self.episode += 1
        self.actions, self.score, self.environment_return = [], 0.0, 0.0
        number = np.random.SeedSequence([*self.seed, self.episode]).generate_state(1)[0]
        observation, _ = self.env.reset(seed=int(number), options=options)
        self.observation = self._seen(observation)
        self._check(self.observation, 0.0)
        return self.observation, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Act, and keep the action; nothing of what the environment's info says is passed on.

        Raises:
            DataError: an observation or a reward is no finite number.
            TrainingError: the action is none.
            ConfigError: the gold reward is not in the environment's info.
        """
        if not np.isfinite(action).all():
            raise TrainingError("the policy's action is not a number: training broke down; lower sb3.learning_rate")
        observation, own, terminated, truncated, info = self.env.step(allowed(self.action_space, action))
        before, self.observation, reward = self.observation, self._seen(observation), float(own)
        self._check(self.observation, reward)
        self.environment_return += reward
        if self.reward_fn is not None:
            actions = self.reward_fn.allowed(np.asarray(action)[None])
            reward = float(self.reward_fn(before[None], actions, self.observation[None])[0])
        self.actions.append(np.array(action))
        self.score += reward
        if terminated or truncated:
            self.ended.append(Ended(self.score, self.environment_return, gold_of(info, self.gold), len(self.actions)))
        return self.observation, reward, terminated, truncated, {}

    def state_dict(self) -> dict[str, Any]:
        """Which episode it is in, and what was done in it."""
        actions = np.array(self.actions, self.action_space.dtype)
        return {
            "episode": self.episode, "actions": torch.from_numpy(actions), "observation": torch.from_numpy(self.observation),
            "environment_return": repr(self.environment_return),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Bring it back to where it was, by doing again what was done.

        Raises:
            DataError: it does not come out there: it is not decided by its seed and actions.
        """
        self.episode = state["episode"]
        if self.episode < 0:  # nothing was done yet
            return
        self.episode -= 1
        self.reset()
        for action in state["actions"].numpy():
            self.step(action)
        if not np.array_equal(self.observation, state["observation"].numpy()):
            raise DataError(f"{self.env} cannot be resumed: the same seed and actions lead elsewhere than before")
        if self.environment_return != float(state["environment_return"]):
            raise DataError(f"{self.env} cannot be resumed: the same seed and actions bring other rewards than before")

    def _seen(self, observation: object) -> np.ndarray:
        return self.eye(observation).astype(np.float32)  # pictures are bytes

    def _check(self, observation: np.ndarray, reward: float) -> None:
        if not (np.isfinite(observation).all() and np.isfinite(reward)):
            raise DataError(f"{self.env} returned an observation or a reward that is no finite number; both must be finite")
