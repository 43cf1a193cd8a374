"""What zeroth-order optimisation perturbs in control: numbers of a policy's net."""

from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rather.control.models import ControlPolicy, Layers
from rather.core import Perturbation, direction
from rather.errors import ConfigError


class ControlSpace:
    """The numbers of a policy's net whose names match one of `names`, as offsets from where they started.

    `net.layers.0` are the first layer's weights, `net.layers.1` its biases, and so on: a table or a linear policy without biases is
    ("net.layers.0",). `how` says how directions are drawn; see `core.direction`.
    """

    def __init__(self, policy: ControlPolicy, names: Sequence[str] = ("net.*",), **how: Any) -> None:
        all_ = dict(policy.named_parameters())
        self.chosen = {n: p for n, p in all_.items() if n.startswith("net.") and any(fnmatch(n, pattern) for pattern in names)}
        if not self.chosen:
            raise ConfigError(f"zeroth.names = {list(names)} matches none of {', '.join(all_)}; there would be nothing to perturb")
        self.policy, self.how = policy, how
        self.start = {n: p.detach().clone() for n, p in self.chosen.items()}
        self.size = sum(p.numel() for p in self.chosen.values())
        self.numbers = nn.Parameter(torch.zeros(self.size))
        self.parameters = [self.numbers]

    def combined(self, perturbations: Sequence[Perturbation], weights: Sequence[float]) -> list[Tensor]:
        """sum_k w_k scale_k v_k, (d,)."""
        found = np.zeros(self.size, np.float32)
        for p, w in zip(perturbations, weights, strict=True):
            if w:
                found += np.float32(w * p.scale) * direction(p.seed, self.size, **self.how)
        return [torch.from_numpy(found)]

    def sync(self) -> None:
        """Write where the space is into the policy's net."""
        with torch.no_grad():
            for name, part in self._parts(self.numbers.detach()).items():
                self.chosen[name].copy_(part)

    def layers(self, perturbation: Perturbation | None) -> Layers:
        """The net of the perturbed policy, in float64; no weight of the policy is touched."""
        offset = self.numbers.detach()
        if perturbation is not None:
            offset = offset + torch.from_numpy(np.float32(perturbation.scale) * direction(perturbation.seed, self.size, **self.how))
        parts = self._parts(offset)
        found = [parts.get(n, p.detach()).numpy().astype(np.float64) for n, p in self.policy.named_parameters() if n.startswith("net.")]
        return list(zip(found[0::2], found[1::2], strict=True))

    def _parts(self, numbers: Tensor) -> dict[str, Tensor]:
        split = numbers.split([p.numel() for p in self.start.values()])
        return {n: was + part.view_as(was) for (n, was), part in zip(self.start.items(), split, strict=True)}
