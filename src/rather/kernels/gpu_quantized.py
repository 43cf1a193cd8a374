"""Products with quantized weights on a GPU, by Triton: run under Triton's interpreter and compiled for GPUs, but never run on one.

A weight is read as `QuantizedRows` holds it. A program widens a tile of it in registers, to x's type, and gives that to `tl.dot`, which
sums in float32. Every 64 rows of x widen the weight again, which takes less time than the memory does while rows are few. For many rows
`widen` does it once, into memory, and the matrix library multiplies: a kernel of ours would hardly do that faster, and by the rates of an
H100 4,096 rows take six times as long as what `widen` reads and writes. This is reckoned, not measured.

Shape letters as in kernels/__init__.py.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

FEW = 256
"""Rows of x that `product_quantized` is for: decoding steps."""
TILE, STEP = 64, 128
"""Outputs and inputs of a weight that a program holds at a time."""
PROGRAMS, LEAST_STEPS = 128, 4
"""Where outputs are few, inputs are shared among as many programs as a GPU has multiprocessors, but not to less than so many steps."""


@triton.jit
def _weights(
    numbers, scales, minima, output, outputs, step, away, blocks,
    BITS: tl.constexpr, LEAST: tl.constexpr, MINIMA: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """The weights (TILE, STEP) of the outputs `output` (TILE,) and the inputs from STEP * step on, float32, 0 where there are none."""
    row, there = output.to(tl.int64)[:, None], (output < outputs)[:, None]
    at = step * (STEP * BITS // 8) + tl.arange(0, STEP * BITS // 8)[None, :]
    number = tl.load(numbers + row * away + at, there & (at < away), 0)
    if BITS == 4:
        number = tl.interleave(number & 15, number >> 4)
    block = step * (STEP // BLOCK) + tl.arange(0, STEP // BLOCK)[None, :]
    known = there & (block < blocks)
    scale = tl.load(scales + row * blocks + block, known, 0.0).to(tl.float32)[:, :, None]
    weight = (number.to(tl.float32) + LEAST).reshape(output.shape[0], STEP // BLOCK, BLOCK) * scale
    if MINIMA:
        weight += tl.load(minima + row * blocks + block, known, 0.0).to(tl.float32)[:, :, None]
    return weight.reshape(output.shape[0], STEP)


@triton.jit
def _product(
    x, numbers, scales, minima, bias, out, rows, outputs, inputs, away, blocks, steps,
    BITS: tl.constexpr, LEAST: tl.constexpr, MINIMA: tl.constexpr, BLOCK: tl.constexpr,
    BIASED: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Some outputs of some rows, summed over one part of the inputs, so many steps."""
    output, row = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    part, total = tl.program_id(2), tl.zeros([TILE, ROWS], tl.float32)
    for step in range(part * steps, min(part * steps + steps, tl.cdiv(inputs, STEP))):
        weight = _weights(numbers, scales, minima, output, outputs, step, away, blocks, BITS, LEAST, MINIMA, BLOCK, STEP)
        at = step * STEP + tl.arange(0, STEP)
        given = tl.load(x + row.to(tl.int64)[:, None] * inputs + at[None, :], (row < rows)[:, None] & (at < inputs)[None, :], 0.0)
        total = tl.dot(weight.to(given.dtype), tl.trans(given), total, input_precision="ieee")
    if BIASED:
        total += tl.where(part == 0, tl.load(bias + output, output < outputs, 0.0).to(tl.float32), 0.0)[:, None]
    into = (part * rows + row.to(tl.int64))[None, :] * outputs + output[:, None]
    tl.store(out + into, total.to(out.dtype.element_ty), (output < outputs)[:, None] & (row < rows)[None, :])


@triton.jit
def _joined(found, out, count, parts, TILE: tl.constexpr):
    """The sum of all parts, in their order."""
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE], tl.float32)
    for part in range(parts):
        total += tl.load(found + part * count + at, at < count, 0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), at < count)


def product_quantized(x: Tensor, numbers: Tensor, scales: Tensor, minima: Tensor | None, bias: Tensor | None) -> Tensor:
    """X (N, I) times the weight that a `QuantizedRows` holds, plus bias (O,), to (N, O).

    Which sums there are, and their order, is the weight's alone: a row gets the same whatever stands beside it, as far as the GPU
    multiplies tiles of 16, 32 and 64 rows alike.
    """
    x, (rows, inputs), outputs = x.contiguous(), x.shape, len(numbers)
    small = x.element_size() == 2
    tile = max(16, min(64 if small else 32, triton.next_power_of_2(rows)))
    every, tiles = triton.cdiv(inputs, STEP), triton.cdiv(outputs, TILE)
    steps = max(LEAST_STEPS, triton.cdiv(every, triton.cdiv(PROGRAMS, tiles)))
    parts, out = triton.cdiv(every, steps), x.new_empty((rows, outputs))
    found = out if parts == 1 else x.new_empty((parts, rows, outputs), dtype=torch.float32)
    away, blocks, how = _how(numbers, scales, minima, inputs)
    of = x, numbers, scales, scales if minima is None else minima, out if bias is None else bias, found
    if rows:
        grid, stages = (tiles, triton.cdiv(rows, tile), parts), 3 if small else 2
        _product[grid](*of, rows, outputs, inputs, away, blocks, steps, *how, bias is not None, TILE, tile, STEP, num_stages=stages)
        if parts > 1:
            _joined[(triton.cdiv(out.numel(), 1024),)](found, out, out.numel(), parts, 1024)
    return out


@triton.jit
def _widen(
    numbers, scales, minima, out, outputs, inputs, away, blocks,
    BITS: tl.constexpr, LEAST: tl.constexpr, MINIMA: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    output, step = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.program_id(1)
    weight = _weights(numbers, scales, minima, output, outputs, step, away, blocks, BITS, LEAST, MINIMA, BLOCK, STEP)
    at = step * STEP + tl.arange(0, STEP)
    here = (output < outputs)[:, None] & (at < inputs)[None, :]
    tl.store(out + output.to(tl.int64)[:, None] * inputs + at[None, :], weight.to(out.dtype.element_ty), here)


def widen(numbers: Tensor, scales: Tensor, minima: Tensor | None, inputs: int, dtype: torch.dtype) -> Tensor:
    """The weight (O, I) that a `QuantizedRows` holds, in `dtype`."""
    out = scales.new_empty((len(numbers), inputs), dtype=dtype)
    away, blocks, how = _how(numbers, scales, minima, inputs)
    of = numbers, scales, scales if minima is None else minima, out, *out.shape, away, blocks
    _widen[(triton.cdiv(len(out), TILE), triton.cdiv(inputs, STEP))](*of, *how, TILE, STEP)
    return out


def _how(numbers: Tensor, scales: Tensor, minima: Tensor | None, inputs: int) -> tuple[int, int, tuple[int, int, bool, int]]:
    """Bytes and blocks of an output; bits of a number, what is added to it, whether there are minima, and the inputs of a block."""
    away, blocks = numbers.shape[1], scales.shape[1]
    bits = 8 * away // inputs
    return away, blocks, (bits, -8 if bits == 4 and minima is None else 0, minima is not None, inputs // blocks)
