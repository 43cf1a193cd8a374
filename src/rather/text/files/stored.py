"""Tensors in files under their names, before they are read."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from rather.errors import ModelError

FORMATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8", "F8_E4M3": "float8_e4m3fn"}
PLAIN = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape, the format of its numbers, and how to read it; and, if it is held as `kernels.int8` does, how to read
    its numbers and scales.
    """

    shape: tuple[int, ...]
    format: str
    read: Callable[[], Tensor]
    int8: Callable[[], tuple[Tensor, Tensor]] | None = None


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
