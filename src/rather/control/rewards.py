"""What an agent for control may be trained on in place of the environment's reward: a model, a network or a function.

Shape letters: B trajectories, T actions (padded), I numbers of an observation, A of an action.
"""

import math
from collections.abc import Callable
from typing import Any, NoReturn

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import MultiBinary, MultiDiscrete, Space
from torch import Tensor, nn

from rather.control.build import check_network, width
from rather.control.environments import allowed, inputs
from rather.control.models import ControlReward
from rather.control.reward_model import RewardModel
from rather.control.state_entropy import StateEntropy
from rather.core import Batch
from rather.errors import ConfigError, DataError
from rather.verify.functions import BATCHED, as_number, named

Reward = RewardModel | StateEntropy | nn.Module | Callable[[Any, Any, Any], Any]


class FunctionReward:
    """A function of (observation, action, next_observation), called for one step at a time, or with `rather.batched` for all at once.

    Observations are flat vectors (I,), or (N, I), float32; actions are as the environment takes them, of which `choices` (K, ...) are all
    where several choices are one (`CombinedActions`).
    """

    def __init__(self, function: Callable[[Any, Any, Any], Any], actions: Space, choices: np.ndarray | None = None) -> None:
        self.function, self.actions, self.choices = function, actions, choices

    def rewards(self, batch: Batch) -> Tensor:
        """Rewards (B, T).

        Raises:
            DataError: the function raised an error, or returned something that is no finite number.
        """
        rows, t = batch.mask.bool().nonzero(as_tuple=True)
        before, after = (batch.observations[rows, x].float().numpy() for x in (t, t + 1))
        actions = np.asarray(allowed(self.actions, batch.actions[rows, t].numpy()))
        actions = actions if self.choices is None else self.choices[actions]
        if getattr(self.function, BATCHED, False):
            values = self._called(before, actions, after)
            if np.shape(values) != (len(before),):
                self._wrong(f"shape {np.shape(values)} for {len(before)} steps; it must return one number a step")
        else:
            values = [self._called(o, int(a) if np.ndim(a) == 0 else a, n) for o, a, n in zip(before, actions, after, strict=True)]
        found = torch.zeros(batch.mask.shape)
        for i, value in enumerate(values):
            found[rows[i], t[i]] = self._number(value, before[i], actions[i])
        return found

    def _called(self, observation: Any, action: Any, next_observation: Any) -> Any:
        try:
            return self.function(observation, action, next_observation)
        except Exception as e:
            said = f"raised {type(e).__name__}: {e}, for observation {observation} and action {action}"
            raise DataError(f"reward: the function {named(self.function)} {said}") from e

    def _number(self, value: Any, observation: Any, action: Any) -> float:
        number = as_number(value)
        if not math.isfinite(number):
            self._wrong(f"{value!r} for observation {observation} and action {action}; it must return one finite number")
        return number

    def _wrong(self, what: str) -> NoReturn:
        raise DataError(f"reward: the function {named(self.function)} returned {what}")


def reward_of(
    reward: Reward | None, env: gymnasium.Env, choices: np.ndarray | None = None
) -> RewardModel | ControlReward | StateEntropy | FunctionReward | None:
    """What PPO is given as its reward model; None: the environment's own reward. A function gets the `choices` (K, ...) of several at once.

    Raises:
        ConfigError: it does not fit the environment, or is nothing that can reward.
    """
    if reward is None or isinstance(reward, ControlReward | StateEntropy):
        return reward
    if isinstance(reward, type):
        raise ConfigError(f"reward is the class {reward.__name__}; give an object of it, such as {reward.__name__}()")
    size, a = inputs(env), width(env.action_space)
    if isinstance(reward, RewardModel):
        if (reward.inputs, reward.actions) != (size, env.action_space):
            several = isinstance(env.action_space, MultiDiscrete | MultiBinary)
            remedy = (
                "put that into rather.control.CombinedActions, as the model has it"
                if several
                else "make it for the same environment and horizon (rather.control.FixedHorizon gives an environment one)"
            )
            raise ConfigError(
                f"reward is a model of {reward.inputs} numbers and actions {reward.actions}, but the environment has {size} and"
                f" {env.action_space}; {remedy}"
            )
        return reward
    if isinstance(reward, nn.Module):
        check_network("reward", reward, [(size,), (a,)], [(), (1,)], "a reward")
        return ControlReward(size, env.action_space, networks=[reward])
    if callable(reward):
        return FunctionReward(reward, env.action_space, choices)
    raise ConfigError(f"reward is {reward!r}; give a RewardModel, an nn.Module, or a function of (observation, action, next_observation)")
