"""GGUF files: metadata as a config.json, tensors under the names that Hugging Face gives them."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rather.errors import ModelError
from rather.text.transformer import Shape

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "model.layers.{i}.input_layernorm",
    "ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "attn_q": "model.layers.{i}.self_attn.q_proj",
    "attn_k": "model.layers.{i}.self_attn.k_proj",
    "attn_v": "model.layers.{i}.self_attn.v_proj",
    "attn_output": "model.layers.{i}.self_attn.o_proj",
    "attn_q_norm": "model.layers.{i}.self_attn.q_norm",
    "attn_k_norm": "model.layers.{i}.self_attn.k_norm",
    "ffn_gate": "model.layers.{i}.mlp.gate_proj",
    "ffn_up": "model.layers.{i}.mlp.up_proj",
    "ffn_down": "model.layers.{i}.mlp.down_proj",
}


@functools.lru_cache(maxsize=1)
def open_file(path: Path) -> Any:
    """The file's metadata and list of tensors.

    Raises:
        ModelError: there is no such file, or it is no GGUF file.
    """
    import gguf

    class Reader(gguf.GGUFReader):
        def _build_fields(self, *where: Any) -> Any:
            self.data = self.data.view(np.ndarray)  # pyright: ignore[reportAttributeAccessIssue]  # slicing a memmap is slow
            return super()._build_fields(*where)

    try:
        return Reader(path)
    except FileNotFoundError:
        raise ModelError(f"there is no file {path}") from None
    except (ValueError, OSError, IndexError) as e:
        raise ModelError(f"{path} is no GGUF file that can be read: {e}") from None


def config_of(reader: Any) -> dict[str, Any]:
    """What a GGUF file's metadata says, as the config.json of the same model."""

    def field(name: str, default: Any = None) -> Any:
        return reader.fields[name].contents() if name in reader.fields else default

    family = field("general.architecture")

    def get(key: str, default: Any = None) -> Any:
        return field(f"{family}.{key}", default)

    heads = get("attention.head_count", 1)
    ends = [field(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]  # end of sequence, of turn, of message
    ends = list(dict.fromkeys(i for i in ends if i is not None))
    return {
        "model_type": family, "architectures": [f"{family.capitalize()}ForCausalLM"], "hidden_act": "silu",
        "vocab_size": get("vocab_size") or len(reader.fields["tokenizer.ggml.tokens"].data),
        "hidden_size": get("embedding_length"), "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads, "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": get("attention.key_length") or get("embedding_length", 0) // heads,
        "intermediate_size": get("feed_forward_length"), "max_position_embeddings": get("context_length"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"), "rope_theta": get("rope.freq_base", 10000.0),
        "tie_word_embeddings": not any(t.name == "output.weight" for t in reader.tensors),
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
    }  # fmt: skip


def tensors(path: Path, shape: Shape) -> tuple[set[str], Callable[[str], Tensor]]:
    """The names, as in a Hugging Face file, of the tensors in a GGUF file, and a function that reads one of them in float32."""
    from gguf.quants import dequantize

    found = {}
    for tensor in open_file(path).tensors:
        stem, _, kind = tensor.name.rpartition(".")
        index = ""
        if stem.startswith("blk."):
            _, index, stem = stem.split(".", 2)
        if stem in NAMES:
            found[f"{NAMES[stem].format(i=index)}.{kind}"] = tensor

    def fetch(name: str) -> Tensor:
        tensor = found[name]
        values = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), np.float32))
        heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}.get(name.split(".")[-2])
        if heads and shape.family in ("llama", "mistral"):  # GGUF interleaves the halves that rotary positions turn
            values = values.view(heads, -1, 2, *values.shape[1:]).transpose(1, 2).reshape(values.shape)
        return values

    return set(found), fetch
