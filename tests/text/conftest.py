"""Tiny random models of every family, made by `transformers`."""

from pathlib import Path
from typing import Any

import pytest
import torch

SIZES = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
ROPE3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 500.0, "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.1], "long_factor": [2.0, 2.0],
}  # fmt: skip
GEMMA = {
    "head_dim": 16, "query_pre_attn_scalar": 10, "sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    },
}  # fmt: skip


def reference(name: str, **changes: Any) -> Any:
    """A random model of `transformers`, with biases and norms that are not their starting values; `changes` are of its configuration."""
    import transformers as tf

    configs = {
        "llama": lambda: tf.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        "llama3": lambda: tf.LlamaConfig(**SIZES, rope_parameters=ROPE3),
        "linear": lambda: tf.LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}),
        "mistral": lambda: tf.MistralConfig(**SIZES, sliding_window=7, head_dim=16),
        "qwen2": lambda: tf.Qwen2Config(**SIZES),
        "qwen3": lambda: tf.Qwen3Config(**SIZES, head_dim=16),
        "gemma3": lambda: tf.Gemma3TextConfig(**SIZES, **GEMMA),
        "smollm3": lambda: tf.SmolLM3Config(**SIZES, no_rope_layers=[1, 0], mlp_bias=True, pad_token_id=0),
        "olmo2": lambda: tf.Olmo2Config(**SIZES, pad_token_id=0),
        "granite": lambda: tf.GraniteConfig(
            **SIZES, attention_bias=True, attention_multiplier=0.2, embedding_multiplier=3.0, residual_multiplier=0.7, logits_scaling=1.5
        ),
        "phi3": lambda: tf.Phi3Config(**SIZES, rope_parameters=LONG, original_max_position_embeddings=40, pad_token_id=0),
        "gpt2": lambda: tf.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    }
    torch.manual_seed(0)
    config = configs[name]()
    config.update(changes)
    config._attn_implementation = "eager"
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


FAMILIES = ["llama", "llama3", "linear", "mistral", "qwen2", "qwen3", "gpt2", "gemma3", "smollm3", "olmo2", "granite", "phi3"]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    """A reference model and the folder it is saved in."""
    model = reference(request.param)
    model.save_pretrained(tmp_path / request.param)
    return model, tmp_path / request.param
