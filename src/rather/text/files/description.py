"""What a model's files say of it: config.json and generation_config.json, or a GGUF file's metadata."""

import json
import math
from pathlib import Path
from typing import Any

from rather.errors import ModelError
from rather.text.files import gguf_file
from rather.text.files.fields import Fields, UnsupportedError
from rather.text.shape import Shape

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "gemma3_text", "smollm3", "olmo2", "granite", "phi3")
TANH = ("gelu_pytorch_tanh", "gelu_new")
HARMLESS = {
    # where the model comes from, and what made the file
    "architectures", "custom_pipelines", "dtype", "finetuning_task", "is_llama_config", "language", "license", "model_type",
    "name_or_path", "task_specific_params", "tokenizer_class", "torch_dtype", "transformers.js_config", "transformers_version",
    "unsloth_fixed", "unsloth_version",
    # tokens, which text/tokens.py reads
    "bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id", "prefix", "sep_token_id", "unk_token_id",
    # training from nothing, dropout, and heads that are no language model's
    "attention_dropout", "attn_pdrop", "classifier_dropout", "embd_pdrop", "gradient_checkpointing", "hidden_dropout",
    "initializer_range", "mlp_dropout", "resid_pdrop", "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
    "summary_type", "summary_use_proj", "id2label", "label2id", "num_labels", "problem_type",
    # how `transformers` computes the same numbers, and what it returns
    "cache_implementation",
    "attn_implementation", "chunk_size_feed_forward", "experts_implementation", "is_decoder", "max_sequence_length", "model_max_length",
    "n_ctx", "output_attentions", "output_hidden_states", "output_scores", "pretraining_tp", "return_dict", "return_dict_in_generate",
    "tie_encoder_decoder", "torchscript", "use_bfloat16", "use_cache",
    # how `transformers` draws answers
    "assistant_confidence_threshold", "assistant_lookbehind", "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample",
    "early_stopping", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff",
    "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id", "length_penalty", "max_length", "min_length",
    "no_repeat_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule", "num_beam_groups", "num_beams",
    "num_return_sequences", "remove_invalid_values", "repetition_penalty", "suppress_tokens", "target_lookbehind", "temperature", "top_k",
    "top_p", "typical_p",
}  # fmt: skip
GENERATION = "generation_config.json"
ELSEWHERE = ("quantization_config", "compression_config")  # read by `quantization`


def unsupported(config: dict[str, Any]) -> str | None:
    """Why our transformer cannot run the model that this config.json describes though `transformers` may, or None where it can.

    Raises:
        ModelError: a value makes no sense, or a key is unknown that may change what the model computes.
    """
    try:
        shape_of(config)
    except UnsupportedError as e:
        return str(e)
    return None


def shape_of(config: dict[str, Any]) -> Shape:
    """The shape that a config.json describes.

    Raises:
        UnsupportedError: our transformer does not compute it.
        ModelError: a value makes no sense, or a key is unknown that may change what the model computes.
    """
    f = Fields(config, "config.json")
    family = f.get("model_type")
    if family not in FAMILIES:
        raise UnsupportedError(f"architecture {family!r} is none of {', '.join(FAMILIES)}")
    for key in ELSEWHERE:
        f.get(key)
    reasons: list[str] = []
    shape = _gpt2(f, reasons) if family == "gpt2" else _llama(f, family, reasons)
    own = "modeling_phi3.Phi3ForCausalLM" if family == "phi3" else None  # what transformers has taken over
    if code := [name for name, value in f.part("auto_map").values.items() if name.startswith("AutoModel") and value != own]:
        raise ModelError(
            f"config.json names code of the model's own ({code[0]} in auto_map), which rather does not run; remove it to read {family}"
        )
    f.refuse_unread(HARMLESS)
    if reasons:
        raise UnsupportedError(reasons[0])
    return shape


def _gpt2(f: Fields, reasons: list[str]) -> Shape:
    activation = f.get("activation_function", "gelu_new")
    if activation not in TANH:
        reasons.append(f"activation {activation!r}")
    if not f.flag("scale_attn_weights", True):
        reasons.append("attention that is not scaled")
    if f.flag("scale_attn_by_inverse_layer_idx", False) or f.flag("reorder_and_upcast_attn", False):
        reasons.append("attention scaled by layer")
    if f.flag("add_cross_attention", False):
        reasons.append("cross attention")
    width, heads = f.whole("n_embd"), f.whole("n_head")
    if width % heads:
        raise ModelError(f"config.json says n_embd = {width} and n_head = {heads}; the one must be a multiple of the other")
    return Shape(
        family="gpt2", vocabulary=f.whole("vocab_size"), width=width, layers=f.whole("n_layer"), heads=heads, kv_heads=heads,
        head_width=width // heads, mlp_width=f.whole("n_inner", 4 * width), context=f.whole("n_positions"),
        norm_eps=f.number("layer_norm_epsilon"), tied=f.flag("tie_word_embeddings", True), qkv_bias=True, out_bias=True, mlp_bias=True,
    )  # fmt: skip


def _llama(f: Fields, family: Any, reasons: list[str]) -> Shape:
    activation = f.get("hidden_activation", "gelu_pytorch_tanh") if family == "gemma3_text" else f.get("hidden_act", "silu")
    if activation not in ("silu", "swish", *TANH):
        reasons.append(f"activation {activation!r}")
    width, heads, layers = f.whole("hidden_size"), f.whole("num_attention_heads"), f.whole("num_hidden_layers")
    default = {"qwen3": 128, "gemma3_text": 256}.get(family, max(1, width // heads))
    kv_heads, head_width = f.whole("num_key_value_heads", heads), f.whole("head_dim", default)
    if heads % kv_heads or head_width % 2:
        raise ModelError(
            f"config.json says {heads} heads of width {head_width} and {kv_heads} key-value heads; the heads must be a multiple of these, "
            "and their width even"
        )
    bias = f.flag("attention_bias", False)
    context = f.whole("max_position_embeddings")
    window, local = _windows(f, family, layers, reasons)
    own: dict[str, Any] = {}
    if family == "gemma3_text":
        own = _gemma(f, width, head_width, reasons)
    elif family == "smollm3":
        own = {"no_rope": _no_rope(f, layers)}
    elif family == "olmo2":
        own = {"before": False, "after": True, "together": True}
    elif family == "granite":
        names = {"embedding_scale": "embedding_multiplier", "residual_scale": "residual_multiplier", "logits_scale": "logits_scaling"}
        own = {ours: f.number(key, 1.0) for ours, key in names.items()} | {"attention_scale": f.number("attention_multiplier", 1.0)}
    rope, base = _rope_part(f), {"gemma3_text": 1e6, "smollm3": 2e6}.get(family, 1e4)
    if family == "phi3":
        own = {"fused": True, "rotary_width": _rotary_width(f, rope, head_width)}
    theta, scaling = _rope(f, rope, family, context, base, reasons)
    if scaling["rope_type"] == "longrope":  # longer texts would need other positions from their first token on
        context = min(context, scaling["original_max_position_embeddings"])
        if len(scaling["short_factor"]) != (own.get("rotary_width") or head_width) // 2:
            raise ModelError(f"{rope.place} says {len(scaling['short_factor'])} factors for heads of width {head_width}")
    return Shape(
        family=family, vocabulary=f.whole("vocab_size"), width=width, layers=layers, heads=heads, kv_heads=kv_heads,
        head_width=head_width, mlp_width=f.whole("intermediate_size"), context=context, norm_eps=f.number("rms_norm_eps"),
        tied=f.flag("tie_word_embeddings", family in ("gemma3_text", "smollm3")), rope_theta=theta, rope_scaling=scaling,
        qkv_bias=family == "qwen2" or bias, out_bias=bias and family != "qwen2", mlp_bias=f.flag("mlp_bias", False),
        qk_norm=family in ("qwen3", "gemma3_text", "olmo2"), gelu=activation in TANH, window=window, local=local, **own,
    )  # fmt: skip


def _windows(f: Fields, family: str, layers: int, reasons: list[str]) -> tuple[int | None, frozenset[int] | None]:
    """How far back a token sees, and in which layers, None: in all."""
    if family == "phi3":
        return f.whole("sliding_window") if f.values.get("sliding_window") is not None else None, None
    if family not in ("mistral", "qwen2", "qwen3", "smollm3", "gemma3_text"):
        return None, None
    window = f.whole("sliding_window", 4096) if f.values.get("sliding_window", 4096) is not None else None  # absent it is 4096
    f.get("sliding_window")
    if family == "mistral":
        return window, None
    every = ["full_attention"] * layers
    if family == "gemma3_text":
        period = f.whole("sliding_window_pattern", 6)
        every = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(layers)]
    elif f.flag("use_sliding_window", False):
        if f.get("layer_types") is None:
            reasons.append("sliding windows without layer_types")
    else:
        window = None
    kinds, _ = f.get("layer_types", every), f.get("max_window_layers")
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in ("full_attention", "sliding_attention") for kind in kinds):
        raise ModelError(f"config.json says layer_types = {kinds!r}; rather reads full_attention and sliding_attention for {layers} layers")
    local = frozenset(i for i, kind in enumerate(kinds) if kind == "sliding_attention")
    if local and window is None:
        reasons.append("layers with a sliding window of no size")
    return (window, local) if local else (None, None)


def _no_rope(f: Fields, layers: int) -> frozenset[int]:
    """The layers of SmolLM3 without rotary positions: those where no_rope_layers says 0."""
    every = f.whole("no_rope_layer_interval", 4)
    turning = f.get("no_rope_layers", [int((i + 1) % every != 0) for i in range(layers)])
    if not isinstance(turning, list) or len(turning) != layers or any(type(x) is not int or x not in (0, 1) for x in turning):
        raise ModelError(f"config.json says no_rope_layers = {turning!r}; it must be 1 or 0 for each of {layers} layers")
    return frozenset(i for i, x in enumerate(turning) if not x)


def _gemma(f: Fields, width: int, head_width: int, reasons: list[str]) -> dict[str, Any]:
    """What Gemma 3 has and Llama has not."""
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if f.get(key) is not None:
            reasons.append(f"{key} = {f.get(key)}")
    if f.flag("use_bidirectional_attention", False):
        reasons.append("attention to tokens that come after")
    local = f.part("rope_parameters").part("sliding_attention")
    if local.get("rope_type", "default") != "default":
        reasons.append("scaled rotary positions in layers with a sliding window")
    theta = local.number("rope_theta", f.number("rope_local_base_freq", 10000.0))
    local.refuse_unread()
    scalar = f.number("query_pre_attn_scalar", 256)
    return {
        "after": True, "norm_plus": 1.0, "local_theta": theta, "embedding_scale": width**0.5,
        "attention_scale": None if scalar == head_width else scalar**-0.5,
    }  # fmt: skip


def _rope_part(f: Fields) -> Fields:
    """What is said of rotary positions: in rope_scaling (the older name), in rope_parameters, or in its part for layers that see all."""
    older, newer = f.part("rope_scaling"), f.part("rope_parameters")
    if "full_attention" in newer.values or "sliding_attention" in newer.values:
        full = newer.part("full_attention")
        newer.get("sliding_attention")
        newer.refuse_unread()
        newer = full
    if older.values and newer.values and older.values != newer.values:
        raise ModelError(f"config.json says rope_scaling = {older.values} and rope_parameters = {newer.values}; remove one of them")
    return older if older.values else newer


def _rotary_width(f: Fields, rope: Fields, head_width: int) -> int | None:
    """How many numbers of a head have rotary positions, None: all; in Phi-3 and Phi-4."""
    for key in ("interpolate_factor", "full_attn_mod"):  # of Microsoft's own code, which takes nothing but 1
        if f.get(key, 1) != 1:
            raise ModelError(f"config.json says {key} = {f.get(key)}; rather takes 1 alone")
    share = rope.number("partial_rotary_factor", f.number("partial_rotary_factor", 1.0))
    width = int(head_width * share)
    if share > 1 or width < 2 or width % 2:
        raise ModelError(f"config.json says partial_rotary_factor = {share} of heads of width {head_width}; it must leave an even number")
    return None if width == head_width else width


def _rope(f: Fields, rope: Fields, family: str, context: int, base: float, reasons: list[str]) -> tuple[float, dict[str, Any]]:
    """The base and the scaling of rotary positions."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    rope.get("type")
    if family == "phi3" and kind in ("su", "yarn"):  # names of old files
        kind = "longrope"
    theta = rope.number("rope_theta", f.number("rope_theta", base))
    if family != "phi3" and (f.get("partial_rotary_factor", 1) != 1 or rope.get("partial_rotary_factor", 1) != 1):
        raise ModelError("config.json says partial_rotary_factor; rather turns whole heads only")
    inner = rope.whole("original_max_position_embeddings", context)
    original = f.whole("original_max_position_embeddings", 4096 if family == "phi3" else inner)
    scaling: dict[str, Any] = {"rope_type": kind}
    if kind in ("linear", "llama3"):
        scaling["factor"] = rope.number("factor")
    elif kind == "dynamic":  # which changes nothing within the model's context
        rope.number("factor")
        scaling["rope_type"] = "default"
    elif kind in ("yarn", "longrope"):
        scaling |= _yarn(rope, theta, context, original) if kind == "yarn" else _longrope(rope, context, original)
    elif kind != "default":
        reasons.append(f"rope scaling {kind!r}")
        return theta, scaling
    if kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if low >= high:
            raise ModelError(f"{rope.place} says low_freq_factor = {low} and high_freq_factor = {high}; the second must be larger")
        scaling |= {"low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": original}
    rope.refuse_unread()
    return theta, scaling


def _yarn(rope: Fields, theta: float, context: int, original: int) -> dict[str, Any]:
    """The settings of YaRN, with what they leave out as `transformers` has it."""
    if theta <= 1:
        raise ModelError(f"{rope.place} says rope_theta = {theta} and YaRN; it must be larger than 1")
    factor, scales = rope.number("factor", context / original), ("mscale", "mscale_all_dim")
    over, under = (rope.number(key) if rope.get(key) else 1.0 for key in scales) if all(map(rope.get, scales)) else (1.0, 0.0)
    grown = [1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1 for scale in (over, under)]
    return {
        "factor": factor, "original_max_position_embeddings": original, "truncate": rope.flag("truncate", True),
        "attention_factor": rope.number("attention_factor", grown[0] / grown[1]),
        "beta_fast": rope.number("beta_fast", 32.0), "beta_slow": rope.number("beta_slow", 1.0),
    }  # fmt: skip


def _longrope(rope: Fields, context: int, original: int) -> dict[str, Any]:
    """The settings of LongRoPE for texts within the original context: only the short factors are for them."""
    short, _ = rope.get("short_factor", []), rope.get("long_factor")
    if not isinstance(short, list) or any(type(x) not in (int, float) or not 0 < x < math.inf for x in short):
        raise ModelError(f"short_factor in {rope.place} is {short!r}; it must be a list of finite numbers above 0")
    factor = rope.number("factor", context / original)
    grown = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    return {
        "short_factor": short, "original_max_position_embeddings": original, "attention_factor": rope.number("attention_factor", grown),
    }  # fmt: skip


def read_config(path: Path) -> dict[str, Any]:
    """The config.json of a model folder, or the same made from a GGUF file's metadata.

    Raises:
        ModelError: there is no such model, or its description cannot be read.
    """
    if path.suffix == ".gguf":
        return gguf_file.config_of(path)
    if not (path / "config.json").exists():
        raise ModelError(f"{path} is no model folder: it has no config.json; give a folder, a .gguf or a hub name")
    return _read_json(path / "config.json")


def end_tokens(path: Path) -> tuple[list[int], list[int]]:
    """The ids at which answers end by generation_config.json, and by config.json (of a GGUF file: by its metadata).

    Raises:
        ModelError: a file cannot be read, or its eos_token_id is neither an id nor a list of ids.
    """
    source = path if path.suffix == ".gguf" else path / "config.json"
    return _ids(path / GENERATION, generation(path)), _ids(source, read_config(path))


def generation(path: Path) -> dict[str, Any]:
    """The generation_config.json of a model folder; empty where there is none.

    Raises:
        ModelError: it cannot be read.
    """
    return _read_json(path / GENERATION) if (path / GENERATION).exists() else {}


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
