"""Bytes of what a language model holds and passes through, from its shape alone; no weights are read.

Shape letters: N tokens, C width, M width of an MLP, H heads, K key-value heads, D head width, T tokens of a piece, S tokens that it sees,
V vocabulary. A piece is a prompt or an answer, as `packing` lays them out.
"""

import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from rather.errors import ModelError
from rather.kernels import COLUMNS, KEYS
from rather.kernels.quantized import Bits, Form, columns_nbytes
from rather.kernels.quantized_rows import rows_nbytes
from rather.text import lora, weights
from rather.text.decoder import STRIDE
from rather.text.files import description
from rather.text.linear import Linear
from rather.text.packing import COMPILED, KEPT
from rather.text.shape import Shape
from rather.text.transformer import TokenLogprobs, Transformer

GIB = 2**30
MASTER = 4
"""Bytes of a number that is trained: float32."""


@dataclass(frozen=True)
class Pieces:
    """What is forwarded together: `prompts` of length P, each with `each` answers of length A; their numbers need not be whole."""

    prompt: int
    answer: int
    prompts: float
    each: float

    @property
    def answers(self) -> float:
        """How many answers there are."""
        return self.prompts * self.each

    @property
    def tokens(self) -> float:
        """N; a prompt that answers share is there once."""
        return self.prompts * (self.prompt + self.each * self.answer)

    @property
    def lengths(self) -> list[tuple[int, int, float]]:
        """T and S of each piece, and how many there are; a prompt with one answer is one piece."""
        whole = self.prompt + self.answer
        if self.each == 1:
            return [(whole, whole, self.prompts)]
        return [(self.prompt, self.prompt, self.prompts), (self.answer, whole, self.answers)]


@dataclass(frozen=True)
class Sizes:
    """A model of `shape` that computes in numbers of `compute` bytes, all of them trained if `full`, else held so or in `bits`.

    A GGUF file at `path` says what else is held in the formats of the file then.
    """

    shape: Shape
    compute: int
    full: bool = False
    bits: Bits | None = None
    gpu: bool = False
    path: Path | None = None

    @cached_property
    def model(self) -> Transformer:
        """The model without its numbers."""
        with torch.device("meta"):
            return Transformer(self.shape)

    @cached_property
    def linears(self) -> list[Linear]:
        """The linear layers of all blocks."""
        return [*lora.layers(self.model).values()]

    @property
    def numbers(self) -> int:
        """The model's parameters."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def weights(self) -> int:
        """The weights as they are held."""
        if not self.bits:
            return self.numbers * (MASTER if self.full else self.compute)
        words = [self.model.embedding.weight, *([] if self.shape.tied else [self.model.unembedding.weight])]
        layers = [layer.weight for layer in self.linears]
        if self.path and self.path.suffix == ".gguf":
            held = _quantized_nbytes(weights.plan(self.path), self.bits, self.gpu)
        else:
            nbytes = rows_nbytes if self.gpu else columns_nbytes
            each = [(self.bits, w) for w in layers] + [(8, w) for w in words]
            held = sum(nbytes([(Form(bits, False), len(w))], w.shape[1]) for bits, w in each)
        return held + (self.numbers - sum(w.numel() for w in [*layers, *words])) * self.compute

    @property
    def copies(self) -> int:
        """What sampling makes of linear layers: on a CPU all are laid out once more, on a GPU those that are held in another type."""
        layers = [] if self.bits else [self.model.unembedding.weight, *(layer.weight for layer in self.linears)]
        if self.gpu:
            return sum(w.numel() for w in layers) * self.compute if self.full and self.compute < MASTER else 0
        return sum(_columns(len(w)) * w.shape[1] for w in layers) * self.compute

    def adapter(self, rank: int, blocks: int = 0) -> int:
        """A LoRA adapter on the last `blocks` blocks, 0: on all."""
        layers = self.linears[-len(lora.LAYERS) * blocks :]
        return MASTER * rank * sum(layer.inputs * len(layer.parts) + sum(layer.parts.values()) for layer in layers)

    def cache(self, rows: int, prompt: int, answer: int) -> int:
        """Keys and values of so many rows while they are drawn: a cache that grows is there twice for a moment; see `decoder.Cache`."""
        s, longest = self.shape, prompt + answer
        if self.gpu:
            room = min(_up(longest, 128), s.context)
        else:
            rooms = [_room(prompt + 1, answer)]
            while rooms[-1] < longest:
                rooms.append(_room(rooms[-1] + 1, answer))
            room = sum(rooms[-2:])
        return 2 * s.layers * rows * s.kv_heads * room * s.head_width * self.compute

    def kept(self, of: Pieces, predicted: float, rank: int = 0, blocks: int = 0, checkpointing: bool = False) -> float:
        """What a forward pass over `of` keeps for backward, where the last block's MLP sees the `predicted` tokens alone.

        An adapter of that `rank` is on the last `blocks` blocks, 0: on all; what enters the first of them has no gradient.
        """
        s, n = self.shape, of.tokens
        layers = min(blocks or s.layers, s.layers)
        attention, mlp = self._attention(rank), self._mlp(rank)
        block = n * (attention + mlp) + self._pieces(of)
        tables = 0 if s.is_gpt2 else n * 2 * len(s.ropes) * (s.rotary_width or s.head_width) * self.compute
        casts = sum(layer.weight.numel() for layer in self.linears) * self.compute if self._casts else 0
        last = predicted * s.width * self.compute
        if checkpointing:  # a block is computed again for its backward pass, whose gradients are there beside it
            return layers * n * s.width * self.compute + block + self.passing(of) + tables + casts / s.layers + last
        first = 0 if self.full or not s.before else n * (s.width * (4 if s.is_gpt2 else self.compute) + 4)
        return layers * block - first - (n - predicted) * mlp + tables + casts + last

    def passing(self, of: Pieces) -> float:
        """What a block holds where nothing is kept: it is largest before the MLP's last product."""
        s = self.shape
        turned = s.heads + s.kv_heads if s.qk_norm else 0
        qkv = (2 * s.heads + 2 * s.kv_heads + turned) * s.head_width
        widened = max(layer.weight.numel() for layer in self.linears) if self.bits else 0
        return (of.tokens * (3 * s.width + qkv + (2 if s.is_gpt2 else 3) * s.mlp_width) + widened) * self.compute

    def logits(self, rows: float, trained: bool = False, keep: bool = False) -> float:
        """Logits of so many rows, a few hundred at a time, the chunk before the last one too; all of them if they are to be kept.

        Where the head is `trained`, its copy in the type that is computed in, its gradient and the product that this is summed from.
        """
        v, width = self.shape.vocabulary, self.shape.width
        chunk = min(rows, TokenLogprobs.ON_GPU if self.gpu else TokenLogprobs.CHUNK)
        held = (rows if keep else min(rows, 2 * chunk)) * v * self.compute
        held += v * width * self.compute if self.bits and self.gpu else 0  # the head, widened
        return held + (v * width * (MASTER + self.compute + (self.compute if self._casts else 0)) if trained else 0)

    @property
    def _casts(self) -> bool:
        """Whether autograd keeps a copy of each weight in the type that is computed in."""
        return self.full and self.compute < MASTER and not self.gpu

    def _attention(self, rank: int) -> float:
        """What a block keeps of a token up to attention: the norm's input and output, q, k and v before and after they are turned."""
        s = self.shape
        heads, kv = s.heads * s.head_width, s.kv_heads * s.head_width
        turned = 0 if s.is_gpt2 else heads + kv + (heads if s.query_scale != 1 else 0)
        low = rank * len(self.linears[0].parts)
        return self._normed() + (heads + 2 * kv + turned + low) * self.compute + (4 * s.heads if self.gpu else 0)

    def _mlp(self, rank: int) -> float:
        """What it keeps from there on: what attention gave, the norm's input and output, gate and up, and what the last layer is given."""
        s = self.shape
        low = rank * (len(self.linears[2].parts) + 2)
        return self._normed() + (s.heads * s.head_width + (2 if s.is_gpt2 else 3) * s.mlp_width + low) * self.compute

    def _normed(self) -> float:
        s = self.shape
        if s.is_gpt2:  # a layer norm keeps its input in float32
            return s.width * (4 + self.compute) + 8
        return s.width * self.compute * (1 + s.before + s.after) + 4 * (s.before + s.after)

    def _pieces(self, of: Pieces) -> float:
        """What attention of a block keeps beside that on a CPU: keys and values put together, shares of short pieces, long pieces' sums."""
        s = self.shape
        if self.gpu:
            return 0.0
        found = 0.0
        for t, seen, count in of.lengths:
            joined = 2 * seen * s.kv_heads * s.head_width * self.compute if seen > t else 0
            shares = s.heads * t * _up(seen, KEYS) * self.compute if t * seen <= KEPT else 0
            own = t * s.heads * (s.head_width * self.compute + 4) if t * seen > COMPILED else 0
            found += count * (joined + shares + own)
        return found


def memory(on: torch.device) -> tuple[float, float]:
    """Bytes of memory that are free now, and that there are in all: of a GPU by NVIDIA, or of this machine with its swap."""
    if on.type == "cuda":
        free, every = torch.cuda.mem_get_info(on)
        return float(free), float(every)
    every = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    info = Path("/proc/meminfo")
    if not info.exists():  # macOS
        return every, every
    known = {line.split(":")[0]: 1024.0 * int(line.split()[1]) for line in info.read_text().splitlines()}
    return known["MemAvailable"] + known["SwapFree"], every + known["SwapTotal"]


def _quantized_nbytes(planned: weights.Plan, bits: Bits, gpu: bool) -> int:
    """Bytes of all linear layers, the embedding and the head as `weights.load` holds them with `bits`, on a CPU or a GPU."""
    found = 0
    for ours, stored in planned.parts.items():
        if of := weights.quantized_to(ours, bits):
            sizes = [part.shape[::-1] if planned.shape.is_gpt2 and weights.is_linear(ours) else part.shape for part in stored]
            each = [(part.form(of), outputs) for part, (outputs, _) in zip(stored, sizes, strict=True)]
            found += (rows_nbytes if gpu else columns_nbytes)(each, sizes[0][1])
    return found


def check_fits(path: Path, on: torch.device, compute: torch.dtype, full: bool, bits: Bits | None) -> None:
    """Make sure that the weights of the model at `path` alone have room in all the memory that there is.

    Raises:
        ModelError: they do not.
    """
    config = description.read_config(path)
    if description.unsupported(config):
        return
    held, (_, every) = Sizes(description.shape_of(config), compute.itemsize, full, bits, path=path).weights, memory(on)
    if held > every:
        where = "the GPU" if on.type == "cuda" else "this machine"
        more = "take a smaller model; `rather doctor --plan` says what a run needs"
        raise ModelError(f"the weights of {path} take {held / GIB:.2f} GiB, but {where} has {every / GIB:.2f} GiB of memory; {more}")


def _columns(outputs: int) -> int:
    return _up(outputs, COLUMNS)


def _up(count: int, multiple: int) -> int:
    return math.ceil(count / multiple) * multiple


def _room(longest: int, answer: int) -> int:
    """Where `Cache.fit` goes."""
    return _up(longest + min(answer, longest // 4), STRIDE)
