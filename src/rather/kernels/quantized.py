"""Quantized weights, as in GGUF: blocks of 32 inputs of an output that share a scale, in 8 bits or in 4, and products with them.

A weight is its number times its scale, plus the minimum of its block if it has one. Products multiply x with the numbers of a block as they
are, and the sum with the scale: nothing is rounded on the way, and each row of x gets the same result whatever stands beside it.

Shape letters as in kernels/__init__.py.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rather.kernels import COLUMNS, library

BLOCK = 32
"""Inputs that share a scale; kernels.c says the same."""
Bits = Literal[4, 8]


class Addresses(ctypes.Structure):
    """`struct quantized` of kernels.c."""

    _fields_ = [*((name, ctypes.c_void_p) for name in ("numbers", "scales", "minima")), ("bits", ctypes.c_int64)]


@dataclass(frozen=True)
class Blocks:
    """A weight as files hold it: `numbers` (O, I), int8, `scales` and perhaps `minima` (O, I / 32), float16.

    In 4 bits numbers are -8 to 7, or 0 to 15 if there are minima.
    """

    numbers: Tensor
    scales: Tensor
    minima: Tensor | None
    bits: Bits

    @classmethod
    def joined(cls, parts: "Sequence[Blocks]") -> "Blocks":
        """The weights of `parts`, one below the other, without a change of values: in 8 bits, and with minima, if one of them is."""
        if len(parts) == 1:
            return parts[0]
        bits: Bits = 8 if any(part.bits == 8 for part in parts) else 4
        with_minima = any(part.minima is not None for part in parts)
        parts = [part._with_minima(bits) if with_minima and part.minima is None else part for part in parts]
        numbers, scales = (torch.cat([getattr(part, name) for part in parts]) for name in ("numbers", "scales"))
        return cls(numbers, scales, torch.cat([part.minima for part in parts if part.minima is not None]) if with_minima else None, bits)

    def _with_minima(self, bits: Bits) -> "Blocks":
        """The same in so many bits, of which 4 count from 0 then."""
        least = 8 if bits == 4 else 0
        return Blocks(self.numbers + least, self.scales, -least * self.scales, bits)


def quantize(weight: Tensor, bits: Bits) -> Blocks:
    """A `weight` (O, I) as Q8_0 or Q4_0: the largest number of a block is 127 or -127, or with 4 bits -8."""
    blocks = weight.float().unflatten(1, (-1, BLOCK))
    if bits == 8:
        scales = blocks.abs().amax(2) / 127
        numbers = (blocks / scales.where(scales > 0, 1.0)[..., None]).round()
    else:
        scales = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))[..., 0] / -8
        inverse = torch.where(scales == 0, 0.0, 1 / scales)[..., None].double()
        numbers = (blocks.double() * inverse + 8.5).floor().clamp(0, 15) - 8
    return Blocks(numbers.to(torch.int8).flatten(1), scales.half(), None, bits)


@dataclass(frozen=True)
class Quantized:
    """A weight (`outputs`, I) as products read it, G = ceil(outputs / 48) groups of 48 outputs.

    `numbers` are (G, I / 2, 48, 2), int8, or in 4 bits (G, I / 32, 8, 48, 2), uint8: the low half of a byte of the first 16 inputs of a
    block, the high half of the others. `scales` and `minima` are (G, I / 32, 48).
    """

    numbers: Tensor
    scales: Tensor
    minima: Tensor | None
    outputs: int

    @classmethod
    def out(cls, blocks: Blocks) -> "Quantized":
        """Lay out the blocks of a weight."""

        def laid(x: Tensor, *more: int) -> Tensor:
            missing = -len(x) % COLUMNS
            groups = (F.pad(x, (0, 0, 0, missing)) if missing else x).unflatten(0, (-1, COLUMNS))
            return (groups.unflatten(2, more) if more else groups).transpose(1, 2).contiguous()

        numbers = blocks.numbers
        if blocks.bits == 4:
            low, high = (numbers + (8 if blocks.minima is None else 0)).to(torch.uint8).unflatten(1, (-1, 2, BLOCK // 2)).unbind(2)
            numbers = (low | high << 4).flatten(1)
        minima = None if blocks.minima is None else laid(blocks.minima)
        return cls(laid(numbers, -1, 2), laid(blocks.scales), minima, len(blocks.numbers))

    @property
    def bits(self) -> Bits:
        """Of a number."""
        return 8 if self.numbers.dtype == torch.int8 else 4

    @property
    def inputs(self) -> int:
        """I."""
        return BLOCK * self.scales.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(x.nbytes for x in (self.numbers, self.scales, self.minima) if x is not None)

    @property
    def addresses(self) -> Addresses:
        """Where everything is, for C."""
        minima = None if self.minima is None else self.minima.data_ptr()
        return Addresses(self.numbers.data_ptr(), self.scales.data_ptr(), minima, self.bits)

    def multiplies(self, dtype: torch.dtype) -> bool:
        """Whether `product` is compiled for x of that type."""
        return hasattr(library(dtype), "product_quantized")

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """X (N, I) times the weight, plus bias (O,), to (N, O). Passes no gradient on."""
        found, x, out = library(x.dtype), x.contiguous(), x.new_empty((len(x), self.outputs))
        assert found is not None
        assert x.device == self.numbers.device
        words, added = x.shape[1] * x.element_size() // 4, None if bias is None else bias.data_ptr()
        of = ctypes.byref(self.addresses)
        found.product_quantized(*out.shape, words, x.data_ptr(), words, of, added, 0, out.data_ptr(), self.outputs)
        return out

    def widened(self, dtype: torch.dtype) -> Tensor:
        """The weight (O, I) in `dtype`."""
        if found := library(dtype):
            out = torch.empty(self.inputs, self.outputs, dtype=dtype)
            found.widen(*out.t().shape, ctypes.byref(self.addresses), out.data_ptr())
            return out.t()
        return self.rows(torch.arange(self.outputs), dtype)

    def rows(self, chosen: Tensor, dtype: torch.dtype) -> Tensor:
        """The outputs of the weight that `chosen` (N,) names, (N, I) in `dtype`."""
        group, column = chosen // COLUMNS, chosen % COLUMNS
        numbers = self.numbers[group, :, column].flatten(1).unflatten(1, (self.scales.shape[1], -1))
        if self.bits == 4:
            numbers = torch.cat([numbers & 15, numbers >> 4], dim=2).to(torch.int8) - (8 if self.minima is None else 0)
        values = numbers * self.scales[group, :, column].float()[..., None]
        if self.minima is not None:
            values += self.minima[group, :, column].float()[..., None]
        return values.flatten(1).to(dtype)
