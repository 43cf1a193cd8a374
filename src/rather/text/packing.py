"""Prompts and answers laid end to end for one forward pass: no padding, and a prompt shared by several answers once.

A row holds one prompt followed by its answers. An answer sees the prompt and itself, never its neighbours, and its
positions go on from the prompt's, so each answer gets the numbers that it would get alone.

Shape letters: N tokens of all rows, B answers, T longest answer, P longest prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """`ids` and `positions` (N,), the `lengths` of the rows and their `masks`, which are added
    to the scores (None: plain causal).

    For answer i of length t, `before[i]` (t,) are the places whose hidden state predicts its tokens and `after[i]` (t,)
    the places of the tokens themselves.
    """

    ids: Tensor
    positions: Tensor
    lengths: list[int]
    masks: list[Tensor | None]
    before: list[Tensor]
    after: list[Tensor]
    window: int | None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention within each row: q (N, H, D), k and v (N, K, D) to (N, H, D)."""
        del layer
        parts = [x.split(self.lengths) for x in (q, k, v)]
        return torch.cat([_attend(*row) for row in zip(*parts, self.masks, strict=True)])


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    causal = mask is None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)[0].transpose(0, 1)


def pack(prompts: Sequence[Tensor], answers: Sequence[Tensor], window: int | None = None, dtype: torch.dtype = torch.float32) -> Packed:
    """Lay out B answers with their prompts, 1-D tensors each; answers whose prompts are equal share a row.

    `window` is how far back a token sees, `dtype` what attention is computed in. Every prompt has at least one token: the
    first answer token is predicted from its last.
    """
    rows: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        rows.setdefault(tuple(prompt.tolist()), []).append(i)
    device = prompts[0].device
    ids, positions, lengths, masks = [], [], [], []
    before, after = [torch.empty(0)] * len(answers), [torch.empty(0)] * len(answers)
    start = 0
    for members in rows.values():
        prompt = prompts[members[0]]
        p = len(prompt)
        places = [torch.arange(p, device=device)]
        branch = [torch.zeros(p, dtype=torch.long, device=device)]
        offset = start + p
        for number, i in enumerate(members, 1):
            t = len(answers[i])
            after[i] = torch.arange(offset, offset + t, device=device)
            before[i] = torch.cat([after[i].new_tensor([start + p - 1]), after[i][:-1]])[:t]
            places.append(torch.arange(p, p + t, device=device))
            branch.append(torch.full((t,), number, device=device))
            offset += t
        ids += [prompt, *(answers[i] for i in members)]
        row_positions = torch.cat(places)
        positions.append(row_positions)
        lengths.append(offset - start)
        masks.append(_mask(row_positions, torch.cat(branch), window, dtype) if len(members) > 1 or window else None)
        start = offset
    return Packed(torch.cat(ids), torch.cat(positions), lengths, masks, before, after, window)


def _mask(positions: Tensor, branch: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """(L, L), 0 where a query sees a key, -inf elsewhere: the key is earlier or the same, in the prompt or in the same answer."""
    order = torch.arange(len(positions), device=positions.device)
    seen = (order[:, None] >= order) & ((branch == 0) | (branch[:, None] == branch))
    if window is not None:
        seen &= positions[:, None] - positions < window
    # One of True and False would be turned into this again in every layer.
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
