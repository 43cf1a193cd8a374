"""GGUF files that we write: our reader has the same model back, and llama.cpp says the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from llama_cpp_peer import greedy, needs_llama_cpp
from llama_prompts import PROMPTS

import rather as library
from rather.config import toml
from rather.core import Task, Trajectory
from rather.errors import ModelError
from rather.pipeline import build
from rather.text import weights
from rather.text.files import gguf_tokens, gguf_writer
from rather.text.tokens import Tokens

TEMPLATE = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
TEXT = "the cat sat on the mat and the dog ate 12 of 345 oats, then they all went home"


def bpe(folder: Path, steps: Callable[[Any], Any] = lambda pre: pre.ByteLevel(add_prefix_space=False), **more: Any) -> Path:
    """Give the model in `folder` a byte-level tokenizer of at most 90 tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(**more))
    raw.pre_tokenizer, raw.decoder = steps(pre_tokenizers), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=86, special_tokens=["<s>", "</s>"], show_progress=False)
    raw.train_from_iterator([TEXT] * 4, trainer)
    raw.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def write(folder: Path, path: Path, kind: gguf_writer.Kind) -> Path:
    model = library.load(folder, dtype="float32", device="cpu")
    gguf_writer.write(model.merged(), model.tokens, path, kind, "mine")  # type: ignore[attr-defined]
    return path


@pytest.mark.parametrize("family", ["llama", "llama3", "linear", "qwen2", "qwen3"], indirect=True)
def test_our_reader_has_the_same_weights_back(family: tuple[Any, Path], tmp_path: Path) -> None:
    folder = bpe(family[1])
    found, was = weights.load(write(folder, tmp_path / "x.gguf", "f32")), weights.load(folder)
    assert found.state_dict().keys() == was.state_dict().keys()
    for name, tensor in was.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    ours, theirs = found.shape, was.shape
    assert {**vars(ours), "rope_scaling": 0, "norm_eps": 0} == {**vars(theirs), "rope_scaling": 0, "norm_eps": 0}
    assert ours.norm_eps == pytest.approx(theirs.norm_eps)
    positions = torch.arange(40)
    for a, b in zip(found.rotary(positions, torch.float32), was.rotary(positions, torch.float32), strict=True):  # type: ignore[misc]
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama"], indirect=True)
def test_the_tokenizer_comes_along(family: tuple[Any, Path], tmp_path: Path) -> None:
    folder = bpe(family[1])
    was, found = Tokens.load(folder), Tokens.load(write(folder, tmp_path / "x.gguf", "f32"))
    for text in (TEXT, "they sat", "<s>the</s>", "a <tool> the"):
        assert found.tokenizer(text)["input_ids"] == was.tokenizer(text)["input_ids"], text
    assert found.encode("the cat", "ate", True) == was.encode("the cat", "ate", True)
    assert (found.stop, found.eos, found.end) == (was.stop, was.eos, was.end)
    assert found.tokenizer.chat_template == TEMPLATE
    fields = gguf_tokens.metadata(was, 99)
    words, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(words) == len(kinds) == 99
    assert [kinds[words.index(word)] for word in ("<s>", "<tool>", "t", "[PAD98]")] == [3, 4, 1, 5]
    assert fields["tokenizer.ggml.add_bos_token"] is False


@pytest.mark.parametrize("family", ["qwen2"], indirect=True)
@pytest.mark.parametrize(("kind", "error"), [("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 2e-2), ("q4_0", 0.4)])
def test_smaller_formats_round(family: tuple[Any, Path], tmp_path: Path, kind: gguf_writer.Kind, error: float) -> None:
    folder = bpe(family[1])
    path = write(folder, tmp_path / "x.gguf", kind)
    assert kind.upper() in str(weights.plan(path))
    found, was = weights.load(path).state_dict(), weights.load(folder).state_dict()
    for name, tensor in was.items():
        difference = float((found[name] - tensor).abs().max() / tensor.abs().max())
        assert difference <= (error if tensor.dim() > 1 else 0), name
    assert not torch.equal(found["blocks.0.out.weight"], was["blocks.0.out.weight"])
    if kind == "q4_0":
        assert "Q8_0" in str(weights.plan(path)), "the matrix that makes logits"


def steps_of_llama3(pre: Any) -> Any:
    from tokenizers import Regex

    split = pre.Split(Regex(gguf_tokens.WORD + r"\p{N}{1,3}" + gguf_tokens.REST), "isolated", False)
    return pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)])


@pytest.mark.parametrize("family", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("steps", "rule"),
    [
        (lambda pre: pre.ByteLevel(add_prefix_space=False), "gpt-2"),
        (lambda pre: pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]), "smollm"),
        (steps_of_llama3, "llama-bpe"),
    ],
)
def test_the_rule_that_cuts_words_is_named(family: tuple[Any, Path], steps: Callable[[Any], Any], rule: str) -> None:
    assert gguf_tokens.metadata(Tokens.load(bpe(family[1], steps)), 99)["tokenizer.ggml.pre"] == rule


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        (
            "gpt2",
            bpe,
            "^a gpt2 model cannot be written as GGUF; rather writes gemma3, llama, .*, granite, others as a model folder",
        ),
        ("mistral", bpe, "^a mistral model with a sliding window cannot be written as GGUF"),
        (
            "llama",
            lambda f: bpe(f, byte_fallback=True),
            "^a tokenizer of SentencePiece's kind that treats spaces by .*ByteLevel.* cannot be written as GGUF;",
        ),
        (
            "llama",
            lambda f: bpe(f, lambda pre: pre.ByteLevel(add_prefix_space=True)),
            "^a tokenizer that cuts texts into words by .*ByteLevel",
        ),
        ("llama", lambda f: bpe(f, ignore_merges=True), "^a tokenizer that ignores merges and cuts words as 'gpt-2' cannot be written"),
    ],
    indirect=["family"],
)
def test_what_cannot_be_written_is_refused_by_name(
    family: tuple[Any, Path], change: Callable[[Path], Path], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=said):
        write(change(family[1]), tmp_path / "x.gguf", "f32")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize("family", ["qwen3"], indirect=True)
def test_the_command(family: tuple[Any, Path], tiny: Path, rather: Callable[..., Any], tmp_path: Path) -> None:
    folder = bpe(family[1])
    assert "x.gguf, and for `ollama create` x.Modelfile" in rather("gguf", folder, "x.gguf", "--type", "f32").stdout
    assert (tmp_path / "x.Modelfile").read_text() == 'FROM ./x.gguf\nPARAMETER stop "</s>"\n'
    ours, theirs = (library.load(path, dtype="float32", device="cpu") for path in (folder, tmp_path / "x.gguf"))
    assert theirs.generate(["the cat"], max_tokens=20, temperature=0) == ours.generate(["the cat"], max_tokens=20, temperature=0)
    assert "x.Modelfile is there already" in rather("gguf", folder, "x.gguf", code=2).stderr
    assert "a tokenizer of the kind WordLevel cannot be written" in " ".join(rather("gguf", tiny, "y.gguf", code=2).stderr.split())
    assert "y.bin does not end in .gguf" in rather("gguf", tiny, "y.bin", code=2).stderr
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"x.gguf", "x.Modelfile"}


@pytest.mark.parametrize("family", ["llama"], indirect=True)
def test_peft_loads_an_adapter_of_a_gguf_file_on_the_base_that_it_is_to_name(family: tuple[Any, Path], tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    path, folder = write(bpe(family[1]), tmp_path / "x.gguf", "f32"), tmp_path / "base"
    library.load(path, dtype="float32", device="cpu").merge(folder)
    config = toml.load(None, {"model.path": str(path), "model.base": str(folder), "model.dtype": "float32", "model.device": "cpu"})
    policy, parameters = build.trained_policy(config, build.base_policy(config))
    with torch.no_grad():
        for p in parameters:
            p.add_(0.1 * torch.randn_like(p))
    policy.save(tmp_path / "adapter")
    theirs = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    trajectory = Trajectory(Task("x", "0", "the cat"), "x", "sat on the mat")
    batch = policy.collate([trajectory])
    ids = torch.cat([batch.observations, batch.actions], 1)
    with torch.no_grad():
        expected = torch.log_softmax(theirs(ids).logits[0], -1)[:-1].gather(1, ids[0, 1:, None])[-batch.actions.shape[1] :, 0]
        torch.testing.assert_close(policy.evaluate(batch)[0][0], expected, atol=1e-4, rtol=1e-4)
    again = library.load(tmp_path / "adapter", dtype="float32", device="cpu")
    torch.testing.assert_close(again.evaluate(batch)[0][0], expected, atol=1e-4, rtol=1e-4)


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_llama_cpp_says_the_same(smollm2: Path, tmp_path: Path, kind: gguf_writer.Kind) -> None:
    path = write(smollm2, tmp_path / "x.gguf", kind)
    model = library.load(path, dtype="float32", device="cpu")
    ours = model.generate(PROMPTS, max_tokens=40, temperature=0)
    texts = [model.tokens.tokenizer.decode(model.tokens.encode_prompt(prompt)) for prompt in PROMPTS]
    theirs = greedy(path, texts, 40)
    assert [answer["ids"] for answer in theirs["answers"]] == [model.tokens.encode_prompt(prompt) for prompt in PROMPTS]
    assert [answer["text"] for answer in theirs["answers"]] == ours
    assert theirs["template"] == model.tokens.tokenizer.chat_template
