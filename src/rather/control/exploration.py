"""Variants of a policy that behave in many ways, so that comparisons are about more than the noise around one behavior.

What a random policy does differs mostly in effort, and a reward learned from that knows nothing else. Noise and offsets that stay the same
for an episode bring it to states where the policy alone would not be.
"""

from copy import deepcopy

import numpy as np
import torch
from gymnasium.spaces import Box, Space

from rather.control.models import ControlPolicy, Perceptron

NOISE = (0.1, 1.5)
"""The standard deviations of actions are multiplied by something between these; the mean of the logarithm is that of these two."""
PREFERENCE = 3.0
"""Logits of choices are moved by standard normal numbers times something between 0 and this."""


def variant(policy: ControlPolicy, actions: Space, seed: int) -> ControlPolicy:
    """The policy with other noise and an offset to its actions, drawn by `seed`: of a Box, up to half of its range either way.

    Where a Box has no bounds, up to one standard deviation of the policy. A network of a user's own gets other noise alone.
    """
    chance, found = np.random.default_rng([seed, 4]), deepcopy(policy)
    found.name = f"{policy.name}~{seed}"
    with torch.no_grad():
        if found.log_std is None:
            offset = chance.standard_normal(found.outputs) * chance.uniform(0, PREFERENCE)
        else:
            assert isinstance(actions, Box)
            spread = (actions.high.astype(np.float64) - actions.low.astype(np.float64)) / 2
            spread = np.where(np.isfinite(spread), spread, found.log_std.exp().numpy())
            offset = chance.uniform(-1, 1, found.outputs) * spread
            found.log_std.add_(float(chance.uniform(*np.log(NOISE))))
        if isinstance(found.net, Perceptron):
            found.net.layers[-1] += torch.from_numpy(offset).float()
    return found
