"""Weights in 8 bits: blocks of 32 inputs of an output with one float16 scale, as in GGUF's Q8_0, and products with them.

A weight is its number times its scale, rounded to the type that is computed in. Every product takes these values.

Shape letters as in kernels/__init__.py.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rather.kernels import COLUMNS, library

BLOCK = 32
"""Inputs that share a scale; kernels.c says the same."""


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers (O, I), int8, and scales (O, I / 32), float16, of a `weight` (O, I): the largest of a block is 127 or -127."""
    blocks = weight.float().unflatten(1, (-1, BLOCK))
    scales = blocks.abs().amax(2) / 127
    numbers = (blocks / scales.where(scales > 0, 1.0)[..., None]).round()
    return numbers.to(torch.int8).flatten(1), scales.half()


@dataclass(frozen=True)
class Int8:
    """A weight (`outputs`, I) as products read it: `numbers` (G, I / 2, 48, 2) and `scales` (G, I / 32, 48), G = ceil(outputs / 48)."""

    numbers: Tensor
    scales: Tensor
    outputs: int

    @classmethod
    def out(cls, numbers: Tensor, scales: Tensor) -> "Int8":
        """Lay out numbers (O, I) and scales (O, I / 32)."""
        missing = -len(numbers) % COLUMNS
        laid = F.pad(numbers, (0, 0, 0, missing)).unflatten(0, (-1, COLUMNS)).unflatten(2, (-1, 2)).transpose(1, 2)
        beside = F.pad(scales, (0, 0, 0, missing)).unflatten(0, (-1, COLUMNS)).transpose(1, 2)
        return cls(laid.contiguous(), beside.contiguous(), len(numbers))

    @property
    def inputs(self) -> int:
        """I."""
        return 2 * self.numbers.shape[1]

    def multiplies(self, dtype: torch.dtype) -> bool:
        """Whether `product` is compiled for x of that type."""
        return hasattr(library(dtype), "product_int8")

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """X (N, I) times the weight, plus bias (O,), to (N, O). Passes no gradient on."""
        found, x, out = library(x.dtype), x.contiguous(), x.new_empty((len(x), self.outputs))
        assert found is not None
        words, added = x.shape[1] * x.element_size() // 4, None if bias is None else bias.data_ptr()
        held = self.numbers.data_ptr(), self.scales.data_ptr()
        found.product_int8(*out.shape, words, x.data_ptr(), words, *held, added, 0, out.data_ptr(), self.outputs)
        return out

    def widened(self, dtype: torch.dtype) -> Tensor:
        """The weight (O, I) in `dtype`."""
        if found := library(dtype):
            out = torch.empty(self.inputs, self.outputs, dtype=dtype)
            found.widen(*out.t().shape, self.numbers.data_ptr(), self.scales.data_ptr(), out.data_ptr())
            return out.t()
        scales = self.scales.float().repeat_interleave(BLOCK // 2, 1)[..., None]
        values = (self.numbers * scales).to(dtype).transpose(1, 2)
        return values.reshape(-1, self.inputs)[: self.outputs]
