"""The policies of off-policy learners: a network whose output is squashed into the range of an action.

Shape letters: N observations, I numbers of an observation, A of an action.
"""

from collections.abc import Sequence
from itertools import pairwise

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from rather.control.environments import inputs
from rather.control.models import ControlPolicy
from rather.errors import ConfigError

UNBOUNDED = 1e30
"""Bounds beyond this are none; some environments name the largest float."""
STD_BEFORE = 0.5
"""Standard deviation of the actions of a policy that has not learned, in halves of their range."""
LEAST_STD = 1e-3
FURTHEST = 0.98
"""An action is moved by so much of half of its range at most: tanh never gets to 1."""


class SquashedMLP(nn.Module):
    """The deterministic action (N, A) of SAC and TD3 for observations (N, I): layers with ReLU between them, squashed into its range."""

    center: Tensor
    half_range: Tensor

    def __init__(self, inputs: int, hidden: Sequence[int], actions: Box, seed: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.tensor((actions.high + actions.low) / 2, dtype=torch.float32))
        self.register_buffer("half_range", torch.tensor((actions.high - actions.low) / 2, dtype=torch.float32))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.linear = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise([inputs, *hidden, len(self.half_range)]))

    @property
    def layers(self) -> list[nn.Linear]:
        """The layers, in the order that Stable-Baselines3 has them in."""
        return [layer for layer in self.linear if isinstance(layer, nn.Linear)]

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.linear
        for layer in hidden:
            x = torch.relu(layer(x))
        return self.center + self.half_range * torch.tanh(last(x))

    def shift_actions(self, offset: Tensor) -> None:
        """Add to the last bias what moves an action in the center of its range by `offset` (A,)."""
        self.layers[-1].bias.add_(torch.atanh((offset / self.half_range).clamp(-FURTHEST, FURTHEST)))


def squashed_policy(env: gymnasium.Env, hidden: Sequence[int], seed: int) -> ControlPolicy:
    """A policy with random weights, of the network that SAC and TD3 have, which sees observations as they are.

    Raises:
        ConfigError: actions are no numbers between bounds.
    """
    actions = env.action_space
    if not isinstance(actions, Box) or actions.dtype is None or actions.dtype.kind != "f" or not _between(actions):
        raise ConfigError(f"SAC and TD3 choose numbers between bounds, and actions are {actions}; take another learner")
    net = SquashedMLP(inputs(env), hidden, actions, seed)
    policy = ControlPolicy(inputs(env), actions, (), False, seed, net)
    assert policy.log_std is not None
    policy.log_std.data.copy_(log_std_of(torch.full((policy.outputs,), STD_BEFORE), net))
    return policy


def _between(actions: Box) -> bool:
    """Whether all bounds are far from infinite, and every dimension has a range."""
    low, high = (bound.astype(np.float32) for bound in (actions.low, actions.high))
    return bool((low < high).all() and (np.abs([low, high]) < UNBOUNDED).all())


def log_std_of(noise: Tensor, net: SquashedMLP) -> Tensor:
    """Logarithms (A,) of the standard deviations of actions, from `noise` (A,) in halves of their range."""
    return (noise.clamp(min=LEAST_STD) * net.half_range).log()
