"""Prompts and answers laid end to end for one forward pass: no padding, and what several of them begin with only once.

The pieces of a pack form a tree: what all prompts begin with (a system prompt, say), the rest of each prompt, its answers.
A piece sees the pieces above it and itself, never its neighbours, and its positions go on from theirs, so each answer gets
the numbers that it would get alone.

Shape letters: N tokens of all pieces, B answers, T tokens of a piece, S tokens that it sees, H heads, K key-value heads, D head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """`ids` and `positions` (N,). Piece j has `lengths[j]` tokens and sees the pieces `seen[j]`, itself the last of them;
    `masks[j]` (T, S) is added to its scores (None: plain causal).

    `prompts[i]` are the places of answer i's prompt. For an answer of length t, `before[i]` (t,) are the places whose hidden
    state predicts its tokens and `after[i]` (t,) the places of the tokens themselves.
    """

    ids: Tensor
    positions: Tensor
    lengths: list[int]
    seen: list[tuple[int, ...]]
    masks: list[Tensor | None]
    prompts: list[Tensor]
    before: list[Tensor]
    after: list[Tensor]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of each piece to those that it sees: q (N, H, D), k and v (N, K, D) to (N, H, D)."""
        del layer
        ks, vs = k.split(self.lengths), v.split(self.lengths)
        together = [(_joined(ks, seen), _joined(vs, seen), mask) for seen, mask in zip(self.seen, self.masks, strict=True)]
        return torch.cat([_attend(own, *rest) for own, rest in zip(q.split(self.lengths), together, strict=True)])


def _joined(parts: Sequence[Tensor], which: tuple[int, ...]) -> Tensor:
    chosen = [parts[j] for j in which]
    return torch.cat(chosen) if len(chosen) > 1 else chosen[0]


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of q (T, H, D) to k and v (S, K, D)."""
    if mask is not None and _plain_is_faster(len(q) * len(k), q.device):
        return _attend_plainly(q, k, v, mask)
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    causal = mask is None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)[0].transpose(0, 1)


def _plain_is_faster(pairs: int, device: torch.device) -> bool:
    """Whether a few products, forward and backward, beat the fused kernel for that many `pairs` of tokens."""
    return pairs <= 2**16 and device.type == "cpu"


def _attend_plainly(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The same, with the query heads that share a key head stacked into one product."""
    (t, heads, width), (s, kv, _) = q.shape, k.shape
    stacked = (q * width**-0.5).view(t, kv, -1, width).permute(1, 2, 0, 3).reshape(kv, -1, width)
    scores = torch.bmm(stacked, k.permute(1, 2, 0)).view(kv, -1, t, s)
    p = (scores + mask).softmax(dim=-1).view(kv, -1, s)
    return torch.bmm(p, v.transpose(0, 1)).view(kv, -1, t, width).permute(2, 0, 1, 3).reshape(t, heads, width)


def pack(
    prompts: Sequence[Tensor],
    answers: Sequence[Tensor],
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
    readers: Sequence[int] | None = None,
) -> Packed:
    """Lay out B answers with their prompts, 1-D tensors each; equal prompts, and what all prompts of a reader begin with, are there once.

    `window` is how far back a token sees, `dtype` what attention is computed in. Every prompt has at least one token: the
    first answer token is predicted from its last. Where several policies read, `readers[i]` is the one of prompt i, and nothing is
    shared between them.
    """
    device = prompts[0].device
    read: dict[int, dict[tuple[int, ...], list[int]]] = {}
    for i, prompt in enumerate(prompts):
        read.setdefault(0 if readers is None else readers[i], {}).setdefault(tuple(prompt.tolist()), []).append(i)
    ids, positions, seen = list[Tensor](), list[Tensor](), list[tuple[int, ...]]()
    offset = 0

    def lay(tokens: Tensor, first: int, above: tuple[int, ...]) -> tuple[tuple[int, ...], Tensor]:
        """Append a piece whose first token is at position `first`; returns what its children see, and its places."""
        nonlocal offset
        places = torch.arange(offset, offset + len(tokens), device=device)
        if not len(tokens):
            return above, places
        ids.append(tokens)
        positions.append(torch.arange(first, first + len(tokens), device=device))
        seen.append((*above, len(seen)))
        offset += len(tokens)
        return seen[-1], places

    places, before, after = [torch.empty(0)] * len(answers), [torch.empty(0)] * len(answers), [torch.empty(0)] * len(answers)
    for rows in read.values():
        shared = 0
        if len(rows) > 1:
            shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(min(rows), max(rows), strict=False)))
        top, top_places = lay(prompts[next(iter(rows.values()))[0]][:shared], 0, ())
        for members in rows.values():
            prompt = prompts[members[0]]
            above, own = lay(prompt[shared:], shared, top)
            own = torch.cat([top_places, own])
            for i in members:
                _, after[i] = lay(answers[i], len(prompt), above)
                places[i], before[i] = own, torch.cat([own[-1:], after[i][:-1]])[: len(answers[i])]
    masks = [_mask(positions[j], torch.cat([positions[a] for a in above]), window, dtype) for j, above in enumerate(seen)]
    return Packed(torch.cat(ids), torch.cat(positions), [len(p) for p in positions], seen, masks, places, before, after)


def _mask(own: Tensor, seen: Tensor, window: int | None, dtype: torch.dtype) -> Tensor | None:
    """(T, S), 0 where a token at position `own` sees one at position `seen`, -inf elsewhere; None if that is plain causal."""
    t, s = len(own), len(seen)
    if window is None and t == s and not _plain_is_faster(t * s, own.device):
        return None
    ahead = seen > own[:, None]
    if window is not None:
        ahead |= own[:, None] - seen >= window
    # One of True and False would be turned into this again in every layer.
    return torch.zeros(ahead.shape, dtype=dtype, device=ahead.device).masked_fill_(ahead, -torch.inf)
