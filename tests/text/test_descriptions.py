"""What a model's files say of it is computed or refused by name, never ignored."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rather.errors import ModelError
from rather.text import load, weights
from rather.text.files import description, rope
from rather.text.files.rope import tables
from rather.text.policy import TextPolicy
from text.conftest import ROPE3, SIZES, reference
from text.gguf_files import write_gguf
from text.test_transformer import logits, rows

CPU = torch.device("cpu")


def same(found: list[torch.Tensor], expected: Any) -> None:
    for row, values in zip(rows(), found, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(values, expected(row[None]).logits[0], atol=1e-4, rtol=0)


def llama3_factors(theta: float, head_width: int, factor: float, context: int, low: float = 1.0, high: float = 4.0) -> np.ndarray:
    """As llama.cpp's converter writes rope_freqs.weight."""
    factors = []
    for i in range(0, head_width, 2):
        wave = 2 * math.pi * theta ** (i / head_width)
        share = (context / wave - low) / (high - low)
        factors.append(1.0 if wave < context / high else factor if wave > context / low else 1 / ((1 - share) / factor + share))
    return np.array(factors, np.float32)


GGUF = {
    "llama": ({}, {}),
    "qwen2": ({}, {}),
    "qwen3": ({}, {}),
    "gemma3": ({"gemma3.attention.sliding_window": 7, "gemma3.attention.sliding_window_pattern": 2, "gemma3.rope.freq_base_swa": 100.0,
                "gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 2.0}, {}),
    "linear": ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}, {}),
    "linear without its name": ({"llama.rope.scaling.factor": 2.0}, {}),
    "linear of old files": ({"llama.rope.scale_linear": 2.0}, {}),
    "linear by its factors": ({}, {"rope_freqs.weight": np.full(4, 2, np.float32)}),
    "llama3": ({}, {"rope_freqs.weight": llama3_factors(500.0, 8, 8.0, 32)}),
}  # fmt: skip


@pytest.mark.parametrize("case", GGUF)
def test_a_gguf_file_computes_what_its_folder_does_in_transformers(case: str, tmp_path: Path) -> None:
    model = reference(case.split()[0], **({"query_pre_attn_scalar": 16} if case == "gemma3" else {}))  # which the file does not say
    model.save_pretrained(tmp_path)
    read = weights.load(write_gguf(tmp_path, tmp_path / "model.gguf", *GGUF[case]))
    same(logits(read, rows()), model)
    weights.save(read, tmp_path / "saved")
    same(logits(weights.load(tmp_path / "saved"), rows()), model)
    from transformers import AutoModelForCausalLM

    same(logits(read, rows()), AutoModelForCausalLM.from_pretrained(tmp_path / "saved"))


@pytest.mark.parametrize(
    ("theta", "width", "factor", "context", "low", "high"),
    [
        (500000.0, 128, 8.0, 8192, 1.0, 4.0),  # Llama 3.1
        (500000.0, 64, 32.0, 8192, 1.0, 4.0),  # Llama 3.2
        (500.0, 8, 8.0, 32, 1.0, 4.0),  # one frequency between
        (10000.0, 8, 4.0, 100, 1.0, 4.0),  # none between
        (10000.0, 64, 4.0, 2000, 2.0, 7.0),
    ],
)  # fmt: skip
def test_the_settings_of_llama3_are_found_in_its_factors(
    theta: float, width: int, factor: float, context: int, low: float, high: float
) -> None:
    factors = llama3_factors(theta, width, factor, context, low, high)
    found = rope.llama3(torch.tensor(factors), theta, width, "x")
    assert found is not None
    again = llama3_factors(
        theta, width, found["factor"], found["original_max_position_embeddings"], found["low_freq_factor"], found["high_freq_factor"]
    )
    np.testing.assert_allclose(again, factors, rtol=1e-4)
    if context == 8192:
        assert (found["low_freq_factor"], found["high_freq_factor"], found["original_max_position_embeddings"]) == (low, high, context)
    assert rope.llama3(torch.ones(width // 2), theta, width, "x") is None
    assert rope.llama3(torch.full((width // 2,), 3.0), theta, width, "x") == {"rope_type": "linear", "factor": 3.0}


REFUSED = [
    ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0}, "scales rotary positions by 'yarn'"),
    ({"llama.rope.scaling.type": "longrope"}, "scales rotary positions by 'longrope'"),
    ({"llama.rope.scaling.attn_factor": 1.2}, r"rope.scaling.attn_factor"),
    ({"llama.rope.dimension_count": 4}, "rope.dimension_count = 4 where heads are 8 wide"),
    ({"llama.attention.value_length": 4}, "attention.value_length = 4"),
    ({"llama.attention.head_count": [4, 2]}, r"attention.head_count in .* is \[4, 2\]; it must be a whole number"),
    ({"llama.attention.scale": 0.5}, "attention.scale = 0.5, which rather does not know"),
    ({"llama.attention.sliding_window": 4}, "attention.sliding_window = 4, which"),
    ({"llama.expert_count": 8, "llama.expert_used_count": 2}, "expert_count = 8, which"),
    ({"llama.logit_scale": 0.1}, "logit_scale = 0.1[0-9]*, which"),
    ({"llama.attention.causal": False}, "lets tokens see those after them"),
    ({"llama.block_count": None}, "does not say 'block_count'"),
    ({"general.type": "adapter"}, "holds no whole model"),
    ({"split.count": 2}, "one part of several"),
    ({"general.architecture": "gemma2"}, "architecture 'gemma2'"),
]  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    reference("llama").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("metadata", "says"), REFUSED)
def test_a_gguf_file_with_something_else_is_refused_before_it_is_read(
    llama: Path, tmp_path: Path, metadata: dict[str, Any], says: str
) -> None:
    path = write_gguf(llama, tmp_path / "model.gguf", metadata)
    with pytest.raises(ModelError, match=says):
        load.policy(path, CPU, torch.float32, False, 1.0)


@pytest.mark.parametrize("name", ["blk.0.attn_sinks.weight", "blk.1.attn_q_norm.weight", "rope_factors_long.weight", "output_norm.bias"])
def test_a_gguf_file_with_a_tensor_of_another_kind_is_refused(llama: Path, tmp_path: Path, name: str) -> None:
    path = write_gguf(llama, tmp_path / "model.gguf", tensors={name: np.ones(8, np.float32)})
    with pytest.raises(ModelError, match="has a tensor '.*', which rather's llama does not know"):
        weights.load(path)


def test_a_gguf_file_with_other_factors_is_refused(llama: Path, tmp_path: Path) -> None:
    path = write_gguf(llama, tmp_path / "model.gguf", tensors={"rope_freqs.weight": np.array([1, 3, 2, 8], np.float32)})
    with pytest.raises(ModelError, match=r"rope_freqs.weight in .* scales rotary positions otherwise"):
        weights.load(path)
    factors = {"rope_freqs.weight": llama3_factors(500.0, 8, 8.0, 32)}
    path = write_gguf(llama, tmp_path / "twice.gguf", {"llama.rope.scaling.factor": 2.0, "llama.rope.freq_base": 500.0}, factors)
    with pytest.raises(ModelError, match="scales rotary positions twice"):
        weights.load(path)


def described(folder: Path, to: Path, **keys: Any) -> Path:
    copy = Path(shutil.copytree(folder, to / "copy"))
    config = json.loads((copy / "config.json").read_text()) | keys
    (copy / "config.json").write_text(json.dumps(config))
    return copy


ROPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "yarn with its settings": {
        "factor": 40.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 3,
        "beta_slow": 0.5,
        "mscale": 1.3,
        "mscale_all_dim": 0.7,
        "truncate": False,
    },
    "longrope": {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0] * 4, "factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {k: v for k, v in ROPE3.items() if k not in ("rope_type", "rope_theta")},
}


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ROPES)
def test_every_scaling_of_rotary_positions_is_that_of_transformers(llama: Path, tiny: Path, tmp_path: Path, kind: str, place: str) -> None:
    from transformers import AutoModelForCausalLM

    kind, settings = kind.split()[0], ROPES[kind]
    rope = {"rope_type": kind, **settings} | ({"rope_theta": 500.0} if place == "rope_parameters" else {})
    older = {"rope_theta": 500.0, "rope_parameters": None} if place == "rope_scaling" else {}
    folder = described(llama, tmp_path, **older, **{place: rope})
    expected = AutoModelForCausalLM.from_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / file, folder)
    policy = load.policy(folder, CPU, torch.float32, False, 1.0)
    assert isinstance(policy, TextPolicy)
    assert policy.context == (16 if kind == "longrope" else 64), "beyond it transformers takes the long factors from the first token on"
    short = [row[: policy.context] for row in rows()]
    for row, found in zip(short, logits(policy.model, short), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(found, expected(row[None]).logits[0], atol=1e-4, rtol=0)


UNKNOWN = [
    ("llama", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0, which rather does not know"),
    ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
    ("llama", {"sliding_window": 4}, "sliding_window = 4"),
    ("llama", {"use_sliding_window": True}, "use_sliding_window = True"),
    ("llama", {"layer_types": ["sliding_attention"] * 2}, "layer_types = "),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "attention_factor": 1.3}}, "attention_factor = 1.3"),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "does not say 'factor'"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling = .* and rope_parameters = .*; remove one"),
    ("llama", {"logit_scale": 0.06}, "logit_scale = 0.06"),
    ("llama", {"embedding_multiplier": 12.0}, "embedding_multiplier"),
    ("llama", {"attention_multiplier": 0.01}, "attention_multiplier"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved = True"),
    ("llama", {"use_qk_norm": True}, "use_qk_norm"),
    ("llama", {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}, "code of the model's own"),
    ("llama", {"hidden_size": "32"}, "hidden_size in config.json is '32'; it must be a whole number"),
    ("llama", {"num_attention_heads": 0}, "num_attention_heads in config.json is 0"),
    ("llama", {"num_key_value_heads": 3}, "the heads must be a multiple of these"),
    ("llama", {"rms_norm_eps": None}, "does not say 'rms_norm_eps'"),
    ("gpt2", {"use_rotary": True}, "use_rotary = True"),
    ("gpt2", {"n_head": 5}, "n_embd = 32 and n_head = 5"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "keys", "says"), UNKNOWN)
def test_keys_that_may_change_what_is_computed_are_refused(tmp_path: Path, family: str, keys: dict[str, Any], says: str) -> None:
    reference(family).config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | keys
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=says):
        load.policy(tmp_path, CPU, torch.float32, False, 1.0)


def test_keys_that_change_nothing_are_none_of_our_business(llama: Path, tmp_path: Path) -> None:
    """As they stand in files of SmolLM2, of old versions of transformers, and of tools for training."""
    keys = {
        "is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}, "_attn_implementation_autoset": True,
        "unsloth_version": "2025.1", "pretraining_tp": 1, "temperature": 0.6, "attn_logit_softcapping": None, "torch_dtype": "bfloat16",
        "use_mrope": False, "auto_map": {"AutoTokenizer": "x.Y"}, "pruned_heads": {}, "tokenizer_class": "X", "max_sequence_length": 2048,
    }  # fmt: skip
    folder = described(llama, tmp_path, **keys)
    for a, b in zip(weights.load(folder).parameters(), weights.load(llama).parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_a_description_leaves_out_is_what_transformers_takes_for_it(tmp_path: Path) -> None:
    """Mistral's window is then 4096 and Qwen3's heads are 128 wide; null is no window."""
    import transformers as tf

    mistral = tf.MistralConfig(**SIZES).to_dict()
    assert description.shape_of(mistral).window == 4096
    del mistral["sliding_window"]
    assert description.shape_of(mistral).window == 4096
    assert description.shape_of(mistral | {"sliding_window": None}).window is None
    qwen = tf.Qwen3Config(**SIZES).to_dict()
    del qwen["head_dim"]
    assert description.shape_of(qwen).head_width == 128


def test_a_tensor_that_nobody_knows_is_refused_and_a_computed_one_is_not(llama: Path, tmp_path: Path) -> None:
    folder = described(llama, tmp_path)
    state = load_file(folder / "model.safetensors")
    save_file(state | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, folder / "model.safetensors")
    weights.load(folder)
    for name in (
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.1.self_attn.sinks",
        "score.weight",
        "model.layers.2.mlp.up_proj.weight",
    ):
        save_file(state | {name: torch.ones(4)}, folder / "model.safetensors")
        with pytest.raises(ModelError, match=f"has a tensor '{name}', which rather's llama does not know"):
            weights.load(folder)


@pytest.mark.parametrize("own", [True, False])
def test_a_head_beside_tied_embeddings(llama: Path, tmp_path: Path, own: bool) -> None:
    """If it is the embeddings once more nothing changes; if not it counts, as in transformers."""
    from transformers import AutoModelForCausalLM

    folder = described(llama, tmp_path, tie_word_embeddings=True)
    state = load_file(folder / "model.safetensors")
    head = state["model.embed_tokens.weight"] + (0.5 * torch.randn(99, 32) if own else 0)
    save_file(state | {"lm_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
    read = weights.load(folder)
    assert read.shape.tied is not own
    same(logits(read, rows()), AutoModelForCausalLM.from_pretrained(folder))
    weights.save(read, tmp_path / "saved")
    same(logits(weights.load(tmp_path / "saved"), rows()), AutoModelForCausalLM.from_pretrained(tmp_path / "saved"))


def test_the_index_says_which_files_count(llama: Path, tmp_path: Path) -> None:
    folder = described(llama, tmp_path)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "first.safetensors")
    save_file({name: t + 1 for name, t in state.items()}, folder / "consolidated.safetensors")
    with pytest.raises(ModelError, match="in two files"):
        weights.load(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(state, "first.safetensors")}))
    for a, b in zip(weights.load(folder).parameters(), weights.load(llama).parameters(), strict=True):
        assert torch.equal(a, b)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(state, "second.safetensors")}))
    with pytest.raises(ModelError, match=r"has no file second.safetensors, which its index names"):
        weights.load(folder)
    index.write_text("[]")
    with pytest.raises(ModelError, match=r"index.json cannot be read"):
        weights.load(folder)


def refusal(path: Path) -> str:
    """Why the model is refused, or nothing."""
    try:
        weights.plan(path)
    except ModelError as e:
        return str(e)
    return ""


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**12), st.floats(), st.text(max_size=3), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(["rope_type", "factor", "rope_theta", "x"]), st.one_of(st.integers(), st.text(max_size=2)), max_size=2),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(key=st.sampled_from([*SIZES, "rope_parameters", "rope_scaling", "head_dim", "layer_types", "quantization_config"]), value=VALUES)
def test_whatever_a_description_says_it_is_read_or_refused_in_a_sentence(folder: Path, key: str, value: Any) -> None:
    config = json.loads((folder / "full.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(config))
    assert "\n" not in refusal(folder)


@pytest.fixture(scope="module")
def folder(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = Path(shutil.copytree(llama, tmp_path_factory.mktemp("any") / "model"))
    shutil.copy(copy / "config.json", copy / "full.json")
    return copy


@settings(max_examples=100, deadline=None)
@given(place=st.floats(0, 1), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_gguf_file_is_read_or_refused_in_a_sentence(gguf: Path, damaged: Path, place: float, byte: int, cut: bool) -> None:
    where = int(place * 4000)
    whole = gguf.read_bytes()
    damaged.write_bytes(whole[:where] if cut else whole[:where] + bytes([byte]) + whole[where + 1 :])
    from rather.text.files.gguf_file import open_file

    open_file.cache_clear()
    assert "\n" not in refusal(damaged)


@pytest.fixture(scope="module")
def gguf(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(llama, tmp_path_factory.mktemp("gguf") / "model.gguf")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "model.gguf"


def test_rotary_tables_of_shapes_alone_hold_nothing() -> None:
    """A strange description may ask for 2 ** 40 numbers, before anybody has looked whether they fit."""
    with torch.device("meta"):
        made = tables(2**40, [(1e4, {}), (1e6, {})], [1.0, 1.0])
    assert made["frequencies"].shape == (2, 2**39)
    assert all(table.is_meta for table in made.values())
    assert tables(7, [(1e4, {})], [2.0])["frequencies"].shape == (1, 4)
