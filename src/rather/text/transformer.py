"""A decoder-only transformer in one file: token embedding, blocks of attention and MLP, final norm, logits.

It covers the families that `shape.py` describes. The same code trains, scores and samples: a
forward pass runs over tokens in one row after the other without padding, and how those tokens see each other is the
business of an `Attention` object.

Shape letters: N tokens, C width, H heads, K key-value heads, D width of a head, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rather import kernels
from rather.kernels.quantized import Quantized
from rather.text.files.rope import tables
from rather.text.linear import Linear, QuantizedLinear, Updates, linear
from rather.text.shape import Shape


class Attention(Protocol):
    """How the tokens of one forward pass see each other. One whose `turns` is true takes heads as they are before their rotary embedding,
    and what `kernels.heads` would be given with them.
    """

    def __call__(self, layer: int, window: int | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from q (N, H, D) to k and v (N, K, D) and whatever else there is, `window` tokens in all; returns (N, H, D)."""
        ...


@dataclass(frozen=True)
class Shift:
    """What is added to the residual stream: after block i `after[i]` (P, C), of which token n gets row `which[n]`; None: the only row.

    With `fork` the blocks up to the first that is shifted run on tokens that several rows share; from there on token n is a copy of
    their token `fork[n]`.
    """

    after: dict[int, Tensor]
    which: Tensor | None = None
    fork: Tensor | None = None

    def __call__(self, block: int, x: Tensor, wanted: Tensor | None) -> Tensor:
        """X (N, C) after `block`, shifted; the rows of x are the `wanted` tokens alone, if given."""
        if block not in self.after:
            return x
        if self.forks(block):
            x = x[self.fork]
        which = self.which if self.which is None or wanted is None else self.which[wanted]
        return x + (self.after[block] if which is None else self.after[block][which]).to(x.dtype)

    def forks(self, block: int) -> bool:
        """Whether tokens are copied after this block."""
        return self.fork is not None and block == min(self.after)


class RMSNorm(nn.Module):
    """x / rms(x) * (plus + weight), in float32 inside (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float, plus: float = 0.0) -> None:
        super().__init__()
        self.weight, self.eps, self.plus = nn.Parameter(torch.full((width,), 1 - plus)), eps, plus

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return _RMSNorm.apply(x, self.weight, self.eps, self.plus)  # type: ignore[return-value]
        return kernels.norm(x, self.weight, self.eps, self.plus)[0]


class _RMSNorm(torch.autograd.Function):
    """Keeps its input and one number a row for backward, where PyTorch's own on a CPU keeps every product on the way."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float, plus: float) -> Tensor:
        found, scale = kernels.norm(x, weight, eps, plus)
        ctx.save_for_backward(x, weight, scale)
        ctx.plus = plus
        return found

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        to_x, to_weight = kernels.norm_backward(x, weight, scale, gradient, ctx.plus)
        return to_x, to_weight.to(weight.dtype), None, None


def glu(both: Tensor, gelu: bool = False) -> Tensor:
    """silu(gate) * up (N, M) of `both` (N, 2 M), gate and up side by side, or gelu(gate) * up (Shazeer 2020)."""
    if torch.is_grad_enabled():
        return _GLU.apply(both, gelu)  # type: ignore[return-value]
    return kernels.glu(both, gelu)


class _GLU(torch.autograd.Function):
    """Keeps its input alone for backward."""

    @staticmethod
    def forward(ctx, both: Tensor, gelu: bool) -> Tensor:
        ctx.save_for_backward(both)
        ctx.gelu = gelu
        return kernels.glu(both, gelu)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (both,) = ctx.saved_tensors
        return kernels.glu_backward(both, gradient, ctx.gelu), None


class Heads(torch.autograd.Function):
    """`kernels.heads`; keeps its input where it is normed, else nothing of it: backward is the rotation back."""

    @staticmethod
    def forward(
        ctx, x: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, heads: int, cos: Tensor, sin: Tensor, eps: float, plus: float
    ) -> Tensor:
        weights = None if q_weight is None or k_weight is None else (q_weight, k_weight)
        ctx.save_for_backward(x if weights else None, q_weight, k_weight, cos, sin)
        ctx.heads, ctx.eps, ctx.plus = heads, eps, plus
        return kernels.heads(x if weights else x.clone(memory_format=torch.contiguous_format), weights, heads, cos, sin, eps, plus)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, q_weight, k_weight, cos, sin = ctx.saved_tensors
        weights = None if q_weight is None else (q_weight, k_weight)
        found = kernels.heads_backward(gradient if x is None else x, weights, ctx.heads, cos, sin, ctx.eps, gradient, ctx.plus)
        return *found, None, None, None, None, None


class LayerNorm(nn.LayerNorm):
    """Layer norm, in float32 inside."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps).to(input.dtype)


class Rotary(nn.Module):
    """Rotary position embedding (Su et al. 2021), with the scalings of `frequencies`; some multiply cosines and sines, too."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.factors: Tensor
        width, ropes = shape.rotary_width or shape.head_width, shape.ropes
        factors = [scaling.get("attention_factor", 1.0) for _, scaling in ropes]
        for name, table in tables(width, ropes, factors).items():
            self.register_buffer(name, table, persistent=False)
        self.scaled = any(factor != 1 for factor in factors)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines (tables, N, 1, D) for positions (N,), the sine of the first half negated; `kernels.heads` takes one."""
        angles = positions[:, None, None].float() * self.frequencies[:, None, None]
        cos, sin = angles.cos(), angles.sin()
        if self.scaled:
            cos, sin = cos * self.factors, sin * self.factors
        return torch.cat([cos, cos], dim=-1).to(dtype), torch.cat([-sin, sin], dim=-1).to(dtype)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), or norms of what is added as well; query, key, value and gate, up are fused."""

    def __init__(self, shape: Shape, index: int) -> None:
        super().__init__()
        self.shape, self.index = shape, index
        heads, kv = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
        self.norm1, self.norm2 = (_norm(shape), _norm(shape)) if shape.before else (nn.Identity(), nn.Identity())
        self.after1, self.after2 = (_norm(shape), _norm(shape)) if shape.after else (None, None)
        qkv = {"qkv": heads + 2 * kv} if shape.is_gpt2 or shape.fused else {"q": heads, "k": kv, "v": kv}
        up = {"gate": shape.mlp_width, "up": shape.mlp_width}
        if shape.is_gpt2 or shape.fused:
            up = {"up": shape.mlp_width if shape.is_gpt2 else 2 * shape.mlp_width}
        self.qkv = Linear(shape.width, qkv, shape.qkv_bias)
        self.out = Linear(heads, {"out": shape.width}, shape.out_bias)
        self.up = Linear(shape.width, up, shape.mlp_bias)
        self.down = Linear(shape.mlp_width, {"down": shape.width}, shape.mlp_bias)
        if shape.qk_norm:
            widths = (heads, kv) if shape.together else (shape.head_width, shape.head_width)
            self.q_norm, self.k_norm = (RMSNorm(width, shape.norm_eps, shape.norm_plus) for width in widths)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        attention: Attention,
        adapter: str | Updates | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """All tokens attend; the rest is computed for the rows `wanted` alone, if given."""
        s = self.shape
        qkv = self.qkv(self.norm1(x), adapter).view(x.shape[0], s.heads + 2 * s.kv_heads, s.head_width)
        qk, v = torch.split_with_sizes(qkv, [s.heads + s.kv_heads, s.kv_heads], dim=1)
        if s.together:
            parts = zip((self.q_norm, self.k_norm), qk.split([s.heads, s.kv_heads], dim=1), strict=True)
            qk = torch.cat([norm(part.flatten(1)).view(part.shape) for norm, part in parts], dim=1)
        late: tuple[kernels.Turn, ...] = ()
        if rotary is not None:
            cos, sin = (table[s.rope_of(self.index)] for table in rotary)
            each = (self.q_norm.weight, self.k_norm.weight) if s.qk_norm and not s.together else None
            turn = each, s.heads, cos, sin, s.norm_eps, s.norm_plus
            late = (turn,) if getattr(attention, "turns", False) and s.query_scale == 1 and s.rotary_width is None else ()
            qk = qk if late else turned(qk, *turn)
        q, k = torch.split_with_sizes(qk, [s.heads, s.kv_heads], dim=1)
        q = q if s.query_scale == 1 else q * s.query_scale
        mixed = attention(self.index, s.window_of(self.index), q, k, v, *late).reshape(x.shape[0], -1)
        if wanted is not None:
            x, mixed = x.index_select(0, wanted), mixed.index_select(0, wanted)
            adapter = adapter.rows(wanted) if isinstance(adapter, Updates) else adapter
        x = self._onto(x, self.out, mixed, adapter, self.after1)
        up = self.up(self.norm2(x), adapter)
        inner = F.gelu(up, approximate="tanh") if s.is_gpt2 else glu(up, s.gelu)
        return self._onto(x, self.down, inner, adapter, self.after2)

    def _onto(self, x: Tensor, layer: Linear, inner: Tensor, adapter: str | Updates | None, norm: nn.Module | None) -> Tensor:
        """X + norm(layer(inner)), where there is a norm, and times `residual_scale`."""
        scale = self.shape.residual_scale
        if norm is None and scale == 1:
            return layer(inner, adapter, x)
        y = layer(inner, adapter)
        y = y if norm is None else norm(y)
        return x + (y if scale == 1 else y * scale)


def turned(
    x: Tensor, weights: tuple[Tensor, Tensor] | None, heads: int, cos: Tensor, sin: Tensor, eps: float, plus: float = 0.0
) -> Tensor:  # fmt: skip
    """`kernels.heads`, with its gradient."""
    if torch.is_grad_enabled():
        return Heads.apply(x, *(weights or (None, None)), heads, cos, sin, eps, plus)  # type: ignore[return-value]
    return kernels.heads(x, weights, heads, cos, sin, eps, plus)


def _embedding(count: int, width: int) -> nn.Embedding:
    """Without starting values, which cost seconds of imports where there is only a shape yet."""
    return nn.Embedding.from_pretrained(torch.empty(count, width), freeze=False)


def _norm(shape: Shape) -> nn.Module:
    return LayerNorm(shape.width, eps=shape.norm_eps) if shape.is_gpt2 else RMSNorm(shape.width, shape.norm_eps, shape.norm_plus)


class Transformer(nn.Module):
    """Tokens in, hidden states (N, C) out; `head` (V, C) turns those into logits.

    `dtype` is what activations are computed in; weights that are trained stay float32 and are cast on the way. With
    `checkpointing` a block keeps its input alone for backward and computes the rest again (Chen et al. 2016).
    `description` is the config.json that it came with.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.shape, self.dtype = shape, dtype
        self.checkpointing = False
        self.description: dict[str, Any] = {}
        self.embedding = _embedding(shape.vocabulary, shape.width)
        self.positions = _embedding(shape.context, shape.width) if shape.is_gpt2 else None
        self.rotary = None if shape.is_gpt2 else Rotary(shape)
        self.blocks = nn.ModuleList(Block(shape, i) for i in range(shape.layers))
        self.norm = _norm(shape)
        self.unembedding = Linear(shape.width, {"head": shape.vocabulary}, bias=False)
        if shape.tied:
            self.tie_()

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        attention: Attention,
        adapter: str | Updates | None = None,
        wanted: Tensor | None = None,
        shift: Shift | None = None,
        begun: tuple[int, Tensor] | None = None,
        before: int | None = None,
    ) -> Tensor:
        """Hidden states (N, C) after the final norm, for tokens `ids` (N,) at `positions` (N,) of their rows.

        With `wanted` (n,) only the states of these tokens, (n, C), which saves the rest of them the last block's MLP. `shift` is added
        to the residual stream on the way. What enters block `before` is given instead, if that is named, and taken up again with
        `begun`, the block and what enters it.
        """
        first, x = (begun[0], begun[1].clone().to(self.dtype)) if begun else (0, self.embedded(ids, positions))
        rotary = None if self.rotary is None else self.rotary(positions, self.dtype)
        for i, block in enumerate(self.blocks[first:before], first):  # pyright: ignore[reportArgumentType]
            kept = wanted if i == len(self.blocks) - 1 else None
            given = (x, rotary, attention, adapter, kept)
            again = self.checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, *given, use_reentrant=False, preserve_rng_state=False) if again else block(*given)
            if shift is not None:
                x = shift(i, x, kept)
                if rotary is not None and shift.forks(i):
                    rotary = rotary[0][:, shift.fork], rotary[1][:, shift.fork]
        if first == len(self.blocks) and wanted is not None:
            x = x[wanted]
        return self.final(x) if before is None else x

    def embedded(self, ids: Tensor, positions: Tensor) -> Tensor:
        """What enters the first block (N, C)."""
        x = self.embedding(ids)
        if self.positions is not None:
            x = x + self.positions(positions)
        scale = self.shape.embedding_scale
        x = x.to(self.dtype)
        return x if scale == 1 else x * torch.tensor(scale, dtype=self.dtype)  # rounded as transformers rounds it

    def final(self, x: Tensor) -> Tensor:
        """The last hidden states (N, C), of which the head makes logits: what these are divided by is divided here."""
        x = self.norm(x)
        return x if self.shape.logits_scale == 1 else x / self.shape.logits_scale

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (N, V). For few rows: `TokenLogprobs` makes them in chunks."""
        return self.unembedding(hidden)

    @property
    def head(self) -> Tensor | Quantized:
        """The weight (V, C) that makes logits."""
        return self.unembedding.held if isinstance(self.unembedding, QuantizedLinear) else self.unembedding.weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.norm.weight.device  # type: ignore[return-value]

    def tie_(self) -> None:
        """Let the head be the embedding."""
        self.unembedding.weight = self.embedding.weight  # pyright: ignore[reportAttributeAccessIssue]


class TokenLogprobs(torch.autograd.Function):
    """log softmax(hidden @ weight^T / temperature)[target] and the entropy, in chunks of rows, in float32 never (N, V) at once.

    Where the head is frozen forward keeps d logprob / d hidden (N, C), so that backward costs nothing; where the head is trained it keeps
    the logits if they are to be kept, else backward computes each chunk's again.
    """

    CHUNK, ON_GPU = 512, 2048

    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor | Quantized, targets: Tensor, temperature: float, keep: bool = False
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        logprobs, entropy = (hidden.new_empty(len(targets), dtype=torch.float32) for _ in range(2))
        frozen = ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]
        kept, ones = (torch.empty_like(hidden), torch.ones_like(logprobs)) if frozen else (None, None)
        if isinstance(weight, Quantized):  # on a GPU widened once for all chunks
            cast = weight.widened(hidden.dtype) if hidden.is_cuda else weight
        else:
            cast = weight.detach().to(hidden.dtype)
        back = (cast.widened(hidden.dtype) if isinstance(cast, Quantized) else cast).t() if frozen else None
        ctx.logits = list[Tensor]()
        keep = keep and all(ctx.needs_input_grad[:2])
        for part in _chunks(hidden):
            logits = linear(hidden[part], cast)
            ctx.logits += [logits] * keep
            logprobs[part], entropy[part] = kernels.token_logprobs_(
                logits, targets[part], temperature, ones if ones is None else ones[part]
            )
            if kept is not None and back is not None:
                kept[part] = linear(logits, back)
        ctx.save_for_backward(hidden, None if isinstance(weight, Quantized) else weight, targets, kept)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, targets, kept = ctx.saved_tensors
        if kept is not None:
            return kept * gradient[:, None].to(kept.dtype), None, None, None, None
        to_hidden = torch.empty_like(hidden)
        to_weight = torch.zeros_like(weight)
        cast, gradient = weight.detach().to(hidden.dtype), gradient.contiguous()
        for i, part in enumerate(_chunks(hidden)):
            logits = ctx.logits[i] if ctx.logits else linear(hidden[part], cast)
            kernels.token_logprobs_(logits, targets[part], ctx.temperature, gradient[part])
            to_hidden[part] = linear(logits, cast.t())
            if hidden.is_cuda and to_weight.dtype != hidden.dtype:  # summed in float32 without a detour
                torch.addmm(to_weight, logits.t(), hidden[part], out_dtype=torch.float32, out=to_weight)  # type: ignore[call-overload]
            else:
                to_weight += logits.t() @ hidden[part]
        ctx.logits.clear()
        return to_hidden, to_weight, None, None, None


def _chunks(hidden: Tensor) -> list[slice]:
    size = TokenLogprobs.ON_GPU if hidden.is_cuda else TokenLogprobs.CHUNK
    return [slice(start, start + size) for start in range(0, len(hidden), size)]
