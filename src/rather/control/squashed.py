"""The policies of off-policy learners: a network whose output is squashed into the range of an action.

Shape letters: N observations, I numbers of an observation, A of an action.
"""

from collections.abc import Sequence
from itertools import pairwise

import gymnasium
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from rather.control.environments import inputs
from rather.control.models import ControlPolicy
from rather.errors import ConfigError


class Squashed(nn.Module):
    """The deterministic action (N, A) of SAC and TD3 for observations (N, I): layers with ReLU between them, squashed into its range."""

    middle: Tensor
    reach: Tensor

    def __init__(self, inputs: int, hidden: Sequence[int], actions: Box, seed: int) -> None:
        super().__init__()
        self.register_buffer("middle", torch.tensor((actions.high + actions.low) / 2, dtype=torch.float32))
        self.register_buffer("reach", torch.tensor((actions.high - actions.low) / 2, dtype=torch.float32))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise([inputs, *hidden, len(self.reach)]))

    @property
    def linears(self) -> list[nn.Linear]:
        """The layers, which a learner's own policy has in the same order."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.middle + self.reach * torch.tanh(self.layers[-1](x))

    def move(self, offset: Tensor) -> None:
        """Move an action in the middle of its range by `offset` (A,)."""
        self.linears[-1].bias.add_(torch.atanh((offset / self.reach).clamp(-0.98, 0.98)))


def squashed_policy(env: gymnasium.Env, hidden: Sequence[int], seed: int) -> ControlPolicy:
    """A policy at random, of the same network as an off-policy learner's own, which sees observations as they are.

    Raises:
        ConfigError: actions are no numbers between bounds.
    """
    actions = env.action_space
    if not isinstance(actions, Box) or not actions.is_bounded() or actions.dtype is None or actions.dtype.kind != "f":
        raise ConfigError(f"SAC and TD3 choose numbers between bounds, and actions are {actions}; take another learner")
    policy = ControlPolicy(inputs(env), actions, (), False, seed, Squashed(inputs(env), hidden, actions, seed))
    assert policy.log_std is not None
    policy.log_std.data.copy_(log_std(torch.full((policy.outputs,), 0.5), policy))
    return policy


def log_std(noise: Tensor, policy: ControlPolicy) -> Tensor:
    """Logarithms (A,) of the standard deviations of actions, from `noise` (A,) in halves of their range."""
    assert isinstance(policy.net, Squashed)
    return (noise.clamp(min=1e-3) * policy.net.reach).log()
