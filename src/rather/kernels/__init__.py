"""What is computed between matrix products, in training and while decoding, and on a processor products of few rows too.

On a processor each is one loop in C (kernels.c, which compiled.py compiles), on a GPU one Triton kernel (gpu.py, gpu_attention.py).
Products of few rows read the weights as fast as the memory gives them; between products PyTorch makes some ten passes where these make
one. Without a C compiler or Triton PyTorch does the same: norm, SwiGLU, GeGLU and rotary embedding with the same roundings, attention with
those of its fused kernel, products with those of its matrix library. What control computes in C is in perceptrons.py.

Shape letters: N tokens, I inputs, O outputs, R rows at work, L cache length, T tokens of a piece, S tokens that it sees, C width,
M width of an MLP, H heads, K key-value heads, D head width.
"""

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rather.kernels import compiled

COLUMNS, KEYS = 48, 4
"""Outputs whose weights lie side by side, see `Laid`, and keys whose gradients are summed up together; kernels.c says the same."""
KINDS = {"n": ctypes.c_int64, "f": ctypes.c_float, "p": ctypes.c_void_p}
TAKES = {
    "product": "nnnpnppnpn",
    "product_quantized": "nnpnppnpn",
    "widen": "nnpp",
    "norm": "nnppffpp",
    "norm_backward": "nnppfpppp",
    "glu": "nnnpp",
    "glu_backward": "nnnppp",
    "rotate": "nnnnnppp",
    "draw": "nnppfpp",
    "token_logprobs": "nnppfppp",
    "step": "nnnnppnpnpnppfp",
    "piece": "nnnnpnpnpnfnpp",
    "piece_backward": "nnnnpnpnpnfnppppp",
    "decode": "nppnnnppppppnnp",
}
"""What each function takes: whole numbers, floats, addresses."""


@functools.cache
def library(dtype: torch.dtype, width: int = 0, group: int = 0) -> ctypes.CDLL | None:
    """kernels.c for this type of number, with attention for heads of that `width` if `group` query heads share a key head.

    None without a compiler.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        return None
    found = compiled.library(
        "kernels.c", ["-DBFLOAT16"] * (dtype == torch.bfloat16) + [f"-DWIDTH={width}", f"-DGROUP={group}"] * bool(group)
    )
    for name in TAKES:
        if function := getattr(found, name, None):
            function.argtypes, function.restype = [KINDS[kind] for kind in TAKES[name]], None
    return found


def _for(x: Tensor, *heads: int) -> ctypes.CDLL | None:
    return library(x.dtype, *heads) if x.device.type == "cpu" else None


@functools.cache
def _triton(device: torch.device) -> Any:
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):
        return None  # too little memory in a multiprocessor for the tiles of attention
    try:
        from rather.kernels import gpu
    except ImportError:
        return None
    return gpu


def on_gpu(x: Tensor) -> Any:
    """gpu.py, where x is on a GPU by NVIDIA, Ampere or newer, and Triton is installed."""
    return _triton(x.device) if x.is_cuda else None


@dataclass(frozen=True)
class Laid:
    """A weight (`outputs`, I) as products with few rows read it, (ceil(outputs / 48), words, 48).

    A word is four bytes, and those of 48 outputs lie side by side.
    """

    words: Tensor
    outputs: int

    @classmethod
    def out(cls, weight: Tensor) -> "Laid | None":
        """Lay out a weight (O, I); None where products are left to PyTorch."""
        found = _for(weight)
        if not hasattr(found, "product") or weight.shape[1] * weight.element_size() % 4:
            return None
        return cls.of(weight)

    @classmethod
    def of(cls, weight: Tensor) -> "Laid":
        """Lay out a weight (O, I) whose rows are whole words."""
        words = F.pad(weight.contiguous().view(torch.int32), (0, 0, 0, -len(weight) % COLUMNS))
        return cls(words.unflatten(0, (-1, COLUMNS)).transpose(1, 2).contiguous(), len(weight))

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """X (N, I) times the weight, plus bias (O,), to (N, O). Passes no gradient on.

        With few rows this waits for the weights to come from memory, and they come as fast as they can.
        """
        found, x, out = library(x.dtype), x.contiguous(), x.new_empty((len(x), self.outputs))
        assert found is not None
        words, added = self.words.shape[1], None if bias is None else bias.data_ptr()
        found.product(*out.shape, words, x.data_ptr(), words, self.words.data_ptr(), added, 0, out.data_ptr(), self.outputs)
        return out


def norm(x: Tensor, weight: Tensor, eps: float, plus: float = 0.0) -> tuple[Tensor, Tensor]:
    """X (..., C) / rms(x) * (plus + weight (C,)), and 1 / rms (..., 1) in float32. Passes no gradient on."""
    if on := on_gpu(x):
        return on.norm(x, weight, eps, plus)
    weight = weight.to(x.dtype)
    if found := _for(x):
        x = x.contiguous()
        out, scale = torch.empty_like(x), weight.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
        found.norm(scale.numel(), x.shape[-1], x.data_ptr(), weight.data_ptr(), eps, plus, out.data_ptr(), scale.data_ptr())
        return out, scale
    wide = x.float()
    scale = torch.linalg.vecdot(wide, wide)[..., None].div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * scale).to(x.dtype).mul_(weight.float() + plus if plus else weight), scale


def norm_backward(x: Tensor, weight: Tensor, scale: Tensor, gradient: Tensor, plus: float = 0.0) -> tuple[Tensor, Tensor]:
    """What reaches x (..., C) and, in float32, weight (C,) where `gradient` reaches `norm`, which gave `scale` (..., 1)."""
    if on := on_gpu(x):
        return on.norm_backward(x, weight, scale, gradient, plus)
    weight = weight.to(x.dtype)
    if found := _for(x):
        x, gradient = x.contiguous(), gradient.contiguous()
        out, sums = torch.empty_like(x), torch.zeros((scale.numel() + 63) // 64, len(weight))
        found.norm_backward(
            scale.numel(), len(weight), x.data_ptr(), weight.data_ptr(), plus, *(t.data_ptr() for t in (scale, gradient, out, sums))
        )
        return out, sums.sum(0)
    normed, slope = x.float() * scale, gradient.float() * (weight.float() + plus if plus else weight)
    shared = torch.linalg.vecdot(slope, normed)[..., None] / len(weight)
    to_weight = (gradient * normed).flatten(0, -2).sum(0)
    return slope.addcmul_(normed, shared, value=-1).mul_(scale).to(x.dtype), to_weight


def glu(both: Tensor, gelu: bool = False) -> Tensor:
    """silu(gate) * up (N, M) of `both` (N, 2 M), gate and up side by side, or gelu(gate) * up (Shazeer 2020). Passes no gradient on."""
    if on := on_gpu(both):
        return on.glu(both, gelu)
    if found := _for(both):
        both, out = both.contiguous(), both.new_empty((both.shape[0], both.shape[1] // 2))
        found.glu(gelu, *out.shape, both.data_ptr(), out.data_ptr())
        return out
    gate, up = both.chunk(2, dim=-1)
    return (F.gelu(gate, approximate="tanh") if gelu else F.silu(gate)).mul_(up)


def glu_backward(both: Tensor, gradient: Tensor, gelu: bool = False) -> Tensor:
    """What reaches `both` (N, 2 M) where `gradient` (N, M) reaches `glu`."""
    if on := on_gpu(both):
        return on.glu_backward(both, gradient, gelu)
    out = torch.empty_like(both, memory_format=torch.contiguous_format)
    if found := _for(both):
        both, gradient = both.contiguous(), gradient.contiguous()
        found.glu_backward(gelu, *gradient.shape, both.data_ptr(), gradient.data_ptr(), out.data_ptr())
        return out
    (gate, up), (to_gate, to_up) = both.chunk(2, dim=-1), out.chunk(2, dim=-1)
    if gelu:
        torch.ops.aten.gelu_backward.grad_input(gradient * up, gate, approximate="tanh", grad_input=to_gate)
        torch.mul(gradient, F.gelu(gate, approximate="tanh"), out=to_up)
    else:
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=to_gate)
        torch.mul(gradient, F.silu(gate), out=to_up)
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of the first numbers of x (N, H, D), as many as there are cosines. Passes no gradient on, and may overwrite x."""
    turned = cos.shape[-1]
    if found := _for(x):
        found.rotate(*x.shape, turned, x.stride(0), x.data_ptr(), cos.data_ptr(), sin.data_ptr())
        return x
    if turned < x.shape[-1]:
        return torch.cat([rotate(x[..., :turned], cos, sin), x[..., turned:]], dim=-1)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


Turn = tuple[tuple[Tensor, Tensor] | None, int, Tensor, Tensor, float, float]
"""What `heads` is given beside x."""


def heads(
    x: Tensor, weights: tuple[Tensor, Tensor] | None, heads: int, cos: Tensor, sin: Tensor, eps: float, plus: float = 0.0
) -> Tensor:  # fmt: skip
    """Rotary embedding of x (N, H + K, D), `heads` query heads and the key heads, with what `Rotary` gives.

    With `weights`, (D,) of query and of key heads, each head is normed first, as by `norm`. Passes no gradient on, and may overwrite x.
    """
    if (on := on_gpu(x)) and cos.shape[-1] == x.shape[-1]:
        return on.heads(x, weights, heads, cos, sin, eps, plus)
    if weights is not None:
        x = torch.cat([norm(part, weight, eps, plus)[0] for part, weight in zip((x[:, :heads], x[:, heads:]), weights, strict=True)], dim=1)
    return rotate(x, cos, sin)


def heads_backward(
    x: Tensor,
    weights: tuple[Tensor, Tensor] | None,
    heads: int,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    gradient: Tensor,
    plus: float = 0.0,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What reaches x and, in float32, the weights where `gradient` (N, H + K, D) reaches `heads`."""
    if (on := on_gpu(x)) and cos.shape[-1] == x.shape[-1]:
        return on.heads_backward(x, weights, heads, cos, sin, eps, gradient, plus)
    gradient = rotate(gradient.clone(memory_format=torch.contiguous_format), cos, -sin)
    if weights is None:
        return gradient, None, None
    found = []
    for part, weight, slope in zip((x[:, :heads], x[:, heads:]), weights, (gradient[:, :heads], gradient[:, heads:]), strict=True):
        found.append(norm_backward(part, weight, norm(part, weight, eps)[1], slope, plus))
    return torch.cat([to_x for to_x, _ in found], dim=1), found[0][1], found[1][1]


def draw(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor] | None:
    """Where the cumulative sum of softmax(logits (R, V) / temperature) passes `uniforms` (R,), and its log-probability, (R,) each.

    None where it is not compiled.
    """
    if on := on_gpu(logits):
        return on.draw(logits, uniforms, temperature)
    found = _for(logits)
    if found is None:
        return None
    logits, uniforms = logits.contiguous(), uniforms.double().contiguous()
    tokens, logprobs = torch.empty(len(logits), dtype=torch.int64), torch.empty(len(logits))
    found.draw(*logits.shape, logits.data_ptr(), uniforms.data_ptr(), temperature, tokens.data_ptr(), logprobs.data_ptr())
    return tokens, logprobs


def token_logprobs_(logits: Tensor, targets: Tensor, temperature: float, slopes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N,) of `targets` (N,) under softmax(logits (N, V) / temperature), and entropies (N,), float32.

    With `slopes` (N,) the logits become slopes[n] * d logprob[n] / d logits[n].
    """
    if on := on_gpu(logits):
        return on.token_logprobs_(logits, targets, temperature, slopes)
    if found := _for(logits):
        logprobs, entropy = torch.empty(len(logits)), torch.empty(len(logits))
        of = logits.data_ptr(), targets.data_ptr(), temperature, None if slopes is None else slopes.data_ptr()
        found.token_logprobs(*logits.shape, *of, logprobs.data_ptr(), entropy.data_ptr())
        return logprobs, entropy
    wide = logits.float() / temperature
    wide -= wide.amax(dim=1, keepdim=True)
    p = wide.exp()
    total = p.sum(dim=1)
    log_total, chosen = total.log(), wide.gather(1, targets[:, None])[:, 0]
    entropy = log_total - torch.linalg.vecdot(p, wide) / total
    if slopes is not None:
        p *= (-slopes / (total * temperature))[:, None]
        p[torch.arange(len(p), device=p.device), targets] += slopes / temperature
        logits.copy_(p)
    return chosen - log_total, entropy


def attention(keys: Tensor, heads: int) -> ctypes.CDLL | None:
    """What attention from that many query heads to `keys` (..., K, D) or (R, K, L, D) is compiled in, if it can be."""
    width, kv = keys.shape[-1], keys.shape[1]
    return None if width % 8 else _for(keys, width, heads // kv)


def takes_heads(x: Tensor) -> bool:
    """Whether `pieces` and `step` on a GPU are there for heads of the width of x (..., D): as far as a multiprocessor has room for them."""
    return x.shape[-1] <= 128 and bool(on_gpu(x))


def step(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, positions: Tensor, window: int | None, turn: Turn | None = None
) -> Tensor | None:  # fmt: skip
    """Put k and v (R, K, D) at `positions` (R,) into `keys` and `values` (R, K, L, D) and attend from q (R, H, D) to (R, H, D).

    With `turn` q and k come as `heads` takes them; on a GPU alone. None, and nothing done, where it is not compiled.
    """
    if takes_heads(q):
        return on_gpu(q).step(q, k, v, keys, values, positions, window, turn)
    found = attention(keys, q.shape[1])
    if found is None:
        return None
    (rows, kv, room, width), out = keys.shape, q.new_empty(q.shape)
    held = keys.data_ptr(), values.data_ptr()
    found.step(rows, kv, room, window or room, positions.data_ptr(), *_rows(q, k, v), *held, width**-0.5, out.data_ptr())
    return out


def fill(k: Tensor, v: Tensor, source: Tensor, row: Tensor, place: Tensor, keys: Tensor, values: Tensor) -> None:
    """Put token `source[n]` of k and v (N, K, D) at `place[n]` of row `row[n]` into `keys` and `values` (R, K, L, D)."""
    if on := on_gpu(k):
        return on.fill(k, v, source, row, place, keys, values)
    keys[row, :, place], values[row, :, place] = k[source], v[source]
    return None


def piece(q: Tensor, k: Tensor, v: Tensor, window: int | None, keep: bool) -> tuple[Tensor, Tensor | None]:
    """Attend from q (T, H, D), the last T of S tokens, to k and v (S, K, D); with `keep` also the shares (K, T, H / K, S or a little more).

    Where `attention` is compiled. Each token gets the numbers that it gets from `step`.
    """
    (t, heads, width), (s, kv, _), out = q.shape, k.shape, q.new_empty(q.shape)
    found, room = attention(k, heads), -(-s // KEYS) * KEYS
    assert found is not None
    kept = q.new_empty((kv, t, heads // kv, room)) if keep else None
    to = None if kept is None else kept.data_ptr()
    found.piece(t, s, kv, window or s, *_rows(q, k, v), width**-0.5, room, to, out.data_ptr())
    return out, kept


def piece_backward(q: Tensor, k: Tensor, v: Tensor, window: int | None, kept: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What reaches q, k and v where `gradient` (T, H, D) reaches `piece`, which kept the shares. Where `attention` is compiled."""
    (t, heads, width), (s, kv, _) = q.shape, k.shape
    found, gradient = attention(k, heads), gradient.contiguous()
    assert found is not None
    out = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    tensors = (kept, gradient, *out)
    found.piece_backward(t, s, kv, window or s, *_rows(q, k, v), width**-0.5, kept.shape[-1], *(x.data_ptr() for x in tensors))
    return out


def pieces(q: Tensor, k: Tensor, v: Tensor, tree: tuple[Tensor, ...], window: int | None) -> tuple[Tensor, Tensor]:
    """Attend from q (N, H, D) to k and v (N, K, D), all pieces of a `Packed` at once, whose `tree` says who sees whom; on a GPU alone.

    Returns (N, H, D) and the logarithm to base 2 of what each token's scores weigh, (N, H).
    """
    return on_gpu(q).pieces(q, k, v, tree, window)


def pieces_backward(q: Tensor, *more: Tensor | tuple[Tensor, ...] | int | None) -> tuple[Tensor, Tensor, Tensor]:
    """What reaches q, k and v, given what `pieces` was given, what it gave, and the gradient that reaches that (N, H, D)."""
    return on_gpu(q).pieces_backward(q, *more)


def update_(
    y: Tensor, x: Tensor, down: Tensor, up: Tensor, share: Tensor, which: Tensor, first: Tensor, columns: int
) -> Tensor | None:  # fmt: skip
    """Add ((x down^T) * share[which[n]]) up of every row of x (N, I) to y (N, O); `down` is (R, I), `up` (R, O), `share` (P, R).

    The share of policy p is 0 but for `columns` of its columns, those from `first[p]` on. None, and nothing done, where that is no faster
    than products.
    """
    on = on_gpu(y)
    return on.update_(y, x, down, up, share, which, first, columns) if on and columns <= on.COLUMNS and len(y) <= on.ROWS else None


def _rows(*of: Tensor) -> list[int]:
    """Where the rows of each begin and how far apart they are."""
    return [number for x in of for number in (x.data_ptr(), x.stride(0))]
