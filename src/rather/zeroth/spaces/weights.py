"""What else zeroth-order optimization can perturb in a language model: its weights by low rank, a LoRA adapter, or any of them.

Shape letters: I inputs, O outputs, r rank, K directions, P policies, R rows of all updates of a layer together.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rather.core import Perturbation
from rather.text.decoder import Several
from rather.text.linear import Adapter
from rather.text.lora import layers, refuse_quantized
from rather.text.transformer import Transformer
from rather.zeroth.offsets import DirectionOptions, Offsets, matching


class LowRank:
    """All linear layers of some blocks, perturbed by r^-1/2 sum_r a b^T each, a (O,) and b (I,) ~ N(0, I) (EGGROLL, Sarkar et al. 2025).

    E[v v^T] is that of full directions, and every row of a batch carries its own for the price of a few more columns. The weights move
    by sums of such directions, which have full rank, so `model` must be the policy's own; `numbers` are the offsets of its weights.
    """

    beside = in_turn = False

    def __init__(self, model: Transformer, blocks: Sequence[int] = (), rank: int = 1) -> None:
        refuse_quantized(model)
        self.layers = {n: x for n, x in layers(model).items() if not blocks or int(n.split(".")[1]) in blocks}
        self.rank, self.dtype = rank, model.dtype
        self.initial = [layer.weight.detach().clone() for layer in self.layers.values()]
        self.parameters = [nn.Parameter(torch.zeros_like(was, dtype=torch.float32)) for was in self.initial]
        self.size = sum(p.numel() for p in self.parameters)

    def factors(self, seed: int) -> list[tuple[Tensor, Tensor]]:
        """Of each layer b (r, I) and a (r, O), whose products' sum over r is the direction v(seed)."""
        chance, found = np.random.default_rng(seed), list[tuple[Tensor, Tensor]]()
        for p in self.parameters:
            a, b = (torch.as_tensor(chance.standard_normal((self.rank, n), np.float32)).to(p.device) for n in p.shape)
            found.append((b, a / self.rank**0.5))
        return found

    def combined(self, perturbations: Sequence[Perturbation], weights: Sequence[float]) -> list[Tensor]:
        """sum_k w_k scale_k v_k, (O, I) of each layer."""
        each = [(self.factors(p.seed), w * p.scale) for p, w in zip(perturbations, weights, strict=True) if w]
        if not each:
            return [torch.zeros_like(p) for p in self.parameters]
        scales = torch.tensor([scale for _, scale in each]).repeat_interleave(self.rank)
        sides = zip(*(factors for factors, _ in each), strict=True)
        return [(torch.cat([a for _, a in same]) * scales[:, None].to(same[0][0])).T @ torch.cat([b for b, _ in same]) for same in sides]

    def several(self, perturbations: Sequence[Perturbation | None]) -> Several:
        """The policy with each perturbation; mirrored twins share their columns."""
        seeds = list(dict.fromkeys(p.seed for p in perturbations if p is not None))
        share = torch.zeros(len(perturbations), len(seeds) * self.rank)
        for i, p in enumerate(perturbations):
            if p is not None:
                first = seeds.index(p.seed) * self.rank
                share[i, first : first + self.rank] = p.scale
        updates: dict[nn.Module, tuple[Tensor, Tensor, Tensor | None]] = {}
        for layer, same in zip(self.layers.values(), zip(*(self.factors(seed) for seed in seeds), strict=True), strict=True):
            down, up = (torch.cat(parts) for parts in zip(*same, strict=True))
            updates[layer] = down.to(self.dtype), up.to(self.dtype), share.to(down.device, self.dtype)
        return Several(updates=updates)

    def sync(self) -> None:
        """Write where the space is into the policy's weights."""
        with torch.no_grad():
            for layer, was, offset in zip(self.layers.values(), self.initial, self.parameters, strict=True):
                layer.weight.copy_(was + offset)

    def adopt(self) -> None:
        """Be where the policy's weights are now."""
        with torch.no_grad():
            for layer, was, offset in zip(self.layers.values(), self.initial, self.parameters, strict=True):
                offset.copy_(layer.weight - was)

    def gather(self) -> None:
        """Take the gradient that a backward pass left on the policy's weights, and clear it there."""
        for layer, offset in zip(self.layers.values(), self.parameters, strict=True):
            offset.grad, layer.weight.grad = layer.weight.grad, None


class Factors(Offsets):
    """The factors of the LoRA adapter called `name`: every policy has an adapter of its own on one base."""

    beside = in_turn = False

    def __init__(self, model: Transformer, name: str, **how: Unpack[DirectionOptions]) -> None:
        self.layers, self.name, self.dtype = layers(model, name), name, model.dtype
        named = {f"{n}.{k}": p for n, layer in self.layers.items() for k, p in layer.adapters[name].named_parameters()}
        super().__init__(named, **how)

    def several(self, perturbations: Sequence[Perturbation | None]) -> Several:
        """The policy with each perturbation."""
        each = [self.values(p) for p in perturbations]
        updates: dict[nn.Module, tuple[Tensor, Tensor, Tensor | None]] = {}
        for n, layer in self.layers.items():
            adapter = layer.adapters[self.name]
            assert isinstance(adapter, Adapter)
            down = torch.cat([values[f"{n}.down"] for values in each])
            ups = [_diagonal([values[f"{n}.up.{i}"].T for i in range(len(adapter.up))]) for values in each]
            share = torch.eye(len(each)).repeat_interleave(len(down) // len(each), 1) * adapter.scale_of.cpu().repeat(len(each))
            updates[layer] = down.to(self.dtype), torch.cat(ups).to(self.dtype), share.to(down.device, self.dtype)
        return Several(updates=updates)


def _diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """Matrices along the diagonal of one that is 0 elsewhere."""
    widths = [block.shape[1] for block in blocks]
    return torch.cat([F.pad(block, [sum(widths[:i]), sum(widths[i + 1 :])]) for i, block in enumerate(blocks)])


class Weights(Offsets):
    """Any parameters of the model by their names, as MeZO perturbs them all (Malladi et al. 2023).

    A direction has as many numbers as there are weights, so each policy takes its turn, with weights that are put together for it;
    those of the policy, `model`, which must be its own, are given back as they were, to the bit.
    """

    beside, in_turn = False, True

    def __init__(self, model: Transformer, names: Sequence[str] = ("*",), **how: Unpack[DirectionOptions]) -> None:
        refuse_quantized(model)
        super().__init__(matching(model.named_parameters(), names), **how)

    @contextmanager
    def at(self, perturbation: Perturbation | None) -> Generator[None]:
        """The model is the policy with this perturbation for a while."""
        try:
            with torch.no_grad():
                for name, part in self.values(perturbation).items():
                    self.chosen[name].copy_(part)
            yield
        finally:
            self.sync()
