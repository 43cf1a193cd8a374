"""Batched generation over a cache of keys and values, with the weights and the code that train.

Each distinct prompt is read once, however many answers it gets. Rows join as soon as there is room and leave as soon as
they are finished, so no step computes a row that nobody needs. Every row draws from a generator of its own.

Shape letters: R rows at work, L cache length, K key-value heads, H heads, D head width, V vocabulary.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rather import kernels
from rather.text.linear import Linear, Updates, packed
from rather.text.packing import Packed, pack
from rather.text.transformer import Shift, Transformer

BLOCK = 256
"""Tokens whose chances are summed together before one of them is drawn."""
STRIDE = 32
"""Tokens by which the cache grows."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Temperature 0 takes the likeliest; `top_p` 1, `top_k` 0 and `min_p` 0 cut nothing off."""

    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


@dataclass(frozen=True)
class Request:
    """One answer that is wanted: the tokens it follows, the seed of its own generator, and which of several policies gives it."""

    prompt: tuple[int, ...]
    seed: int
    policy: int = 0


@dataclass(frozen=True)
class Several:
    """P policies that answer in one pass over the same weights.

    `after[i]` (P, C) is what they add to the residual stream after block i, `updates` what they add to linear layers; see `Updates`.
    """

    after: dict[int, Tensor] = field(default_factory=dict)
    updates: dict[nn.Module, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def at(self, which: Tensor, adapter: str | None, fork: Tensor | None = None) -> tuple[str | Updates | None, Shift | None]:
        """What a forward pass is given whose token n belongs to policy `which[n]`."""
        return Updates(self.updates, which) if self.updates else adapter, Shift(self.after, which, fork) if self.after else None


@dataclass(frozen=True)
class Answer:
    """The tokens drawn, their log-probabilities before any cut (nats, at the sampling temperature), and whether it ended."""

    tokens: list[int]
    logprobs: list[float]
    terminated: bool


class Cache:
    """Keys and values of every layer, (layers, R, K, L, D) each, and how much of each row is in use.

    L is a little more than what the longest row needs. It changes as rows grow and leave, so that no more is held and read.
    How long rows are is kept on the host, so that a step reads nothing from the device but what was drawn.
    """

    def __init__(self, model: Transformer, rows: int) -> None:
        s, device = model.shape, model.embedding.weight.device
        self.keys = torch.empty(s.layers, rows, s.kv_heads, 0, s.head_width, dtype=model.dtype, device=device)
        self.values = self.keys
        self.lengths = [0] * rows
        self.window = s.window

    def fit(self, longest: int) -> None:
        """Have room for rows of that many tokens, and not for twice as many."""
        room, wanted = self.keys.shape[3], math.ceil(longest / STRIDE) * STRIDE
        if not room / 2 < wanted <= room:
            self.keys, self.values = (F.pad(x[..., :wanted, :], (0, 0, 0, max(0, wanted - room))) for x in (self.keys, self.values))

    def step(self, rows: int) -> "Step":
        """Attention of one new token a row, for the first `rows` rows, which are longer by it."""
        positions = _index(self.lengths[:rows], self.keys.device)
        self.lengths[:rows] = [length + 1 for length in self.lengths[:rows]]
        self.fit(max(self.lengths[:rows]))
        return Step(self.keys[:, :rows], self.values[:, :rows], positions, self.window)

    def move(self, source: int, target: int) -> None:
        """Copy row `source` over row `target`."""
        used = self.lengths[source]
        for held in (self.keys, self.values):
            held[:, target, :, :used] = held[:, source, :, :used]
        self.lengths[target] = used


@dataclass(frozen=True)
class Step:
    """Attention of one decoding step: row n's new key and value go to `positions[n]` of `keys` and `values` (layers, R, K, L, D)."""

    keys: Tensor
    values: Tensor
    positions: Tensor
    window: int | None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.keys[layer], self.values[layer]
        attended = kernels.step(q, k, v, keys, values, self.positions, self.window)
        if attended is not None:
            return attended
        rows = torch.arange(len(q), device=q.device)
        keys[rows, :, self.positions], values[rows, :, self.positions] = k, v
        # The query heads that share a key head stand in the place of a sequence: no key is copied.
        grouped = q.reshape(len(q), keys.shape[1], -1, q.shape[-1])
        return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=self.bias).reshape(q.shape)

    @functools.cached_property
    def bias(self) -> Tensor:
        """(R, 1, 1, L), added to the scores: it hides what a row does not see. True and False would be turned into this in every layer."""
        place = torch.arange(self.keys.shape[3], device=self.positions.device)
        hidden = place > self.positions[:, None]
        if self.window is not None:
            hidden |= place <= self.positions[:, None] - self.window
        return torch.zeros(hidden.shape, dtype=self.keys.dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)[:, None, None]


class Decoder:
    """The hidden states of a decoding step, all blocks in one call in C: Python takes longer between two small products than they do."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.held = model, list[Tensor]()
        self.blocks = torch.tensor([[self._address(part) for part in self._parts(block)] for block in model.blocks])

    @classmethod
    def of(cls, model: Transformer) -> "Decoder | None":
        """For a `model` whose weights are laid out and whose blocks are those that kernels.c knows; else None."""
        known = not model.shape.is_gpt2 and model.shape.head_width % 8 == 0
        return cls(model) if known and all(isinstance(m._packed, kernels.Laid) for m in model.modules() if isinstance(m, Linear)) else None

    def __call__(self, ids: Tensor, step: Step) -> Tensor:
        """Hidden states (R, C) for tokens `ids` (R,): what the model gives without adapters and shifts."""
        model, s = self.model, self.model.shape
        assert model.rotary is not None
        x, rotary = model.embedding(ids).to(model.dtype), model.rotary(step.positions, model.dtype)
        kernels.decode(self.blocks, x, rotary, (step.keys, step.values), step.positions, s.mlp_width, s.heads, s.norm_eps, s.window)
        return model.norm(x)

    def _parts(self, block: Any) -> list[Tensor | None]:
        """The weights of a block, in the order of kernels.c."""
        own = [block.q_norm.weight, block.k_norm.weight] if self.model.shape.qk_norm else [None, None]
        linears = (block.qkv, block.out, block.up, block.down)
        return [block.norm1.weight, block.norm2.weight, *own, *(part for m in linears for part in (m._packed.words, m.bias))]

    def _address(self, part: Tensor | None) -> int:
        if part is None:
            return 0
        self.held.append(part if part.dtype == torch.int32 else part.detach().to(self.model.dtype))
        return self.held[-1].data_ptr()


@dataclass(frozen=True)
class Prefill:
    """Attention while prompts are read: as packed, and every layer's keys and values are put into the rows' cache."""

    packed: Packed
    cache: Cache
    source: Tensor
    row: Tensor
    place: Tensor

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.keys[layer][self.row, :, self.place] = k[self.source]
        self.cache.values[layer][self.row, :, self.place] = v[self.source]
        return self.packed(layer, q, k, v)


@dataclass(frozen=True)
class Forked:
    """Attention of tokens that rows share, up to and with layer `last`, and of each row's own tokens after it."""

    shared: Prefill
    own: Prefill
    last: int

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (self.shared if layer <= self.last else self.own)(layer, q, k, v)


@torch.no_grad()
def generate(
    model: Transformer,
    requests: Sequence[Request],
    sampling: Sampling,
    stop: frozenset[int],
    adapter: str | None = None,
    rows: int = 32,
    progress: Callable[[int], None] = lambda finished: None,
    several: Several | None = None,
) -> list[Answer]:
    """Answer every request; answers come back in the order of the requests.

    At most `rows` rows are decoded at a time. `several` policies may take part, each request saying which it is for. `progress` is told
    how many answers have been finished since it was last told.
    In float32 an answer depends on its prompt and its seed alone; in bfloat16 it can differ with the number of rows beside it,
    since a matrix library may round differently.
    """
    answers: list[Answer | None] = [None] * len(requests)
    # Equal prompts lie together, the longest first, so that they are read together and the cache is filled evenly.
    queue = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt), requests[i].prompt, i))
    rows = min(rows, len(requests))
    if not rows:
        return []
    cache = Cache(model, rows)
    device = model.embedding.weight.device
    drawing: list[_Drawing] = []
    with packed(model, model.dtype, rows):
        decoder = Decoder.of(model) if adapter is None and several is None else None
        logits = torch.empty(0, model.shape.vocabulary, device=device)
        while drawing or queue:
            free = rows - len(drawing)
            if queue and free:
                joining = [queue.pop() for _ in range(min(free, len(queue)))]
                first = _prefill(model, cache, [requests[i] for i in joining], len(drawing), adapter, several)
                logits = torch.cat([logits, first])
                drawing += [_Drawing(i, uniforms(requests[i].seed, sampling.max_tokens)) for i in joining]
            chances = torch.stack([d.uniforms[len(d.tokens)] for d in drawing]).to(device)
            tokens, logprobs = draw(logits, chances, sampling)
            for d, token, logprob in zip(drawing, tokens.tolist(), logprobs.tolist(), strict=True):
                d.tokens.append(token)
                d.logprobs.append(logprob)
            finished = [r for r, d in enumerate(drawing) if d.tokens[-1] in stop or len(d.tokens) == sampling.max_tokens]
            for r in reversed(finished):
                d = drawing[r]
                answers[d.request] = Answer(d.tokens, d.logprobs, d.tokens[-1] in stop)
                cache.move(len(drawing) - 1, r)
                tokens[r] = tokens[len(drawing) - 1]
                drawing[r] = drawing[-1]
                drawing.pop()
            progress(len(finished))
            n = len(drawing)
            if n:
                step = cache.step(n)
                added, shift = adapter, None
                if several is not None:
                    added, shift = several.at(_index([requests[d.request].policy for d in drawing], device), adapter)
                logits = model.logits(decoder(tokens[:n], step) if decoder else model(tokens[:n], step.positions, step, added, None, shift))
            else:
                logits = logits[:0]
    return [answer for answer in answers if answer is not None]


@dataclass
class _Drawing:
    request: int
    uniforms: Tensor

    def __post_init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] = []


def uniforms(seed: int, count: int) -> Tensor:
    """The numbers (count,) in [0, 1) that an answer's tokens are drawn with."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _index(values: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)


def _prefill(model: Transformer, cache: Cache, requests: list[Request], first: int, adapter: str | None, several: Several | None) -> Tensor:
    """Read prompts into the cache rows from `first` on; returns the logits (R, V) after each row's prompt.

    Each distinct prompt is read once. Where policies differ each reads for itself, but from the first layer that is shifted on alone.
    """
    device = cache.keys.device
    prompts = [r.prompt for r in requests]
    row = _index([first + i for i, prompt in enumerate(prompts) for _ in prompt], device)
    place = torch.cat([torch.arange(len(prompt), device=device) for prompt in prompts])
    cache.lengths[first : first + len(prompts)] = [len(prompt) for prompt in prompts]
    cache.fit(max(cache.lengths[: first + len(prompts)]) + 1)

    def reading(readers: list[int] | None) -> tuple[Prefill, list[Tensor]]:
        """Attention over the distinct prompts of all or of each reader, and where each row's prompt is."""
        keys = list(zip(prompts, readers or [0] * len(prompts), strict=True))
        distinct = list(dict.fromkeys(keys))
        tensors = [_index(prompt, device) for prompt, _ in distinct]
        who = None if readers is None else [reader for _, reader in distinct]
        laid = pack(tensors, [t[:0] for t in tensors], model.shape.window, model.dtype, who)
        places = dict(zip(distinct, laid.prompts, strict=True))
        found = [places[key] for key in keys]
        return Prefill(laid, cache, torch.cat(found), row, place), found

    if several is None:
        shared, places = reading(None)
        attention, added, shift, laid = shared, adapter, None, shared.packed
    else:
        readers = [r.policy for r in requests]
        own, places = reading(readers)
        which = torch.zeros_like(own.packed.ids)
        which[own.source] = _index(readers, device)[row - first]
        forked = not several.updates and min(several.after) < model.shape.layers - 1
        if forked:
            shared, _ = reading(None)
            fork = torch.zeros_like(which)
            fork[own.source] = shared.source
            attention, laid = Forked(shared, own, min(several.after)), shared.packed
        else:
            attention, laid, fork = own, own.packed, None
        added, shift = several.at(which, adapter, fork)
    last = torch.stack([own[-1] for own in places])
    return model.logits(model(laid.ids, laid.positions, attention, added, last, shift))


def draw(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the cumulative distribution at `uniforms` (R,); `logits` is (R, V).

    Returns tokens (R,) and their log-probabilities (R,) under the uncut distribution at the sampling temperature: what a
    learner computes too. At temperature 0 the log-probabilities are those of temperature 1.
    """
    uncut = sampling.top_p >= 1 and not sampling.top_k and not sampling.min_p
    if uncut and sampling.temperature and (found := kernels.draw(logits, uniforms, sampling.temperature)):
        return found
    weights = logits - logits.amax(dim=-1, keepdim=True)  # one new array and few passes: the vocabulary is large
    if sampling.temperature not in (0, 1):
        weights /= sampling.temperature
    weights.exp_()
    total = weights.sum(dim=-1, keepdim=True)
    if sampling.temperature == 0:
        tokens = logits.argmax(dim=-1, keepdim=True)
    elif uncut:
        tokens = _invert(weights, uniforms)
    else:
        p, order = (weights / total).sort(dim=-1, descending=True)
        kept = p.cumsum(dim=-1) - p < sampling.top_p
        kept &= p >= sampling.min_p * p[:, :1]
        if sampling.top_k:
            kept[:, sampling.top_k :] = False
        kept[:, 0] = True
        tokens = order.gather(1, _invert(p * kept, uniforms))
    return tokens[:, 0], (weights.gather(1, tokens).log() - total.log())[:, 0]


def _invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Where the cumulative sum of `weights` (R, V) passes its total times `uniforms` (R,), as (R, 1): first which block, then where."""
    r, v = weights.shape
    blocks = F.pad(weights, (0, -v % BLOCK)) if v % BLOCK else weights
    blocks = blocks.view(r, -1, BLOCK)
    ends = blocks.sum(dim=-1).cumsum(dim=-1)
    block, at = _place(ends, uniforms[:, None].to(ends))
    start, end = F.pad(ends, (1, 0)).gather(1, block), ends.gather(1, block)
    inside = blocks.gather(1, block[:, :, None].expand(r, 1, BLOCK))[:, 0]
    place, _ = _place(inside.cumsum(dim=-1), (at - start) / (end - start))
    return block * BLOCK + place


def _place(cumulative: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """The first place of each row (R, n) that passes its last times `share` (R, 1), and that product, (R, 1) each.

    A share that was rounded to 1 is held below it: so what is found has a weight above 0, and nothing is drawn that cannot be.
    """
    wanted = share.clamp(max=1 - 2**-23) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, wanted, right=True), wanted
