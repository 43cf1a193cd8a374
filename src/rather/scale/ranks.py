"""One run on several devices: `torchrun --nproc-per-node N -m rather train FILE` starts N ranks of it.

Every rank goes through the same run with the same seeds. The base weights are split among them (FSDP2) and gathered block by block;
adapters and heads are small and every rank has its own copy, as it has of architectures that come from `transformers`. Of each batch a
rank computes a part; gradients and metrics are summed. Prompts are shared out, too, and the answers sent to all. Rank 0 alone writes to
disk and to the screen. Without torchrun there is one rank, and nothing here does anything.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def wanted() -> int:
    """How many ranks torchrun has started."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


def count() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if count() > 1 else 0


@contextmanager
def joined() -> Iterator[None]:
    """Meet the other ranks if torchrun says that there are any, and part from them at the end."""
    if wanted() == 1:
        yield
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    try:
        yield
        dist.barrier()  # who leaves while others still talk can be brought down with them
    finally:
        dist.destroy_process_group()


def wait() -> None:
    """Go on when all ranks have come to this point."""
    if count() > 1:
        dist.barrier()


# What is shared out


def mine(parts: Sequence[T]) -> Iterator[tuple[T, float]]:
    """The share of `parts` that this rank computes, each with weight 1.

    All ranks get equally many, since they gather weights together: who has fewer does the last one again, with weight 0.
    """
    n, r = count(), rank()
    for i in range(r, -(-len(parts) // n) * n, n):
        yield parts[min(i, len(parts) - 1)], float(i < len(parts))


def share(items: Sequence[object]) -> slice:
    """Which neighboring ones of `items` are this rank's."""
    n, r = count(), rank()
    return slice(len(items) * r // n, len(items) * (r + 1) // n)


def everyones(own: T) -> list[T]:
    """What each rank has here, rank by rank."""
    if count() == 1:
        return [own]
    found = [own] * count()
    dist.all_gather_object(found, own)
    return found


def total(value: float) -> float:
    """The sum of what each rank has here."""
    return sum(everyones(value)) if count() > 1 else value


def anyone(wish: bool) -> bool:
    """Whether any rank has this wish, so that all of them follow it at the same time."""
    return any(everyones(wish))


# Weights


def split(model: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Leave every rank its part of the weights; those of each of `blocks`, and the rest, are gathered when they are needed."""
    if count() == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (count(),))
    for module in (*blocks, model):
        fully_shard(module, mesh=mesh)


def is_split(parameter: Tensor) -> bool:
    """Whether this rank holds a part of it alone."""
    return hasattr(parameter, "full_tensor")


@contextmanager
def whole(model: nn.Module, changed: bool = False) -> Iterator[None]:
    """Every rank has all weights of `model` for a while, and needs no other rank to use them; `changed` keeps what is done to them."""
    parts = []
    if count() > 1:
        from torch.distributed.fsdp import FSDPModule

        parts = [m for m in model.modules() if isinstance(m, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
        kept = {name: p.detach().clone() for name, p in model.named_parameters()} if changed and parts else {}
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not model, recurse=False)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in kept and is_split(p):
                p.copy_(like(kept[name], p))


def gathered(value: Tensor) -> Tensor:
    """All of a tensor of which every rank may hold a part alone."""
    return value.full_tensor() if is_split(value) else value  # pyright: ignore[reportAttributeAccessIssue]


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """`value` (whole) split as `parameter` is."""
    if not is_split(parameter) or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def clip_gradients(parameters: Sequence[nn.Parameter], most: float) -> float:
    """Sum the ranks' gradients and scale them to a norm of at most `most`; returns the norm before."""
    if count() == 1:
        return nn.utils.clip_grad_norm_(parameters, most).item()
    parts, wholes = [], []
    for p in parameters:
        if not is_split(p):
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            wholes.append(p.grad)
        elif p.grad is not None:
            parts.append(p.grad.to_local().mul_(count()))  # pyright: ignore[reportAttributeAccessIssue], FSDP leaves the mean
    if wholes:  # in one message
        summed = torch.cat([g.flatten() for g in wholes])
        dist.all_reduce(summed)
        for gradient, found in zip(wholes, summed.split([g.numel() for g in wholes]), strict=True):
            gradient.copy_(found.view_as(gradient))
    own, common = (nn.utils.get_total_norm(gradients).item() for gradients in (parts, wholes))
    norm = math.sqrt(total(own**2) + common**2)
    for p in parameters:
        if p.grad is not None and norm > most:
            p.grad.mul_(most / (norm + 1e-6))
    return norm
