"""Folders with numbers of 8 bits: the logits of `transformers` with what they stand for, or a refusal by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rather.errors import ModelError
from rather.text import load, weights
from text.conftest import reference
from text.test_transformer import logits, rows

CPU = torch.device("cpu")
PROJECTION = "_proj.weight"


def spread(scale: Tensor, block: tuple[int, int], shape: torch.Size) -> Tensor:
    """Each number of `scale` (rows, columns) once for every weight of its block."""
    return torch.kron(scale, torch.ones(block))[: shape[0], : shape[1]]


def quantized(weight: Tensor, block: tuple[int, int], format: torch.dtype, shifted: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Numbers, scales and zero points by blocks, in plain arithmetic; and the weight that these stand for."""
    rows, columns = -(-weight.shape[0] // block[0]), -(-weight.shape[1] // block[1])
    scale, zero = torch.zeros(rows, columns), torch.zeros(rows, columns)
    for i in range(rows):
        for j in range(columns):
            part = weight[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
            scale[i, j] = part.abs().max() / (100 if format == torch.int8 else 448)
            zero[i, j] = float(3 * i - 2 * j) % 7 if shifted else 0
    numbers = weight / spread(scale, block, weight.shape) + spread(zero, block, weight.shape)
    numbers = (numbers.round() if format == torch.int8 else numbers).to(format)
    meant = (numbers.float() - spread(zero, block, weight.shape)) * spread(scale, block, weight.shape)
    return numbers, scale, zero.to(torch.int8), meant


def compressed(format: str = "int-quantized", **weight: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "input_activations": None, "output_activations": None, "weights": {"num_bits": 8, **weight}}
    return {
        "quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed", "ignore": ["lm_head"],
        "kv_cache_scheme": None, "global_compression_ratio": None, "config_groups": {"group_0": group},
    }  # fmt: skip


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
INT8 = {"type": "int", "symmetric": True}
CASES = {
    "fp8 by blocks": (FP8 | {"weight_block_size": [16, 16]}, torch.float8_e4m3fn, (16, 16), "weight_scale_inv", None),
    "fp8 by blocks that do not fit": (FP8 | {"weight_block_size": [20, 12]}, torch.float8_e4m3fn, (20, 12), "weight_scale_inv", None),
    "fp8 by tensors": (FP8 | {"modules_to_not_convert": ["lm_head"]}, torch.float8_e4m3fn, (999, 999), "weight_scale_inv", ()),
    "int8 by tensors": (compressed(**INT8, strategy="tensor"), torch.int8, (999, 999), "weight_scale", (1,)),
    "int8 by channels": (compressed(**INT8, strategy="channel"), torch.int8, (1, 999), "weight_scale", None),
    "int8 by groups": (compressed(**INT8, strategy="group", group_size=8), torch.int8, (1, 8), "weight_scale", None),
    "int8 with a zero point": (compressed(type="int", symmetric=False, strategy="channel"), torch.int8, (1, 999), "weight_scale", None),
    "compressed fp8 by channels": (
        compressed("float-quantized", type="float", strategy="channel"), torch.float8_e4m3fn, (1, 999), "weight_scale", None,
    ),
    "compressed fp8 by blocks": (
        compressed("float-quantized", type="float", strategy="block", block_structure=[16, 8]), torch.float8_e4m3fn, (16, 8),
        "weight_scale", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_quantized_folders_compute_what_their_numbers_stand_for(case: str, tmp_path: Path) -> None:
    config, format, block, name, shape = CASES[case]
    model = reference("llama")
    write(model, tmp_path, config, format, block, name, shape, shifted="zero" in case)
    read = weights.load(tmp_path)
    for row, found in zip(rows(), logits(read, rows()), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(found, model(row[None]).logits[0], atol=1e-4, rtol=0)
    weights.save(read, tmp_path / "saved")
    again = weights.load(tmp_path / "saved")
    assert "quantization_config" not in again.description
    for a, b in zip(read.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def write(
    model: Any,
    folder: Path,
    config: dict[str, Any],
    format: torch.dtype,
    block: tuple[int, int],
    name: str,
    shape: Any,
    shifted: bool = False,
) -> None:
    """The model in `folder`, its projections quantized; the model itself gets the weights that these stand for."""
    state = {}
    for key, parameter in model.named_parameters():
        if not key.endswith(PROJECTION):
            state[key] = parameter.detach().clone()
            continue
        sides = (min(block[0], parameter.shape[0]), min(block[1], parameter.shape[1]))
        numbers, scale, zero, meant = quantized(parameter.detach(), sides, format, shifted)
        stem = key.removesuffix("weight")
        state |= {key: numbers, stem + name: scale if shape is None else scale.reshape(shape)}
        state |= {stem + "weight_zero_point": zero} if shifted else {}
        parameter.data = meant
    model.config.save_pretrained(folder)
    described = json.loads((folder / "config.json").read_text()) | {"quantization_config": config}
    (folder / "config.json").write_text(json.dumps(described))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_fp8_by_blocks_is_what_transformers_dequantizes(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    write(reference("qwen3"), tmp_path, *CASES["fp8 by blocks"])
    method = FineGrainedFP8Config(weight_block_size=(16, 16), dequantize=True)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=method, dtype=torch.float32)
    for row, found in zip(rows(), logits(weights.load(tmp_path), rows()), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(found, expected(row[None]).logits[0], atol=1e-4, rtol=0)


NO = "which rather cannot read; take the model in bfloat16"
REFUSED = [
    *(({"quant_method": m}, f"quantized by '{m}' .*{NO}") for m in ("bitsandbytes", "gptq", "awq", "mxfp4", "hqq", "torchao", "new")),
    ({"load_in_4bit": True}, "quantized by None"),
    (FP8 | {"fmt": "e5m2"}, "format 'e5m2'"),
    (FP8 | {"weight_block_size": 128}, "weight_block_size in .* is 128; it must be two whole numbers"),
    (FP8 | {"weight_block_size": [8, 8]}, "as float8_e4m3fn, without a scale that config.json describes"),
    (FP8 | {"rotation": "hadamard"}, "rotation = 'hadamard', which rather does not know"),
    (compressed("pack-quantized", **INT8), "format 'pack-quantized'"),
    (compressed("nvfp4-pack-quantized", type="float"), "format 'nvfp4-pack-quantized'"),
    (compressed(**INT8 | {"num_bits": 4}), "quantized to 4 bits of type 'int'"),
    (compressed(**INT8, strategy="group"), "quantized by 'group' with group_size None"),
    (compressed(**INT8, actorder="group"), "actorder = 'group', which rather does not know"),
    (compressed(**INT8) | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "weights are sparse"),
    (compressed(**INT8) | {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme = .*, which rather does not know"),
    (compressed(**INT8) | {"transform_config": {"config_groups": {"a": 1}}}, "transform_config"),
]  # fmt: skip


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fp8")
    write(reference("llama"), folder, *CASES["fp8 by blocks"])
    return folder


@pytest.mark.parametrize(("config", "says"), REFUSED)
def test_other_quantizations_are_refused_by_name(fp8: Path, tmp_path: Path, config: dict[str, Any], says: str) -> None:
    state = load_file(fp8 / "model.safetensors")
    if config.get("quant_method") == "compressed-tensors":  # as int8, so that nothing but the description is at fault
        state = {k.replace("_inv", ""): t.to(torch.int8) if t.dtype == torch.float8_e4m3fn else t for k, t in state.items()}
    save_file(state, tmp_path / "model.safetensors")
    described = json.loads((fp8 / "config.json").read_text()) | {"quantization_config": config}
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(ModelError, match=says):
        load.policy(tmp_path, CPU, torch.float32, False, 1.0)


@pytest.mark.parametrize("missing", ["weight_scale_inv", "quantization_config"])
def test_numbers_of_8_bits_are_never_read_without_their_scales(fp8: Path, tmp_path: Path, missing: str) -> None:
    state = {k: t for k, t in load_file(fp8 / "model.safetensors").items() if k != f"model.layers.1.mlp.up_proj.{missing}"}
    save_file(state, tmp_path / "model.safetensors")
    config = {k: v for k, v in json.loads((fp8 / "config.json").read_text()).items() if k != missing}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="_proj.weight .* as float8_e4m3fn, without a scale that config.json describes"):
        weights.load(tmp_path)


def test_a_scale_of_weights_that_are_not_quantized_is_refused(fp8: Path, tmp_path: Path) -> None:
    state = load_file(fp8 / "model.safetensors")
    state["model.layers.0.mlp.up_proj.weight"] = state["model.layers.0.mlp.up_proj.weight"].float()
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((fp8 / "config.json").read_text())
    with pytest.raises(ModelError, match=r"tensor 'model.layers.0.mlp.up_proj.weight_scale_inv', which rather's llama does not know"):
        weights.load(tmp_path)


@pytest.mark.parametrize(
    ("method", "says"), [("fp8", "is quantized, which rather reads for its own architectures only"), ("mxfp4", "by 'mxfp4'")]
)
@pytest.mark.parametrize("place", [(), ("text_config",)])
def test_other_architectures_are_read_in_full_precision_alone(tmp_path: Path, method: str, says: str, place: tuple[str, ...]) -> None:
    config: dict[str, Any] = {"quantization_config": {"quant_method": method}}
    for name in place:
        config = {name: config}
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "olmo"}))
    with pytest.raises(ModelError, match=says):
        load.policy(tmp_path, CPU, torch.float32, False, 1.0)
