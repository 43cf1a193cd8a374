"""What zeroth-order optimization perturbs where it is parameters by name: offsets from where they started.

Shape letters: d numbers.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from typing import Literal, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from rather.core import Perturbation, direction
from rather.errors import ConfigError


def matching(named: Iterable[tuple[str, nn.Parameter]], names: Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters whose names match one of `names`, * for any.

    Raises:
        ConfigError: none does.
    """
    all_ = dict(named)
    found = {n: p for n, p in all_.items() if any(fnmatch(n, pattern) for pattern in names)}
    if not found:
        shown = ", ".join(list(all_)[:8])
        raise ConfigError(f"zeroth.names = {list(names)} matches none of {shown}; there would be nothing to perturb")
    return found


class DirectionOptions(TypedDict, total=False):
    """How directions are drawn, see `core.direction`."""

    kind: Literal["gaussian", "sphere", "block"]
    block: int


class Offsets:
    """The d numbers of `chosen` parameters, as offsets from their values now."""

    def __init__(self, chosen: Mapping[str, nn.Parameter], **how: Unpack[DirectionOptions]) -> None:
        self.chosen, self.how = chosen, how
        self.initial = {n: p.detach().clone() for n, p in chosen.items()}
        self.size = sum(p.numel() for p in chosen.values())
        self.numbers = nn.Parameter(torch.zeros(self.size, device=next(iter(chosen.values())).device))
        self.parameters = [self.numbers]

    def combined(self, perturbations: Sequence[Perturbation], weights: Sequence[float]) -> list[Tensor]:
        """sum_k w_k scale_k v_k, (d,)."""
        return [combined(self.size, perturbations, weights, **self.how).to(self.numbers.device)]

    def sync(self) -> None:
        """Write where the space is into the policy."""
        with torch.no_grad():
            for name, part in self.values().items():
                self.chosen[name].copy_(part)

    def adopt(self) -> None:
        """Be where the policy's parameters are now."""
        with torch.no_grad():
            self.numbers.copy_(torch.cat([(self.chosen[n].float() - was.float()).flatten() for n, was in self.initial.items()]))

    def gather(self) -> None:
        """Take the gradient that a backward pass left on the policy's parameters, and clear it there."""
        found = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.chosen.values()]
        self.numbers.grad = torch.cat(found).float()
        for p in self.chosen.values():
            p.grad = None

    def values(self, perturbation: Perturbation | None = None) -> dict[str, Tensor]:
        """The parameters of the perturbed policy; those of the policy itself are not touched."""
        numbers = self.numbers.detach()
        if perturbation is not None:
            numbers = numbers + self.combined([perturbation], [1.0])[0]
        split = torch.split(numbers, [p.numel() for p in self.initial.values()])
        return {n: was + part.view_as(was) for (n, was), part in zip(self.initial.items(), split, strict=True)}


def combined(size: int, perturbations: Sequence[Perturbation], weights: Sequence[float], **how: Unpack[DirectionOptions]) -> Tensor:
    """sum_k w_k scale_k v_k, (size,) float32, each v rebuilt from its seed."""
    found = np.zeros(size, np.float32)
    for p, w in zip(perturbations, weights, strict=True):
        if w:
            found += np.float32(w * p.scale) * direction(p.seed, size, **how)
    return torch.as_tensor(found)
