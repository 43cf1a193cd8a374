"""Variants of a policy that behave in many ways, so that comparisons are about more than the noise around one behavior.

What a random policy does differs mostly in effort, and a reward learned from that knows nothing else. Noise and offsets that stay the same
for an episode bring it to states where the policy alone would not be.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Space

from rather.control.cnn import NatureCNN
from rather.control.models import ControlPolicy, Perceptron
from rather.control.rollout import ControlSampler
from rather.control.squashed import UNBOUNDED, SquashedMLP
from rather.core import Task, Trajectory

STD_FACTORS = (0.1, 1.5)
"""The standard deviations of a Box's actions are multiplied by something between these, log-uniform."""
MAX_LOGIT_STD = 3.0
"""Logits of choices are moved by normal numbers whose standard deviation is uniform between 0 and this."""


def explored(policy: ControlPolicy, tasks: Sequence[Task], make: Callable[[], gymnasium.Env], seed: int) -> list[Trajectory]:
    """An episode of each task, each acted in by a variant of its own, one after the other in one environment."""
    found, shared = list[Trajectory](), [make()] if tasks else []
    for task in tasks:
        sampler = ControlSampler(variant(policy, shared[0].action_space, int(task.key)), make)
        sampler.idle = shared
        found += sampler.sample([task], seed)
    for env in shared:
        env.close()
    return found


def variant(policy: ControlPolicy, actions: Space, seed: int) -> ControlPolicy:
    """The policy with an offset to its actions and, in a Box, another standard deviation, drawn by `seed`.

    Offsets of a Box are up to half of its range either way, or where it has no bounds up to one standard deviation. The policy's net is a
    `Perceptron`, `NatureCNN` or `SquashedMLP`.
    """
    generator, found = np.random.default_rng([seed, 4]), deepcopy(policy)
    found.name = f"{policy.name}~{seed}"
    with torch.no_grad():
        if found.log_std is None:
            offset = generator.standard_normal(found.outputs) * generator.uniform(0, MAX_LOGIT_STD)
        else:
            assert isinstance(actions, Box)
            spread = actions.high.astype(np.float64) / 2 - actions.low.astype(np.float64) / 2
            spread = np.where(spread < UNBOUNDED, spread, found.log_std.exp().numpy())
            offset = generator.uniform(-1, 1, found.outputs) * spread
            found.log_std.add_(float(generator.uniform(*np.log(STD_FACTORS))))
        if isinstance(found.net, SquashedMLP):
            found.net.shift_actions(torch.from_numpy(offset).float())
        else:
            assert isinstance(found.net, Perceptron | NatureCNN)
            bias = found.net.layers[-1] if isinstance(found.net, Perceptron) else found.net.last.bias
            bias += torch.from_numpy(offset).float()
    return found
