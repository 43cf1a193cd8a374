"""Quantized weights: what they stand for, and that a model that holds them computes what one with those values computes."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from gguf.quants import quantize as quantized_by_gguf
from safetensors.torch import load_file, save_file

import rather
from rather import kernels
from rather.config.schema import Config
from rather.core import Perturbation
from rather.errors import ConfigError, ModelError
from rather.kernels import quantized
from rather.kernels.quantized import SHARED, Bits, Blocks, Quantized, quantize
from rather.pipeline import build
from rather.text import engine, load, lora, weights
from rather.text.decoder import Several
from rather.text.engine import Request, Sampling, generate
from rather.text.files.shifted import shifted
from rather.text.linear import QuantizedEmbedding, QuantizedLinear
from rather.text.packing import Packed, pack
from rather.text.transformer import TokenLogprobs, Transformer
from rather.zeroth.spaces.steering import steering
from rather.zeroth.spaces.weights import Factors, LowRank, Weights
from text.conftest import SIZES

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]
FAMILIES = ["llama", "qwen3", "gpt2"]
PROMPTS = [(5, 6, 7), (8, 9), (10, 11, 12, 13, 14, 15), *((i, i + 1, i + 2) for i in range(20, 50, 3))]
STOP = frozenset(range(0, 99, 8))


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def written(name: str, folder: Path) -> Path:
    """A random model whose layers have whole blocks of inputs."""
    import transformers as tf

    sizes = SIZES | {"intermediate_size": 64, "head_dim": 16}
    configs = {
        "llama": lambda: tf.LlamaConfig(**sizes, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        "qwen3": lambda: tf.Qwen3Config(**sizes),
        "gpt2": lambda: tf.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    }
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(configs[name]())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(folder)
    return folder


KINDS = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q6_k"]


def blocks(o: int, i: int, kind: str) -> Blocks:
    """A random weight in the bits that its kind names, without minima or, if it ends in _1, with them."""
    bits, with_minima = int(kind[1]), kind.endswith("_1")
    least = 0 if with_minima else -(2 ** (bits - 1))
    numbers = torch.randint(least, least + 2**bits, (o, i), generator=torch.Generator().manual_seed(1), dtype=torch.int8)
    scales, minima = (2 ** (1 - bits) * draw(o, i // SHARED[bits], seed=seed).half() / i**0.5 for seed in (2, 3))
    return Blocks(numbers, scales, 8 * minima if with_minima else None, bits)


@pytest.fixture(params=[8, 4])
def bits(request: pytest.FixtureRequest) -> Bits:
    return request.param


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return written(request.param, tmp_path / request.param)


def pair(folder: Path, dtype: torch.dtype, bits: Bits = 8) -> tuple[Transformer, Transformer]:
    """A frozen quantized model, and one with ordinary weights of the same values, rounded to `dtype`."""
    model = weights.load(folder, dtype, bits=bits).requires_grad_(False)
    widened = copy.deepcopy(model)
    lora.widen_(widened)
    assert sum(isinstance(m, QuantizedLinear) for m in model.modules()) == 9
    assert isinstance(model.embedding, QuantizedEmbedding)
    assert not any(isinstance(m, QuantizedLinear | QuantizedEmbedding) for m in widened.modules())
    return model, widened


def logits(model: Transformer, laid: Packed, adapter: str | None = None) -> torch.Tensor:
    return model.logits(model(laid.ids, laid.positions, laid, adapter))


def adapted(*models: Transformer) -> None:
    """The same adapter on each; its rank is no whole number of words in bfloat16."""
    for model in models:
        for i, p in enumerate(lora.add(model, "policy", 3, 6.0, 0)):
            p.data = 0.2 * draw(*p.shape, seed=i)


def test_blocks_by_hand() -> None:
    """The scale of 8 bits is 254 / 127 = 2; 3 / 2 is rounded to the even 2, 5 / 2 to 2, -7 / 2 to -4. That of 4 bits is 16 / -8 = -2."""
    found = quantize(torch.tensor([[254.0, 3.0, 5.0, -7.0, *[0.0] * 28, *[0.0] * 32]]), 8)
    assert found.numbers[0, :5].tolist() == [127, 2, 2, -4, 0]
    assert found.scales.tolist() == [[2.0, 0.0]]
    assert Quantized.out(found).widened(torch.float32)[0, :5].tolist() == [254.0, 4.0, 4.0, -8.0, 0.0]
    found = quantize(torch.tensor([[16.0, 3.0, -15.0, *[0.0] * 29]]), 4)
    assert found.numbers[0, :4].tolist() == [-8, -1, 7, 0]
    assert found.scales.tolist() == [[-2.0]]
    held = Quantized.out(
        Blocks(torch.tensor([[0, 15, *[3] * 30]], dtype=torch.int8), torch.tensor([[0.5]]).half(), torch.tensor([[-1.0]]).half(), 4)
    )
    assert held.widened(torch.float32)[0, :3].tolist() == [-1.0, 6.5, 0.5]


@pytest.mark.parametrize(("bits", "kind"), [(8, GGMLQuantizationType.Q8_0), (4, GGMLQuantizationType.Q4_0)])
def test_quantized_as_gguf_does(bits: Bits, kind: GGMLQuantizationType) -> None:
    weight = draw(50, 96)
    theirs = dequantize(quantized_by_gguf(weight.numpy(), kind), kind)
    assert torch.equal(Quantized.out(quantize(weight, bits)).widened(torch.float32), torch.from_numpy(theirs))


@pytest.mark.parametrize("bits", [8, 6, 5, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_with_every_scale(bits: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """All finite float16, subnormal ones too: number times scale, rounded once, with and without compiled code."""
    scales = torch.from_numpy(np.arange(0x7C00, dtype=np.uint16).view(np.float16).copy()).view(-1, 31)
    scales = scales.repeat_interleave(32 // SHARED[bits], 1)
    numbers = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).to(torch.int8).repeat(62)[: 31 * 32].repeat(len(scales), 1)
    exact = numbers.double() * scales.double().repeat_interleave(SHARED[bits], 1)
    held = Quantized.out(Blocks(numbers, scales, None, bits))
    assert torch.equal(held.widened(dtype), exact.float().to(dtype))
    if held.multiplies(dtype):  # each weight for itself: x has a single 1
        assert torch.equal(held.product(torch.eye(31 * 32, dtype=dtype)[:70], None).t(), exact.float().to(dtype)[:, :70])
    chosen = torch.tensor([5, 0, 999, 47, 48])
    assert torch.equal(held.rows(chosen, dtype), exact[chosen].float().to(dtype))
    monkeypatch.setattr(quantized, "library", lambda _: None)
    assert torch.equal(held.widened(dtype), exact.float().to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_of_a_weight_keep_their_formats(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those held alike lie together, each group of 48 outputs filled up once; the product is that of each part alone."""
    kinds = ["q5_0", "q5_0", "q6_k", "q4_1", "q8_0"]
    parts = [blocks(o, 64, kind) for o, kind in zip((40, 60, 50, 7, 48), kinds, strict=True)]
    held, alone = Quantized.out(*parts), [Quantized.out(part) for part in parts]
    assert held.total == 205
    assert held.nbytes == 64 // 32 * (144 * (20 + 2) + 96 * (24 + 4) + 48 * (16 + 4) + 48 * (32 + 2))
    values = torch.cat([part.widened(dtype) for part in alone])
    assert torch.equal(held.widened(dtype), values)
    x, bias = draw(20, 64, dtype=dtype), draw(205, dtype=dtype, seed=2)
    if held.multiplies(dtype):
        found = [part.product(x, b) for part, b in zip(alone, bias.split([40, 60, 50, 7, 48]), strict=True)]
        assert torch.equal(held.product(x, bias), torch.cat(found, 1))
        assert torch.equal(held.product(x[:1], None), torch.cat([part.product(x[:1], None) for part in alone], 1))
    monkeypatch.setattr(quantized, "library", lambda _: None)
    assert torch.equal(held.widened(dtype), values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "i", "o"), [(1, 576, 960), (2, 96, 48), (8, 32, 48), (13, 544, 50), (3, 1056, 7), (17, 64, 5), (40, 1536, 300), (64, 2048, 96)]
)
def test_a_product_is_that_of_the_exact_weight(kind: str, dtype: torch.dtype, n: int, i: int, o: int) -> None:
    """Of a weight that is not rounded to `dtype`; and a row gets the same numbers whatever stands beside it."""
    x, held, bias = draw(n, i, dtype=dtype), Quantized.out(blocks(o, i, kind)), draw(o, dtype=dtype, seed=2)
    if not held.multiplies(dtype):
        pytest.skip("this processor does not multiply such numbers")
    found, exact = held.product(x, bias), x.double() @ held.widened(torch.float32).double().T
    tolerance = {"atol": 1e-5, "rtol": 1e-5 if dtype == torch.float32 else 2**-8}  # half a unit of the last place
    torch.testing.assert_close(found.double(), exact + bias.double(), **tolerance)
    torch.testing.assert_close(held.product(x, None).double(), exact, **tolerance)
    for rows in (1, 2, 5, 8, 9, 16, 17, 33):
        assert torch.equal(held.product(x[-rows:], bias), found[-rows:])


def test_without_minima_as_with_minima_of_0() -> None:
    """The sums of x that minima take change nothing else."""
    plain, x = blocks(60, 96, "q8_0"), draw(20, 96)
    held, with_minima = (Quantized.out(Blocks(plain.numbers, plain.scales, minima, 8)) for minima in (None, torch.zeros_like(plain.scales)))
    assert torch.equal(held.widened(torch.float32), with_minima.widened(torch.float32))
    if held.multiplies(torch.float32):
        assert torch.equal(held.product(x, None), with_minima.product(x, None))


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_are_those_of_widened_weights(folder: Path, dtype: torch.dtype, bits: Bits) -> None:
    model, widened = pair(folder, dtype, bits)
    laid = pack([torch.tensor(p) for p in PROMPTS], [torch.tensor([1, 2])] * len(PROMPTS), dtype)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found, expected = logits(model, laid), logits(widened, laid)
        torch.testing.assert_close(found, expected, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0)
    exact = weights.load(folder, dtype)
    near = 0.05 if bits == 8 else 0.5
    assert 0 < (logits(exact, laid).float() - expected.float()).abs().mean() < near, "near the model as it was, and not the same"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_adapter", [False, True])
def test_what_is_sampled_is_what_is_learned_from(folder: Path, dtype: torch.dtype, with_adapter: bool, bits: Bits) -> None:
    """To the bit in bfloat16 with products of our own, but for an adapter's, which PyTorch multiplies in training."""
    model, _ = pair(folder, dtype, bits)
    adapter = "policy" if with_adapter else None
    adapted(*[model] * with_adapter)
    asked = [Request(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    alone = [generate(model, [r], Sampling(20), STOP, adapter)[0] for r in asked]
    together = generate(model, asked, Sampling(20), STOP, adapter, rows=8)
    laid = pack([torch.tensor(r.prompt) for r in asked], [torch.tensor(a.tokens) for a in together], dtype)
    with torch.enable_grad():
        hidden = model(laid.ids, laid.positions, laid, adapter)[torch.cat(laid.before)]
        targets = torch.cat([torch.tensor(a.tokens) for a in together])
        known, _ = TokenLogprobs.apply(hidden, model.head, targets, 1.0)  # type: ignore[misc]
    sampled = torch.tensor([p for a in together for p in a.logprobs])
    ours = kernels.Laid.out(torch.ones(2, 2, dtype=dtype)) is not None
    if ours or dtype == torch.float32:
        assert [a.tokens for a in alone] == [a.tokens for a in together]
    if dtype == torch.float32:
        torch.testing.assert_close(known, sampled, atol=1e-5, rtol=0)
    elif ours and not model.shape.is_gpt2:  # whose attention and norms are PyTorch's
        assert torch.equal(known, sampled)
    else:
        torch.testing.assert_close(known, sampled, atol=0.1, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_blocks_in_one_call(folder: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = pair(folder, dtype)
    adapted(model)
    called: list[int] = []
    inner = engine.Decoder.__call__

    def counting(self: Any, ids: torch.Tensor, *more: Any) -> torch.Tensor:
        called.append(len(ids))
        return inner(self, ids, *more)

    def answers() -> list[engine.Answer]:
        return generate(model, [Request(p, i) for i, p in enumerate(PROMPTS)], Sampling(20), STOP, "policy", rows=3)

    monkeypatch.setattr(engine.Decoder, "__call__", counting)
    found = answers()
    assert bool(called) == (not model.shape.is_gpt2 and all(m.laid(dtype) for m in lora.layers(model).values()))
    called.clear()
    monkeypatch.setattr(engine.Decoder, "of", lambda *_: None)
    expected = answers()
    assert not called
    if dtype == torch.float32 or kernels.Laid.out(torch.ones(2, 2, dtype=dtype)):
        assert [a.tokens for a in found] == [a.tokens for a in expected]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_adapter_has_the_gradients_that_it_has_on_widened_weights(
    folder: Path, dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, widened = pair(folder, dtype)
    if not compiled:
        monkeypatch.setattr(quantized, "library", lambda _: None)
    adapted(model, widened)
    laid = pack([torch.tensor(p) for p in PROMPTS], [torch.tensor([1, 2])] * len(PROMPTS), dtype)
    gradients = []
    for each in (model, widened):
        loss = logits(each, laid, "policy").float().log_softmax(-1)[:, 5].sum()
        gradients.append(torch.autograd.grad(loss, lora.parameters(each, "policy")))
    assert all(g.abs().max() > 0 for g in gradients[0])
    for found, expected in zip(*gradients, strict=True):
        assert (found - expected).norm() < (1e-5 if dtype == torch.float32 else 0.1) * expected.norm()


def test_what_they_take_and_that_nothing_is_held_beside_them(folder: Path, bits: Bits) -> None:
    model, _ = pair(folder, torch.bfloat16, bits)
    generate(model, [Request((5, 6), 0)], Sampling(4), STOP)
    logits(model, pack([torch.tensor([5, 6])], [torch.tensor([7])], torch.bfloat16)).sum()
    for layer in lora.layers(model).values():
        held = [x for x in vars(layer).values() if isinstance(x, torch.Tensor)]
        held += [x for x in layer.parameters() if x.ndim == 2]
        assert not held
        assert isinstance(layer, QuantizedLinear)
        assert layer.held.nbytes * 32 == (34 if bits == 8 else 18) * -(-layer.held.outputs // 48) * 48 * layer.inputs


def test_a_merged_and_a_saved_model(folder: Path, tmp_path: Path) -> None:
    model, widened = pair(folder, torch.float32)
    adapted(model, widened)
    laid = pack([torch.tensor(p) for p in PROMPTS], [torch.tensor([1])] * len(PROMPTS))
    weights.save(model, tmp_path / "base")
    torch.testing.assert_close(logits(weights.load(tmp_path / "base"), laid), logits(widened, laid), atol=1e-5, rtol=0)
    weights.save(lora.merged(model, "policy"), tmp_path / "merged")
    torch.testing.assert_close(logits(weights.load(tmp_path / "merged"), laid), logits(widened, laid, "policy"), atol=1e-4, rtol=0)
    assert any(isinstance(m, QuantizedLinear) for m in model.modules()), "and the policy stays as it is"
    if model.shape.family in ("llama", "mistral", "qwen2") and not model.shape.window:
        after = {1: draw(1, 32)[0]}
        weights.save(shifted(model, after), tmp_path / "shifted")
        weights.save(shifted(widened, after), tmp_path / "expected")
        found, expected = (load_file(tmp_path / f / "model.safetensors") for f in ("shifted", "expected"))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_zeroth_order_moves_what_is_beside_them(folder: Path) -> None:
    model, widened = pair(folder, torch.float32)
    adapted(model, widened)
    kinds = [Perturbation(1, 0.5), Perturbation(1, -0.5), None]
    asked = [Request(prompt, 10 * i, j) for i, prompt in enumerate(PROMPTS[:4]) for j in range(3)]

    def answers(each: Transformer, several: Several, adapter: str | None) -> list[list[int]]:
        return [a.tokens for a in generate(each, asked, Sampling(12), STOP, adapter, rows=5, several=several)]

    for space in (lambda m: steering(m, PROMPTS[:4], [0]), lambda m: Factors(m, "policy")):
        found, expected = (answers(m, space(m).several(kinds), "policy") for m in (model, widened))
        assert found == expected
        assert found[0::3] != found[1::3] != found[2::3], "perturbations do something"


def test_what_would_change_them_is_refused(tiny: Path) -> None:
    policy = rather.load(tiny, weights="int8", dtype="float32")
    message = "^quantized weights cannot be trained or perturbed"
    for space in (LowRank, Weights):
        with pytest.raises(ConfigError, match=message):
            space(policy.model)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=message):
        policy.trainable("full", 0)
    with pytest.raises(ConfigError, match=message):
        policy.restore(tiny)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": {"train": "full"}}, "stay as they are: they cannot be trained or perturbed"),
        ({"model": {"adapter": "adapter"}, "train": {"learner": "zeroth"}}, "cannot take up the adapter adapter"),
    ],
)
def test_a_run_that_would_change_them_is_refused(tiny: Path, settings: Any, message: str, tmp_path: Path, monkeypatch) -> None:
    policy = rather.load(tiny, dtype="float32")
    policy.trainable(None, 0)[0].save(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    settings = settings | {"model": {"path": str(tiny), "weights": "q4", "device": "cpu"} | settings["model"]}
    with pytest.raises(ModelError, match=f'^quantized weights {message}; set model.weights to "auto"$'):
        build.base_policy(Config(**settings))


def test_where_there_is_no_such_thing(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="^quantized weights are for a CPU or a GPU by NVIDIA, not meta; "):
        load.policy(tiny, torch.device("meta"), torch.float32, False, 1.0, bits=8)
    with pytest.raises(ConfigError, match="^load: weights is 'int4'"):
        rather.load(tiny, weights="int4")  # type: ignore[arg-type]
    state = load_file(tiny / "model.safetensors")
    folder = tmp_path / "odd"
    rather.load(tiny, dtype="float32").save(folder)
    name = "model.layers.1.mlp.down_proj.weight"
    for value, message in ((float("nan"), "not finite or too large"), (1e8, "not finite or too large")):
        save_file(state | {name: torch.full((32, 64), value)}, folder / "model.safetensors")
        with pytest.raises(ModelError, match=f"^{name} in .* has numbers that are {message}"):
            weights.load(folder, bits=8)


def test_other_architectures_and_odd_widths(tiny: Path, tmp_path: Path) -> None:
    import transformers as tf

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(vocab_size=100, **small)).save_pretrained(tmp_path / "neox")
    tf.AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "neox")
    with pytest.raises(ModelError, match=r"^quantized weights are for rather's own architectures only \(architecture 'gpt_neox'"):
        rather.load(tmp_path / "neox", weights="int8", device="cpu")
    tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"^model.layers.0.mlp.down_proj.weight in .* has 48 inputs, which are no whole blocks of 32"):
        weights.load(tmp_path, bits=8)
