"""GGUF files with tokenizers of SentencePiece's kind: Gemma 3, and Llama with a space before each text."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from gguf_files import write_gguf
from llama_cpp_peer import greedy, needs_llama_cpp
from safetensors.torch import load_file

import rather as library
from rather.errors import ModelError
from rather.text import weights
from rather.text.engine import Request, Sampling, generate
from rather.text.files import gguf_tokens, gguf_writer
from rather.text.policy import TextPolicy
from rather.text.tokens import Tokens
from text.conftest import ROPE3, reference
from text.test_transformer import logits

WORDS = [
    "\u2581\u2581",
    "\u2581\u2581\u2581\u2581",
    "\u2581t",
    "he",
    "\u2581the",
    "at",
    "\u2581c",
    "\u2581cat",
    "\u2581s",
    "\u2581sat",
    "on",
]
LETTERS = ["\u2581", *"abcdefghijklmnopqrstuvwxyz.,\t"]
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn>"]
TEXTS = [
    "the cat sat on the mat",
    "  the  cat",
    "a\n\n\nb",
    "<bos>the<turn> cat<turn>the",
    "caf\u00e9 \U0001f600 the",
    " ",
    "\t\tx" + 9 * " " + "the",
]


LAYERS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
ROPES = {"no_rope_layers": [1, 1, 1, 0, 1], "layer_types": ["full_attention"] * 5, "mlp_bias": False}
CHANGES: dict[str, dict[str, Any]] = {
    "gemma3": {"query_pre_attn_scalar": 16, "num_hidden_layers": 5, "layer_types": LAYERS},
    "smollm3": {"num_hidden_layers": 5, **ROPES},
}
"""What llama.cpp takes for granted."""


def sentencepiece(folder: Path, prefix: bool = False, metaspace: str = "", normalized: bool = False, **more: Any) -> Path:
    """Give the model in `folder` a tokenizer of SentencePiece's kind; `more` changes its model."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.tokenization_utils_base import generate_merges

    tokens = [*SPECIAL, "\n\n", *gguf_tokens.BYTES, *WORDS, *LETTERS]
    vocab = {token: i for i, token in enumerate(tokens)}
    given = {"vocab": vocab, "merges": generate_merges(vocab, {token: -i for token, i in vocab.items()})} | more
    raw = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>", **given))
    replace = normalizers.Replace(" ", "\u2581")
    if metaspace:
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=metaspace, split=False)
    else:
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), replace]) if prefix else replace
    back = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    raw.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if prefix else back)
    raw.add_tokens([AddedToken(word, special=False, normalized=normalized) for word in ("\n\n", WORDS[1])])
    names = {f"{kind}_token": f"<{kind}>" for kind in ("pad", "eos", "bos", "unk")}
    made = PreTrainedTokenizerFast(tokenizer_object=raw, add_bos_token=True, additional_special_tokens=["<turn>"], **names)
    made.chat_template = "{% for m in messages %}{{ m.content }}<turn>{% endfor %}"
    made.save_pretrained(folder)
    return folder


def written(folder: Path, kind: gguf_writer.Kind = "f32") -> Path:
    model = library.load(folder, dtype="float32", device="cpu")
    assert isinstance(model, TextPolicy)
    gguf_writer.write(model.merged(), model.tokens, folder / "x.gguf", kind, "mine")
    return folder / "x.gguf"


def saved(name: str, folder: Path, **changes: Any) -> Path:
    reference(name, vocab_size=320, **changes).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["gemma3", "smollm3", "olmo2", "granite"])
def test_our_reader_has_the_same_model_back(tmp_path: Path, name: str) -> None:
    folder = sentencepiece(saved(name, tmp_path, **CHANGES.get(name, {})))
    found, was = weights.load(written(folder)), weights.load(folder)
    shape = {key: pytest.approx(value) if isinstance(value, float) else value for key, value in vars(was.shape).items()}
    assert vars(found.shape) == shape
    for name, tensor in was.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, atol=1e-6 if "norm" in name or "after" in name else 0, rtol=0)
    row = torch.arange(5, 45)
    torch.testing.assert_close(logits(found, [row])[0], logits(was, [row])[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("prefix", [False, True])
def test_the_tokenizer_comes_along(tmp_path: Path, prefix: bool) -> None:
    folder = sentencepiece(saved("llama", tmp_path), prefix)
    was, found = Tokens.load(folder), Tokens.load(written(folder))
    for text in TEXTS:
        ids = was.tokenizer(text)["input_ids"]
        assert found.tokenizer(text)["input_ids"] == ids, text
        for part in (ids, ids[1:]):
            assert found.tokenizer.decode(part) == was.tokenizer.decode(part), text
    assert found.encode("the cat", "sat", True) == was.encode("the cat", "sat", True)
    assert (found.stop, found.eos, found.end) == (was.stop, was.eos, was.end)
    assert found.tokenizer.chat_template == was.tokenizer.chat_template


def test_a_tokenizer_of_another_model_in_the_same_folder_is_not_taken(tmp_path: Path) -> None:
    path = written(sentencepiece(saved("llama", tmp_path)))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_text('{"odd": true}')
    assert Tokens.load(path).tokenizer.tokenize("the cat") == ["t", "he", "\u2581cat"]


@pytest.mark.parametrize(("name", "turned"), [("llama", True), ("smollm3", True), ("granite", True), ("olmo2", False), ("qwen3", False)])
def test_rows_that_turn_together_stand_beside_each_other(tmp_path: Path, name: str, turned: bool) -> None:
    folder = sentencepiece(saved(name, tmp_path, **CHANGES.get(name, {}), head_dim=8))
    rows = load_file(folder / "model.safetensors")["model.layers.0.self_attn.k_proj.weight"]
    (tensor,) = (t for t in GGUFReader(written(folder)).tensors if t.name == "blk.0.attn_k.weight")
    order = [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15] if turned else range(16)  # two heads of width 8
    assert tensor.data.tolist() == rows[[*order]].tolist()


def test_a_granite_without_rotary_positions_is_refused(tmp_path: Path) -> None:
    given = {"granite.logit_scale": 1.5, "granite.rope.scaling.finetuned": False}
    with pytest.raises(ModelError, match="x.gguf has no rotary positions .granite.rope.scaling.finetuned"):
        weights.plan(write_gguf(saved("granite", tmp_path), tmp_path / "x.gguf", given))


def test_other_kinds_of_tokenizers_are_refused_by_name(tmp_path: Path) -> None:
    path = write_gguf(saved("llama", tmp_path), tmp_path / "x.gguf", {"tokenizer.ggml.model": "rwkv"})
    with pytest.raises(ModelError, match="x.gguf has no tokenizer that can be read: .*'rwkv'"):
        Tokens.load(path)


def test_metadata_by_hand(tmp_path: Path) -> None:
    fields = gguf_tokens.metadata(Tokens.load(sentencepiece(saved("gemma3", tmp_path, query_pre_attn_scalar=16))), 320)
    found = {key.removeprefix("tokenizer.ggml."): value for key, value in fields.items()}
    tokens, scores, kinds = found["tokens"], found["scores"], found["token_type"]
    assert (found["model"], found["add_space_prefix"], found["add_bos_token"]) == ("llama", False, True)
    ids = {key: found[f"{key}_token_id"] for key in ("bos", "eos", "eot", "unknown", "padding")}
    assert ids == {"bos": 2, "eos": 1, "eot": 4, "unknown": 3, "padding": 0}
    at = {token: tokens.index(token) for token in ("<turn>", "\n\n", "<0x0A>", "\u2581t", "t", "[PAD319]", WORDS[1])}
    assert [kinds[i] for i in at.values()] == [3, 4, 6, 1, 1, 5, 1]
    merged = [scores[tokens.index(word)] for word in WORDS[:5]]
    assert merged == sorted({*merged}, reverse=True), "what is merged first has the highest score"
    assert scores[at["t"]] == -1000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metaspace": "first"}, "that treats spaces by .*prepend_scheme.*first.* cannot be written as GGUF; rather writes byte-level BPE"),
        ({"ignore_merges": True}, "of SentencePiece's kind that has ignore_merges cannot be written"),
        ({"normalized": True, "prefix": True}, r"whose token '\\n\\n' stands for text with other spaces cannot be written"),
        ({"merges": [("\u2581", "t")]}, "of SentencePiece's kind that does not merge '.*' and '.*' cannot be written"),
    ],
)
def test_what_llama_cpp_would_tokenize_otherwise_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match="^a tokenizer .*" + said):
        written(sentencepiece(saved("llama", tmp_path), **change))
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("gemma3", {}, "a gemma3_text model whose attention has the scale 0.3162 cannot be written as GGUF; use it as a model folder"),
        ("gemma3", {"layer_types": ["full_attention", "sliding_attention"]}, "without sliding windows in all layers but every n-th"),
        ("gemma3", {"layer_types": ["full_attention"] * 2}, "without sliding windows in all layers but every n-th"),
        ("gemma3", {"attention_bias": True}, "with other biases than its family's"),
        ("gemma3", {"hidden_activation": "silu"}, "with another activation than its family's"),
        ("smollm3", {"mlp_bias": False}, "a smollm3 model whose layers with rotary positions are not all but every fourth"),
        ("smollm3", {"num_hidden_layers": 5, **ROPES, "mlp_bias": True}, "a smollm3 model with other biases than its family's"),
        ("olmo2", {"tie_word_embeddings": True}, "a olmo2 model whose logits are made of its embedding"),
        ("olmo2", {"head_dim": 16}, "a olmo2 model whose heads together are not as wide as it is"),
        ("qwen3", {"rope_parameters": ROPE3}, "a qwen3 model whose rotary positions are scaled by 'llama3'"),
        ("llama", {"hidden_act": "gelu_pytorch_tanh"}, "a llama model with another activation than its family's cannot be written"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path: Path, name: str, changes: dict[str, Any], said: str) -> None:
    scale = {"query_pre_attn_scalar": 16} if name == "gemma3" and changes else {}
    with pytest.raises(ModelError, match=said):
        written(sentencepiece(saved(name, tmp_path, **scale, **changes)))
    assert not (tmp_path / "x.gguf").exists()


@needs_llama_cpp
@pytest.mark.parametrize(
    ("name", "prefix"),
    [("gemma3", False), ("llama", True), ("llama", False), ("qwen3", True), ("smollm3", True), ("olmo2", True), ("granite", True)],
)
def test_llama_cpp_reads_and_answers_the_same(tmp_path: Path, name: str, prefix: bool) -> None:
    folder = sentencepiece(saved(name, tmp_path, **CHANGES.get(name, {})), prefix)
    path = written(folder)
    for model in (library.load(folder, dtype="float32", device="cpu"), library.load(path, dtype="float32", device="cpu")):
        assert isinstance(model, TextPolicy)
        asked = [model.tokens.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
        found = greedy(path, TEXTS, 25)["answers"]
        assert [answer["ids"] for answer in found] == asked
        ours = generate(model.model, [Request(tuple(ids), 0) for ids in asked], Sampling(25, temperature=0), model.tokens.stop)
        for theirs, answer in zip(found, ours, strict=True):
            assert theirs["said"][: len(answer.tokens)] == answer.tokens[: len(theirs["said"])]
            assert len(answer.tokens) >= min(25, len(theirs["said"])) or answer.tokens[-1] in model.tokens.stop
