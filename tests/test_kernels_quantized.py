"""Quantized weights as a GPU holds them, by Triton's interpreter on a processor, which is taught to multiply bfloat16; and that the
kernels compile for GPUs. test_gpu.py has the real thing.
"""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

pytest.importorskip("triton")
import triton.language as tl
from triton.runtime import interpreter

from rather.kernels import gpu, quantized_rows
from rather.kernels.quantized import Blocks, Quantized, quantize
from rather.kernels.quantized_rows import QuantizedRows, laid
from rather.text import lora, weights
from rather.text.engine import Request, Sampling, generate
from rather.text.linear import Linear, QuantizedEmbedding, QuantizedLinear
from rather.text.packing import pack
from rather.text.transformer import TokenLogprobs, Transformer

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="test_gpu.py has the real thing")
CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]
KINDS = ["q8_0", "q8_minima", "q4_0", "q4_1", "six"]


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter for a GPU. It holds bfloat16 as whole numbers: here it multiplies what these are, and rounds as a GPU does."""
    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def rounded(x: Any, source: Any, target: Any, mode: Any) -> Any:
        if target != tl.bfloat16:
            return convert(x, source, target, mode)
        return torch.from_numpy(np.array(x)).bfloat16().view(torch.int16).numpy().view(np.uint16)

    def multiplied(self: Any, a: Any, b: Any, *more: Any) -> Any:
        a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, *more)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", multiplied)
    monkeypatch.setattr(quantized_rows, "on_gpu", lambda _: gpu)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def blocks(o: int, i: int, kind: str, seed: int = 0) -> Blocks:
    """A random weight: in 8 bits or 4, with minima or without; `six` is 6 bits, of which 16 inputs share a scale."""
    if kind in ("q8_0", "q4_0"):
        return quantize(numbers(o, i, seed=seed) / i**0.5, 8 if kind == "q8_0" else 4)
    low, high, bits, shared = {"q8_minima": (-127, 128, 8, 32), "q4_1": (0, 16, 4, 32), "six": (-32, 32, 6, 16)}[kind]
    held = torch.randint(low, high, (o, i), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    scales, minima = (numbers(o, i // shared, seed=seed + n).half() / high / i**0.5 for n in (1, 2))
    return Blocks(held, scales, None if kind == "six" else 8 * minima, bits)  # type: ignore[arg-type]


def values(*parts: Blocks) -> Tensor:
    """The weight itself, float32."""
    found = []
    for part in parts:
        scales, minima = (
            None if x is None else x.float().repeat_interleave(part.numbers.shape[1] // x.shape[1], 1) for x in (part.scales, part.minima)
        )
        found.append(part.numbers * scales + (0 if minima is None else minima))
    return torch.cat(found)


def test_bytes_by_hand() -> None:
    """Numbers -8, 7, 1 count from 0 as 0, 15, 9; the first of two is the low half of a byte: 15 * 16 + 0, 8 * 16 + 9."""
    held = torch.tensor([[-8, 7, 1, *[0] * 29]], dtype=torch.int8)
    found = QuantizedRows.on([Blocks(held, torch.ones(1, 1).half(), None, 4)], CPU)
    assert found.numbers[0, :3].tolist() == [240, 137, 136]
    assert (found.bits, found.inputs, found.outputs, found.nbytes) == (4, 32, 1, 18)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "i", "o"), [(1, 544, 70), (7, 96, 5), (70, 32, 65)])
def test_a_product_is_that_of_the_widened_weight(triton: None, kind: str, dtype: torch.dtype, n: int, i: int, o: int) -> None:
    """With one rounding, that of the result; the widest weight has its inputs shared among programs."""
    of, x, bias = blocks(o, i, kind), numbers(n, i).to(dtype), numbers(o, seed=9).to(dtype)
    held, weight = QuantizedRows.on([of], CPU), values(of).to(dtype)
    assert torch.equal(held.widened(dtype), weight)
    assert torch.equal(held.rows(torch.tensor([4, 0, o - 1]), dtype), weight[[4, 0, o - 1]])
    exact = x.double() @ weight.double().T
    near = {"atol": 1e-5, "rtol": 1e-5 if dtype == torch.float32 else 2**-8}  # half a unit of the last place
    assert_close(held.product(x, bias).double(), exact + bias.double(), **near)
    assert_close(held.product(x, None).double(), exact, **near)


def test_many_rows_and_none(triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    of = blocks(20, 64, "q4_0")
    held = QuantizedRows.on([of], CPU)
    assert held.product(torch.empty(0, 64), None).shape == (0, 20)
    x = numbers(gpu.FEW + 1, 64)
    few = held.product(x[:-1], None)
    monkeypatch.setattr(gpu, "product_quantized", None)
    assert_close(held.product(x, None)[:-1], few, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(quantized_rows, "on_gpu", lambda _: None)
    assert_close(held.product(x, None), x @ values(of).T)


@pytest.mark.parametrize("kinds", [("q8_0", "q4_0"), ("q4_1", "q4_0"), ("six", "q4_1", "q8_0"), ("q4_1", "q4_1")])
def test_weights_below_each_other_keep_their_values(kinds: tuple[str, ...]) -> None:
    parts = [blocks(10, 64, kind, seed) for seed, kind in enumerate(kinds)]
    held = QuantizedRows.on(parts, CPU)
    assert torch.equal(held.widened(torch.float32), values(*parts))
    assert held.bits == (4 if set(kinds) == {"q4_1"} else 8)


@pytest.mark.parametrize("kind", ["q8_0", "q4_1"])
def test_the_gradient_of_a_layer(triton: None, kind: str) -> None:
    of, x, slope = blocks(70, 96, kind), numbers(7, 96), numbers(7, 70, seed=1)
    layer = QuantizedLinear(Linear(96, {"a": 70}, bias=True), QuantizedRows.on([of], CPU))
    assert layer.laid(torch.float32) is None, "what C would read is not there"
    given = x.clone().requires_grad_()
    layer(given).backward(slope)
    assert given.grad is not None
    assert_close(given.grad, slope @ values(of), atol=1e-5, rtol=1e-5)
    assert layer.bias is not None
    assert layer.bias.grad is not None
    assert_close(layer.bias.grad, slope.sum(0))


@pytest.fixture(params=[8, 4])
def model(request: pytest.FixtureRequest, tiny: Path) -> Transformer:
    """Quantized, with an adapter, as a processor holds it."""
    found = weights.load(tiny, bits=request.param).requires_grad_(False)
    for i, p in enumerate(lora.add(found, "policy", 3, 6.0, 0)):
        p.data = 0.2 * numbers(*p.shape, seed=i)
    return found


def there(model: Transformer, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Transformer:
    """The same, as a GPU holds it, but here."""
    bits = model.blocks[0].qkv.held.bits  # type: ignore[union-attr]
    monkeypatch.setattr(weights, "laid", lambda parts, on: QuantizedRows.on(parts, on))
    found = weights.load(tiny, bits=bits).requires_grad_(False)
    for at, layer in lora.layers(found).items():
        layer.adapters["policy"] = copy.deepcopy(lora.layers(model)[at].adapters["policy"])
    held = [m.held for m in found.modules() if isinstance(m, QuantizedLinear | QuantizedEmbedding)]
    assert all(isinstance(h, QuantizedRows) for h in held)
    assert len({id(h) for h in held}) == len(held) - 1, "the tied head is the embedding"
    return found


@pytest.mark.parametrize("interpreted", [True, False])
def test_a_model_answers_and_learns_as_on_a_processor(
    model: Transformer, tiny: Path, interpreted: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [Request(tuple(range(i, i + 5)), i) for i in range(2)]

    def work(of: Transformer) -> list[Any]:
        answers = generate(of, asked, Sampling(3), frozenset(), "policy", rows=2)
        laid = pack([torch.tensor(r.prompt) for r in asked], [torch.tensor(a.tokens) for a in answers], torch.float32)
        hidden = of(laid.ids, laid.positions, laid, "policy", laid.chosen(laid.before))
        logprobs, _ = TokenLogprobs.apply(hidden, of.head, torch.cat([torch.tensor(a.tokens) for a in answers]), 1.0)  # type: ignore[misc]
        gradients = torch.autograd.grad(logprobs.sum(), lora.parameters(of, "policy"))
        sampled = torch.tensor([p for a in answers for p in a.logprobs])
        assert_close(logprobs.detach(), sampled, atol=1e-5, rtol=0)
        return [[a.tokens for a in answers], sampled, *gradients]

    expected, rows = work(model), there(model, tiny, monkeypatch)
    if interpreted:
        request.getfixturevalue("triton")
    found = work(rows)
    assert found[0] == expected[0]
    for a, b in zip(found[1:], expected[1:], strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()
    saved, known = (dict(weights.tensors(m)) for m in (rows, model))
    assert all(torch.equal(saved[name], known[name]) for name in known)
    lora.merge(rows, "policy")
    lora.merge(model, "policy")
    assert_close(rows.head, model.head)


COMPILED = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from rather.kernels import gpu_quantized as g

def compiled(kernel, kind, bits, minima, capability, **more):
    names = kernel.arg_names
    tensors = dict(x=kind, found="fp32", numbers="i8" if bits == 8 else "u8", scales="fp16", minima="fp16", bias=kind, out=kind)
    more |= dict(BITS=bits, LEAST=0 if minima or bits == 8 else -8, MINIMA=minima, BLOCK=32, TILE=g.TILE, STEP=g.STEP)
    known = {n: more[n] for n in names if n in more}
    signature = {n: "constexpr" if n in known else f"*{tensors[n]}" if n in tensors else "i32" for n in names}
    values = {(i,): known[n] for i, n in enumerate(names) if n in known}
    stages = {"num_stages": 3 if kind == "bf16" else 2}
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(ASTSource(kernel, signature, values), target=target, options=stages)

for capability in (80, 90):
    compiled(g._joined, "bf16", 8, False, capability)
    for bits, minima in ((8, False), (4, True)):
        compiled(g._widen, "bf16", bits, minima, capability)
        for kind, rows in (("bf16", 64), ("fp32", 32)):
            made = compiled(g._product, kind, bits, minima, capability, BIASED=True, ROWS=rows)
            assert "mma" in made.asm["ptx"] or kind == "fp32", "tensor cores multiply bfloat16"
            assert made.metadata.shared <= 99 * 1024, "what the smallest GPUs give a program"
"""


@pytest.mark.slow
def test_the_kernels_compile_for_gpus(tmp_path: Path) -> None:
    """The interpreter takes what the compiler does not. It needs no GPU."""
    names = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", COMPILED], env=names, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_a_processor_gets_its_own_layout() -> None:
    of = blocks(20, 64, "q8_0")
    assert type(laid([of], CPU)) is Quantized
    assert torch.equal(laid([of], CPU).widened(torch.float32), values(of))
