"""What zeroth-order optimization perturbs in control: numbers of a policy's net."""

from collections.abc import Sequence
from typing import Unpack

import numpy as np

from rather.control.models import ControlPolicy, Layers
from rather.core import Perturbation
from rather.zeroth.offsets import DirectionOptions, Offsets, matching


class ControlSpace(Offsets):
    """The numbers of a policy's net whose names match one of `names`, as offsets from where they started.

    `net.layers.0` are the first layer's weights, `net.layers.1` its biases, and so on: a table or a linear policy without biases is
    ("net.layers.0",).
    """

    def __init__(self, policy: ControlPolicy, names: Sequence[str] = ("*",), **how: Unpack[DirectionOptions]) -> None:
        super().__init__(matching(((n, p) for n, p in policy.named_parameters() if n.startswith("net.")), names), **how)
        self.policy = policy

    def layers(self, perturbation: Perturbation | None) -> Layers:
        """The net of the perturbed policy, in float64."""
        parts = self.values(perturbation)
        found = [parts.get(n, p.detach()).numpy().astype(np.float64) for n, p in self.policy.named_parameters() if n.startswith("net.")]
        return list(zip(found[0::2], found[1::2], strict=True))
