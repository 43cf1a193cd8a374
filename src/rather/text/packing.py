"""Prompts and answers laid end to end for one forward pass: no padding, and what several of them begin with only once.

The pieces of a pack form a tree: what all prompts begin with (a system prompt, say), the rest of each prompt, its answers; a single
answer and its prompt are one piece.
A piece sees the pieces above it and itself, never its neighbors, and its positions go on from theirs, so each answer gets
the numbers that it would get alone.

Shape letters: N tokens of all pieces, B answers, T tokens of a piece, S tokens that it sees, H heads, K key-value heads, D head width.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rather import kernels

COMPILED, KEPT = 2**18, 2**16
"""Up to so many pairs of tokens attention is the compiled loop (in bfloat16 half the time of PyTorch's fused kernel, in float32 the same
where all tokens are new and more for few new ones), and up to so many it keeps its shares for backward."""


@dataclass(frozen=True)
class Packed:
    """`ids` and `positions` (N,). Piece j has `lengths[j]` tokens and sees the pieces `seen[j]`, itself the last of them, each token those
    before it.

    `prompts[i]` are the places of answer i's prompt. For an answer of length t, `before[i]` (t,) are the places whose hidden
    state predicts its tokens and `after[i]` (t,) the places of the tokens themselves. All places are on the host: `chosen` turns
    them into an index.
    """

    ids: Tensor
    positions: Tensor
    lengths: list[int]
    seen: list[tuple[int, ...]]
    dtype: torch.dtype
    prompts: list[Tensor]
    before: list[Tensor]
    after: list[Tensor]
    masks: dict[tuple[int, int | None], Tensor | None] = field(default_factory=dict, init=False)

    def __call__(self, layer: int, window: int | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of each piece to those that it sees, `window` tokens in all: q (N, H, D), k and v (N, K, D) to (N, H, D)."""
        del layer
        if kernels.takes_heads(q):
            return _Pieces.apply(q, k, v, self.tree, window)  # type: ignore[return-value]
        ks, vs = k.split(self.lengths), v.split(self.lengths)
        qs = enumerate(q.split(self.lengths))
        return torch.cat([self._attend(j, window, own, _joined(ks, self.seen[j]), _joined(vs, self.seen[j])) for j, own in qs])

    def _attend(self, j: int, window: int | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of piece j, q (T, H, D), to k and v (S, K, D)."""
        if len(q) * len(k) <= COMPILED and kernels.attention(k, q.shape[1]):
            return _Piece.apply(q, k, v, window)  # type: ignore[return-value]
        mask = self._mask(j, window)
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)[0].transpose(0, 1)

    def chosen(self, places: Sequence[Tensor]) -> Tensor:
        """The places as one index of what a forward pass gives."""
        return sent(torch.cat(list(places)), self.ids.device)

    @functools.cached_property
    def tree(self) -> tuple[Tensor, ...]:
        """Who sees whom, for `kernels.pieces`: tiles (piece, first place), pieces (first place, the place after the last, first position),
        and for each piece where what it sees begins and ends in a list of pieces, and what sees it; whole numbers of 32 bits.
        """
        ends = np.cumsum(self.lengths)
        starts, size = ends - self.lengths, kernels.on_gpu(self.ids).tile(torch.empty(0, dtype=self.dtype))
        tiles = [(j, place) for j, (start, end) in enumerate(zip(starts, ends, strict=True)) for place in range(start, end, size)]
        pieces = [(starts[j], ends[j], sum(self.lengths[i] for i in seen[:-1])) for j, seen in enumerate(self.seen)]
        seers: list[list[int]] = [[] for _ in pieces]
        for j, seen in enumerate(self.seen):
            for i in seen:
                seers[i].append(j)
        lists = [x for of in (self.seen, seers) for x in ([0, *accumulate(map(len, of))], list(chain(*of)))]
        parts = [torch.from_numpy(np.array(x, np.int32)) for x in (tiles, pieces, *lists)]
        together = sent(torch.cat([x.flatten() for x in parts]), self.ids.device)
        return tuple(x.view(p.shape) for x, p in zip(together.split([p.numel() for p in parts]), parts, strict=True))

    def _mask(self, j: int, window: int | None) -> Tensor | None:
        """What is added to a piece's scores (T, S): 0 where a token sees another, -inf elsewhere; None if that is plain causal."""
        if (j, window) not in self.masks:
            self.masks[j, window] = self._made(self.lengths[j], sum(self.lengths[i] for i in self.seen[j]), window)
        return self.masks[j, window]

    def _made(self, t: int, s: int, window: int | None) -> Tensor | None:
        if t == s and (window is None or window >= s):
            return None
        place = torch.arange(s, device=self.ids.device)
        behind = place[s - t :, None] - place
        hidden = behind < 0 if window is None else (behind < 0) | (behind >= window)
        # One of True and False would be turned into this again in every layer.
        return torch.zeros(hidden.shape, dtype=self.dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)


class _Pieces(torch.autograd.Function):
    """`kernels.pieces`."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, tree: tuple[Tensor, ...], window: int | None) -> Tensor:
        out, weight = kernels.pieces(q, k, v, tree, window)
        ctx.save_for_backward(q, k, v, out, weight)
        ctx.tree, ctx.window = tree, window
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, *found = ctx.saved_tensors
        return *kernels.pieces_backward(q, k, v, ctx.tree, ctx.window, *found, gradient), None, None


def _joined(parts: Sequence[Tensor], which: tuple[int, ...]) -> Tensor:
    chosen = [parts[j] for j in which]
    return torch.cat(chosen) if len(chosen) > 1 else chosen[0]


class _Piece(torch.autograd.Function):
    """`kernels.piece`; the shares of a long piece, which would be most of what is held, are computed again."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        out, kept = kernels.piece(q, k, v, window, keep=any(ctx.needs_input_grad) and len(q) * len(k) <= KEPT)
        ctx.save_for_backward(q, k, v, kept)
        ctx.window = window
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, kept = ctx.saved_tensors
        if kept is None:
            _, kept = kernels.piece(q, k, v, ctx.window, keep=True)
        assert kept is not None
        return *kernels.piece_backward(q, k, v, ctx.window, kept, gradient), None


def pack(
    prompts: Sequence[Tensor],
    answers: Sequence[Tensor],
    dtype: torch.dtype = torch.float32,
    readers: Sequence[int] | None = None,
    device: torch.device | None = None,
) -> Packed:
    """Lay out B answers with their prompts, 1-D tensors each on the host; equal prompts, and what all prompts of a reader begin with, are
    there once.

    `dtype` is what attention is computed in, `device` where. Every prompt has at least one token: the first answer token is predicted from
    its last. Where several policies read, `readers[i]` is the one of prompt i, and nothing is shared between them.
    """
    read: dict[int, dict[bytes, list[int]]] = {}
    for i, prompt in enumerate(prompts):
        read.setdefault(0 if readers is None else readers[i], {}).setdefault(prompt.numpy().tobytes(), []).append(i)
    ids, positions, seen = list[Tensor](), list[np.ndarray](), list[tuple[int, ...]]()
    offset = 0

    def lay(tokens: Tensor, first: int, above: tuple[int, ...]) -> tuple[tuple[int, ...], np.ndarray]:
        """Append a piece whose first token is at position `first`; returns what its children see, and its places."""
        nonlocal offset
        places = np.arange(offset, offset + len(tokens))
        if not len(tokens):
            return above, places
        ids.append(tokens)
        positions.append(np.arange(first, first + len(tokens)))
        seen.append((*above, len(seen)))
        offset += len(tokens)
        return seen[-1], places

    places, before, after = ([np.arange(0)] * len(answers) for _ in range(3))
    for rows in read.values():
        shared = 0
        if len(rows) > 1:
            shared = _common(min(rows), max(rows))
        top, top_places = lay(prompts[next(iter(rows.values()))[0]][:shared], 0, ())
        for members in rows.values():
            prompt, answer = prompts[members[0]], answers[members[0]]
            alone = len(members) == 1  # nobody else sees the prompt: it is of one piece with its answer
            above, own = lay(torch.cat([prompt, answer])[shared:] if alone else prompt[shared:], shared, top)
            own, answered = np.split(np.concatenate([top_places, own]), [len(prompt)])
            for i in members:
                after[i] = answered if alone else lay(answers[i], len(prompt), above)[1]
                places[i], before[i] = own, np.concatenate([own[-1:], after[i][:-1]])[: len(answers[i])]
    lengths = [len(p) for p in positions]
    tokens, where = sent(torch.stack([torch.cat(ids), torch.from_numpy(np.concatenate(positions))]), device)
    places, before, after = ([torch.from_numpy(x) for x in of] for of in (places, before, after))
    return Packed(tokens, where, lengths, seen, dtype, places, before, after)


def _common(a: bytes, b: bytes) -> int:
    """How many tokens two prompts begin with alike."""
    both = [np.frombuffer(x, np.int64)[: min(len(a), len(b)) // 8] for x in (a, b)]
    differ = both[0] != both[1]
    return int(differ.argmax()) if differ.any() else len(differ)


def sent(x: Tensor, device: torch.device | None) -> Tensor:
    """X on the device, without waiting for the work that the device still has."""
    return x.pin_memory().to(device, non_blocking=True) if device is not None and device.type == "cuda" else x.to(device)
