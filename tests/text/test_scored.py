"""Reward models in and out as `transformers` keeps them: the same scores on both sides."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import rather as library
from rather.config import toml
from rather.core import Comparison
from rather.errors import ConfigError, ModelError
from rather.pipeline import build
from rather.text.reward_model import RewardModel

SIZES = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": 0,
}  # fmt: skip
CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
PROMPT, ANSWERS = "Name a tree.", ["An oak.", "Trees are many, and they are various.", "No"]


def their_scores(folder: Path, prompt: str, answers: Sequence[str]) -> list[float]:
    """By `transformers`, in one batch."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder, dtype="float32"), AutoTokenizer.from_pretrained(folder)
    chats = [[{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}] for answer in answers]
    batch = tokenizer.apply_chat_template(chats, return_dict=True, return_tensors="pt", padding=True)
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].tolist()


@pytest.fixture
def chatml(tiny: Path, tmp_path: Path) -> Path:
    """The tiny model with a template that writes a line break after the token that ends an answer, and that token for padding."""
    from transformers import AutoTokenizer

    folder = shutil.copytree(tiny, tmp_path / "chatml")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template, tokenizer.pad_token = CHATML, "<end>"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def published(chatml: Path, tmp_path: Path) -> Path:
    return publish("Llama", chatml, tmp_path / "published", SIZES)


def publish(name: str, tokenizer: Path, folder: Path, sizes: dict[str, Any]) -> Path:
    """A random reward model, as others publish theirs: padding is a token of its own, right after the answer's end comes more."""
    import transformers as tf

    config = getattr(tf, f"{name}Config")(**sizes, num_labels=1, pad_token_id=3)
    torch.manual_seed(1)
    model = getattr(tf, f"{name}ForSequenceClassification")(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(folder)
    words = tf.AutoTokenizer.from_pretrained(tokenizer)
    words.pad_token = "<unk>"
    words.save_pretrained(folder)
    return folder


FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {**SIZES, "tie_word_embeddings": False},
    "Mistral": {**SIZES, "sliding_window": 7, "head_dim": 16},
    "Qwen2": SIZES,
    "Qwen3": {**SIZES, "head_dim": 16},
    "Gemma3Text": {**SIZES, "head_dim": 16, "sliding_window": 7, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16},
    "SmolLM3": {**SIZES, "no_rope_layers": [1, 0]},
    "Olmo2": SIZES,
    "Phi3": SIZES,
    "GPT2": {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "bos_token_id": 0, "eos_token_id": 0},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_published_reward_model_scores_as_in_transformers_and_so_does_what_is_made_of_it(name: str, chatml: Path, tmp_path: Path) -> None:
    folder = publish(name, chatml, tmp_path / "theirs", FAMILIES[name])
    model = RewardModel.load(folder, dtype="float32")
    expected = their_scores(folder, PROMPT, ANSWERS)
    assert max(expected) - min(expected) > 0.05
    assert model.score(PROMPT, ANSWERS) == pytest.approx(expected, abs=1e-4)
    model.save(tmp_path / "saved")
    assert RewardModel.load(tmp_path / "saved", dtype="float32").score(PROMPT, ANSWERS) == pytest.approx(expected, abs=1e-4)
    assert model.tail == ([] if name == "Qwen2" else [99])  # `transformers` reads its tokenizer as one of bytes, which has no line break
    model.tail = []
    model.merge(tmp_path / "ours")
    assert name == "Qwen2" or model.score(PROMPT, ANSWERS) != pytest.approx(expected, abs=1e-3), "another token is scored"
    assert their_scores(tmp_path / "ours", PROMPT, ANSWERS) == pytest.approx(model.score(PROMPT, ANSWERS), abs=1e-4)


def test_a_family_whose_scores_transformers_does_not_read_is_refused(chatml: Path, tmp_path: Path) -> None:
    import transformers as tf

    tf.GraniteForCausalLM(tf.GraniteConfig(**SIZES)).save_pretrained(tmp_path / "granite")
    tf.AutoTokenizer.from_pretrained(chatml).save_pretrained(tmp_path / "granite")
    model = library.RewardModel(library.load(tmp_path / "granite", dtype="float32"))
    with pytest.raises(ModelError, match="has no ForSequenceClassification of granite models"):
        model.merge(tmp_path / "out")


def test_each_member_of_an_ensemble_scores_as_in_transformers(chatml: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", "chosen": f"It is {i}.", "rejected": "I would rather not say."} for i in range(8)]
    base = library.load(chatml, dtype="float32", device="cpu")
    ours = library.RewardModel(base, members=2, adapter=library.LoRA(rank=4)).fit(library.comparisons(rows), lr=1e-2, steps=8)
    ours.merge(tmp_path / "out")
    members = [tmp_path / "out/member-1", tmp_path / "out/member-2"]
    theirs = torch.tensor([their_scores(member, PROMPT, ANSWERS) for member in members])
    assert theirs.mean(0).tolist() == pytest.approx(ours.score(PROMPT, ANSWERS), abs=1e-4)
    assert not torch.allclose(theirs[0], theirs[1], atol=1e-2)
    again = [RewardModel.load(member, dtype="float32") for member in members]
    assert [x.score(PROMPT, ANSWERS) for x in again] == [pytest.approx(row, abs=1e-4) for row in theirs.tolist()]
    described = json.loads((members[0] / "config.json").read_text())
    assert described["architectures"] == ["LlamaForSequenceClassification"]
    assert described["pad_token_id"] != 0, "which ends answers: they would be scored before their end"


def change(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor | None]) -> None:
    described = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(described))
    state = load_file(folder / "model.safetensors") | tensors
    save_file({k: v for k, v in state.items() if v is not None}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("config", "tensors", "said"),
    [
        ({"id2label": {str(i): str(i) for i in range(5)}}, {}, r"gives a text 5 scores \(num_labels\); a reward model gives one$"),
        ({"id2label": None}, {}, r"gives a text 2 scores"),
        ({}, {"score.weight": None}, r"has no tensor 'score.weight', its head; rather reads reward models of"),
        ({}, {"score.bias": torch.zeros(1)}, r"has a bias in its head \(score.bias\)"),
        ({}, {"score.weight": torch.zeros(1, 16)}, r"score.weight in .* has shape \(1, 16\), not \(1, 32\)$"),
        ({}, {"v_head.weight": torch.zeros(1)}, r"has a tensor 'v_head.weight', which rather's llama does not know"),
        ({"architectures": ["LlamaForCausalLM"]}, {}, r"holds LlamaForCausalLM, which is no reward model; rather reads \.\.\.ForSequence"),
        ({"model_type": "gemma2"}, {}, r"holds a reward model that rather cannot run \(architecture 'gemma2'"),
    ],
)
def test_another_head_is_refused(published: Path, config: dict[str, Any], tensors: dict[str, Any], said: str) -> None:
    change(published, config, tensors)
    with pytest.raises(ModelError, match=said):
        RewardModel.load(published, dtype="float32")


def test_a_reward_model_is_no_policy(published: Path) -> None:
    with pytest.raises(ModelError, match="holds a reward model, which does not speak; rather.RewardModel.load and"):
        library.load(published)


def test_it_judges_and_scores_a_policy_of_its_own_tokenizer_alone(published: Path, tiny: Path, smollm2: Path) -> None:
    config = toml.load(None, {"judge.kind": "model", "judge.checkpoint": str(published), "model.path": str(tiny), "model.dtype": "float32"})
    (judge,) = build.judges(config, lambda: None)  # type: ignore[arg-type, return-value]
    (pair,) = library.comparisons([{"prompt": PROMPT, "chosen": ANSWERS[0], "rejected": ANSWERS[1]}])
    a, b = their_scores(published, PROMPT, [str(side[0].text) for side in (pair.a, pair.b)])
    assert judge.judge([Comparison(pair.a, pair.b)]) == [pytest.approx(torch.sigmoid(torch.tensor(a - b)).item(), abs=1e-4)]
    base = library.load(tiny, dtype="float32", device="cpu")
    assert build.saved_reward(config, published, base).members == 1  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="another tokenizer than the policy, whose tokens it is to score; let it"):
        build.saved_reward(config, published, library.load(smollm2))  # type: ignore[arg-type]


def test_a_run_learns_from_a_published_reward_and_notes_when_it_changes(
    published: Path, tiny: Path, rather: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"{i}?"}) + "\n" for i in range(4)))
    (tmp_path / "run.toml").write_text(
        f'[run]\nname = "r"\n[model]\npath = "{tiny}"\ndtype = "float32"\n[data]\nprompts = "prompts.jsonl"\nheld_out = 0.0\n'
        '[sample]\nmax_tokens = 4\n[train]\nlearner = "ppo"\nreward = "model"\nsteps = 1\n[ppo]\nrollout_batch_size = 2\n'
        f'[judge]\ncheckpoint = "{published}"\n'
    )
    assert "step-000001" in rather("train", "run.toml").stdout
    change(published, {}, {"score.weight": torch.ones(1, 32)})
    again = rather("train", "run.toml", "train.steps=2", code=2)
    assert f"what judge.checkpoint = '{published}' holds has changed since" in " ".join(again.stderr.split())
