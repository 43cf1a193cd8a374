"""Quantized weights, as in GGUF: 32 inputs of an output, or 16, share a scale, their numbers in 8, 6, 5 or 4 bits; and products with them.

A weight is its number times its scale, plus its minimum if it has one. Products multiply x with the numbers that share a scale as they are,
and the sum with the scale: nothing is rounded on the way, and each row of x gets the same result whatever stands beside it.

Shape letters as in kernels/__init__.py.
"""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby, takewhile
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rather.kernels import COLUMNS, library

BLOCK = 32
"""Inputs of a block; kernels.c says the same."""
SHARED = {4: BLOCK, 5: BLOCK, 6: BLOCK // 2, 8: BLOCK}
"""Inputs that share a scale, by the bits of their numbers."""
Bits = Literal[4, 8]
"""What `quantize` makes of ordinary numbers."""


class Addresses(ctypes.Structure):
    """`struct quantized` of kernels.c."""


Addresses._fields_ = [
    *((name, ctypes.c_void_p) for name in ("numbers", "scales", "minima")),
    ("bits", ctypes.c_int64), ("outputs", ctypes.c_int64), ("below", ctypes.POINTER(Addresses)),
]  # fmt: skip


class Form(NamedTuple):
    """How a weight is held: the bits of its numbers, and whether there are minima."""

    bits: int
    minima: bool

    def nbytes(self, outputs: int, inputs: int) -> int:
        """What a `Quantized` of that size holds."""
        groups, per_scale = -(-outputs // COLUMNS), SHARED[self.bits]
        return groups * COLUMNS * inputs // per_scale * (per_scale * self.bits // 8 + (4 if self.minima else 2))


@dataclass(frozen=True)
class Blocks:
    """A weight as files hold it: `numbers` (O, I), int8, `scales` and perhaps `minima` (O, I / S), float16, S inputs sharing one (SHARED).

    In b bits numbers are from -2^(b - 1) on, or from 0 on if there are minima.
    """

    numbers: Tensor
    scales: Tensor
    minima: Tensor | None
    bits: int

    @classmethod
    def joined(cls, parts: "Sequence[Blocks]") -> "Blocks":
        """The weights of `parts`, all held alike, one below the other."""
        numbers, scales = (torch.cat([getattr(part, name) for part in parts]) for name in ("numbers", "scales"))
        minima = [part.minima for part in parts if part.minima is not None]
        return cls(numbers, scales, torch.cat(minima) if minima else None, parts[0].bits)

    @property
    def form(self) -> "Form":
        """How it is held."""
        return Form(self.bits, self.minima is not None)


def columns_nbytes(parts: Sequence[tuple[Form, int]], inputs: int) -> int:
    """Bytes of the `Quantized` of parts that files hold in these forms, so many outputs each."""
    return sum(form.nbytes(sum(outputs for _, outputs in alike), inputs) for form, alike in groupby(parts, lambda part: part[0]))


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
    """A weight (O, I) as products read it: `outputs`, laid out in G = ceil(outputs / 48) groups of 48, and those `below`, held otherwise.

    `numbers` are (G, I / 2, 48, 2), int8, or in fewer bits (G, I / 32, 192 bits), uint8: of each block the last four bits of all numbers,
    those of the first 16 inputs in the low halves of bytes, then the others, a bit or two, of which a byte has those of the first inputs
    lowest. `scales` and `minima` are (G, I / S, 48).
    """

    numbers: Tensor
    scales: Tensor
    minima: Tensor | None
    outputs: int
    below: "Quantized | None" = None

    @classmethod
    def out(cls, *parts: Blocks) -> "Quantized":
        """Lay out the weights of `parts`, one below the other; those that are held alike together."""
        alike = list(takewhile(lambda part: part.form == parts[0].form, parts))
        below = cls.out(*parts[len(alike) :]) if len(alike) < len(parts) else None
        of = Blocks.joined(alike)
        numbers = _laid(of.numbers.unflatten(1, (-1, 2)))
        if of.bits < 8:
            least = 0 if of.minima is not None else -(2 ** (of.bits - 1))
            numbers = _packed((numbers - least).to(torch.uint8).flatten(1).unflatten(1, (-1, BLOCK * COLUMNS)), of.bits)
        return cls(numbers, _laid(of.scales), None if of.minima is None else _laid(of.minima), len(of.numbers), below)

    @property
    def bits(self) -> int:
        """Of a number; those below may have others."""
        return 8 if self.numbers.dtype == torch.int8 else 8 * self.numbers.shape[2] // (BLOCK * COLUMNS)

    @property
    def inputs(self) -> int:
        """I."""
        return SHARED[self.bits] * self.scales.shape[1]

    @property
    def total(self) -> int:
        """O."""
        return sum(part.outputs for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(x.nbytes for part in self.parts for x in (part.numbers, part.scales, part.minima) if x is not None)

    @property
    def addresses(self) -> Addresses:
        """Where everything is, for C."""
        minima = None if self.minima is None else self.minima.data_ptr()
        below = None if self.below is None else ctypes.pointer(self.below.addresses)
        return Addresses(self.numbers.data_ptr(), self.scales.data_ptr(), minima, self.bits, self.outputs, below)

    def multiplies(self, dtype: torch.dtype) -> bool:
        """Whether `product` is compiled for x of that type."""
        return hasattr(library(dtype), "product_quantized")

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """X (N, I) times the weight, plus bias (O,), to (N, O). Passes no gradient on."""
        found, x, out = library(x.dtype), x.contiguous(), x.new_empty((len(x), self.total))
        assert found is not None
        assert x.device == self.numbers.device
        words, added = x.shape[1] * x.element_size() // 4, None if bias is None else bias.data_ptr()
        of = ctypes.byref(self.addresses)
        found.product_quantized(len(x), words, x.data_ptr(), words, of, added, 0, out.data_ptr(), out.shape[1])
        return out

    def widened(self, dtype: torch.dtype) -> Tensor:
        """The weight (O, I) in `dtype`."""
        if found := library(dtype):
            out = torch.empty(self.inputs, self.total, dtype=dtype)
            found.widen(*out.t().shape, ctypes.byref(self.addresses), out.data_ptr())
            return out.t()
        return torch.cat([part.rows(torch.arange(part.outputs), dtype) for part in self.parts])

    def rows(self, chosen: Tensor, dtype: torch.dtype) -> Tensor:
        """The outputs that `chosen` (N,) names, (N, I) in `dtype`; none of those below."""
        group, column = chosen // COLUMNS, chosen % COLUMNS
        held = self.numbers.view(len(self.numbers), self.inputs // BLOCK, -1, COLUMNS, 2)
        numbers = held[group, :, :, column].flatten(2)
        if self.bits < 8:
            numbers = _unpacked(numbers, self.bits).to(torch.int8) - (2 ** (self.bits - 1) if self.minima is None else 0)
        values = numbers.flatten(1).unflatten(1, (-1, SHARED[self.bits])) * self.scales[group, :, column].float()[..., None]
        if self.minima is not None:
            values += self.minima[group, :, column].float()[..., None]
        return values.flatten(1).to(dtype)

    @property
    def parts(self) -> "Iterator[Quantized]":
        part: Quantized | None = self
        while part is not None:
            yield part
            part = part.below


def _laid(x: Tensor) -> Tensor:
    """X (O, ...) in groups of 48 outputs that lie side by side, (G, ..., 48) but for a last dimension of 2, which stays the last."""
    missing = -len(x) % COLUMNS
    if missing:
        x = torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
    return x.unflatten(0, (-1, COLUMNS)).transpose(1, 2).contiguous()


def _packed(numbers: Tensor, bits: int) -> Tensor:
    """Whole numbers (..., M) of so many bits, 4 to 6, in bytes (..., M bits / 8): the last four bits of all, then the others of all."""
    return torch.cat([_in_bytes(numbers & 15, 4), *([_in_bytes(numbers >> 4, bits - 4)] if bits > 4 else [])], dim=-1)


def _unpacked(held: Tensor, bits: int) -> Tensor:
    """What was `_packed`."""
    low, high = held.split([4 * held.shape[-1] // bits, (bits - 4) * held.shape[-1] // bits], dim=-1)
    return _out_of_bytes(low, 4) | (_out_of_bytes(high, bits - 4) << 4 if bits > 4 else 0)


def _in_bytes(x: Tensor, width: int) -> Tensor:
    """Numbers of so many bits, the first of them in the lowest bits of each byte."""
    return reduce(torch.bitwise_or, (part << width * i for i, part in enumerate(x.chunk(8 // width, dim=-1))))


def _out_of_bytes(x: Tensor, width: int) -> Tensor:
    return torch.cat([x >> shift & 2**width - 1 for shift in range(0, 8, width)], dim=-1)
