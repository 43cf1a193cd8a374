from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rather.text import packing, weights
from rather.text.packing import pack
from rather.text.transformer import RMSNorm, TokenLogprobs, Transformer, glu, turned

Family = tuple[Any, Path]


def logits(model: Transformer, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    """Our logits for whole rows, all forwarded at once."""
    laid = pack(rows, [row[:0] for row in rows])
    with torch.no_grad():
        found = model.logits(model(laid.ids, laid.positions, laid))
    return [found[places] for places in laid.prompts]


def rows(seed: int = 0, lengths: tuple[int, ...] = (17, 5, 30)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(99, (n,), generator=generator) for n in lengths]


def test_logits_equal_those_of_transformers(family: Family) -> None:
    reference, folder = family
    for row, found in zip(rows(), logits(weights.load(folder), rows()), strict=True):
        with torch.no_grad():
            expected = reference(row[None]).logits[0]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_equal_those_of_padded_batches(family: Family, side: str) -> None:
    reference, folder = family
    given = rows()
    longest = max(map(len, given))
    pads = [(longest - len(r), 0) if side == "left" else (0, longest - len(r)) for r in given]
    ids = torch.stack([F.pad(r, pad) for r, pad in zip(given, pads, strict=True)])
    mask = torch.stack([F.pad(torch.ones_like(r), pad) for r, pad in zip(given, pads, strict=True)])
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        expected = reference(ids, attention_mask=mask, position_ids=positions).logits
    for found, padded, m in zip(logits(weights.load(folder), given), expected, mask, strict=True):
        torch.testing.assert_close(found, padded[m.bool()], atol=1e-4, rtol=0)


def test_saved_models_are_read_by_transformers(family: Family, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    reference, folder = family
    weights.save(weights.load(folder), tmp_path / "saved")
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    expected = reference.state_dict()
    assert again.state_dict().keys() == expected.keys()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("shape", [(5, 8), (5, 3, 8)])
@pytest.mark.parametrize("plus", [0.0, 1.0])
def test_rms_norm_has_the_gradients_of_pytorchs_own(shape: tuple[int, ...], plus: float) -> None:
    norm = RMSNorm(8, 1e-5, plus)
    assert torch.equal(plus + norm.weight, torch.ones(8))
    norm.weight.data.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found, expected = norm(x), F.rms_norm(x, (8,), plus + norm.weight, 1e-5)
    torch.testing.assert_close(found, expected)
    slope = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    gradients = [torch.autograd.grad(y, [x, norm.weight], slope) for y in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("gelu", [False, True])
def test_glu_has_the_gradient_of_its_formula(gelu: bool) -> None:
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    gate, up = x.chunk(2, dim=-1)
    found, expected = glu(x, gelu), (F.gelu(gate, approximate="tanh") if gelu else F.silu(gate)) * up
    torch.testing.assert_close(found, expected)
    slope = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(*(torch.autograd.grad(y, x, slope) for y in (found, expected)))


def test_rotary_embedding_has_the_gradient_of_its_formula_and_leaves_its_input() -> None:
    x, slope = (torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(i)) for i in range(2))
    angles = torch.arange(5.0)[:, None, None] * torch.tensor([1.0, 0.3, 0.1, 0.01])
    cos, sin = angles.cos(), angles.sin()
    given = x.clone().requires_grad_()
    a, b = given.chunk(2, dim=-1)
    expected = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    found = turned(given, None, 2, torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1), 0.0)
    torch.testing.assert_close(found, expected)
    slope = slope.transpose(0, 1).contiguous().transpose(0, 1)  # rows that do not lie one after the other
    torch.testing.assert_close(*(torch.autograd.grad(y, given, slope, retain_graph=True) for y in (found, expected)))
    assert torch.equal(given, x)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kept", [0, 2**16])
def test_compiled_attention_has_the_gradients_of_the_fused_kernel(
    dtype: torch.dtype, tolerance: float, window: int | None, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five tokens that see four before them, three query heads to a key head; the kernel always in float32."""
    monkeypatch.setattr(packing, "KEPT", kept)
    chance = torch.Generator().manual_seed(0)
    laid = pack([torch.arange(4)] * 2, [torch.arange(5), torch.arange(1)])
    q, k, v, slope = (torch.randn(10, h, 8, generator=chance).to(dtype) for h in (6, 2, 2, 6))

    def attended(pairs: int, dtype: torch.dtype) -> list[torch.Tensor]:
        monkeypatch.setattr(packing, "COMPILED", pairs)
        given = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        found = replace(laid, dtype=dtype)(0, window, *given)
        return [x.float() for x in (found, *torch.autograd.grad(found, given, slope.to(dtype)))]

    for found, expected in zip(attended(2**16, dtype), attended(0, torch.float32), strict=True):
        assert (found - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("shared", [0, 4])
@pytest.mark.parametrize("pairs", [0, 2**16])
def test_answers_get_in_a_pack_what_they_get_alone(family: Family, shared: int, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal prompts, and prompts that begin alike, one of them with nothing else."""
    monkeypatch.setattr(packing, "COMPILED", pairs)
    model = weights.load(family[1])
    head, prompt, other, *answers = rows(1, (4, 9, 6, 12, 1, 20))
    prompt, other, third = torch.cat([head[:shared], prompt]), torch.cat([head[:shared], other]), head
    prompts, given = [prompt, other, prompt, prompt, third], [answers[0], answers[1], answers[2], answers[1], answers[0]]
    together = pack(prompts, given)
    with torch.no_grad():
        hidden = model(together.ids, together.positions, together)
        for i, (p, a) in enumerate(zip(prompts, given, strict=True)):
            alone = pack([p], [a])
            expected = model(alone.ids, alone.positions, alone)
            torch.testing.assert_close(hidden[together.before[i]], expected[alone.before[0]], atol=1e-5, rtol=0)
            torch.testing.assert_close(hidden[together.after[i]], expected[alone.after[0]], atol=1e-5, rtol=0)
            some = model(together.ids, together.positions, together, wanted=together.after[i])
            torch.testing.assert_close(some, hidden[together.after[i]], atol=1e-5, rtol=0)
    assert len(together.ids) == 4 + 9 + 6 + 12 + 20 + 1 + 1 + 12, "what is shared is forwarded once"
    assert len(together.lengths) == bool(shared) + 4 + 1 + 1, "a single answer is of one piece with its prompt"


@pytest.mark.parametrize(("onednn", "pairs", "tolerance"), [(False, 0, 1e-4), (False, 2**16, 2e-4), (True, 2**16, 2e-4)])
def test_smollm2_from_gguf_equals_transformers(
    smollm2: Path, smollm2_reference: Any, monkeypatch: pytest.MonkeyPatch, onednn: bool, pairs: int, tolerance: float
) -> None:
    """With the matrix library and the kernel that `transformers` uses. Other orders of summing round otherwise: theirs and ours
    are all about 1e-4 off the logits in float64, which reach 38.
    """
    from rather.text import linear
    from rather.text.tokens import Tokens

    monkeypatch.setattr(linear, "onednn_is_faster", lambda: onednn)
    monkeypatch.setattr(packing, "COMPILED", pairs)
    model, tokens = weights.load(smollm2), Tokens.load(smollm2)
    texts = ["The capital of France is Paris.", "Write a haiku about the sea, please."]
    given = [torch.tensor(tokens.encode_prompt(text)) for text in texts]
    for row in given:
        (found,) = logits(model, [row])
        with torch.no_grad():
            expected = smollm2_reference(row[None]).logits[0]
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def smollm2_reference(smollm2: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("keep", [True, False])
def test_token_logprobs_equal_a_plain_softmax(trained: bool, temperature: float, keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenLogprobs, "CHUNK", 4)
    hidden, weight = torch.randn(11, 8, requires_grad=True), torch.randn(30, 8, requires_grad=trained)
    targets, upstream = torch.randint(30, (11,)), torch.randn(11)
    every = F.log_softmax(hidden @ weight.T / temperature, dim=-1)
    expected = every[torch.arange(11), targets]
    found, entropy = TokenLogprobs.apply(hidden, weight, targets, temperature, keep)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(entropy, -(every.exp() * every).sum(-1))
    inputs = [hidden, weight] if trained else [hidden]
    wanted = torch.autograd.grad((expected * upstream).sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad((found * upstream).sum(), inputs), wanted, atol=1e-5, rtol=1e-5)


def test_onednn_and_the_default_library_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    from rather.text import linear

    results = []
    for onednn in (True, False):
        monkeypatch.setattr(linear, "onednn_is_faster", lambda value=onednn: value)
        torch.manual_seed(0)
        inputs = [torch.randn(6, 16, requires_grad=True), torch.randn(8, 16, requires_grad=True), torch.randn(8, requires_grad=True)]
        y = linear.linear(*inputs)
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)
