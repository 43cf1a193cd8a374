"""What an agent for control may be trained on in place of the environment's reward: a model, a network or a function.

Shape letters: B trajectories, T actions (padded), I numbers of an observation, A of an action.
"""

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import torch
from gymnasium.spaces import Space
from torch import Tensor, nn

from rather.control.build import check_network, width
from rather.control.environments import allowed, inputs
from rather.control.models import ControlReward
from rather.control.reward_model import RewardModel
from rather.core import Batch
from rather.errors import ConfigError, DataError

Reward = RewardModel | nn.Module | Callable[[Any, Any, Any], float]


class FunctionReward:
    """A function of (observation, action, next_observation) that is called for one step at a time.

    Observations are flat vectors (I,); the action is as the environment takes it.
    """

    def __init__(self, function: Callable[[Any, Any, Any], float], actions: Space) -> None:
        self.function, self.actions = function, actions
        self.name = getattr(function, "__name__", type(function).__name__)

    def rewards(self, batch: Batch) -> Tensor:
        """Rewards (B, T).

        Raises:
            DataError: the function raised an error, or returned something that is no finite number.
        """
        found = torch.zeros(batch.mask.shape)
        observations, actions = batch.observations.numpy(), batch.actions.numpy()
        for row, length in enumerate(batch.mask.sum(-1).int().tolist()):
            for t in range(length):
                found[row, t] = self._one(observations[row, t], allowed(self.actions, actions[row, t]), observations[row, t + 1])
        return found

    def _one(self, observation: Any, action: Any, next_observation: Any) -> float:
        step = f"observation {observation} and action {action}"
        try:
            value = self.function(observation, action, next_observation)
        except Exception as e:
            raise DataError(f"reward: the function {self.name} raised {type(e).__name__}: {e}, for {step}") from e
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"reward: the function {self.name} returned {value!r} for {step}; it must return one finite number")
        return number


def reward_of(reward: Reward | None, env: gymnasium.Env) -> RewardModel | ControlReward | FunctionReward | None:
    """What PPO is given as its reward model; None: the environment pays.

    Raises:
        ConfigError: it does not fit the environment, or is nothing that can reward.
    """
    if reward is None:
        return None
    size, a = inputs(env), width(env.action_space)
    if isinstance(reward, RewardModel):
        if (reward.inputs, reward.actions) != (size, env.action_space):
            raise ConfigError(
                f"reward is a model of {reward.inputs} numbers and actions {reward.actions}, but the environment has {size} and"
                f" {env.action_space}; make it for the same environment and horizon"
            )
        return reward
    if isinstance(reward, nn.Module):
        check_network("reward", reward, [(size,), (a,)], [(), (1,)], "a reward")
        return ControlReward(size, env.action_space, networks=[reward])
    if callable(reward):
        return FunctionReward(reward, env.action_space)
    raise ConfigError(f"reward is {reward!r}; give a RewardModel, an nn.Module, or a function of (observation, action, next_observation)")
