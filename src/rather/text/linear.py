"""Linear layers that pick the faster matrix library, and the low-rank adapters that ride on them.

Shape letters: N rows (tokens), I inputs, O outputs, r rank.
"""

import functools
import math
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from rather import kernels
from rather.kernels.quantized import Quantized
from rather.kernels.quantized_rows import QuantizedRows


def _onednn_computes(dtype: torch.dtype) -> bool:
    there = torch.backends.mkldnn.is_available()
    return there and (dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())


@functools.cache
def onednn_is_faster() -> bool:
    """Whether large float32 products on this processor run faster through oneDNN than through PyTorch's default, MKL.

    MKL is tuned for Intel's processors and slow on AMD's; both are equally exact, but round differently. So the vendor decides
    and not a timing, which could fall out otherwise when a run is resumed.
    """
    if not (torch.backends.mkl.is_available() and _onednn_computes(torch.float32)):
        return False
    cpuinfo = Path("/proc/cpuinfo")
    vendor = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    return "AuthenticAMD" in vendor


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDNN(torch.autograd.Function):
    """x (N, I) times weight (O, I) transposed, forward and backward through oneDNN."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        to_x = _onednn(gradient, weight.t()) if wanted[0] else None
        to_weight = gradient.t() @ x if wanted[1] else None
        return to_x, to_weight, gradient.sum(0) if ctx.biased and wanted[2] else None


class _Mixed(torch.autograd.Function):
    """X (N, I) times a float32 weight (O, I) transposed, by its copy `cast`; the weight's gradient leaves its product in float32."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, cast: Tensor) -> Tensor:
        del weight
        ctx.save_for_backward(x, cast)
        return F.linear(x, cast)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, cast = ctx.saved_tensors
        to_x = gradient @ cast if ctx.needs_input_grad[0] else None
        return to_x, torch.mm(gradient.t(), x, out_dtype=torch.float32), None  # type: ignore[call-overload]


def linear(x: Tensor, weight: Tensor | Quantized, bias: Tensor | None = None) -> Tensor:
    """X (N, I) @ weight (O, I)^T + bias, computed in x's dtype. No gradient passes a quantized weight."""
    if isinstance(weight, Quantized):
        if weight.multiplies(x.dtype):
            return weight.product(x, bias)
        weight = weight.widened(x.dtype)
    if weight.dtype != x.dtype:
        weight = weight.to(x.dtype)
    if bias is not None and bias.dtype != x.dtype:
        bias = bias.to(x.dtype)
    if x.device.type == "cpu" and x.dtype == torch.float32 and len(x) > 1 and onednn_is_faster():
        return _OneDNN.apply(x, weight, bias)  # type: ignore[return-value]
    return F.linear(x, weight, bias)


class Adapter(nn.Module):
    """Low-rank update of a linear layer (LoRA, Hu et al. 2021): scale * B A x, where the scale is alpha / r; B zero at first.

    A fused layer computes several projections at once (`sizes`); each has an A and a B of its own, so that the files are
    those of an unfused model. Part i has rank `ranks[i]`, 0 where it has no update, and scale `scales[i]`. A is (sum of the ranks, I), B
    one (O_i, r_i) a part.
    """

    scale_of: Tensor

    def __init__(
        self, inputs: int, sizes: Sequence[int], ranks: Sequence[int], scales: Sequence[float], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.ranks, self.scales = tuple(ranks), tuple(scales)
        bound = 1 / math.sqrt(inputs)
        self.down = nn.Parameter(torch.empty(sum(ranks), inputs).uniform_(-bound, bound, generator=generator))
        self.up = nn.ParameterList(nn.Parameter(torch.zeros(size, rank)) for size, rank in zip(sizes, ranks, strict=True))
        self.even = len(set(zip(self.ranks, self.scales, strict=True))) == 1
        each = torch.tensor(self.scales).repeat_interleave(torch.tensor(self.ranks))
        self.register_buffer("scale_of", each, persistent=False)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """Add the update of `x` (N, I) to `y` (N, O), in place."""
        scale = self.scales[0] if self.even else self.scale_of
        return _Update.apply(y, x, self.down, scale, self.ranks, *self.up)  # type: ignore[return-value]

    @property
    def parts(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """A (r, I), B (O_i, r) and scale of each part."""
        return zip(self.down.split(self.ranks), self.up, self.scales, strict=True)

    def stacked(self) -> tuple[Tensor, Tensor]:
        """The same for all parts together: x (N, I) to (x down^T) up, with down (R, I) and up (R, O)."""
        return self.down, torch.block_diag(*(up.T * scale for _, up, scale in self.parts))


class _Update(torch.autograd.Function):
    """`Adapter` with each part added where it belongs, which saves going over (N, O) twice more."""

    @staticmethod
    def forward(ctx, y: Tensor, x: Tensor, down: Tensor, scale: float | Tensor, ranks: tuple[int, ...], *up: Tensor) -> Tensor:
        low = linear(x, down).mul_(scale)
        places = y.split([len(u) for u in up], dim=-1)
        for place, part, u in zip(places, low.split(ranks, dim=-1), up, strict=True):
            if u.numel():
                place.addmm_(part, u.to(x.dtype).t())
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, low, down, *up)
        ctx.scale, ctx.ranks = scale, ranks
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, low, down, *up = ctx.saved_tensors
        to_up, to_low = [], []
        for to_place, part, u in zip(gradient.split([len(u) for u in up], dim=-1), low.split(ctx.ranks, dim=-1), up, strict=True):
            to_up.append((to_place.t() @ part).to(u.dtype))
            to_low.append(to_place @ u.to(x.dtype))
        slope = torch.cat(to_low, dim=-1).mul_(ctx.scale)
        to_x = slope @ down.to(x.dtype) if ctx.needs_input_grad[1] else None
        return gradient, to_x, (slope.t() @ x).to(down.dtype), None, None, *to_up


@dataclass(frozen=True)
class Updates:
    """Low-rank updates of linear layers that differ from row to row, so that several policies share one pass over the weights.

    `of[layer]` is down (R, I), up (R, O) and share (P, R), or None where all are 1: a row of policy p adds ((x down^T) * share[p]) up.
    `which` (N,) says which policy a row is. A policy whose share is 0 adds exactly nothing. `spans[layer]` are the first columns (P,) of
    each policy's share that are not 0, and how many of them there are at most.
    """

    of: "dict[nn.Module, tuple[Tensor, Tensor, Tensor | None]]"
    which: Tensor
    spans: "dict[nn.Module, tuple[Tensor, int]]"

    def rows(self, wanted: Tensor) -> "Updates":
        """The same for some of the rows."""
        return Updates(self.of, self.which[wanted], self.spans)

    def add(self, layer: nn.Module, y: Tensor, x: Tensor) -> Tensor:
        """Add the updates of `layer` for `x` (N, I) to `y` (N, O), in place."""
        if layer not in self.of:
            return y
        down, up, share = self.of[layer]
        if share is None:
            return y.addmm_(linear(x, down), up)
        found = kernels.update_(y, x, down, up, share, self.which, *self.spans[layer])
        return y.addmm_(linear(x, down) * share[self.which], up) if found is None else found


class Linear(nn.Module):
    """A linear layer whose weight (O, I) holds the projections named `parts`, one below the other.

    `adapters` are low-rank updates by name; `forward` applies the one it is asked for, or those that differ from row to row.
    """

    def __init__(self, inputs: int, parts: dict[str, int], bias: bool) -> None:
        super().__init__()
        self.parts, self.inputs = parts, inputs
        outputs = sum(parts.values())
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.adapters = nn.ModuleDict()
        self._packed: kernels.Laid | None = None
        self._packed_of: tuple[int, torch.dtype] | None = None
        self._cast: Tensor | None = None

    def forward(self, x: Tensor, adapter: str | Updates | None = None, onto: Tensor | None = None) -> Tensor:
        """X (N, I) to (N, O), added to `onto` (N, O), if given, which may be overwritten where no gradient is wanted."""
        y, onto = self._multiply(x, onto)
        if isinstance(adapter, Updates):
            y = adapter.add(self, y, x)
        elif adapter is not None and adapter in self.adapters:
            y = self.adapters[adapter](y, x)
        return y if onto is None else y.add_(onto)

    def laid(self, dtype: torch.dtype) -> kernels.Laid | Quantized | None:
        """The weight as products of our own in `dtype` read it, if it is `packed` for them."""
        del dtype
        return self._packed

    def _multiply(self, x: Tensor, onto: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """X (N, I) times the weight, plus bias; and what of `onto` is still to be added."""
        grad = torch.is_grad_enabled()
        if x.is_cuda and _alone():
            weight = self.cast(x.dtype)
            if grad and self.weight.requires_grad and weight is not self.weight:
                y: Tensor = _Mixed.apply(x, self.weight, weight)  # type: ignore[assignment]
                y = y if self.bias is None else y + self.bias.to(x.dtype)
            elif onto is not None and self.bias is None and not grad:
                y, onto = onto.addmm_(x, weight.t()), None
            else:
                y = linear(x, weight, self.bias)
        elif self._packed_of == (self.weight._version, x.dtype) and self._packed and not grad:
            y = self._packed(x, None if self.bias is None else self.bias.to(x.dtype))
        else:
            y = linear(x, self.weight, self.bias)
        return y, onto

    def cast(self, dtype: torch.dtype) -> Tensor:
        """The weight in `dtype`. If that is not its own, the copy stays where it is, and is made anew when the weight has changed."""
        if self.weight.dtype == dtype:
            return self.weight
        mark = self.weight._version, dtype
        if self._cast is None or (self._cast.dtype, self._cast.device) != (dtype, self.weight.device):
            self._cast, self._packed_of = self.weight.detach().to(dtype), mark
        elif self._packed_of != mark:
            self._cast.copy_(self.weight.detach())
            self._packed_of = mark
        return self._cast


class QuantizedLinear(Linear):
    """A frozen linear layer whose weight (O, I) is held quantized alone; it takes over the parts, the bias and the adapters of `layer`.

    There is no `weight`. Where a gradient passes, the weight is widened for as long as one product needs it.
    """

    def __init__(self, layer: Linear, held: Quantized) -> None:
        nn.Module.__init__(self)
        self.parts, self.inputs, self.bias, self.adapters, self.held = layer.parts, layer.inputs, layer.bias, layer.adapters, held

    def laid(self, dtype: torch.dtype) -> Quantized | None:
        """The weight, if it is laid out for a processor and there are products of our own in `dtype`."""
        return self.held if self.held.multiplies(dtype) and not isinstance(self.held, QuantizedRows) else None

    def widened(self, dtype: torch.dtype) -> Linear:
        """An ordinary layer with these values, rounded to `dtype`."""
        with torch.device("meta"):
            found = Linear(self.inputs, self.parts, bias=False)
        found.weight = nn.Parameter(self.held.widened(dtype).contiguous(), requires_grad=False)
        found.bias, found.adapters = self.bias, self.adapters
        return found

    def _multiply(self, x: Tensor, onto: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return _Widened.apply(x, self.held, None if self.bias is None else self.bias.to(x.dtype)), onto  # type: ignore[return-value]


class QuantizedEmbedding(nn.Module):
    """A frozen embedding (V, C) that is held quantized alone, with `dtype` as its rows come."""

    def __init__(self, held: Quantized, dtype: torch.dtype) -> None:
        super().__init__()
        self.held, self.dtype = held, dtype

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (N, C) of the tokens `ids` (N,)."""
        return self.held.rows(ids, self.dtype)

    def widened(self, dtype: torch.dtype) -> nn.Embedding:
        """An ordinary embedding with these values, rounded to `dtype`."""
        return nn.Embedding.from_pretrained(self.held.widened(dtype).contiguous())


class _Widened(torch.autograd.Function):
    """x (N, I) times a frozen quantized weight, plus bias (O,); nothing is kept for backward, where the weight is widened."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Quantized, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return linear(gradient, ctx.weight.widened(gradient.dtype).t()), None, gradient.sum(0) if ctx.needs_input_grad[2] else None


def _alone() -> bool:
    """Whether weights stay where they are; several ranks gather them into tensors that come and go."""
    return not (dist.is_available() and dist.is_initialized())


@contextmanager
def packed(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Hold every linear layer's weight in `dtype`, laid out for products of our own, while sampling.

    With few rows a product waits for the weights, and those laid out beforehand come two to three times as fast.
    Values do not change. The copies of weights that are trained are given back at the end; frozen ones are kept for the next time, as
    long as nobody writes to the weights. On a GPU nothing is laid out.
    """
    layers = [m for m in model.modules() if isinstance(m, Linear) and not isinstance(m, QuantizedLinear)]
    on_processor = [layer for layer in layers if layer.weight.device.type == "cpu"]
    try:
        with torch.no_grad():
            for layer in layers:
                wanted = layer.weight._version, dtype
                if layer.weight.device.type != "cpu":
                    if _alone():
                        layer.cast(dtype)
                elif layer._packed_of != wanted:
                    layer._packed, layer._packed_of = kernels.Laid.out(layer.weight.detach().to(dtype)), wanted
        yield
    finally:
        for layer in on_processor:
            if layer.weight.requires_grad:
                layer._packed = layer._packed_of = None
