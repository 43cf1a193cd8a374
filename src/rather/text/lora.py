"""LoRA adapters by name on one base, in PEFT's file format."""

import copy
import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rather.errors import ModelError
from rather.text.linear import Adapter, Linear
from rather.text.transformer import Transformer
from rather.text.weights import file_names

LAYERS = ("qkv", "out", "up", "down")
PREFIX = "base_model.model."


def add(model: Transformer, name: str, rank: int, alpha: float, seed: int, blocks: int = 0) -> list[nn.Parameter]:
    """Put an adapter called `name` on every linear layer of the last `blocks` blocks, 0: of all; returns its parameters (float32)."""
    generator = torch.Generator().manual_seed(seed)
    for layer in list(layers(model).values())[-len(LAYERS) * blocks :]:
        adapter = Adapter(layer.weight.shape[1], tuple(layer.parts.values()), rank, alpha, generator)
        layer.adapters[name] = adapter.to(layer.weight.device)
    return parameters(model, name)


def parameters(model: Transformer, name: str) -> list[nn.Parameter]:
    """The parameters of the adapter called `name`."""
    return [p for layer in layers(model, name).values() for p in layer.adapters[name].parameters()]


def first(model: Transformer, name: str) -> int:
    """The first block with the adapter called `name`."""
    return min(int(at.split(".")[1]) for at in layers(model, name))


def save(model: Transformer, name: str, folder: Path, base: str = "") -> None:
    """Write adapter_model.safetensors and adapter_config.json, which `peft` loads. `base` says which model it is for."""
    state, targets, rank, alpha = {}, set(), 0, 0.0
    for ours, layer in layers(model, name).items():
        adapter: Adapter = layer.adapters[name]  # type: ignore[assignment]
        rank, alpha = adapter.rank, adapter.scale * adapter.rank
        downs = adapter.down.detach().cpu().split(rank)
        for theirs, down, up in zip(file_names(model.shape, ours), downs, adapter.up, strict=True):
            state[f"{PREFIX}{theirs}.lora_A.weight"] = down.clone().contiguous()
            state[f"{PREFIX}{theirs}.lora_B.weight"] = up.detach().cpu().clone().contiguous()
            targets.add(theirs.rpartition(".")[2])
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank, "lora_alpha": alpha,
        "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": model.shape.is_gpt2, "inference_mode": True,
        "target_modules": sorted(targets), "layers_to_transform": sorted({int(ours.split(".")[1]) for ours in layers(model, name)}),
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load(model: Transformer, name: str, folder: Path) -> list[nn.Parameter]:
    """Read an adapter written by `save` or by `peft` for the same layers; returns its parameters.

    An adapter called `name` that is there already is overwritten in place.

    Raises:
        ModelError: the files are missing or damaged, or the adapter is of another kind or for other layers.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        state = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as e:
        raise ModelError(f"the adapter in {folder} cannot be read: {e}") from None
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("use_rslora"):
        raise ModelError(f"the adapter in {folder} is {config.get('peft_type')!r} with options; only plain LORA is read")
    if not parameters(model, name):
        lowest = min((int(number) for key in state for number in re.findall(r"\.(\d+)\.", key)), default=0)
        add(model, name, config["r"], config["lora_alpha"], 0, model.shape.layers - lowest)
    unread = set(state)
    with torch.no_grad():
        for ours, layer in layers(model, name).items():
            adapter: Adapter = layer.adapters[name]  # type: ignore[assignment]
            if adapter.rank != config["r"]:
                raise ModelError(f"the adapter in {folder} has rank {config['r']}, not {adapter.rank}; set model.rank to it")
            for i, theirs in enumerate(file_names(model.shape, ours)):
                keys = [f"{PREFIX}{theirs}.lora_{side}.weight" for side in "AB"]
                if keys[0] not in state:  # this layer has no adapter: B stays zero, so it adds nothing
                    continue
                target = adapter.down[i * adapter.rank : (i + 1) * adapter.rank]
                for key, into in zip(keys, (target, adapter.up[i]), strict=True):
                    if state[key].shape != into.shape:
                        shapes = f"{tuple(state[key].shape)}, not {tuple(into.shape)}"
                        raise ModelError(f"{key} in {folder} has shape {shapes}: the adapter is for another model")
                    into.copy_(state[key])
                    unread.discard(key)
    if unread:
        why = "are not adapted here; if model.blocks leaves them out, set it to 0"
        raise ModelError(f"the adapter in {folder} is for layers that {why}: {min(unread)}")
    return parameters(model, name)


@torch.no_grad()
def updates(model: Transformer, name: str) -> "dict[nn.Module, tuple[Tensor, Tensor, Tensor | None]]":
    """What the adapter called `name` adds, as `decoder.Several` takes it: the same for all rows."""
    found: dict[nn.Module, tuple[Tensor, Tensor, Tensor | None]] = {}
    for layer in layers(model, name).values():
        adapter: Adapter = layer.adapters[name]  # type: ignore[assignment]
        up = torch.block_diag(*(u.T for u in adapter.up)) * adapter.scale
        found[layer] = adapter.down.to(model.dtype, copy=True), up.to(model.dtype), None
    return found


@torch.no_grad()
def merged(model: Transformer, name: str) -> Transformer:
    """A copy of `model` whose weights the adapter called `name` has become a part of."""
    found = copy.deepcopy(model)
    for layer in layers(found, name).values():
        adapter: Adapter = layer.adapters[name]  # type: ignore[assignment]
        parts = layer.weight.split([len(up) for up in adapter.up])
        for part, up, down in zip(parts, adapter.up, adapter.down.split(adapter.rank), strict=True):
            part.add_((up @ down).to(part.dtype), alpha=adapter.scale)
        del layer.adapters[name]
    return found


def layers(model: Transformer, name: str | None = None) -> dict[str, Linear]:
    """The linear layers of all blocks by name: what an adapter sits on; or those that the adapter called `name` does sit on."""
    every = {f"blocks.{i}.{kind}": getattr(b, kind) for i, b in enumerate(model.blocks) for kind in LAYERS}
    return {at: layer for at, layer in every.items() if name is None or name in layer.adapters}
