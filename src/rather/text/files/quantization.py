"""Quantized model folders: numbers of 8 bits and their scales back to what they stand for.

Read are FP8 as DeepSeek and Qwen publish it (`quant_method` "fp8": a scale a tensor or a block) and what llm-compressor writes as plain
numbers of 8 bits (`quant_method` "compressed-tensors", int8 or FP8: a scale a tensor, channel, group or block). Weights alone are rounded
there: a model that rounds activations, too, is computed here without that.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rather.errors import ModelError
from rather.text.files.fields import Fields
from rather.text.files.stored import PLAIN, Stored

KEYS = ("quantization_config", "compression_config")
REMEDY = "take the model in bfloat16 or as GGUF, or one quantized by fp8 or by compressed-tensors with plain int8 or FP8"
FORMATS = ("int-quantized", "float-quantized", "naive-quantized")
ZERO = "weight_zero_point"
ACTIVATIONS = ("input_scale", "activation_scale", "input_zero_point")  # how activations are rounded


@dataclass(frozen=True)
class Scheme:
    """How weights are stored: the format of their numbers, the name of their scale, and the size (rows, columns) of the block that has one
    scale, given a weight's shape; with `shifted` a zero point is taken off first.
    """

    format: str
    scale: str
    block: Callable[[tuple[int, ...]], tuple[int, int]]
    shifted: bool = False


def schemes_of(config: dict[str, Any]) -> list[Scheme]:
    """How the weights of a model with this config.json are stored; none where it is not quantized.

    Raises:
        ModelError: it is quantized in a way that cannot be read.
    """
    f = Fields(config, "config.json")
    for key in KEYS:
        if (q := f.part(key)).values:
            method = q.get("quant_method")
            if method == "fp8":
                return _fp8(q)
            if method == "compressed-tensors":
                return _compressed(q)
            raise ModelError(f"the model is quantized by {method!r} ({key} in config.json), which rather cannot read; {REMEDY}")
    return []


def dequantized(tensors: dict[str, Stored], schemes: list[Scheme], path: Path) -> dict[str, Stored]:
    """The tensors with the numbers that they stand for, without their scales.

    Raises:
        ModelError: a tensor of 8 bits has no scale, or one of another shape than any of the schemes says.
    """
    found = dict(tensors)
    beside = {*(scheme.scale for scheme in schemes), ZERO, *ACTIVATIONS}
    for name, stored in tensors.items():
        stem, _, kind = name.rpartition(".")
        if stored.format in PLAIN or kind in beside:
            continue
        zero = tensors.get(f"{stem}.{ZERO}")
        for scheme in schemes:
            scale = tensors.get(f"{stem}.{scheme.scale}")
            if kind == "weight" and scheme.format == stored.format and scale is not None and _fits(scheme, stored, scale, zero):
                found[name] = Stored(stored.shape, stored.format, _reader(scheme, stored, scale, zero))
                break
        else:
            raise ModelError(
                f"{path} holds {name} {list(stored.shape)} as {stored.format}, without a scale that config.json describes; {REMEDY}"
            )
        for used in beside:
            found.pop(f"{stem}.{used}", None)
    return found


def _fp8(q: Fields) -> list[Scheme]:
    for key in ("activation_scheme", "modules_to_not_convert", "ignored_layers", "scale_fmt", "dequantize"):
        q.get(key)
    if (fmt := q.get("fmt", "e4m3")) != "e4m3":
        raise ModelError(f"the model is quantized by fp8 of the format {fmt!r}, which rather cannot read; {REMEDY}")
    block = _sides(q, "weight_block_size")
    q.refuse_unread()
    return [Scheme("float8_e4m3fn", "weight_scale_inv", lambda shape: block or _whole(shape))]


def _compressed(q: Fields) -> list[Scheme]:
    for key in ("ignore", "version", "global_compression_ratio", "observer_config"):
        q.get(key)
    if (status := q.get("quantization_status", "compressed")) not in ("compressed", "frozen"):
        raise ModelError(f"the model's quantization is {status!r}, not compressed (quantization_status in config.json); {REMEDY}")
    if (sparsity := q.part("sparsity_config").get("format", "dense")) != "dense":
        raise ModelError(f"the model's weights are sparse ({sparsity!r} in sparsity_config), which rather cannot read; {REMEDY}")
    form, groups = q.get("format", "int-quantized"), q.part("config_groups")
    q.refuse_unread()
    schemes = []
    for name in groups.values:
        group = groups.part(name)
        for key in ("targets", "input_activations", "output_activations"):
            group.get(key)
        own = group.get("format", form)
        if own not in FORMATS:
            raise ModelError(f"the model is quantized by compressed-tensors in the format {own!r}, which rather cannot read; {REMEDY}")
        weights = group.part("weights")
        group.refuse_unread()
        if weights.values:
            schemes.append(_scheme(weights))
    return schemes


def _scheme(w: Fields) -> Scheme:
    for key in ("observer", "observer_kwargs", "scale_dtype", "zp_dtype", "dynamic"):
        w.get(key)
    bits, kind, strategy = w.get("num_bits"), w.get("type"), w.get("strategy", "tensor")
    symmetric, size, sides = w.flag("symmetric", True), w.get("group_size"), _sides(w, "block_structure")
    w.refuse_unread()
    if bits != 8 or kind not in ("int", "float"):
        raise ModelError(f"the model is quantized to {bits} bits of type {kind!r}, which rather cannot read; {REMEDY}")
    blocks = {
        "tensor": _whole,
        "channel": lambda shape: (1, shape[1]),
        "group": (lambda _: (1, size)) if type(size) is int and size > 0 else None,
        "block": (lambda _: sides) if sides else None,
    }  # fmt: skip
    if blocks.get(strategy) is None:
        raise ModelError(f"the model is quantized by {strategy!r} with group_size {size!r}, which rather cannot read; {REMEDY}")
    return Scheme("int8" if kind == "int" else "float8_e4m3fn", "weight_scale", blocks[strategy], not symmetric)


def _sides(f: Fields, key: str) -> tuple[int, int] | None:
    sides = f.get(key)
    if sides is None:
        return None
    if not (isinstance(sides, list) and len(sides) == 2 and all(type(n) is int and n > 0 for n in sides)):
        raise ModelError(f"{key} in {f.place} is {sides!r}; it must be two whole numbers, rows and columns")
    return sides[0], sides[1]


def _whole(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], shape[1]


def _fits(scheme: Scheme, weight: Stored, scale: Stored, zero: Stored | None) -> bool:
    """Whether scale and zero point have one number a block."""
    if len(weight.shape) != 2 or scale.format not in (*PLAIN, "F8_E8M0") or scheme.shifted != (zero is not None):
        return False
    grid = tuple(math.ceil(n / side) for n, side in zip(weight.shape, scheme.block(weight.shape), strict=True))
    shapes = {grid, grid[:1]} if grid[1] == 1 else {grid}
    shapes |= {()} if grid == (1, 1) else set()
    return scale.shape in shapes and (zero is None or (zero.shape == scale.shape and zero.format in ("int8", *PLAIN)))


def _reader(scheme: Scheme, weight: Stored, scale: Stored, zero: Stored | None) -> Callable[[], Tensor]:
    def read() -> Tensor:
        rows, columns = scheme.block(weight.shape)

        def spread(stored: Stored) -> Tensor:
            values = stored.read().float()
            values = values.reshape(math.ceil(weight.shape[0] / rows), -1)
            values = values.repeat_interleave(rows, 0) if len(values) > 1 else values
            values = values.repeat_interleave(columns, 1) if values.shape[1] > 1 else values
            return values[: weight.shape[0], : weight.shape[1]]

        numbers = weight.read().float()
        return (numbers - spread(zero) if zero is not None else numbers) * spread(scale)

    return read
