"""An adapter brings its own ranks, scales and layers, as `peft` reads them; what is not supported is refused by its name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rather.errors import ModelError
from rather.text import lora, weights
from rather.text.engine import Request, Sampling, generate
from text.conftest import reference
from text.test_lora import adapted_logits
from text.test_transformer import logits, rows

LLAMA = {
    "patterns": {
        "r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj", "up_proj"],
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 5}, "alpha_pattern": {"v_proj": 12, "model.layers.0.self_attn.q_proj": 1},
    },
    "rslora": {"r": 9, "lora_alpha": 6, "use_rslora": True, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"]},
    "two targets of one layer": {"r": 3, "lora_alpha": 5.5, "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    "a pattern of targets": {"r": 3, "lora_alpha": 6, "target_modules": r".*layers\.(0\.self_attn\.k_proj|1\.mlp\.up_proj)"},
}  # fmt: skip
GPT2 = {
    "one of two layers called c_proj": {"r": 3, "lora_alpha": 6, "target_modules": ["attn.c_proj", "c_attn"], "fan_in_fan_out": True},
}
CASES = [
    pytest.param(family, how, id=f"{family}: {name}") for family, known in (("llama", LLAMA), ("gpt2", GPT2)) for name, how in known.items()
]


def theirs(family: str, how: dict[str, Any], folder: Path) -> Any:
    """A random model with a random adapter, made and saved by `peft`."""
    from peft import LoraConfig, get_peft_model

    base = reference(family)
    base.save_pretrained(folder / "base")
    found = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.1, **how)).eval()
    with torch.no_grad():
        for name, p in found.named_parameters():
            if ".lora_" in name:
                p.copy_(0.2 * torch.randn_like(p))
    found.save_pretrained(folder / "adapter")
    return found


@pytest.mark.parametrize(("family", "how"), CASES)
def test_an_adapter_brings_its_own_ranks_scales_and_layers(family: str, how: dict[str, Any], tmp_path: Path) -> None:
    from peft import PeftModel

    expected = theirs(family, how, tmp_path)
    model = weights.load(tmp_path / "base")
    learns = lora.load(model, "policy", tmp_path / "adapter")
    assert sum(p.numel() for p in learns) == sum(p.numel() for n, p in expected.named_parameters() if ".lora_" in n)
    lora.save(model, "policy", tmp_path / "ours", base="base")
    again = PeftModel.from_pretrained(reference(family), tmp_path / "ours").eval()
    read, merged = weights.load(tmp_path / "base"), lora.merged(model, "policy")
    lora.load(read, "policy", tmp_path / "ours")
    for row in rows():
        with torch.no_grad():
            wanted = torch.log_softmax(expected(row[None]).logits[0], -1)
            for found in (again(row[None]).logits[0], *(adapted_logits(m, row, "policy") for m in (model, read)), *logits(merged, [row])):
                torch.testing.assert_close(torch.log_softmax(found, -1), wanted, atol=1e-4, rtol=0)
    before = [p.clone() for p in learns]
    lora.load(model, "policy", tmp_path / "ours")
    assert all(torch.equal(a, b) for a, b in zip(before, learns, strict=True))


@pytest.mark.parametrize("name", LLAMA)
def test_what_is_sampled_with_it_has_the_log_probabilities_that_are_learnt_with(name: str, tmp_path: Path) -> None:
    expected = theirs("llama", LLAMA[name], tmp_path)
    model = weights.load(tmp_path / "base")
    lora.load(model, "policy", tmp_path / "adapter")
    prompt = (5, 6, 7)
    (answer,) = generate(model, [Request(prompt, 3)], Sampling(12), frozenset(), "policy")
    row = torch.tensor([*prompt, *answer.tokens])
    with torch.no_grad():
        all_ = torch.log_softmax(expected(row[None]).logits[0], -1)
    wanted = all_[2:-1].gather(1, row[3:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(answer.logprobs, dtype=torch.float32), wanted, atol=1e-4, rtol=0)


def test_gradients_are_those_of_peft(tmp_path: Path) -> None:
    expected = theirs("llama", LLAMA["patterns"], tmp_path)
    model = weights.load(tmp_path / "base").requires_grad_(False)
    lora.load(model, "policy", tmp_path / "adapter")
    (row,) = rows(lengths=(12,))
    expected(row[None]).logits.float().square().mean().backward()
    from text.test_lora import weights_pack

    laid = weights_pack(row, model)
    model.logits(model(laid.ids, laid.positions, laid, "policy")).square().mean().backward()
    slopes = {n: p.grad for n, p in expected.named_parameters() if p.grad is not None}
    for at, layer in lora.layers(model, "policy").items():
        adapter: Any = layer.adapters["policy"]
        downs = adapter.down.grad.split(adapter.ranks)
        for name, down, up in zip(weights.file_names(model.shape, at), downs, adapter.up, strict=True):
            if up.numel():
                torch.testing.assert_close(down, slopes[f"base_model.model.{name}.lora_A.default.weight"], atol=1e-6, rtol=1e-3)
                torch.testing.assert_close(up.grad, slopes[f"base_model.model.{name}.lora_B.default.weight"], atol=1e-6, rtol=1e-3)


REFUSED = [
    ({"use_dora": True}, "use_dora = True, which is not supported; merge it into its base with peft's merge_and_unload"),
    ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\], which is not supported"),
    ({"bias": "lora_only"}, "bias = 'lora_only', which is not supported"),
    ({"lora_bias": True}, "lora_bias = True"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa', which changes its base"),
    ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
    ({"something_new": 3}, "something_new = 3, which is not supported"),
    ({"peft_type": "IA3"}, "peft_type = 'IA3'; only LORA is supported"),
    ({"r": 0}, "r = 0 in adapter_config.json; it must be a positive number"),
    ({"lora_alpha": "16"}, "lora_alpha = '16'"),
    ({"rank_pattern": {"q_proj": 1.5}}, r"rank_pattern\['q_proj'\] = 1.5"),
    ({"r": 3}, "has shape|has rank 3"),
]


@pytest.mark.parametrize(("option", "message"), REFUSED, ids=[next(iter(o)) + str(i) for i, (o, _) in enumerate(REFUSED)])
def test_an_option_that_changes_what_is_computed_is_refused_by_name(
    option: dict[str, Any], message: str, tiny: Path, tmp_path: Path
) -> None:
    model = weights.load(tiny)
    lora.add(model, "policy", 4, 8.0, 0)
    lora.save(model, "policy", tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | option))
    with pytest.raises(ModelError, match=message):
        lora.load(weights.load(tiny), "policy", tmp_path)


def test_layers_that_cannot_be_adapted_and_damaged_files_are_refused(tiny: Path, tmp_path: Path) -> None:
    theirs("llama", {"r": 2, "target_modules": ["q_proj"]}, tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(load_file(file) | {"base_model.model.lm_head.lora_A.weight": torch.zeros(2, 32)}, file)
    with pytest.raises(ModelError, match=r"is for layers that cannot be adapted here; merge it .*lm_head"):
        lora.load(weights.load(tmp_path / "base"), "policy", tmp_path / "adapter")
    save_file({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 16)}, file)
    with pytest.raises(ModelError, match="has shape .* the adapter is for another model"):
        lora.load(weights.load(tiny), "policy", tmp_path / "adapter")
    shutil.copy(tmp_path / "adapter" / "adapter_config.json", tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="cannot be read"):
        lora.load(weights.load(tmp_path / "base"), "policy", tmp_path / "adapter")
