"""Model files in and out: Hugging Face folders (safetensors) and GGUF, for the families of `transformer.py`.

Files keep the names of the Hugging Face models; the tables below say which of them our fused tensors are made of.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rather.errors import ModelError
from rather.text.files import gguf_file
from rather.text.files.description import read_config, shape_of, unsupported
from rather.text.transformer import Shape, Transformer

LLAMA = {
    "embedding.weight": ["model.embed_tokens.weight"],
    "norm.weight": ["model.norm.weight"],
    "unembedding.weight": ["lm_head.weight"],
    "norm1.weight": ["model.layers.{i}.input_layernorm.weight"],
    "norm2.weight": ["model.layers.{i}.post_attention_layernorm.weight"],
    "qkv": [f"model.layers.{{i}}.self_attn.{part}_proj" for part in "qkv"],
    "out": ["model.layers.{i}.self_attn.o_proj"],
    "q_norm.weight": ["model.layers.{i}.self_attn.q_norm.weight"],
    "k_norm.weight": ["model.layers.{i}.self_attn.k_norm.weight"],
    "up": ["model.layers.{i}.mlp.gate_proj", "model.layers.{i}.mlp.up_proj"],
    "down": ["model.layers.{i}.mlp.down_proj"],
}
GPT2 = {
    "embedding.weight": ["transformer.wte.weight"],
    "positions.weight": ["transformer.wpe.weight"],
    "norm.weight": ["transformer.ln_f.weight"],
    "norm.bias": ["transformer.ln_f.bias"],
    "unembedding.weight": ["lm_head.weight"],
    "norm1.weight": ["transformer.h.{i}.ln_1.weight"],
    "norm1.bias": ["transformer.h.{i}.ln_1.bias"],
    "norm2.weight": ["transformer.h.{i}.ln_2.weight"],
    "norm2.bias": ["transformer.h.{i}.ln_2.bias"],
    "qkv": ["transformer.h.{i}.attn.c_attn"],
    "out": ["transformer.h.{i}.attn.c_proj"],
    "up": ["transformer.h.{i}.mlp.c_fc"],
    "down": ["transformer.h.{i}.mlp.c_proj"],
}


def file_names(shape: Shape, ours: str) -> list[str]:
    """The names in a Hugging Face file of the tensors that make up our tensor or layer `ours`, in order.

    For example "blocks.3.qkv" gives the names of layer 3's q, k and v projection, without ".weight" or ".bias".
    """
    table = GPT2 if shape.is_gpt2 else LLAMA
    index = ""
    if ours.startswith("blocks."):
        _, index, ours = ours.split(".", 2)
    suffix = ""
    if ours not in table:
        ours, _, kind = ours.rpartition(".")
        suffix = f".{kind}"
    return [name.format(i=index) + suffix for name in table[ours]]


def load(path: Path, dtype: torch.dtype = torch.float32, weights_dtype: torch.dtype | None = None) -> Transformer:
    """The transformer in a model folder or GGUF file, computing in `dtype`, its weights held in `weights_dtype` (dtype).

    Raises:
        ModelError: no weights, an architecture that is not ours, or tensors that are missing or of another shape.
    """
    config = read_config(path)
    reason = unsupported(config)
    if reason:
        raise ModelError(f"{path} cannot be read by rather's own transformer: {reason}")
    try:
        shape = shape_of(config)
    except KeyError as e:
        raise ModelError(f"{path} does not say {e.args[0]!r} in its config.json") from None
    with torch.device("meta"):
        model = Transformer(shape, dtype)
    names, fetch = gguf_file.tensors(path, shape) if path.suffix == ".gguf" else _safetensors(path)
    state = {}
    for ours, parameter in model.state_dict().items():
        if ours == "unembedding.weight" and shape.tied:
            continue
        theirs = file_names(shape, ours)
        if missing := [name for name in theirs if name not in names]:
            raise ModelError(f"{path} has no tensor {missing[0]!r}; the weights are incomplete")
        parts = [fetch(name) for name in theirs]
        if shape.is_gpt2 and _is_conv1d(ours):
            parts = [part.t() for part in parts]
        tensor = (torch.cat(parts) if len(parts) > 1 else parts[0]).to(weights_dtype or dtype).contiguous()
        if tensor.shape != parameter.shape:
            raise ModelError(f"{theirs[0]} in {path} has shape {tuple(tensor.shape)}, not {tuple(parameter.shape)}")
        state[ours] = tensor
    model.load_state_dict(state, assign=True, strict=False)
    model.description = config
    if shape.tied:
        model.tie_()
    if model.rotary is not None:
        model.rotary = type(model.rotary)(shape)
    return model


def save(model: Transformer, folder: Path) -> None:
    """Write `folder`/model.safetensors and config.json, which `transformers` and `load` read."""
    state = {}
    for ours, tensor in model.named_parameters():  # a tied head is not named twice
        if ".adapters." in ours:
            continue
        names = file_names(model.shape, ours)
        tensor = tensor.detach().cpu()
        if model.shape.is_gpt2 and _is_conv1d(ours):
            tensor = tensor.t()
        layer = model.get_submodule(ours.rpartition(".")[0])
        sizes = list(getattr(layer, "parts", {"": len(tensor)}).values())
        parts = tensor.split(sizes) if len(names) > 1 else [tensor]
        state |= {name: part.clone().contiguous() for name, part in zip(names, parts, strict=True)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.description, indent=2) + "\n")


def save_shifted(model: Transformer, after: dict[int, Tensor], folder: Path) -> None:
    """Write a model that by itself adds `after[i]` (C,) to the residual stream after block i: as the bias of the block's last layer.

    Families whose MLP has no bias are written as Llama, which has one and is otherwise the same.

    Raises:
        ModelError: the model has something that Llama has not.
    """
    shape, description = model.shape, dict(model.description)
    if not shape.mlp_bias:
        if shape.qk_norm or shape.window is not None:
            what = "norms of queries and keys" if shape.qk_norm else "a sliding window"
            raise ModelError(f"a steering vector cannot be merged into a {shape.family} model with {what}; load it in rather")
        attention = shape.qkv_bias or shape.out_bias
        shape = replace(shape, family="llama", mlp_bias=True, out_bias=attention)
        description |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "mlp_bias": True, "attention_bias": attention}
        description["head_dim"] = shape.head_width
    with torch.device("meta"):
        shifted = Transformer(shape, model.dtype)
    own = {name: t for name, t in model.state_dict().items() if ".adapters." not in name}
    zeros = {name: torch.zeros(t.shape, dtype=model.embedding.weight.dtype) for name, t in shifted.state_dict().items() if name not in own}
    shifted.load_state_dict(own | zeros, assign=True, strict=False)
    for block, vector in after.items():
        bias = f"blocks.{block}.down.bias"
        moved = (own | zeros)[bias].float() + vector.detach().cpu().float()
        shifted.get_submodule(f"blocks.{block}.down").bias = torch.nn.Parameter(moved.to(model.embedding.weight.dtype))
    if shape.tied:
        shifted.tie_()
    shifted.description = description
    save(shifted, folder)


def _is_conv1d(ours: str) -> bool:
    """GPT-2's files hold the weights of its linear layers transposed."""
    return ours.startswith("blocks.") and ours.endswith(("qkv.weight", "out.weight", "up.weight", "down.weight"))


Fetch = Callable[[str], Tensor]


def _safetensors(folder: Path) -> tuple[set[str], Fetch]:
    files = [f for f in sorted(folder.glob("*.safetensors")) if not f.name.startswith(("adapter", "reward", "steering"))]
    if not files:
        pickled = any(folder.glob("*.bin"))
        why = "only pickled weights (.bin), which may run code; convert them to safetensors" if pickled else "no weights (*.safetensors)"
        raise ModelError(f"{folder} has {why}")
    try:
        handles = [safe_open(f, framework="pt") for f in files]
        owner = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        raise ModelError(f"the weights in {folder} cannot be read: {e}") from None
    for name in list(owner):  # the first GPT-2 files lack the prefix
        if name.startswith(("h.", "wte.", "wpe.", "ln_f.")):
            owner["transformer." + name] = owner[name]
    return set(owner), lambda name: owner[name].get_tensor(
        name if name in owner[name].keys() else name.removeprefix("transformer.")  # noqa: SIM118
    )
