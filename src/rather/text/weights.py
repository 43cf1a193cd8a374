"""Model files in and out: Hugging Face folders (safetensors) and GGUF, for the families of `transformer.py`.

Files keep the names of the Hugging Face models; the tables below say which of them our fused tensors are made of.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rather.errors import ModelError
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
GGUF_NAMES = {
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
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gpt2")


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


def unsupported(config: dict[str, Any]) -> str | None:
    """Why our transformer cannot run the model that this config.json describes, or None where it can."""
    family = config.get("model_type")
    if family not in FAMILIES:
        return f"architecture {family!r} is none of {', '.join(FAMILIES)}"
    activation = config.get("activation_function" if family == "gpt2" else "hidden_act")
    if activation not in (("gelu_new", "gelu_pytorch_tanh") if family == "gpt2" else ("silu",)):
        return f"activation {activation!r}"
    rope = (config.get("rope_scaling") or config.get("rope_parameters") or {}) if family != "gpt2" else {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        return f"rope scaling {kind!r}"
    if family.startswith("qwen") and config.get("use_sliding_window"):
        return "sliding windows in some layers only"
    if config.get("scale_attn_by_inverse_layer_idx") or config.get("reorder_and_upcast_attn"):
        return "attention scaled by layer"
    return None


def shape_of(config: dict[str, Any]) -> Shape:
    """The shape that a config.json describes; `unsupported(config)` is None."""
    family = config["model_type"]
    if family == "gpt2":
        width, heads = config["n_embd"], config["n_head"]
        return Shape(
            family=family, vocabulary=config["vocab_size"], width=width, layers=config["n_layer"], heads=heads,
            kv_heads=heads, head_width=width // heads, mlp_width=config.get("n_inner") or 4 * width,
            context=config["n_positions"], norm_eps=config["layer_norm_epsilon"],
            tied=config.get("tie_word_embeddings", True), qkv_bias=True, out_bias=True, mlp_bias=True,
        )  # fmt: skip
    rope = config.get("rope_parameters") or {}
    heads, bias = config["num_attention_heads"], config.get("attention_bias", False)
    return Shape(
        family=family, vocabulary=config["vocab_size"], width=config["hidden_size"],
        layers=config["num_hidden_layers"], heads=heads, kv_heads=config.get("num_key_value_heads") or heads,
        head_width=config.get("head_dim") or config["hidden_size"] // heads, mlp_width=config["intermediate_size"],
        context=config["max_position_embeddings"], norm_eps=config["rms_norm_eps"],
        tied=config.get("tie_word_embeddings", False),
        rope_theta=rope.get("rope_theta", config.get("rope_theta", 10000.0)),
        rope_scaling=config.get("rope_scaling") or rope,
        qkv_bias=family == "qwen2" or bias, out_bias=bias and family != "qwen2",
        mlp_bias=config.get("mlp_bias", False), qk_norm=family == "qwen3",
        window=config.get("sliding_window") if family == "mistral" else None,
    )  # fmt: skip


def read_config(path: Path) -> dict[str, Any]:
    """The config.json of a model folder, or the same made from a GGUF file's metadata.

    Raises:
        ModelError: there is no such model, or its description cannot be read.
    """
    if path.suffix == ".gguf":
        return _gguf_config(_open_gguf(path))
    try:
        return json.loads((path / "config.json").read_text())
    except FileNotFoundError:
        raise ModelError(f"{path} is no model folder: it has no config.json; give a folder, a .gguf or a hub name") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ModelError(f"{path / 'config.json'} cannot be read: {e}") from None


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
    names, fetch = _gguf_tensors(path, shape) if path.suffix == ".gguf" else _safetensors(path)
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


@functools.lru_cache(maxsize=1)
def _open_gguf(path: Path) -> Any:
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


def _gguf_config(reader: Any) -> dict[str, Any]:
    def field(name: str, default: Any = None) -> Any:
        return reader.fields[name].contents() if name in reader.fields else default

    family = field("general.architecture")

    def get(key: str, default: Any = None) -> Any:
        return field(f"{family}.{key}", default)

    heads = get("attention.head_count", 1)
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
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
    }  # fmt: skip


def _gguf_tensors(path: Path, shape: Shape) -> tuple[set[str], Fetch]:
    from gguf.quants import dequantize

    tensors = {}
    for tensor in _open_gguf(path).tensors:
        stem, _, kind = tensor.name.rpartition(".")
        index = ""
        if stem.startswith("blk."):
            _, index, stem = stem.split(".", 2)
        if stem in GGUF_NAMES:
            tensors[f"{GGUF_NAMES[stem].format(i=index)}.{kind}"] = tensor

    def fetch(name: str) -> Tensor:
        tensor = tensors[name]
        values = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), np.float32))
        heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}.get(name.split(".")[-2])
        if heads and shape.family in ("llama", "mistral"):  # GGUF interleaves the halves that rotary positions turn
            values = values.view(heads, -1, 2, *values.shape[1:]).transpose(1, 2).reshape(values.shape)
        return values

    return set(tensors), fetch
