"""What a model's files say of it: config.json and generation_config.json, or a GGUF file's metadata."""

import json
from pathlib import Path
from typing import Any

from rather.errors import ModelError
from rather.text.files import gguf_file
from rather.text.transformer import Shape

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gpt2")


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
        return gguf_file.config_of(gguf_file.open_file(path))
    if not (path / "config.json").exists():
        raise ModelError(f"{path} is no model folder: it has no config.json; give a folder, a .gguf or a hub name")
    return _read_json(path / "config.json")


def end_tokens(path: Path) -> tuple[list[int], list[int]]:
    """The ids at which answers end by generation_config.json, and by config.json (of a GGUF file: by its metadata).

    Raises:
        ModelError: a file cannot be read, or its eos_token_id is neither an id nor a list of ids.
    """
    source = path if path.suffix == ".gguf" else path / "config.json"
    generation = path / "generation_config.json"
    return _ids(generation, _read_json(generation)) if generation.exists() else [], _ids(source, read_config(path))


def _ids(source: Path, description: dict[str, Any]) -> list[int]:
    parts = [description, description.get("text_config")]  # a model of pictures and words describes its words in a part of its own
    given = [part["eos_token_id"] for part in parts if isinstance(part, dict) and part.get("eos_token_id") is not None]
    ids = [i for x in given for i in (x if isinstance(x, list) else [x])]
    if any(type(i) is not int or i < 0 for i in ids):
        raise ModelError(f"eos_token_id in {source} is {given[0]!r}; it must be the id of a token, or a list of ids")
    return ids


def _read_json(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ModelError(f"{path} cannot be read: {e}") from None
    if not isinstance(description, dict):
        raise ModelError(f"{path} holds a {type(description).__name__}, not an object with keys")
    return description
