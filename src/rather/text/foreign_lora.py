"""LoRA adapters by name on a model of `transformers`, by `peft`: several on one base, which stays the same object."""

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from rather.errors import ModelError
from rather.text.files import adapter as adapter_files

WITH_STATE = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
"""The models for which `peft` refuses adapters on `out_proj`."""


def add(inner: Any, name: str, rank: int, alpha: float, seed: int) -> list[nn.Parameter]:
    """Put a new adapter called `name` on all linear layers of `inner` that `reached` names; returns its parameters (float32).

    Raises:
        ModelError: `peft` is not installed.
    """
    targets: list[str] | str = reached(inner)
    if (part := decoder(inner)) is not inner:  # layers of the same names look at pictures
        at = next(at for at, module in inner.named_modules() if module is part)
        targets = rf"{re.escape(at)}\..*\.({'|'.join(targets)})"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _inject(inner, name, {"r": rank, "lora_alpha": alpha, "target_modules": targets, "task_type": "CAUSAL_LM"})


def load(inner: Any, name: str, folder: Path) -> list[nn.Parameter]:
    """Read an adapter in PEFT's format, and what it is like, from `folder`; returns its parameters.

    An adapter called `name` that is there already is overwritten in place.

    Raises:
        ModelError: the files are missing or damaged, or the adapter is of another kind or for another model.
    """
    from peft import set_peft_model_state_dict

    config, state = adapter_files.read(folder)
    if name not in getattr(inner, "peft_config", {}):
        _inject(inner, name, adapter_files.shape(config))
    state = {key.removeprefix(adapter_files.PREFIX): value for key, value in state.items()}
    try:
        result = set_peft_model_state_dict(inner, state, adapter_name=name)
    except RuntimeError as e:
        raise ModelError(f"the adapter in {folder} is for another model: {str(e).splitlines()[-1].strip()}") from None
    wrong = [*result.unexpected_keys, *(key for key in result.missing_keys if f".{name}." in key)]
    if wrong:
        raise ModelError(f"the adapter in {folder} is for other layers than this model's: {min(wrong)}")
    return parameters(inner, name)


def save(inner: Any, name: str, folder: Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json, which `peft` loads."""
    from peft import get_peft_model_state_dict

    config = inner.peft_config[name]
    state = get_peft_model_state_dict(inner, adapter_name=name, save_embedding_layers=False)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{adapter_files.PREFIX}{key}": value.detach().cpu().clone().contiguous() for key, value in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.base_model_name_or_path, config.inference_mode = str(inner.config.name_or_path), True
    config.save_pretrained(folder)


def merged(inner: Any, folder: Path) -> Any:
    """`inner` with the adapter in `folder` as a part of its weights."""
    adapter_files.read(folder)  # refuses what `peft` would ignore
    from peft import PeftModel

    return PeftModel.from_pretrained(inner, str(folder)).merge_and_unload()


def baked(inner: Any, name: str | None) -> Any:
    """`inner` with the adapter called `name` (None: none) as a part of its weights, in place, and without any adapter beside it."""
    for at, layer in [(at, module) for at, module in inner.named_modules() if any(module is x for x in _layers(inner))]:
        if name is not None and name in layer.lora_A:
            layer.merge(adapter_names=[name])
        parent, _, own = at.rpartition(".")
        setattr(inner.get_submodule(parent), own, layer.get_base_layer())
    del inner.peft_config
    return inner


def activate(inner: Any, name: str | None) -> None:
    """Let the adapter called `name` alone act; None: none of them. `peft` would also stop the gradient of all others."""
    for layer in _layers(inner):
        if layer.disable_adapters == (name is None) and (name is None or layer.active_adapters == [name]):
            continue
        learns = [(p, p.requires_grad) for p in layer.parameters()]
        layer.enable_adapters(name is not None)
        if name is not None:
            layer.set_adapter(name)
        for p, was in learns:
            p.requires_grad_(was)


def decoder(inner: Any) -> Any:
    """What of a model computes text: all of it, or the decoder of one that sees pictures or hears sounds as well."""
    return inner if inner.config.get_text_config() is inner.config else inner.get_decoder()


def every(inner: Any) -> list[nn.Parameter]:
    """All parameters of `inner` that compute text."""
    return list(dict.fromkeys(p for part in (decoder(inner), inner.get_output_embeddings()) for p in part.parameters()))


def reached(inner: Any) -> list[str]:
    """The names of the linear layers that LoRA adapts: all that compute text, but the one that makes the logits.

    Experts that are kept in one tensor are not linear layers. Models with a state take the weights of `dt_proj` (and, by kernels, those of
    Mamba's `out_proj`) past the layer, where an adapter has no effect.
    """
    from transformers.pytorch_utils import Conv1D

    last = inner.get_output_embeddings()
    past = {"dt_proj", "out_proj"} if inner.config.model_type in WITH_STATE else {"dt_proj"}
    layers = [
        at.removesuffix(".base_layer").rpartition(".")[2]
        for at, layer in decoder(inner).named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and layer is not last and ".lora_" not in at
    ]
    return sorted(set(layers) - past)


def parameters(inner: Any, name: str) -> list[nn.Parameter]:
    """The parameters of the adapter called `name`."""
    return [p for at, p in inner.named_parameters() if ".lora_" in at and f".{name}." in at]


def _layers(inner: Any) -> list[Any]:
    """The layers that adapters sit on."""
    if not hasattr(inner, "peft_config"):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in inner.modules() if isinstance(module, BaseTunerLayer)]


def _inject(inner: Any, name: str, config: dict[str, Any]) -> list[nn.Parameter]:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ModelError('LoRA on this architecture needs the package peft; install it or set model.train to "full"') from None
    learns = [(p, p.requires_grad) for p in inner.parameters()]
    with warnings.catch_warnings():
        for said in ("Already found a `peft_config`", "You are trying to modify a model with PEFT for a second", "fan_in_fan_out is set"):
            warnings.filterwarnings("ignore", said)  # several adapters are what is wanted
        try:
            inject_adapter_in_model(LoraConfig(**config), inner, name)
        except ValueError as e:
            raise ModelError(f"peft cannot put an adapter on this model: {str(e).splitlines()[0]}") from None
    inner.eval()
    for p, was in learns:
        p.requires_grad_(was)
    for p in parameters(inner, name):  # trained in float32, whatever the base computes in
        p.data = p.data.float()
    return parameters(inner, name)
