"""Batched generation over a cache of keys and values, with the weights and the code that train.

Each distinct prompt is read once, however many answers it gets. Rows join as soon as there is room and leave as soon as
they are finished, so no step computes a row that nobody needs. Every row draws from a generator of its own.

Shape letters: R rows at work, K key-value heads, H heads, D head width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rather import kernels
from rather.text.decoder import Cache, Decoder, Several
from rather.text.linear import packed
from rather.text.packing import Packed, pack
from rather.text.transformer import Transformer


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
class Answer:
    """The tokens drawn, their log-probabilities before any cut (nats, at the sampling temperature), and whether it ended."""

    tokens: list[int]
    logprobs: list[float]
    terminated: bool


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
    An answer depends on its prompt and its seed alone. In bfloat16 that needs products of our own (see kernels.py): a matrix library may
    round differently with another number of rows.
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
        decoder = Decoder.of(model, adapter, several)
        logits = torch.empty(0, model.shape.vocabulary, dtype=model.dtype, device=device)
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
                which = torch.tensor([requests[d.request].policy for d in drawing], device=device)
                if decoder:
                    hidden = decoder(tokens[:n], step, which)
                else:
                    added, shift = several.at(which, adapter) if several else (adapter, None)
                    hidden = model(tokens[:n], step.positions, step, added, None, shift)
                logits = model.logits(hidden)
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


def _prefill(model: Transformer, cache: Cache, requests: list[Request], first: int, adapter: str | None, several: Several | None) -> Tensor:
    """Read prompts into the cache rows from `first` on; returns the logits (R, V) after each row's prompt.

    Each distinct prompt is read once. Where policies differ each reads for itself, but from the first layer that is shifted on alone.
    """
    device = cache.keys.device
    prompts = [r.prompt for r in requests]
    row = torch.tensor([first + i for i, prompt in enumerate(prompts) for _ in prompt], device=device)
    place = torch.cat([torch.arange(len(prompt), device=device) for prompt in prompts])
    cache.lengths[first : first + len(prompts)] = [len(prompt) for prompt in prompts]
    cache.fit(max(cache.lengths[: first + len(prompts)]) + 1)

    def reading(readers: list[int] | None) -> tuple[Prefill, list[Tensor]]:
        """Attention over the distinct prompts of all or of each reader, and where each row's prompt is."""
        keys = list(zip(prompts, readers or [0] * len(prompts), strict=True))
        distinct = list(dict.fromkeys(keys))
        tensors = [torch.tensor(prompt, device=device) for prompt, _ in distinct]
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
        which[own.source] = torch.tensor(readers, device=device)[row - first]
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
    logits = logits.float()
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
    """Where the cumulative sum of `weights` (R, V) passes its total times `uniforms` (R,), which are below 1; (R, 1)."""
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    return torch.searchsorted(cumulative, uniforms[:, None].double() * cumulative[:, -1:], right=True)
