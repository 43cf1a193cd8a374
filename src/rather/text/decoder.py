"""A decoding step, one new token a row: the cache of keys and values, attention over it, and all blocks of a model in one call.

Shape letters: R rows at work, P policies, C width, L cache length, K key-value heads, H heads, D head width.
"""

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rather import kernels
from rather.kernels import decode
from rather.text.linear import Linear, Updates
from rather.text.transformer import Shift, Transformer

STRIDE = 32
"""The cache has room for a multiple of so many tokens."""


@dataclass(frozen=True)
class Several:
    """P policies that answer in one pass over the same weights.

    `after[i]` (P, C) is what they add to the residual stream after block i, `updates` what they add to linear layers; see `Updates`.
    """

    after: dict[int, Tensor] = field(default_factory=dict)
    updates: dict[nn.Module, tuple[Tensor, Tensor, Tensor | None]] = field(default_factory=dict)

    def at(self, which: Tensor, adapter: str | None, fork: Tensor | None = None) -> tuple[str | Updates | None, Shift | None]:
        """What a forward pass is given whose token n belongs to policy `which[n]`."""
        added = Updates(self.updates, which, self.spans) if self.updates else adapter
        return added, Shift(self.after, which, fork) if self.after else None

    @functools.cached_property
    def spans(self) -> dict[nn.Module, tuple[Tensor, int]]:
        """See `Updates`."""
        found, known = dict[nn.Module, tuple[Tensor, int]](), dict[int, tuple[Tensor, int]]()
        for layer, (_, _, share) in self.updates.items():
            if share is not None:
                if id(share) not in known:
                    used = (share != 0).cpu().int()
                    first, last = used.argmax(1), used.shape[1] - used.flip(1).argmax(1)
                    known[id(share)] = first.to(share.device), int(((last - first) * used.amax(1)).max())
                found[layer] = known[id(share)]
        return found


class Cache:
    """Keys and values of every layer, (layers, R, K, L, D) each, and how much of each row is in use.

    L is a little more than what the longest row needs. It changes as rows grow and leave, so that no more is held and read; with
    `room` it is that and stays. A change holds two caches for a moment, and the place that it leaves is too small for the next one. So
    that changes are few, L grows beyond what is needed by up to a quarter, but by no more than an answer of `answer` tokens.
    How long rows are is kept on the host, so that a step reads nothing from the device but what was drawn.
    """

    def __init__(self, model: Transformer, rows: int, room: int = 0, answer: int = 0) -> None:
        s, device = model.shape, model.device
        size = s.layers, rows, s.kv_heads, room, s.head_width
        self.keys, self.values = (torch.zeros(size, dtype=model.dtype, device=device) for _ in range(2))
        self.lengths = [0] * rows
        self.fixed, self.answer = room > 0, answer

    def fit(self, longest: int) -> None:
        """Have room for rows of that many tokens, and not for more than twice as many."""
        room = self.keys.shape[3]
        if self.fixed or room / 2 <= _rounded(longest) <= room:
            return
        wanted = _rounded(longest + min(self.answer, longest // 4))
        self.keys, self.values = (F.pad(x[..., :wanted, :], (0, 0, 0, max(0, wanted - room))) for x in (self.keys, self.values))

    def step(self, rows: int) -> "Step":
        """Attention of one new token a row, for the first `rows` rows, which are longer by it."""
        positions = torch.tensor(self.lengths[:rows], device=self.keys.device)
        self.lengths[:rows] = [length + 1 for length in self.lengths[:rows]]
        self.fit(max(self.lengths[:rows]))
        return Step(self.keys[:, :rows], self.values[:, :rows], positions)

    def move(self, source: int, target: int) -> None:
        """Copy row `source` over row `target`."""
        used = self.lengths[source]
        for held in (self.keys, self.values):
            held[:, target, :, :used] = held[:, source, :, :used]
        self.lengths[target] = used


def _rounded(tokens: int) -> int:
    return math.ceil(tokens / STRIDE) * STRIDE


@dataclass(frozen=True)
class Step:
    """Attention of one decoding step: row n's new key and value go to `positions[n]` of `keys` and `values` (layers, R, K, L, D)."""

    keys: Tensor
    values: Tensor
    positions: Tensor
    biases: dict[int | None, Tensor] = field(default_factory=dict, init=False)

    @property
    def turns(self) -> bool:
        """Whether rotary embedding is a part of it."""
        return kernels.takes_heads(self.keys)

    def __call__(self, layer: int, window: int | None, q: Tensor, k: Tensor, v: Tensor, turn: kernels.Turn | None = None) -> Tensor:
        keys, values = self.keys[layer], self.values[layer]
        attended = kernels.step(q, k, v, keys, values, self.positions, window, turn)
        if attended is not None:
            return attended
        rows = torch.arange(len(q), device=q.device)
        kernels.fill(k, v, rows, rows, self.positions, keys, values)
        # The query heads that share a key head stand in the place of a sequence: no key is copied.
        grouped = q.reshape(len(q), keys.shape[1], -1, q.shape[-1])
        return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=self.bias(window)).reshape(q.shape)

    def bias(self, window: int | None) -> Tensor:
        """(R, 1, 1, L), added to the scores: it hides what a row does not see. True and False would be turned into this in every layer."""
        if window not in self.biases:
            place = torch.arange(self.keys.shape[3], device=self.positions.device)
            hidden = place > self.positions[:, None]
            if window is not None:
                hidden |= place <= self.positions[:, None] - window
            bias = torch.zeros(hidden.shape, dtype=self.keys.dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
            self.biases[window] = bias[:, None, None]
        return self.biases[window]


class Decoder:
    """What a model gives in a decoding step, all blocks in one call in C: Python takes longer between two small products than they do."""

    def __init__(self, model: Transformer, adapter: str | None, several: Several) -> None:
        self.model, self.adapter, self.several, self.held = model, adapter, several, decode.Held(model.dtype)
        s = model.shape
        self.family = decode.Family(
            s.norm_eps, s.norm_plus, s.residual_scale, s.query_scale, s.mlp_width, s.gelu, s.together, s.rotary_width or s.head_width
        )
        self.blocks = (decode.BlockAddresses * len(model.blocks))(*(self._block(i, b) for i, b in enumerate(model.blocks)))

    @classmethod
    def of(cls, model: Transformer, adapter: str | None, several: Several | None) -> "Decoder | None":
        """For a `model` whose weights are laid out and whose blocks are those that kernels.c knows; else None."""
        laid = all(m.laid(model.dtype) for m in model.blocks.modules() if isinstance(m, Linear))
        known = laid and not model.shape.is_gpt2 and model.shape.head_width % 8 == 0
        return cls(model, adapter, several or Several()) if known else None

    def __call__(self, ids: Tensor, step: Step, which: Tensor) -> Tensor:
        """Hidden states (R, C) for tokens `ids` (R,) of the policies `which` (R,)."""
        model = self.model
        assert model.rotary is not None
        x, rotary = model.embedded(ids, step.positions), model.rotary(step.positions, model.dtype)
        decode.decode_(self.blocks, self.family, x, rotary, (step.keys, step.values), step.positions, which, model.shape.heads)
        return model.final(x)

    def _block(self, i: int, block: Any) -> decode.BlockAddresses:
        s = self.model.shape
        norms = [getattr(block, name, None) for name in ("norm1", "norm2", "after1", "after2", "q_norm", "k_norm")]
        vectors = [*(getattr(norm, "weight", None) for norm in norms), self.several.after.get(i)]
        linears = [self._linear(layer) for layer in (block.qkv, block.out, block.up, block.down)]
        return decode.BlockAddresses(*map(self.held.at, vectors), s.window_of(i) or 0, s.rope_of(i), *linears)

    def _linear(self, layer: Any) -> decode.LinearAddresses:
        found = self.held.linear(layer.laid(self.model.dtype), layer.bias)
        if layer in self.several.updates:
            down, up, share = self.several.updates[layer]
            self.held.update(found, down, [up.t()], 1.0, share)
        elif not self.several.updates and self.adapter in layer.adapters:
            adapter = layer.adapters[self.adapter]
            if adapter.even:
                self.held.update(found, adapter.down, list(adapter.up), adapter.scales[0])
            else:
                down, up = adapter.stacked()
                self.held.update(found, down, [up.t()], 1.0)
        return found
