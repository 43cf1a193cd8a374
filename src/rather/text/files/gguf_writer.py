"""Models as GGUF files, for llama.cpp and Ollama: the families that llama.cpp computes as we do."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rather.errors import ModelError
from rather.text import weights
from rather.text.files import gguf_tokens
from rather.text.files.gguf_file import FACTORS, FAMILIES, GRANITE, NAMES, TABLES, TURNED, gemma_scalar
from rather.text.files.rope import llama3_scaled
from rather.text.shape import Shape
from rather.text.tokens import Tokens
from rather.text.transformer import Transformer

Kind = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
FILE_TYPES: dict[Kind, int] = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}
FREE = ("llama", "granite")  # which llama.cpp computes with any biases, and with the scaling of Llama 3.1
GGUF_NAMES = {ours: theirs for theirs, ours in FAMILIES.items()} | {"mistral": "llama"}


def family(shape: Shape) -> str:
    """The name that GGUF has for a model of this shape.

    Raises:
        ModelError: it has none, or llama.cpp computes it otherwise.
    """
    name, what = GGUF_NAMES.get(shape.family), f"a {shape.family} model"
    if name is None:
        raise ModelError(f"{what} cannot be written as GGUF; rather writes {', '.join(FAMILIES)}, others as a model folder (rather merge)")
    gemma, scaling = name == "gemma3", (shape.rope_scaling or {}).get("rope_type", "default")
    scalings = ("default", "linear", "llama3") if name in FREE else ("default", "linear")
    biased = shape.out_bias or shape.mlp_bias or shape.qkv_bias != (name == "qwen2")
    still = {i for i in range(shape.layers) if name == "smollm3" and i % 4 == 3}
    scale = shape.attention_scale or shape.head_width**-0.5
    theirs = gemma_scalar(shape.layers, shape.width, shape.heads, shape.head_width) ** -0.5
    reasons = {
        "with a sliding window": not gemma and shape.window is not None,
        "without sliding windows in all layers but every n-th": gemma and _period(shape) is None,
        f"whose rotary positions are scaled by {scaling!r}": scaling not in scalings,
        "whose layers with rotary positions are not all but every fourth": shape.no_rope != still,
        "with other biases than its family's": name not in FREE and biased,
        "with another activation than its family's": shape.gelu != gemma,
        "whose heads together are not as wide as it is": name == "olmo2" and shape.heads * shape.head_width != shape.width,
        "whose logits are made of its embedding": name == "olmo2" and shape.tied,
        f"whose attention has the scale {scale:.4g}": gemma and not math.isclose(scale, theirs),
    }
    for reason, so in reasons.items():
        if so:
            raise ModelError(f"{what} {reason} cannot be written as GGUF; use it as a model folder (rather merge)")
    return name


def _period(shape: Shape) -> int | None:
    """The n of which every n-th layer, counted from 1, sees all tokens and the others those in the window, None: there is no such n."""
    local = {n: {i for i in range(shape.layers) if (i + 1) % n} for n in range(2, shape.layers + 2)}
    return next((n for n, layers in local.items() if shape.window is not None and layers == shape.local), None)


def write(model: Transformer, tokens: Tokens, path: Path, kind: Kind, name: str) -> None:
    """Write `path`: matrices as `kind`, and vectors, of which there are few numbers, as they are computed with, in float32.

    With "q4_0" the matrix that makes logits is q8_0. Rows that are no multiple of a block's 32 numbers stay f16.

    Raises:
        ModelError: the family or the tokenizer cannot be written; then nothing is.
    """
    import gguf

    fields = _fields(model.shape, name, kind) | gguf_tokens.metadata(tokens, model.shape.vocabulary)
    writer = gguf.GGUFWriter(path, family(model.shape))
    for key, value in fields.items():
        _add(writer, key, value)
    formats = {key: _format(key, tensor, kind, model.shape.tied) for key, tensor in _tensors(model)}
    for key, tensor in _tensors(model):
        size = gguf.quant_shape_to_byte_shape(tensor.shape, formats[key])
        writer.add_tensor_info(key, size, np.dtype(np.uint8), int(np.prod(size)), formats[key])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for key, tensor in _tensors(model):  # one at a time in memory
        writer.write_tensor_data(gguf.quantize(tensor.float().numpy(), formats[key]).view(np.uint8))
    writer.close()


def _fields(shape: Shape, name: str, kind: Kind) -> dict[str, Any]:
    """What the metadata says of the model itself."""
    own: dict[str, Any] = {
        "block_count": shape.layers, "context_length": shape.context, "embedding_length": shape.width,
        "feed_forward_length": shape.mlp_width, "attention.head_count": shape.heads, "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_width, "attention.value_length": shape.head_width,
        "attention.layer_norm_rms_epsilon": float(shape.norm_eps), "rope.dimension_count": shape.head_width,
        "rope.freq_base": float(shape.rope_theta), "vocab_size": shape.vocabulary,
    }  # fmt: skip
    scaling = shape.rope_scaling or {}
    if scaling.get("rope_type") == "linear":
        own |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}
    if shape.local_theta is not None:
        own |= {"attention.sliding_window": shape.window, "attention.sliding_window_pattern": _period(shape)}
        own |= {"rope.freq_base_swa": float(shape.local_theta)}
    if shape.family == "granite":
        scales = (shape.logits_scale, shape.residual_scale, shape.embedding_scale, shape.attention_scale)
        own |= {key: float(x or 1.0) for key, x in zip((*GRANITE.values(), "attention.scale"), scales, strict=True)}
    general = {"name": name, "file_type": FILE_TYPES[kind], "quantization_version": 2}
    return {f"general.{k}": v for k, v in general.items()} | {f"{family(shape)}.{k}": v for k, v in own.items()}


def _tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """The tensors under their names in a GGUF file; there the rows that rotary positions turn together stand beside each other in Llama."""
    shape = model.shape
    theirs_of = {ours: theirs for theirs, ours in TABLES.get(shape.family, NAMES).items()}
    scaling = shape.rope_scaling or {}
    if scaling.get("rope_type") == "llama3":
        frequencies = 1.0 / shape.rope_theta ** (torch.arange(0, shape.head_width, 2, dtype=torch.float64) / shape.head_width)
        yield FACTORS, (frequencies / llama3_scaled(frequencies, scaling)).float()
    for name, tensor in weights.tensors(model):
        stem, _, what = name.rpartition(".")
        index = re.search(r"\.(\d+)\.", stem)
        theirs = theirs_of[re.sub(r"\.\d+\.", ".{i}.", stem)]
        heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}.get(theirs) if family(shape) in TURNED else None
        if heads:
            tensor = tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
        if theirs.endswith("norm"):
            tensor = tensor + shape.norm_plus  # what is multiplied with
        yield f"{f'blk.{index[1]}.' if index else ''}{theirs}.{what}", tensor.contiguous()


def _format(name: str, tensor: Tensor, kind: Kind, tied: bool) -> Any:
    import gguf

    if tensor.dim() == 1:
        return gguf.GGMLQuantizationType.F32
    if kind == "q4_0" and name == ("token_embd.weight" if tied else "output.weight"):
        kind = "q8_0"
    if kind.startswith("q") and tensor.shape[-1] % 32:
        kind = "f16"
    return gguf.GGMLQuantizationType[kind.upper()]


def _add(writer: Any, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    kinds[type(value)](key, value)


def modelfile(path: Path, tokens: Tokens) -> str:
    """What `ollama create` reads: the file, and the words at which answers end."""
    ends = [json.dumps(word, ensure_ascii=False) for word in tokens.tokenizer.convert_ids_to_tokens(sorted(tokens.stop)) if word]
    return "\n".join([f"FROM ./{path.name}", *(f"PARAMETER stop {word}" for word in ends)]) + "\n"
