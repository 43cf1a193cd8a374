"""Attention on a GPU, by Triton: of a pack with its gradient, of a decoding step, and what fills the cache before it.

Shapes as in kernels/__init__.py.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64
"""Cached tokens that a program of `step` reads at a time, of numbers of two bytes."""
PIECES, TO_QUERIES, TO_KEYS = (2, 32, 4, 3), (2, 32, 4, 3), (2, 32, 4, 2)
"""Of the programs of attention with numbers of two bytes: how many share a tile, the tokens that they take at a time, warps, stages."""
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _fill(k, v, k_away, v_away, source, row, place, keys, values, kv, width, row_away, head_away, MANY: tl.constexpr, WIDE: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    head, at = tl.arange(0, MANY)[:, None], tl.arange(0, WIDE)[None, :]
    here = (head < kv) & (at < width)
    own = tl.load(source + n)
    into = tl.load(row + n) * row_away + tl.load(place + n) * width + head * head_away + at
    tl.store(keys + into, tl.load(k + own * k_away + head * width + at, here), here)
    tl.store(values + into, tl.load(v + own * v_away + head * width + at, here), here)


def fill(k: Tensor, v: Tensor, source: Tensor, row: Tensor, place: Tensor, keys: Tensor, values: Tensor) -> None:
    """See `kernels.fill`."""
    _, kv, width = k.shape
    assert k.stride()[1:] == v.stride()[1:] == (width, 1)
    assert keys.stride() == values.stride()
    of = k, v, k.stride(0), v.stride(0), source, row, place, keys, values, kv, width, keys.stride(0), keys.stride(1)
    _fill[(len(source),)](*of, triton.next_power_of_2(kv), triton.next_power_of_2(width))


@triton.jit
def _tile(x, first, rows, away, last, width, WIDE: tl.constexpr):
    """Some rows of one head of x, (rows, WIDE), 0 where there are none."""
    at = tl.arange(0, WIDE)
    there = (first + rows < last)[:, None] & (at < width)[None, :]
    return tl.load(x + (first + rows.to(tl.int64))[:, None] * away + at[None, :], there, 0.0)


@triton.jit
def _put(x, value, first, rows, away, last, width, WIDE: tl.constexpr):
    at = tl.arange(0, WIDE)
    there = (first + rows < last)[:, None] & (at < width)[None, :]
    tl.store(x + (first + rows.to(tl.int64))[:, None] * away + at[None, :], value.to(x.dtype.element_ty), there)


@triton.jit
def _piece(pieces, which):
    """First place of a piece, the place after its last, and its first position."""
    return tl.load(pieces + 3 * which), tl.load(pieces + 3 * which + 1), tl.load(pieces + 3 * which + 2)


@triton.jit
def _own(tiles, pieces, rows, SHARE: tl.constexpr, TILE: tl.constexpr):
    """The piece that a program works on, its first place in it, the place after the piece's last, and the positions of its rows."""
    tile, share = tl.program_id(0) // SHARE, tl.program_id(0) % SHARE
    piece = tl.load(tiles + tile * 2)
    start, stop, position = _piece(pieces, piece)
    begin = tl.minimum(tl.load(tiles + tile * 2 + 1) + share * TILE, stop)
    return piece, begin, stop, position + begin - start + rows


@triton.jit
def _pieces(
    q, k, v, q_away, k_away, v_away, tiles, pieces, first, seen, out, weight, heads, width, window, scale,
    GROUP: tl.constexpr, WIDE: tl.constexpr, SHARE: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One head of a tile of one piece: attention to the pieces that it sees, one after the other (Dao et al. 2022)."""
    head, rows, columns = tl.program_id(1), tl.arange(0, TILE), tl.arange(0, STEP)
    piece, begin, stop, place = _own(tiles, pieces, rows, SHARE, TILE)
    query = _tile(q + head * width, begin, rows, q_away, stop, width, WIDE)
    top = tl.full([TILE], -1e30, tl.float32)
    total, found = tl.zeros([TILE], tl.float32), tl.zeros([TILE, WIDE], tl.float32)
    for i in range(tl.load(first + piece), tl.load(first + piece + 1)):
        other = tl.load(seen + i)
        start, end, position = _piece(pieces, other)
        last = tl.minimum(end, begin + TILE)  # what a piece sees lies before it
        skipped = tl.maximum(tl.min(place) + 1 - window - position, 0) // STEP * STEP
        for here in range(start + skipped, last, STEP):
            key = _tile(k + head // GROUP * width, here, columns, k_away, end, width, WIDE)
            behind = place[:, None] - (position + here - start + columns)[None, :]
            known = (here + columns < end)[None, :] & (behind >= 0) & (behind < window)
            score = tl.where(known, tl.dot(query, tl.trans(key), input_precision="ieee") * scale, -float("inf"))
            higher = tl.maximum(top, tl.max(score, 1))
            factor, p = tl.exp2(top - higher), tl.exp2(score - higher[:, None])
            value = _tile(v + head // GROUP * width, here, columns, v_away, end, width, WIDE)
            found = tl.dot(p.to(value.dtype), value, found * factor[:, None], input_precision="ieee")
            total = total * factor + tl.sum(p, 1)
            top = higher
    _put(out + head * width, found / total[:, None], begin, rows, heads * width, stop, width, WIDE)
    tl.store(weight + (begin + rows) * heads + head, top + tl.log2(total), begin + rows < stop)


@triton.jit
def _to_queries(
    q, k, v, q_away, k_away, v_away, tiles, pieces, first, seen, out, gradient, weight, both, to_q, heads, width, window, scale,
    GROUP: tl.constexpr, WIDE: tl.constexpr, SHARE: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """What reaches the queries of one head in a tile; leaves what all shares of a query have in common in `both`."""
    head, rows, columns = tl.program_id(1), tl.arange(0, TILE), tl.arange(0, STEP)
    piece, begin, stop, place = _own(tiles, pieces, rows, SHARE, TILE)
    query = _tile(q + head * width, begin, rows, q_away, stop, width, WIDE)
    slope = _tile(gradient + head * width, begin, rows, heads * width, stop, width, WIDE)
    here = begin + rows < stop
    known_weight = tl.load(weight + (begin + rows) * heads + head, here, 0.0)
    given = _tile(out + head * width, begin, rows, heads * width, stop, width, WIDE)
    known_both = tl.sum(given.to(tl.float32) * slope.to(tl.float32), 1)
    tl.store(both + (begin + rows) * heads + head, known_both, here)
    found = tl.zeros([TILE, WIDE], tl.float32)
    for i in range(tl.load(first + piece), tl.load(first + piece + 1)):
        other = tl.load(seen + i)
        start, end, position = _piece(pieces, other)
        last = tl.minimum(end, begin + TILE)  # what a piece sees lies before it
        skipped = tl.maximum(tl.min(place) + 1 - window - position, 0) // STEP * STEP
        for at in range(start + skipped, last, STEP):
            key = _tile(k + head // GROUP * width, at, columns, k_away, end, width, WIDE)
            value = _tile(v + head // GROUP * width, at, columns, v_away, end, width, WIDE)
            behind = place[:, None] - (position + at - start + columns)[None, :]
            known = (at + columns < end)[None, :] & (behind >= 0) & (behind < window)
            score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale - known_weight[:, None]
            p = tl.where(known, tl.exp2(score), 0.0)
            to_p = tl.dot(slope, tl.trans(value), input_precision="ieee")
            to_score = (p * (to_p - known_both[:, None])).to(key.dtype)
            found = tl.dot(to_score, key, found, input_precision="ieee")
    _put(to_q + head * width, found * (scale / LOG2E), begin, rows, heads * width, stop, width, WIDE)


@triton.jit
def _to_keys(
    q, k, v, q_away, k_away, v_away, tiles, pieces, first, seers, gradient, weight, both, to_k, to_v, heads, kv, width, window, scale,
    GROUP: tl.constexpr, WIDE: tl.constexpr, SHARE: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """What reaches one key head in a tile of one piece, from all heads and pieces that see it."""
    head, rows, columns = tl.program_id(1), tl.arange(0, TILE), tl.arange(0, STEP)
    piece, begin, stop, place = _own(tiles, pieces, rows, SHARE, TILE)
    key = _tile(k + head * width, begin, rows, k_away, stop, width, WIDE)
    value = _tile(v + head * width, begin, rows, v_away, stop, width, WIDE)
    k_found, v_found = tl.zeros([TILE, WIDE], tl.float32), tl.zeros([TILE, WIDE], tl.float32)
    for i in range(tl.load(first + piece), tl.load(first + piece + 1)):
        other = tl.load(seers + i)
        start, end, position = _piece(pieces, other)
        since = tl.maximum(begin, start)
        until = tl.minimum(end, start + tl.maximum(tl.max(place) + window - position, 0))
        for member in range(GROUP):
            asking = head * GROUP + member
            for at in range(since, until, STEP):
                query = _tile(q + asking * width, at, columns, q_away, end, width, WIDE)
                slope = _tile(gradient + asking * width, at, columns, heads * width, end, width, WIDE)
                here = at + columns < end
                known_weight = tl.load(weight + (at + columns) * heads + asking, here, 0.0)
                known_both = tl.load(both + (at + columns) * heads + asking, here, 0.0)
                behind = (position + at - start + columns)[None, :] - place[:, None]
                known = here[None, :] & (behind >= 0) & (behind < window)
                score = tl.dot(key, tl.trans(query), input_precision="ieee") * scale - known_weight[None, :]
                p = tl.where(known, tl.exp2(score), 0.0)
                v_found = tl.dot(p.to(slope.dtype), slope, v_found, input_precision="ieee")
                to_p = tl.dot(value, tl.trans(slope), input_precision="ieee")
                to_score = (p * (to_p - known_both[None, :])).to(query.dtype)
                k_found = tl.dot(to_score, query, k_found, input_precision="ieee")
    _put(to_k + head * width, k_found * (scale / LOG2E), begin, rows, kv * width, stop, width, WIDE)
    _put(to_v + head * width, v_found, begin, rows, kv * width, stop, width, WIDE)


def _of_pieces(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> tuple[tuple[int, ...], int, float, tuple[int, int]]:
    (_, heads, width), kv = q.shape, k.shape[1]
    assert q.stride()[1:] == k.stride()[1:] == v.stride()[1:] == (width, 1)
    scale = width**-0.5 * LOG2E.value  # to base 2: what the processor has an instruction for
    return (q.stride(0), k.stride(0), v.stride(0)), window or 2**30, scale, (heads // kv, int(triton.next_power_of_2(width)))


def pieces(q: Tensor, k: Tensor, v: Tensor, tree: tuple[Tensor, ...], window: int | None) -> tuple[Tensor, Tensor]:
    """See `kernels.pieces`."""
    (tokens, heads, width), (tiles, *of, _, _) = q.shape, tree
    away, window, scale, shape = _of_pieces(q, k, v, window)
    out, weight = q.new_empty(q.shape), q.new_empty((tokens, heads), dtype=torch.float32)
    of = q, k, v, *away, tiles, *of, out, weight, heads, width, window, scale, *shape
    how = _how(q, PIECES)
    _pieces[(len(tiles) * how["SHARE"], heads)](*of, **how)
    return out, weight


def pieces_backward(
    q: Tensor, k: Tensor, v: Tensor, tree: tuple[Tensor, ...], window: int | None, out: Tensor, weight: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.pieces_backward`."""
    (_, heads, width), kv, gradient = q.shape, k.shape[1], gradient.contiguous()
    tiles, known, first, seen, first_seer, seers = tree
    away, window, scale, shape = _of_pieces(q, k, v, window)
    both = torch.empty_like(weight)
    to_q, to_k, to_v = (q.new_empty(x.shape) for x in (q, k, v))
    of, more, how = (q, k, v, *away, tiles, known), (gradient, weight, both), _how(q, TO_QUERIES)
    _to_queries[(len(tiles) * how["SHARE"], heads)](*of, first, seen, out, *more, to_q, heads, width, window, scale, *shape, **how)
    how = _how(q, TO_KEYS)
    _to_keys[(len(tiles) * how["SHARE"], kv)](*of, first_seer, seers, *more, to_k, to_v, heads, kv, width, window, scale, *shape, **how)
    return to_q, to_k, to_v


def tile(x: Tensor) -> int:
    """Tokens of a tile in `pieces`: what a multiprocessor has room for."""
    return 128 if x.element_size() == 2 else 32


def _how(x: Tensor, of_two_bytes: tuple[int, int, int, int]) -> dict[str, int]:
    share, step, warps, stages = of_two_bytes if x.element_size() == 2 else (1, 32, 4, 2)
    return {"SHARE": share, "TILE": tile(x) // share, "STEP": step, "num_warps": warps, "num_stages": stages}


@triton.jit
def _turned(x, far, weight, at, away, here, c, s, width, eps, plus, NORMED: tl.constexpr):
    """Heads x (., WIDE), normed if wanted, and turned; `far` is each number's partner, half a head away."""
    kind = x.dtype
    x, far = x.to(tl.float32), far.to(tl.float32)
    if NORMED:
        scale = tl.rsqrt(tl.sum(x * x, 1) / width + eps)[:, None]
        own = tl.load(weight + at, here, 0.0).to(kind).to(tl.float32)[None, :] + plus
        x = ((x * scale).to(kind).to(tl.float32) * own).to(kind).to(tl.float32)
        other = tl.load(weight + away, here, 0.0).to(kind).to(tl.float32)[None, :] + plus
        far = ((far * scale).to(kind).to(tl.float32) * other).to(kind).to(tl.float32)
    return (x * c + far * s).to(kind)


@triton.jit
def _step(
    q, k, v, q_away, k_away, v_away, keys, values, row_away, head_away, positions, out, sums, width, window, scale,
    q_weight, k_weight, cos, sin, eps, plus,
    TURNED: tl.constexpr, NORMED: tl.constexpr,
    GROUP: tl.constexpr, PADDED: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """What the query heads of one key head gather from one part of a row; that of the first part is its new token's, too."""
    row, head, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    kv = tl.num_programs(1)
    kind = keys.dtype.element_ty
    which, at = tl.arange(0, PADDED), tl.arange(0, WIDE)
    here = at < width
    asked = (which < GROUP)[:, None] & here[None, :]
    query = tl.load(q + row * q_away + (head * GROUP + which[:, None]) * width + at[None, :], asked, 0.0)
    key = tl.load(k + row * k_away + head * width + at[None, :], here[None, :], 0.0)
    if TURNED:
        far, turn = (at + width // 2) % width, row * width + at
        c, s = tl.load(cos + turn, here, 0.0).to(tl.float32)[None, :], tl.load(sin + turn, here, 0.0).to(tl.float32)[None, :]
        partner = tl.load(q + row * q_away + (head * GROUP + which[:, None]) * width + far[None, :], asked, 0.0)
        query = _turned(query, partner, q_weight, at, far, here, c, s, width, eps, plus, NORMED)
        partner = tl.load(k + row * k_away + head * width + far[None, :], here[None, :], 0.0)
        key = _turned(key, partner, k_weight, at, far, here, c, s, width, eps, plus, NORMED)
    position = tl.load(positions + row)
    keys += row * row_away + head * head_away
    values += row * row_away + head * head_away
    top = tl.full([PADDED], -1e30, tl.float32)
    total = tl.zeros([PADDED], tl.float32)
    found = tl.zeros([PADDED, WIDE], tl.float32)
    if part == 0:
        value = tl.load(v + row * v_away + head * width + at, here, 0.0)
        tl.store(keys + position * width + at[None, :], key, here[None, :])
        tl.store(values + position * width + at, value, here)
        top = tl.sum(query.to(tl.float32) * key.to(tl.float32), 1) * scale
        total += 1.0
        found += value.to(tl.float32)[None, :]
    begin = tl.maximum(position + 1 - window, 0)
    each = tl.cdiv(tl.cdiv(position - begin, PARTS), TILE) * TILE
    begin += part * each
    end = tl.minimum(begin + each, position)
    for first in range(begin, end, TILE):
        place = first + tl.arange(0, TILE)
        known = place < end
        there = known[:, None] & here[None, :]
        seen = tl.load(keys + place[:, None] * width + at[None, :], there, 0.0)
        score = tl.dot(query, tl.trans(seen), input_precision="ieee") * scale
        score = tl.where(known[None, :], score, -float("inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        factor, p = tl.exp(top - higher), tl.exp(score - higher[:, None])
        held = tl.load(values + place[:, None] * width + at[None, :], there, 0.0)
        found = tl.dot(p.to(kind), held, found * factor[:, None], input_precision="ieee")
        total = total * factor + tl.sum(p, 1)
        top = higher
    if PARTS == 1:
        into = out + (row * kv + head) * GROUP * width + which[:, None] * width + at[None, :]
        tl.store(into, (found / total[:, None]).to(kind), asked)
    else:
        into = ((row * kv + head) * GROUP + which) * PARTS + part
        tl.store(out + into[:, None] * width + at[None, :], found, asked)
        tl.store(sums + into * 2, top, which < GROUP)
        tl.store(sums + into * 2 + 1, total, which < GROUP)


@triton.jit
def _joined(found, sums, out, width, WIDE: tl.constexpr, PARTS: tl.constexpr):
    """One head of one row: the parts, each with the weight that it has beside the others."""
    n, part, at = tl.program_id(0).to(tl.int64), tl.arange(0, PARTS), tl.arange(0, WIDE)
    here = at < width
    top, total = tl.load(sums + (n * PARTS + part) * 2), tl.load(sums + (n * PARTS + part) * 2 + 1)
    share = tl.exp(top - tl.max(top))
    own = tl.load(found + (n * PARTS + part[:, None]) * width + at[None, :], here[None, :], 0.0)
    all_ = tl.sum(own * share[:, None], 0) / tl.sum(total * share)
    tl.store(out + n * width + at, all_.to(out.dtype.element_ty), here)


def step(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, positions: Tensor, window: int | None, turn: Any = None, parts: int = 0
) -> Tensor:
    """See `kernels.step`."""
    (rows, heads, width), kv, room = q.shape, keys.shape[1], keys.shape[2]
    assert keys.stride() == values.stride()
    assert keys.stride(2) == width
    parts = parts or min(32, int(triton.next_power_of_2(triton.cdiv(512, rows * kv))))
    group, out = heads // kv, q.new_empty((rows, heads, width))
    found, sums = (out, out) if parts == 1 else (q.new_empty((*out.shape[:2], parts, n), dtype=torch.float32) for n in (width, 2))
    wide = triton.next_power_of_2(width)
    weights, _, cos, sin, eps, plus = turn or (None, heads, q, q, 0.0, 0.0)
    of = q, k, v, q.stride(0), k.stride(0), v.stride(0), keys, values, keys.stride(0), keys.stride(1), positions, found, sums, width
    how = *(weights or (cos, cos)), cos, sin, eps, plus, turn is not None, weights is not None
    small = q.element_size() == 2
    tiles = group, max(16, triton.next_power_of_2(group)), wide, TILE if small else TILE // 2, parts
    stages = 3 if small and rows * kv * parts >= 1024 else 2
    _step[(rows, kv, parts)](*of, window or room, width**-0.5, *how, *tiles, num_stages=stages)
    if parts > 1:
        _joined[(rows * heads,)](found, sums, out, width, wide, parts)
    return out
