"""What distinguishes the models that our transformer computes: their sizes, their families' switches, their rotary positions."""

import math
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Shape:
    """What distinguishes one model of these families from another.

    `window` limits how far back a token sees: in the layers `local`, whose rotary base is `local_theta`, or in all (None). The layers
    `no_rope` have no rotary positions. What enters attention and MLP is normed if `before`, what they give if `after`. Norms multiply with
    `norm_plus` + weight; those of queries and keys are of each head, or of all heads `together`. Scores are multiplied with
    `attention_scale`, by default 1 / sqrt(head_width), what attention and MLP give with `residual_scale`; logits are divided by
    `logits_scale`. Files hold one layer for q, k and v and one for gate and up if `fused`. Of a head only the first `rotary_width` numbers,
    by default all, have rotary positions.
    """

    family: Literal["llama", "mistral", "qwen2", "qwen3", "gpt2", "gemma3_text", "smollm3", "olmo2", "granite", "phi3"]
    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    context: int
    norm_eps: float
    tied: bool
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    window: int | None = None
    local: frozenset[int] | None = None
    local_theta: float | None = None
    no_rope: frozenset[int] = frozenset()
    before: bool = True
    after: bool = False
    together: bool = False
    norm_plus: float = 0.0
    gelu: bool = False
    attention_scale: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    fused: bool = False
    rotary_width: int | None = None

    def window_of(self, layer: int) -> int | None:
        """How far back a token sees in a layer."""
        return self.window if self.local is None or layer in self.local else None

    def rope_of(self, layer: int) -> int:
        """Which of the tables of `ropes` a layer has."""
        if layer in self.no_rope:
            return len(self.ropes) - 1
        return int(self.local_theta is not None and self.local is not None and layer in self.local)

    @property
    def ropes(self) -> list[tuple[float, dict[str, Any]]]:
        """Base and scaling of each table of rotary positions."""
        local = [] if self.local_theta is None else [(self.local_theta, dict[str, Any]())]
        none = [(1.0, {"rope_type": "none"})] if self.no_rope else []
        return [(self.rope_theta, self.rope_scaling or {}), *local, *none]

    @property
    def query_scale(self) -> float:
        """What queries are multiplied with, where attention by itself has 1 / sqrt(head_width)."""
        return 1.0 if self.attention_scale is None else self.attention_scale * math.sqrt(self.head_width)

    @property
    def is_gpt2(self) -> bool:
        """GPT-2 has learned positions, layer norms with bias and an MLP without gate."""
        return self.family == "gpt2"
