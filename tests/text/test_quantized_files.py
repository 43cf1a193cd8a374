"""Quantized GGUF files: what is held of each format, against gguf's own `dequantize`, and layers whose parts differ in format."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from rather import kernels
from rather.kernels.quantized import SHARED, Bits, Quantized
from rather.text import engine, lora, weights
from rather.text.engine import Request, Sampling, generate
from rather.text.files import gguf_file, stored
from rather.text.linear import QuantizedLinear
from text.gguf_files import write_gguf
from text.test_quantized import DTYPES, PROMPTS, STOP, written


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_q8_0_is_used_as_the_file_holds_it(name: str, bits: Bits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(written(name, tmp_path), tmp_path / "model.gguf", formats={"": "Q8_0"})
    monkeypatch.setattr(stored, "quantize", None)  # nothing is quantized again
    held, plain = weights.load(path, bits=bits), weights.load(path)  # the latter by gguf's `dequantize`
    for at, layer in lora.layers(held).items():
        assert isinstance(layer, QuantizedLinear)
        assert torch.equal(layer.held.widened(torch.float32), lora.layers(plain)[at].weight)


MIXED = {"": "Q5_0", "attn_v": "Q8_0", "attn_output": "Q4_1", "ffn_gate": "Q4_0", "ffn_down": "Q5_1"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_of_mixed_formats(dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each matrix keeps its own, in layers that fuse several, too; all blocks in one call are what they are one by one."""
    path = write_gguf(written("qwen3", tmp_path), tmp_path / "model.gguf", formats=MIXED)
    monkeypatch.setattr(stored, "quantize", None)  # nothing is quantized again
    model, plain = weights.load(path, dtype, bits=4), weights.load(path)
    for at, layer in lora.layers(model).items():
        assert isinstance(layer, QuantizedLinear)
        assert torch.equal(layer.held.widened(torch.float32), lora.layers(plain)[at].weight)
    held = [[part.bits for part in getattr(model.blocks[0], kind).held.parts] for kind in ("qkv", "out", "up", "down")]
    assert held == [[5, 8], [4], [4, 5], [5]]
    asked = [Request(p, i) for i, p in enumerate(PROMPTS)]
    found = generate(model, asked, Sampling(20), STOP, rows=3)
    monkeypatch.setattr(engine.Decoder, "of", lambda *_: None)
    expected = generate(model, asked, Sampling(20), STOP, rows=8)
    if dtype == torch.float32 or kernels.Laid.out(torch.ones(2, 2, dtype=dtype)):
        assert [a.tokens for a in found] == [a.tokens for a in expected]


@pytest.mark.parametrize("kind", gguf_file.BLOCKS)
def test_blocks_of_a_file(kind: str, tmp_path: Path) -> None:
    """Each format that is used as the file holds it, random bytes with finite scales, against gguf's own `dequantize`."""
    form, o, i = GGMLQuantizationType[kind], 8, 512
    size, bytes_of = GGML_QUANT_SIZES[form]
    held = np.random.default_rng(0).integers(0, 256, (o * i // size, bytes_of), np.uint8)
    places = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(kind, (0,))
    for at in places:
        held[:, at : at + 2] = np.random.default_rng(at).normal(size=(len(held), 1)).astype(np.float16).view(np.uint8)
    if kind == "Q8_0":
        held[:, 2:] = np.where(held[:, 2:] == 128, 0, held[:, 2:])
    data = held.reshape(o, -1)
    tensor = SimpleNamespace(tensor_type=form, data=data, name="w")
    expected = torch.from_numpy(dequantize(data, form).astype(np.float32))
    for heads in (None, 2):
        found, turned = gguf_file._blocks(tensor, heads), gguf_file._halved(expected, heads)
        values = Quantized.out(found).widened(torch.float32)
        if kind.endswith("_K"):  # whose scales and minima, products of two numbers, are rounded to float16: by 2^-11 of them at most
            numbers, apart = found.numbers.abs().float(), 2.0**-11
            most = numbers * found.scales.float().abs().repeat_interleave(SHARED[found.bits], 1)
            most += 0 if found.minima is None else found.minima.float().abs().repeat_interleave(32, 1)
            assert ((values - turned).abs() <= 1.001 * apart * most + 1e-6).all()
        else:
            assert torch.equal(values, turned)
