"""GGUF files out of small model folders, as llama.cpp's converter writes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from safetensors.numpy import load_file

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
    "q_norm": "attn_q_norm", "k_norm": "attn_k_norm", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip


def write_gguf(
    folder: Path,
    path: Path,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    formats: dict[str, str] | None = None,
) -> Path:
    """The model in `folder` as a GGUF file with a tokenizer of single letters; `metadata` and `tensors` are added (None: left out).

    With `formats` its matrices are quantized: to the one of their name, such as attn_q, else to that of "".
    """
    config = json.loads((folder / "config.json").read_text())
    family, heads = config["model_type"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    rope = config.get("rope_parameters") or {}
    gemma = family == "gemma3_text"
    if gemma:
        family, rope = "gemma3", rope["full_attention"]
    words = ["<unk>", "<s>", "</s>", *(chr(33 + i) for i in range(config["vocab_size"] - 4)), "!!"]
    fields = {
        f"{family}.block_count": config["num_hidden_layers"],
        f"{family}.context_length": config["max_position_embeddings"],
        f"{family}.embedding_length": config["hidden_size"],
        f"{family}.feed_forward_length": config["intermediate_size"],
        f"{family}.attention.head_count": heads,
        f"{family}.attention.head_count_kv": kv_heads,
        f"{family}.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        f"{family}.attention.key_length": config.get("head_dim") or config["hidden_size"] // heads,
        f"{family}.attention.value_length": config.get("head_dim") or config["hidden_size"] // heads,
        f"{family}.rope.dimension_count": config.get("head_dim") or config["hidden_size"] // heads,
        f"{family}.rope.freq_base": float(rope.get("rope_theta", 10000.0)),
        f"{family}.vocab_size": config["vocab_size"],
        "general.file_type": 0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(words) - 3),
        "tokenizer.ggml.merges": ["! !"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    writer = GGUFWriter(path, family)
    for key, value in (fields | (metadata or {})).items():
        if value is not None:
            _add(writer, key, value)
    for name, tensor in load_file(folder / "model.safetensors").items():
        stem, _, kind = name.rpartition(".")
        theirs = NAMES.get(stem) or f"blk.{stem.split('.')[2]}.{NAMES[stem.rpartition('.')[2]]}"
        if gemma:
            theirs = theirs.replace("ffn_norm", "post_attention_norm") if "post_attention" in stem else theirs
            tensor = tensor + 1 if stem.endswith("norm") else tensor
        turned = {"q_proj": heads, "k_proj": kv_heads}.get(stem.rpartition(".")[2])
        if turned and family == "llama":
            tensor = tensor.reshape(turned, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
        tensor, form = np.ascontiguousarray(tensor), None
        if formats and tensor.ndim == 2:
            form = GGMLQuantizationType[formats.get(theirs.rpartition(".")[2], formats[""])]
            tensor = quantize(tensor, form)
        writer.add_tensor(f"{theirs}.{kind}", tensor, raw_dtype=form)
    for name, tensor in (tensors or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    kinds[type(value)](key, value)
