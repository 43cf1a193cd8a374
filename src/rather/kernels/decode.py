"""All blocks of a decoding step in one call of kernels.c: where everything is, and the call.

Shape letters as in kernels/__init__.py.
"""

import ctypes
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rather.kernels import Laid, attention
from rather.kernels.quantized import Addresses, Quantized


class LinearAddresses(ctypes.Structure):
    """`struct linear` of kernels.c."""

    _fields_ = [
        ("weight", ctypes.c_void_p), ("quantized", Addresses), ("bias", ctypes.c_void_p), ("down", ctypes.c_void_p),
        ("up", ctypes.c_void_p * 3),
        ("outputs", ctypes.c_int64 * 3), ("rank", ctypes.c_int64), ("share", ctypes.c_void_p), ("scale", ctypes.c_float),
    ]  # fmt: skip


class BlockAddresses(ctypes.Structure):
    """`struct block` of kernels.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("norm1", "norm2", "after1", "after2", "q_norm", "k_norm", "shift")),
        ("window", ctypes.c_int64), ("rope", ctypes.c_int64),
        *((name, LinearAddresses) for name in ("qkv", "out", "up", "down")),
    ]  # fmt: skip


class Family(ctypes.Structure):
    """`struct family` of kernels.c."""

    _fields_ = [
        ("eps", ctypes.c_float), ("plus", ctypes.c_float), ("residual", ctypes.c_float), ("query", ctypes.c_float),
        ("mlp_width", ctypes.c_int64), ("gelu", ctypes.c_int64), ("together", ctypes.c_int64), ("turned", ctypes.c_int64),
    ]  # fmt: skip


class Held:
    """Tensors that C reads, in the type that a model computes in, and where they are."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.tensors, self.weights = dtype, list[Tensor](), list[Laid | Quantized]()

    def at(self, x: Tensor | None) -> int | None:
        """Hold x; returns its address."""
        if x is None:
            return None
        self.tensors.append(x if x.dtype == torch.int32 else x.detach().to(self.dtype).contiguous())
        return self.tensors[-1].data_ptr()

    def linear(self, weight: Laid | Quantized, bias: Tensor | None) -> LinearAddresses:
        """A linear layer."""
        self.weights.append(weight)
        if isinstance(weight, Quantized):
            return LinearAddresses(None, weight.addresses, self.at(bias), scale=1.0)
        return LinearAddresses(weight.words.data_ptr(), Addresses(), self.at(bias), scale=1.0)

    def update(self, layer: LinearAddresses, down: Tensor, ups: Sequence[Tensor], scale: float, share: Tensor | None = None) -> None:
        """Add a low-rank update to a layer: of each of its parts `up` (O_i, r), all with their rows of down (parts * r, I)."""
        odd = len(down) // len(ups) % 2  # an even number of them is a whole number of words
        down = torch.cat([F.pad(own, (0, 0, 0, odd)) for own in down.chunk(len(ups))])
        layer.down, layer.rank, layer.scale = self._laid(down)[0], len(down), scale
        layer.share = None if share is None else self.at(F.pad(share, (0, odd)))
        for i, up in enumerate(ups):
            layer.up[i], layer.outputs[i] = self._laid(F.pad(up, (0, odd)))

    def _laid(self, weight: Tensor) -> tuple[int | None, int]:
        laid = Laid.of(weight.detach().to(self.dtype))
        return self.at(laid.words), laid.outputs


def decode_(
    blocks: "ctypes.Array[BlockAddresses]",
    family: Family,
    x: Tensor,
    rotary: tuple[Tensor, Tensor],
    cache: tuple[Tensor, Tensor],
    positions: Tensor,
    which: Tensor,
    heads: int,
) -> None:
    """What x (R, C) is after all `blocks` of a decoding step, in place.

    Row r is of policy `which[r]`; `cache` are keys and values, (blocks, R, K, L, D) each, `rotary` the tables of cosines and sines, one
    below the other.
    """
    keys, values = cache
    found = attention(keys[0], heads)
    assert found is not None
    _, _, kv, room, _ = keys.shape
    tensors = (positions, *rotary, which, keys, values)
    of = len(blocks), ctypes.addressof(blocks), ctypes.addressof(family), *x.shape, kv
    found.decode(*of, *(t.data_ptr() for t in tensors), room, keys.stride(0), x.data_ptr())
