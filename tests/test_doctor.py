"""`rather doctor` about models: what they are and in which numbers, or why they cannot be read; its exit code says which."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from transformers import LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from rather.cli import app as cli
from rather.errors import ModelError
from rather.text import load
from text.test_quantization import CASES, FP8, compressed, write


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A model folder of the test's own, with a tokenizer."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def describe(folder: Path, **keys: Any) -> None:
    described = json.loads((folder / "config.json").read_text()) | keys
    (folder / "config.json").write_text(json.dumps(described))


def examined(folder: Path, capsys: pytest.CaptureFixture[str], *changed: str) -> tuple[int, list[str]]:
    """The exit code of `rather doctor`, and its lines about the run."""
    path = folder.parent / "run.toml"
    path.write_text(f'[run]\nfolder = "{folder.parent}"\n[model]\npath = "{folder}"\n[data]\nprompts = "package:topics"\n')
    code = 0
    try:
        cli.doctor(path, [*changed])
    except typer.Exit as e:
        code = e.exit_code
    lines = capsys.readouterr().out.splitlines()
    return code, lines[next(i for i, line in enumerate(lines) if "of disk are free" in line) + 1 :]


def test_a_folder_in_full_precision(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, (first, second, *_) = examined(folder, capsys)
    assert (code, first) == (0, f"ok  the model {folder} can be read: llama with 2 layers and 21,792 parameters in float32")
    assert second.startswith("ok  the tokenizer has 100 tokens for 100 rows of the embedding, and a chat template")


@pytest.mark.parametrize(
    ("case", "numbers"),
    [
        ("fp8 by blocks", "float8_e4m3fn and float32"),
        ("int8 by channels", "int8 and float32"),
        ("compressed fp8 by channels", "float8_e4m3fn and float32"),
    ],
)
def test_a_quantized_folder(case: str, numbers: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(LlamaForCausalLM.from_pretrained(folder), folder, *CASES[case])
    code, (first, *_) = examined(folder, capsys)
    assert (code, first) == (0, f"ok  the model {folder} can be read: llama with 2 layers and 21,792 parameters in {numbers}")


@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "is quantized by 'awq' .*; take the model in bfloat16 or as GGUF"),
        ({"quantization_config": compressed("pack-quantized", type="int", symmetric=True)}, "in the format 'pack-quantized', which rather"),
        ({"rope_parameters": {"rope_type": "wavy"}}, r"neither by rather \(rope scaling 'wavy'\) nor by transformers"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0, which rather does not know"),
    ],
)
def test_a_folder_that_cannot_be_read(
    keys: dict[str, Any], says: str, train: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    describe(folder, **keys)
    code, lines = examined(folder, capsys, f"model.train={train}")
    assert code == 1
    with pytest.raises(ModelError, match=says) as refused:
        load.policy(folder, torch.device("cpu"), torch.float32, False, 1.0)
    assert lines[0] == f"bad  {refused.value}", "as whoever loads it is told"
    assert not [line for line in lines if "can be read:" in line]


def test_a_folder_with_experts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MixtralConfig(vocab_size=100, num_local_experts=4, max_position_embeddings=256, eos_token_id=0, bos_token_id=0, **small)
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    code, (first, second, *_) = examined(folder, capsys)
    assert code == 0
    assert first.startswith(f"ok  the model {folder} can be read: mixtral through transformers, with 62,1")
    assert first.endswith("parameters in bfloat16")
    assert second == (
        "ok  LoRA adapts the layers k_proj, o_proj, q_proj, v_proj; not the experts, which are kept in one tensor a block: "
        'model.train = "full" trains them'
    )
    describe(folder, quantization_config=FP8)
    code, (first, *_) = examined(folder, capsys)
    assert code == 1
    assert first.startswith(f"bad  {folder} is quantized, which rather reads for its own architectures only (architecture 'mixtral'")
