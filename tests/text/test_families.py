"""What families other than Llama say in their descriptions is computed, refused by name, or left to `transformers`."""

import json
from pathlib import Path
from typing import Any

import pytest

from rather.errors import ModelError
from rather.text import weights
from rather.text.files import description
from text.conftest import reference
from text.test_descriptions import same
from text.test_transformer import logits, rows

REFUSED = [
    ("gemma3", {"layer_types": ["sliding_attention"]}, "layer_types = .*sliding_attention for 2 layers"),
    ("gemma3", {"layer_types": ["full_attention", "linear_attention"]}, "layer_types = "),
    ("gemma3", {"rope_parameters": {"full_attention": {}, "x": {"rope_type": "yarn"}}}, "x = "),
    ("gemma3", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "rope_scaling = .* and rope_parameters = .*; remove one"),
    ("gemma3", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar in config.json is 0"),
    ("smollm3", {"no_rope_layers": [1, 2]}, r"no_rope_layers = \[1, 2\]"),
    ("smollm3", {"no_rope_layers": [1]}, r"no_rope_layers = \[1\]"),
    ("olmo2", {"clip_qkv": 8.0}, "clip_qkv = 8.0"),
    ("granite", {"residual_multiplier": -1.0}, "residual_multiplier in config.json is -1.0"),
    ("phi3", {"partial_rotary_factor": 0.4, "rope_parameters": {"rope_type": "default"}}, "partial_rotary_factor = 0.4"),
    ("phi3", {"interpolate_factor": 2}, "interpolate_factor = 2"),
    ("phi3", {"auto_map": {"AutoModelForCausalLM": "modeling_x.Phi3ForCausalLM"}}, "code of the model's own"),
    ("phi3", {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0, 1.0, 1.0]}}, "3 factors for heads of width 8"),
    ("phi3", {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0, "x"]}}, "short_factor in rope_parameters"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "keys", "says"), REFUSED)
def test_keys_of_families_that_make_no_sense_are_refused(family: str, keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        description.shape_of(reference(family).config.to_dict() | keys)


def test_gemmas_older_files_say_the_same(tmp_path: Path) -> None:
    config = reference("gemma3").config.to_dict()
    parts = config.pop("rope_parameters")
    older = config | {"rope_theta": 500.0, "rope_local_base_freq": 100.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    assert description.shape_of(older) == description.shape_of(config | {"rope_parameters": parts})
    del older["layer_types"]
    assert description.shape_of(older | {"sliding_window_pattern": 2}).local == {0}
    assert description.shape_of(older).local == {0, 1}, "every sixth layer sees all"


ELSEWHERE = [
    ("gemma3", {"attn_logit_softcapping": 50.0}),
    ("gemma3", {"final_logit_softcapping": 30.0}),
    ("gemma3", {"use_bidirectional_attention": True}),
    ("gemma3", {"hidden_activation": "relu"}),
    ("gemma3", {"sliding_window": None}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 7, "layer_types": None}),
]


@pytest.mark.parametrize(("family", "changes"), ELSEWHERE)
def test_what_changes_the_arithmetic_and_is_not_ours_goes_to_transformers(family: str, changes: dict[str, Any]) -> None:
    assert description.unsupported(reference(family).config.to_dict()) is None
    assert description.unsupported(reference(family).config.to_dict() | changes)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_windows_in_some_layers(family: str, tmp_path: Path) -> None:
    model = reference(family, use_sliding_window=True, sliding_window=7, layer_types=["full_attention", "sliding_attention"])
    model.save_pretrained(tmp_path)
    read = weights.load(tmp_path)
    assert (read.shape.window_of(0), read.shape.window_of(1)) == (None, 7)
    same(logits(read, rows()), model)


def test_files_of_phi_say_more_than_transformers_reads(tmp_path: Path) -> None:
    """Names of code that `transformers` has taken over, and old names of LongRoPE."""
    model = reference("phi3")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}, "interpolate_factor": 1, "full_attn_mod": 1}
    config["rope_parameters"]["rope_type"] = "su"
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = weights.load(tmp_path)
    assert (read.shape.context, read.shape.rotary_width) == (40, 4)
    same(logits(read, rows()), model)
