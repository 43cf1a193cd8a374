"""Batched generation over a cache of keys and values, with the weights and the code that train.

Each distinct prompt is read once, however many answers it gets. Rows join as soon as there is room and leave as soon as
they are finished, so no step computes a row that nobody needs. Every row draws from a generator of its own.

Shape letters: R rows at work, K key-value heads, H heads, D head width, V vocabulary.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar
from weakref import WeakKeyDictionary, proxy

import numpy as np
import torch
from torch import Tensor

from rather import kernels
from rather.text import lora
from rather.text.decoder import Cache, Decoder, Several, Step
from rather.text.linear import packed
from rather.text.packing import Packed, pack, sent
from rather.text.sampling import Sampling, doubles, draw_each, uniforms
from rather.text.transformer import Transformer


@dataclass(frozen=True)
class Request:
    """One answer that is wanted: the tokens it follows, the seed of its own generator, and which of several policies gives it.

    `sampling` says how its tokens are drawn, where that is not as for all others.
    """

    prompt: tuple[int, ...]
    seed: int
    policy: int = 0
    sampling: Sampling | None = None


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

    def __call__(self, layer: int, window: int | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kernels.fill(k, v, self.source, self.row, self.place, self.cache.keys[layer], self.cache.values[layer])
        return self.packed(layer, window, q, k, v)


@dataclass(frozen=True)
class Forked:
    """Attention of tokens that rows share, up to and with layer `last`, and of each row's own tokens after it."""

    shared: Prefill
    own: Prefill
    last: int

    def __call__(self, layer: int, window: int | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (self.shared if layer <= self.last else self.own)(layer, window, q, k, v)


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

    At most `rows` rows are decoded at a time. `several` policies may take part, each request saying which it is for. `progress` gets
    how many answers have been finished since the last call.
    An answer depends on its prompt and its seed alone. In bfloat16 that needs products of our own (see `kernels`): a matrix library may
    round differently with another number of rows.
    """
    answers: list[Answer | None] = [None] * len(requests)
    # Equal prompts lie together, the longest first, so that they are read together and the cache is filled evenly.
    queue = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt), requests[i].prompt, i))
    rows = min(rows, len(requests))
    if not rows:
        return []
    with packed(model, model.dtype):
        how = model, rows, sampling, adapter, several
        recorded = records(model) and not any(r.sampling for r in requests)
        work = Generation(Recorded.of(*how, longest=len(requests[queue[-1]].prompt)) if recorded else Rows(*how), stop)
        while work.drawing or queue:
            if queue and work.free:
                joining = [queue.pop() for _ in range(min(work.free, len(queue)))]
                finished = work.join({i: requests[i] for i in joining})
            else:
                finished = work.go()
            for d in finished:
                answers[d.key] = d.answer
            progress(len(finished))
    return [answer for answer in answers if answer is not None]


class Generation:
    """The answers that are being drawn, one a row: requests join while there are free rows, and leave when they are finished."""

    def __init__(self, rows: "Rows", stop: frozenset[int]) -> None:
        self.rows, self.stop, self.drawing = rows, stop, list[Drawing]()

    @property
    def free(self) -> int:
        """Rows that have no answer."""
        return len(self.rows.tokens) - len(self.drawing)

    def join(self, requests: Mapping[int, Request]) -> "list[Drawing]":
        """Read the prompts of at most `free` requests, by their keys, and draw their first tokens; returns those that are finished."""
        newest = [Drawing(key, r.sampling or self.rows.sampling) for key, r in requests.items()]
        drawn = self.rows.join(len(self.drawing), list(requests.values()))
        self.drawing += newest
        return self._take(newest, drawn)

    def go(self) -> "list[Drawing]":
        """Draw on in all rows; returns the answers that are finished, which leave."""
        return self._take(self.drawing, self.rows.go(len(self.drawing), max(d.left for d in self.drawing)))

    def leave(self, keys: Collection[int]) -> None:
        """Free the rows of these answers."""
        for r in reversed([r for r, d in enumerate(self.drawing) if d.key in keys]):
            if r < len(self.drawing) - 1:
                self.rows.move(len(self.drawing) - 1, r)
            self.drawing[r] = self.drawing[-1]
            self.drawing.pop()

    def _take(self, drawing: "list[Drawing]", drawn: "Drawn") -> "list[Drawing]":
        for d, tokens, logprobs in zip(drawing, *drawn, strict=True):
            d.take(tokens, logprobs, self.stop)
        finished = [d for d in drawing if d.finished]
        self.leave({d.key for d in finished})
        return finished


class Drawing:
    """An answer that is being drawn, for the request called `key`."""

    def __init__(self, key: int, sampling: Sampling) -> None:
        self.key, self.left = key, sampling.max_tokens
        self.tokens, self.logprobs, self.ended = list[int](), list[float](), False

    @property
    def finished(self) -> bool:
        """Whether it has ended, or is as long as it may be."""
        return self.ended or not self.left

    @property
    def answer(self) -> Answer:
        """What has been drawn."""
        return Answer(self.tokens, self.logprobs, self.ended)

    def take(self, tokens: list[int], logprobs: list[float], stop: frozenset[int]) -> None:
        """Go on with these, as far as the answer goes."""
        end = min(len(tokens), self.left)
        if not stop.isdisjoint(tokens):
            end = min(end, 1 + next(i for i, token in enumerate(tokens) if token in stop))
        self.left -= end
        self.tokens += tokens[:end]
        self.logprobs += logprobs[:end]
        self.ended = self.tokens[-1] in stop


def records(model: Transformer) -> bool:
    """Whether decoding steps are recorded: on a GPU."""
    return model.device.type == "cuda"


Drawn = tuple[list[list[int]], list[list[float]]]
"""The tokens that each of some rows has drawn, and their log-probabilities."""


class Rows:
    """The rows at work: what each has drawn last, how many tokens, with which numbers, and for which policy."""

    def __init__(
        self, model: Transformer, rows: int, sampling: Sampling, adapter: str | None, several: Several | None, room: int = 0
    ) -> None:
        self.model, self.sampling, self.adapter, self.several = model, sampling, adapter, several
        self.cache, self.decoder = Cache(model, rows, room, sampling.max_tokens), Decoder.of(model, adapter, several)
        device = model.device
        self.uniforms = torch.zeros(rows, sampling.max_tokens, dtype=torch.float64, device=doubles(device))
        self.tokens, self.drawn, self.which = (torch.zeros(rows, dtype=torch.int64, device=device) for _ in range(3))
        self.samplings = [sampling] * rows  # of the same object, where all rows are drawn alike

    def join(self, first: int, requests: list[Request]) -> Drawn:
        """Read the prompts of `requests` into the rows from `first` on, and draw their first tokens."""
        rows = slice(first, first + len(requests))
        device = self.which.device
        logits = _prefill(self.model, self.cache, requests, first, self.adapter, self.several)
        chances = torch.stack([uniforms(r.seed, self.sampling.max_tokens) for r in requests])
        self.uniforms[rows] = sent(chances, self.uniforms.device)
        self.which[rows] = sent(torch.tensor([r.policy for r in requests]), device)
        self.samplings[rows] = [r.sampling or self.sampling for r in requests]
        self.tokens[rows], logprobs = draw_each(logits, self.uniforms[rows, 0], self.samplings[rows])
        self.drawn[rows] = 1
        return self.tokens[rows, None].tolist(), logprobs[:, None].tolist()

    def go(self, n: int, most: int) -> Drawn:
        """Make a decoding step of the first n rows, none of which will draw more than `most` tokens."""
        del most
        logprobs = self._step(n, self.cache.step(n))
        return self.tokens[:n, None].tolist(), logprobs[:, None].tolist()

    def move(self, source: int, target: int) -> None:
        """Copy row `source` over row `target`."""
        self.cache.move(source, target)
        for x in (self.uniforms, self.tokens, self.drawn, self.which):
            x[target] = x[source]
        self.samplings[target] = self.samplings[source]

    def _step(self, n: int, step: Step) -> Tensor:
        """Give the model the last tokens and draw the next; returns their log-probabilities (n,)."""
        tokens, which = self.tokens[:n], self.which[:n]
        if self.decoder:
            hidden = self.decoder(tokens, step, which)
        else:
            added, shift = self.several.at(which, self.adapter) if self.several else (self.adapter, None)
            hidden = self.model(tokens, step.positions, step, added, None, shift)
        chances = self.uniforms[:n].gather(1, self.drawn[:n, None].to(self.uniforms.device))[:, 0]
        drawn, logprobs = draw_each(self.model.logits(hidden), chances, self.samplings[:n])
        tokens.copy_(drawn)
        self.drawn[:n] += 1
        return logprobs


class Recorded(Rows):
    """The rows at work on a GPU, where a step is a CUDA graph, recorded once for about so many rows, and several steps are made before the
    host looks: it would take longer to ask for a step's kernels one by one than they take.

    A row that has ended draws a few tokens more, which nobody looks at.
    """

    AHEAD = 16
    kept: ClassVar["WeakKeyDictionary[Transformer, tuple[Any, Recorded]]"] = WeakKeyDictionary()

    @classmethod
    def of(
        cls, model: Transformer, rows: int, sampling: Sampling, adapter: str | None, several: Several | None, longest: int
    ) -> "Recorded":
        """For prompts of up to `longest` tokens; the graphs of the last call, if they will do."""
        room = min(-(-(longest + sampling.max_tokens) // 128) * 128, model.shape.context)
        made_for = rows, sampling, adapter, [p.data_ptr() for p in model.parameters()]
        before, found = cls.kept.pop(model, (None, None))
        if several or found is None or before != made_for or found.cache.keys.shape[3] < room:
            del found
            own = several or (Several(updates=lora.updates(model, adapter)) if adapter else None)
            found = cls(model, rows, sampling, adapter, own, room)
        elif adapter:
            for layer, new in lora.updates(model, adapter).items():
                for into, x in zip(found.several.updates[layer][:2], new[:2], strict=True):  # pyright: ignore[reportOptionalMemberAccess]
                    into.copy_(x)
        if several is None:
            cls.kept[model] = made_for, found
        return found

    def __init__(self, model: Transformer, *how: Any) -> None:
        super().__init__(model, *how)
        self.model = proxy(model)  # else `kept` would keep it for ever
        rows, device = len(self.tokens), self.tokens.device
        self.positions, self.turn = torch.zeros_like(self.tokens), torch.zeros(1, dtype=torch.int64, device=device)
        self.outputs = torch.zeros(2, rows, self.AHEAD, dtype=torch.float64, device=device)  # tokens too, which are exact in it
        self.graphs: dict[int, Callable[[], None]] = {}
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def join(self, first: int, requests: list[Request]) -> Drawn:
        found = super().join(first, requests)
        rows = slice(first, first + len(requests))
        self.positions[rows] = sent(torch.tensor(self.cache.lengths[rows]), self.positions.device)
        return found

    def go(self, n: int, most: int) -> Drawn:
        """Make AHEAD decoding steps of the first n rows, or `most` if that is less."""
        about = max(8, len(self.tokens) // 8)
        size = min(-(-n // about) * about, len(self.tokens))
        self.turn.zero_()
        if size not in self.graphs:
            self.graphs[size] = self._record(size)
        steps = min(self.AHEAD, most)
        for _ in range(steps):
            self.graphs[size]()
        room = self.cache.keys.shape[3]
        self.cache.lengths[:n] = [min(length + steps, room) for length in self.cache.lengths[:n]]
        tokens, logprobs = self.outputs[:, :n, :steps].cpu().numpy()
        return tokens.astype(int).tolist(), logprobs.tolist()

    def move(self, source: int, target: int) -> None:
        super().move(source, target)
        self.positions[target] = self.positions[source]

    def _turn(self, n: int) -> None:
        """A step that knows of nothing but what is on the GPU."""
        cache = self.cache
        logprobs = self._step(n, Step(cache.keys[:, :n], cache.values[:, :n], self.positions[:n]))
        self.outputs[:, :n].index_copy_(2, self.turn, torch.stack([self.tokens[:n].double(), logprobs])[..., None])
        self.turn += 1
        self.positions[:n].add_(1).clamp_(max=cache.keys.shape[3] - 1)
        self.drawn[:n].clamp_(max=self.sampling.max_tokens - 1)

    def _record(self, n: int) -> Callable[[], None]:
        if self.pool is None:
            return partial(self._turn, n)
        state = self.tokens, self.drawn, self.positions, self.turn, self.outputs
        before = [x.clone() for x in state]
        other = torch.cuda.Stream()
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):  # what is compiled or allocated the first time
            self._turn(n)
        torch.cuda.current_stream().wait_stream(other)
        for x, was in zip(state, before, strict=True):
            x.copy_(was)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            self._turn(n)
        return graph.replay


def _prefill(model: Transformer, cache: Cache, requests: list[Request], first: int, adapter: str | None, several: Several | None) -> Tensor:
    """Read prompts into the cache rows from `first` on; returns the logits (R, V) after each row's prompt.

    Each distinct prompt is read once. Where policies differ each reads for itself, but from the first layer that is shifted on alone.
    """
    device = cache.keys.device
    prompts = [r.prompt for r in requests]
    lengths = [len(prompt) for prompt in prompts]
    rows = np.repeat(np.arange(first, first + len(prompts)), lengths)
    row, place = sent(torch.from_numpy(np.stack([rows, np.concatenate([np.arange(n) for n in lengths])])), device)
    cache.lengths[first : first + len(prompts)] = lengths
    cache.fit(max(cache.lengths[: first + len(prompts)]) + 1)

    def reading(readers: list[int] | None) -> tuple[Prefill, list[Tensor]]:
        """Attention over the distinct prompts of all or of each reader, and where each row's prompt is."""
        keys = list(zip(prompts, readers or [0] * len(prompts), strict=True))
        distinct = list(dict.fromkeys(keys))
        tensors = [torch.from_numpy(np.array(prompt)) for prompt, _ in distinct]
        who = None if readers is None else [reader for _, reader in distinct]
        laid = pack(tensors, [t[:0] for t in tensors], model.dtype, who, device)
        places = dict(zip(distinct, laid.prompts, strict=True))
        found = [places[key] for key in keys]
        return Prefill(laid, cache, laid.chosen(found), row, place), found

    if several is None:
        shared, places = reading(None)
        attention, added, shift, laid = shared, adapter, None, shared.packed
    else:
        readers = [r.policy for r in requests]
        own, places = reading(readers)
        which = torch.zeros_like(own.packed.ids)
        which[own.source] = sent(torch.from_numpy(np.array(readers)[rows - first]), device)
        forked = not several.updates and min(several.after) < model.shape.layers - 1
        if forked:
            shared, _ = reading(None)
            fork = torch.zeros_like(which)
            fork[own.source] = shared.source
            attention, laid = Forked(shared, own, min(several.after)), shared.packed
        else:
            attention, laid, fork = own, own.packed, None
        added, shift = several.at(which, adapter, fork)
    last = laid.chosen([own[-1:] for own in places])
    return model.logits(model(laid.ids, laid.positions, attention, added, last, shift))
