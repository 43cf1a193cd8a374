"""LoRA adapters by name on one base, in PEFT's file format."""

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rather.errors import ConfigError, ModelError
from rather.text.files import adapter as adapter_files
from rather.text.files.adapter import PREFIX
from rather.text.linear import Adapter, Linear, QuantizedEmbedding, QuantizedLinear
from rather.text.transformer import Transformer
from rather.text.weights import file_names

LAYERS = ("qkv", "out", "up", "down")


def add(model: Transformer, name: str, rank: int, alpha: float, seed: int, blocks: int = 0) -> list[nn.Parameter]:
    """Put an adapter called `name` on every linear layer of the last `blocks` blocks, 0: of all; returns its parameters (float32)."""
    generator = torch.Generator().manual_seed(seed)
    for layer in list(layers(model).values())[-len(LAYERS) * blocks :]:
        _put(model, layer, name, [rank] * len(layer.parts), [alpha / rank] * len(layer.parts), generator)
    return parameters(model, name)


def _put(model: Transformer, layer: Linear, name: str, ranks: list[int], scales: list[float], generator: torch.Generator) -> None:
    adapter = Adapter(layer.inputs, tuple(layer.parts.values()), ranks, scales, generator)
    layer.adapters[name] = adapter.to(model.device)


def parameters(model: Transformer, name: str) -> list[nn.Parameter]:
    """The parameters of the adapter called `name`."""
    return [p for layer in layers(model, name).values() for p in layer.adapters[name].parameters() if p.numel()]


def first(model: Transformer, name: str) -> int:
    """The first block with the adapter called `name`."""
    return min(int(at.split(".")[1]) for at in layers(model, name))


def save(model: Transformer, name: str, folder: Path, base: str = "") -> None:
    """Write adapter_model.safetensors and adapter_config.json, which `peft` loads. `base` says which model it is for."""
    state, shapes = {}, dict[str, tuple[int, float]]()
    for ours, layer in layers(model, name).items():
        adapter: Adapter = layer.adapters[name]  # type: ignore[assignment]
        for theirs, (down, up, scale) in zip(file_names(model.shape, ours), adapter.parts, strict=True):
            if len(down):
                state[f"{PREFIX}{theirs}.lora_A.weight"] = down.detach().cpu().clone().contiguous()
                state[f"{PREFIX}{theirs}.lora_B.weight"] = up.detach().cpu().clone().contiguous()
                shapes[theirs] = len(down), scale * len(down)
    every = [theirs for ours in layers(model) for theirs in file_names(model.shape, ours)]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": model.shape.is_gpt2, "inference_mode": True, **adapter_files.described(shapes, every),
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


@torch.no_grad()
def load(model: Transformer, name: str, folder: Path) -> list[nn.Parameter]:
    """Read an adapter in PEFT's format from `folder`: its ranks, scales and layers are its own; returns its parameters.

    An adapter called `name` that is there already is overwritten in place.

    Raises:
        ModelError: the files are missing or damaged, or the adapter is of another kind, for other layers or of other ranks.
    """
    config, state = adapter_files.read(folder)
    there, unread = bool(parameters(model, name)), set(state)
    for ours, layer in layers(model).items():
        names = file_names(model.shape, ours)
        shapes = [
            adapter_files.rank_and_scale(config, theirs) if f"{PREFIX}{theirs}.lora_A.weight" in state else (0, 0.0) for theirs in names
        ]
        if not there and any(rank for rank, _ in shapes):
            _put(model, layer, name, [rank for rank, _ in shapes], [scale for _, scale in shapes], torch.Generator())
        if name not in layer.adapters:
            continue
        adapter: Adapter = layer.adapters[name]  # type: ignore[assignment]
        for theirs, shape, (down, up, scale) in zip(names, shapes, adapter.parts, strict=True):
            if shape[0] != len(down) or not math.isclose(shape[1], scale, rel_tol=1e-6):
                here = f"not {len(down)} and {scale:g}: it is another run's or for other layers"
                raise ModelError(f"the adapter in {folder} has rank {shape[0]} and scale {shape[1]:g} on {theirs}, {here}")
            for side, into in (("A", down), ("B", up)) if len(down) else ():
                key = f"{PREFIX}{theirs}.lora_{side}.weight"
                if key not in state or state[key].shape != into.shape:
                    found = f"shape {tuple(state[key].shape)}, not {tuple(into.shape)}" if key in state else "no tensor"
                    raise ModelError(f"{key} in {folder} has {found}: the adapter is for another model or another rank")
                into.copy_(state[key])
                unread.discard(key)
    if unread:
        why = "this run's adapter is not on" if there else f"cannot be adapted here; {adapter_files.REMEDY}"
        raise ModelError(f"the adapter in {folder} is for layers that {why}: {min(unread)}")
    return parameters(model, name)


def names(model: Transformer) -> set[str]:
    """The names of the adapters on `model`."""
    return {name for layer in layers(model).values() for name in layer.adapters}


def copied(model: Transformer, name: str, new: str) -> list[nn.Parameter]:
    """Put a copy of the adapter called `name` on `model` as `new`; returns its parameters, which can be trained."""
    for layer in layers(model, name).values():
        layer.adapters[new] = copy.deepcopy(layer.adapters[name]).requires_grad_(True)
    return parameters(model, new)


@torch.no_grad()
def updates(model: Transformer, name: str) -> "dict[nn.Module, tuple[Tensor, Tensor, Tensor | None]]":
    """What the adapter called `name` adds, as `decoder.Several` takes it: the same for all rows."""
    found: dict[nn.Module, tuple[Tensor, Tensor, Tensor | None]] = {}
    for layer in layers(model, name).values():
        down, up = layer.adapters[name].stacked()  # type: ignore[operator]
        found[layer] = down.to(model.dtype, copy=True), up.to(model.dtype), None
    return found


@torch.no_grad()
def together(model: Transformer, names: Sequence[str | None]) -> "dict[nn.Module, tuple[Tensor, Tensor, Tensor | None]]":
    """What P policies add, as `decoder.Several` takes it: each the adapter of its name, None: nothing."""
    found: dict[nn.Module, tuple[Tensor, Tensor, Tensor | None]] = {}
    for layer in layers(model).values():
        stacked = [layer.adapters[name].stacked() if name in layer.adapters else None for name in names]  # type: ignore[operator]
        downs, ups = ([both[i] for both in stacked if both] for i in (0, 1))
        if downs:
            ranks = [len(both[0]) if both else 0 for both in stacked]
            share = torch.block_diag(*(torch.ones(1, rank) for rank in ranks))
            found[layer] = torch.cat(downs).to(model.dtype), torch.cat(ups).to(model.dtype), share.to(downs[0].device, model.dtype)
    return found


@torch.no_grad()
def merge(model: Transformer, name: str) -> None:
    """Make the adapter called `name` a part of the weights, which are no longer quantized then."""
    widen_(model)
    for layer in layers(model, name).values():
        adapter: Adapter = layer.adapters[name]  # type: ignore[assignment]
        for part, (down, up, scale) in zip(layer.weight.split([len(up) for up in adapter.up]), adapter.parts, strict=True):
            part.copy_(part.float() + scale * (up @ down))
        del layer.adapters[name]


def merged(model: Transformer, name: str) -> Transformer:
    """A copy of `model` whose weights the adapter called `name` has become a part of."""
    found = copy.deepcopy(model)
    merge(found, name)
    return found


def widen_(model: Transformer) -> None:
    """Hold quantized weights as ordinary ones, rounded to the type that the model computes in."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            model.set_submodule(name, module.widened(model.dtype))
    if model.shape.tied:
        model.tie_()


def refuse_quantized(model: Transformer) -> None:
    """Make sure that the weights of `model` can be changed.

    Raises:
        ConfigError: they are quantized.
    """
    if any(isinstance(layer, QuantizedLinear) for layer in layers(model).values()):
        raise ConfigError('quantized weights cannot be trained or perturbed; load the model with weights "auto", or use LoRA')


def layers(model: Transformer, name: str | None = None) -> dict[str, Linear]:
    """The linear layers of all blocks by name: what an adapter sits on; or those that the adapter called `name` does sit on."""
    every = {f"blocks.{i}.{kind}": getattr(b, kind) for i, b in enumerate(model.blocks) for kind in LAYERS}
    return {at: layer for at, layer in every.items() if name is None or name in layer.adapters}
