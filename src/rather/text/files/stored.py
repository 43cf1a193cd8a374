"""Tensors in files under their names, before they are read."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from rather.errors import ModelError
from rather.kernels.quantized import BLOCK, Bits, Blocks, Form, quantize

FORMATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8", "F8_E4M3": "float8_e4m3fn"}
PLAIN = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape, the format of its numbers, how to read it; and, if products can use it as it is, how to hold that."""

    shape: tuple[int, ...]
    format: str
    read: Callable[[], Tensor]
    blocks: tuple[Form, Callable[[], Blocks]] | None = None

    def form(self, bits: Bits) -> Form:
        """How `quantized` holds it."""
        return self.blocks[0] if self.blocks else Form(bits if self.format in (*PLAIN, "F32", "F16", "BF16") else 8, False)

    def quantized(self, bits: Bits, transposed: bool, name: str) -> Blocks:
        """The weight as the file holds it, or quantized in so many bits, in 8 if the file holds it in few; `name` is for errors.

        Raises:
            ModelError: it cannot be quantized.
        """
        inputs = self.shape[0 if transposed else 1]
        if inputs % BLOCK:
            raise ModelError(f'{name} has {inputs} inputs, which are no whole blocks of {BLOCK}; set weights to "auto"')
        if self.blocks:
            found = self.blocks[1]()
        else:
            weight = self.read()
            found = quantize(weight.t() if transposed else weight, 4 if self.form(bits).bits == 4 else 8)
        if not all(x.isfinite().all() for x in (found.scales, found.minima) if x is not None):
            raise ModelError(f'{name} has numbers that are not finite or too large for {found.bits} bits; set weights to "auto"')
        return found


def folder_tensors(folder: Path) -> dict[str, Stored]:
    """The tensors of a model folder: of the files that its index names, else of model.safetensors, else of all its safetensors files.

    Raises:
        ModelError: there are none, a file is missing or damaged, or two files hold tensors of the same name.
    """
    found: dict[str, Stored] = {}
    for path in _files(folder):
        try:
            file = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118
                if name in found:
                    raise ModelError(f"{folder} holds {name!r} in two files, one of which is {path.name}; leave one of them there")
                part = file.get_slice(name)
                found[name] = Stored(tuple(part.get_shape()), _format(part.get_dtype()), lambda name=name, file=file: file.get_tensor(name))
        except (SafetensorError, OSError) as e:
            raise ModelError(f"the weights in {path} cannot be read: {e}") from None
    return found


def _files(folder: Path) -> list[Path]:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.exists():
        return [single]
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            files = [folder / Path(name).name for name in names]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise ModelError(f"{index} cannot be read: {e!r}") from None
        if missing := [file.name for file in files if not file.exists()]:
            raise ModelError(f"{folder} has no file {missing[0]}, which its index names; the weights are incomplete")
        return files
    files = [f for f in sorted(folder.glob("*.safetensors")) if not f.name.startswith(("adapter", "reward", "steering"))]
    if not files:
        pickled = any(folder.glob("*.bin"))
        why = "only pickled weights (.bin), which may run code; convert them to safetensors" if pickled else "no weights (*.safetensors)"
        raise ModelError(f"{folder} has {why}")
    return files


def _format(name: str) -> str:
    return FORMATS.get(name, name)
