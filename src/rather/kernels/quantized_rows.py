"""Quantized weights on a GPU: the same blocks, row by row. This has been run under Triton's interpreter only, never on a GPU.

Shape letters as in kernels/__init__.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rather.kernels import on_gpu
from rather.kernels.quantized import SHARED, Blocks, Form, Quantized


def laid(parts: Sequence[Blocks], on: torch.device) -> Quantized:
    """The weights of `parts`, one below the other, on a device, as products there read them."""
    return Quantized.out(*parts) if on.type == "cpu" else QuantizedRows.on(parts, on)


def rows_nbytes(parts: Sequence[tuple[Form, int]], inputs: int) -> int:
    """Bytes of the `QuantizedRows` of parts that files hold in these forms, so many outputs each."""
    numbers = sum(outputs for _, outputs in parts) * inputs
    shared, minima = min(SHARED[form.bits] for form, _ in parts), any(form.minima for form, _ in parts)
    return (numbers // 2 if _in_4_bits([form for form, _ in parts]) else numbers) + numbers // shared * (4 if minima else 2)


def _in_4_bits(forms: Sequence[Form]) -> bool:
    return forms[0].bits == 4 and len(set(forms)) == 1


@dataclass(frozen=True)
class QuantizedRows(Quantized):
    """A weight (`outputs`, I) as a GPU reads it, one output after the other, so that what is read at a time lies together.

    `numbers` are (O, I), int8, or in 4 bits (O, I / 2), uint8: the low half of a byte comes before the high half. `scales` and `minima`
    are (O, I / S), float16, S inputs sharing one.

    Where x has few rows a kernel reads these and widens them on the way. Where it has many, or without Triton, the matrix library
    multiplies with `widened`. Both have the same weights, rounded to the type of x, and sum in float32, each in its own order.
    """

    @classmethod
    def on(cls, parts: Sequence[Blocks], device: torch.device) -> "QuantizedRows":
        """The weights of `parts`, one below the other, on a device: in 4 bits if all are, and are alike, else in 8; the same values."""
        blocks = max(part.scales.shape[1] for part in parts)
        with_minima = [part.minima is not None for part in parts]

        def joined(each: Sequence[Tensor]) -> Tensor:
            return torch.cat([x.repeat_interleave(blocks // x.shape[1], 1) for x in each]).to(device)

        numbers, scales = torch.cat([part.numbers for part in parts]).to(device), joined([part.scales for part in parts])
        minima = joined([torch.zeros_like(p.scales) if p.minima is None else p.minima for p in parts]) if any(with_minima) else None
        if _in_4_bits([part.form for part in parts]):
            low, high = (numbers + (8 if minima is None else 0)).to(torch.uint8).unflatten(1, (-1, 2)).unbind(2)
            numbers = low | high << 4
        return cls(numbers, scales, minima, len(numbers))

    @property
    def bits(self) -> int:
        """Of a number as it is held."""
        return 8 if self.numbers.dtype == torch.int8 else 4

    @property
    def inputs(self) -> int:
        """I."""
        return self.numbers.shape[1] * 8 // self.bits

    def multiplies(self, dtype: torch.dtype) -> bool:
        """`product` takes any x."""
        del dtype
        return True

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """See `Quantized.product`."""
        if (on := on_gpu(x)) and len(x) <= on.FEW:
            return on.product_quantized(x, self.numbers, self.scales, self.minima, bias)
        return F.linear(x, self.widened(x.dtype), bias)

    def widened(self, dtype: torch.dtype) -> Tensor:
        """The weight (O, I) in `dtype`."""
        if on := on_gpu(self.scales):
            return on.widen(self.numbers, self.scales, self.minima, self.inputs, dtype)
        return self.rows(torch.arange(self.outputs, device=self.scales.device), dtype)

    def rows(self, chosen: Tensor, dtype: torch.dtype) -> Tensor:
        """See `Quantized.rows`."""
        numbers, scales = self.numbers[chosen], self.scales[chosen].float()[..., None]
        if self.bits == 4:
            numbers = torch.stack([numbers & 15, numbers >> 4], dim=2).to(torch.int8) - (8 if self.minima is None else 0)
        values = numbers.flatten(1).unflatten(1, (scales.shape[1], -1)) * scales
        if self.minima is not None:
            values += self.minima[chosen].float()[..., None]
        return values.flatten(1).to(dtype)
