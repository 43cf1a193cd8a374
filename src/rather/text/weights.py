"""Model files in and out: Hugging Face folders (safetensors) and GGUF, for the families of `transformer.py`.

Files keep the names of the Hugging Face models; the tables below say which of them our fused tensors are made of.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rather.errors import ModelError
from rather.kernels.quantized import Bits
from rather.kernels.quantized_rows import laid
from rather.text.files import gguf_file, quantization, scored
from rather.text.files.description import read_config, shape_of
from rather.text.files.fields import UnsupportedError
from rather.text.files.stored import Stored, folder_tensors
from rather.text.linear import QuantizedEmbedding, QuantizedLinear
from rather.text.shape import Shape
from rather.text.transformer import Transformer

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
GEMMA = LLAMA | {
    "after1.weight": ["model.layers.{i}.post_attention_layernorm.weight"],
    "norm2.weight": ["model.layers.{i}.pre_feedforward_layernorm.weight"],
    "after2.weight": ["model.layers.{i}.post_feedforward_layernorm.weight"],
}
OLMO2 = LLAMA | {
    "after1.weight": ["model.layers.{i}.post_attention_layernorm.weight"],
    "after2.weight": ["model.layers.{i}.post_feedforward_layernorm.weight"],
}
PHI3 = LLAMA | {"qkv": ["model.layers.{i}.self_attn.qkv_proj"], "up": ["model.layers.{i}.mlp.gate_up_proj"]}
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
TABLES = {"gpt2": GPT2, "gemma3_text": GEMMA, "olmo2": OLMO2, "phi3": PHI3}
"""What is not there is as in Llama."""
BUFFERS = r"(.*\.)?rotary_emb\.inv_freq|transformer\.h\.\d+\.attn\.(masked_)?bias"  # old files hold what is computed from the shape


@dataclass(frozen=True)
class Plan:
    """A model before it is read: its description, its shape, and the tensors that make up each of ours, in order."""

    config: dict[str, Any]
    shape: Shape
    parts: dict[str, list[Stored]]

    def __str__(self) -> str:
        """For example "llama with 2 layers and 135 million parameters in Q4_1"."""
        numbers: Counter[str] = Counter()
        for stored in (part for parts in self.parts.values() for part in parts):
            numbers[stored.format] += math.prod(stored.shape)
        formats = " and ".join(name for name, _ in numbers.most_common())
        return f"{self.shape.family} with {self.shape.layers} layers and {numbers.total():,} parameters in {formats}"


def file_names(shape: Shape, ours: str) -> list[str]:
    """The names in a Hugging Face file of the tensors that make up our tensor or layer `ours`, in order.

    For example "blocks.3.qkv" gives the names of layer 3's q, k and v projection, without ".weight" or ".bias".
    """
    table = TABLES.get(shape.family, LLAMA)
    index = ""
    if ours.startswith("blocks."):
        _, index, ours = ours.split(".", 2)
    suffix = ""
    if ours not in table:
        ours, _, kind = ours.rpartition(".")
        suffix = f".{kind}"
    return [name.format(i=index) + suffix for name in table[ours]]


def plan(path: Path) -> Plan:
    """What is at `path` and which tensors make up ours, without reading any.

    Raises:
        UnsupportedError: an architecture that is not ours.
        ModelError: no weights, or tensors that are missing, of another shape or unknown, or numbers in a format that cannot be read.
    """
    config = read_config(path)
    shape = shape_of(config)
    if path.suffix == ".gguf":
        tensors = gguf_file.tensors(path, shape)
    else:
        tensors = quantization.dequantized(folder_tensors(path), quantization.schemes_of(config), path)
    if scored.is_scored(config):
        config, tensors = scored.language_model(config, tensors)
        shape = replace(shape, tied=True)
    if shape.is_gpt2:  # the first files lack the prefix
        tensors = {"transformer." + n if n.startswith(("h.", "wte.", "wpe.", "ln_f.")) else n: t for n, t in tensors.items()}
    if shape.layers > len(tensors):
        raise ModelError(f"{path} has {len(tensors)} tensors for {shape.layers} layers; the weights are incomplete")
    unused = {name for name in tensors if not re.fullmatch(BUFFERS, name)}
    if shape.tied and "lm_head.weight" in unused:  # a head of its own beats what config.json says, as in `transformers`
        head, embedding = tensors["lm_head.weight"], tensors.get(file_names(shape, "embedding.weight")[0])
        if embedding is not None and not torch.equal(head.read(), embedding.read()):
            shape, config = replace(shape, tied=False), config | {"tie_word_embeddings": False}
        else:
            unused.remove("lm_head.weight")
    with torch.device("meta"):
        model = Transformer(shape)
    parts = {}
    for ours, parameter in model.state_dict().items():
        if ours == "unembedding.weight" and shape.tied:
            continue
        theirs = file_names(shape, ours)
        if missing := [name for name in theirs if name not in tensors]:
            raise ModelError(f"{path} has no tensor {missing[0]!r}; the weights are incomplete")
        sizes = getattr(model.get_submodule(ours.rpartition(".")[0]), "parts", {}).values() if len(theirs) > 1 else [len(parameter)]
        for name, size in zip(theirs, sizes, strict=True):
            expected = (size, *parameter.shape[1:])
            expected = expected[::-1] if shape.is_gpt2 and is_linear(ours) else expected
            if tensors[name].shape != expected:
                raise ModelError(f"{name} in {path} has shape {tensors[name].shape}, not {expected}")
        parts[ours] = [tensors[name] for name in theirs]
        unused -= set(theirs)
    if unused:
        raise ModelError(
            f"{path} has a tensor {min(unused)!r}, which rather's {shape.family} does not know and which may change what the model computes"
        )
    return Plan(config, shape, parts)


def load(
    path: Path, dtype: torch.dtype = torch.float32, weights_dtype: torch.dtype | None = None, bits: Bits | None = None,
    on: torch.device = torch.device("cpu"),
) -> Transformer:  # fmt: skip
    """The transformer in a model folder or GGUF file, computing in `dtype`, its weights held in `weights_dtype` (dtype).

    With `bits` the linear layers and the embedding are held quantized: as a GGUF file holds them where products can use that, else
    quantized to Q8_0 or Q4_0, with 4 bits also to Q8_0 what the file holds in more of them, the embedding and the head. They go to
    the device `on`, one by one as they are read, and stay there; `Module.to` moves the others.

    Raises:
        ModelError: what `plan` raises, or weights that cannot be quantized.
    """
    try:
        planned = plan(path)
    except UnsupportedError as e:
        raise ModelError(f"{path} cannot be read by rather's own transformer: {e}") from None
    shape = planned.shape
    with torch.device("meta"):
        model = Transformer(shape, dtype)
    state = {}
    for ours, stored in planned.parts.items():
        at = ours.rpartition(".")[0]
        if bits and (of := quantized_to(ours, bits)):
            transposed, named = shape.is_gpt2 and is_linear(ours), zip(file_names(shape, ours), stored, strict=True)
            each = [part.quantized(of, transposed, f"{name} in {path}") for name, part in named]
            held = laid(each, on)
            if at == "embedding":
                model.set_submodule(at, QuantizedEmbedding(held, dtype))
            if at != "embedding" or shape.tied:
                layer = "unembedding" if at == "embedding" else at
                model.set_submodule(layer, QuantizedLinear(model.get_submodule(layer), held))  # type: ignore[arg-type]
            continue
        parts = [part.read() for part in stored]
        if shape.is_gpt2 and is_linear(ours):
            parts = [part.t() for part in parts]
        state[ours] = (torch.cat(parts) if len(parts) > 1 else parts[0]).to(weights_dtype or dtype).contiguous()
    model.load_state_dict(state, assign=True, strict=False)
    model.description = {key: value for key, value in planned.config.items() if key not in quantization.KEYS}
    if shape.tied and not bits:
        model.tie_()
    if model.rotary is not None:
        model.rotary = type(model.rotary)(shape)
    return model


def tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """The weights, without adapters, under the names of a Hugging Face file."""
    for ours, tensor in chain(model.named_parameters(), widened(model)):  # a tied head is not named twice
        if ".adapters." in ours:
            continue
        names = file_names(model.shape, ours)
        tensor = tensor.detach().cpu()
        if model.shape.is_gpt2 and is_linear(ours):
            tensor = tensor.t()
        layer = model.get_submodule(ours.rpartition(".")[0])
        sizes = list(getattr(layer, "parts", {"": len(tensor)}).values())
        yield from zip(names, tensor.split(sizes) if len(names) > 1 else [tensor], strict=True)


def save(model: Transformer, folder: Path, dtype: torch.dtype | None = None, head: scored.Head | None = None) -> None:
    """Write `folder`/model.safetensors, its numbers as `dtype` (None: as they are), and config.json, for `transformers` and `load`.

    With a `head` it is a model that scores whole texts.
    """
    state = {name: tensor.to(dtype or tensor.dtype, copy=True).contiguous() for name, tensor in tensors(model)}
    description = {key: value for key, value in model.description.items() if key not in ("_name_or_path", "torch_dtype")}
    if head is not None:
        state.pop("lm_head.weight", None)
        state[scored.HEAD] = head.weight.detach().cpu().to(dtype or head.weight.dtype, copy=True)
        description = scored.described(description, head.pad)
    description["dtype"] = str(next(iter(state.values())).dtype).removeprefix("torch.")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n")


def widened(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """The quantized weights by name, in the type that the model computes in."""
    for name, module in model.named_modules():
        tied = name == "unembedding" and model.shape.tied
        if isinstance(module, QuantizedLinear | QuantizedEmbedding) and not tied:
            yield f"{name}.weight", module.held.widened(model.dtype)


def quantized_to(ours: str, bits: Bits) -> Bits | None:
    """In how many bits ordinary numbers of our tensor `ours` are held, if it is one that is quantized."""
    return bits if is_linear(ours) else 8 if ours in ("embedding.weight", "unembedding.weight") else None


def is_linear(ours: str) -> bool:
    """Linear layers of blocks, whose weights GPT-2's files hold transposed."""
    return ours.startswith("blocks.") and ours.endswith(("qkv.weight", "out.weight", "up.weight", "down.weight"))
