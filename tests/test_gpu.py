"""What only a GPU shows: kernels in bfloat16, graphs, and that nothing is waited for. Needs one, and skips itself elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

import rather
from fixed import fixed
from rather.core import Comparison, Task, Trajectory
from rather.kernels.quantized import Bits, Blocks, quantize
from rather.kernels.quantized_rows import QuantizedRows, laid
from rather.learners.common import Pairs
from rather.learners.dpo import DPO
from rather.losses import bradley_terry_loss
from rather.text import lora
from rather.text.engine import Recorded, Request, Sampling, generate
from rather.text.linear import Linear, QuantizedEmbedding, QuantizedLinear
from rather.text.packing import pack
from rather.text.policy import TextPolicy
from rather.text.shape import Shape
from rather.text.transformer import TokenLogprobs, Transformer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SHAPE = Shape("qwen3", 1000, 128, 3, 4, 2, 32, 256, 512, 1e-6, True, qk_norm=True)
GPU = torch.device("cuda")
ASKED = [Request(tuple(range(i, i + n)), i) for i, n in enumerate([5, 30, 30, 7, 70, 70, 12, 3, 9, 40])] + [Request((1, 2, 3), 77)] * 3
SAMPLING, STOP = Sampling(40), frozenset(range(20))


def made(dtype: torch.dtype, device: torch.device | str, size: float = 0.08) -> Transformer:
    model = Transformer(SHAPE, dtype)
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(0, size, generator=chance)
    return model.to(device)


def learned(model: Transformer, answers: list[Tensor], adapter: str | None = None) -> Tensor:
    """Log-probabilities as a learner computes them."""
    laid = pack([torch.tensor(r.prompt) for r in ASKED], answers, model.dtype, device=model.device)
    hidden = model(laid.ids, laid.positions, laid, adapter, laid.chosen(laid.before))
    targets = torch.cat(answers).to(hidden.device)
    return TokenLogprobs.apply(hidden, model.head, targets, 1.0, True)[0]  # type: ignore[index]


def test_float32_gives_what_a_processor_gives() -> None:
    here, there = made(torch.float32, "cpu"), made(torch.float32, GPU)
    found, expected = (generate(model, ASKED, SAMPLING, STOP, rows=8) for model in (there, here))
    assert [a.tokens for a in found] == [a.tokens for a in expected]
    answers = [torch.tensor(a.tokens) for a in found]
    sampled = torch.tensor([p for a in found for p in a.logprobs])
    for model in (here, there):
        logprobs = learned(model, answers)
        assert (logprobs.detach().cpu() - sampled).abs().max() < 1e-5
        (logprobs * torch.linspace(-1, 1, len(logprobs), device=logprobs.device)).sum().backward()
    for (name, p), q in zip(there.named_parameters(), here.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert (p.grad.cpu() - q.grad).norm() < 1e-4 * q.grad.norm(), name


@pytest.mark.parametrize("adapted", [False, True])
def test_bfloat16_is_near_float32(adapted: bool) -> None:
    exact, model = made(torch.float32, GPU, 0.05), made(torch.bfloat16, GPU, 0.05)
    adapter = "policy" if adapted else None
    for m in (exact, model) if adapted else ():
        for p in lora.add(m, "policy", 4, 8.0, 0):
            p.data = 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())).to(GPU)
    found = generate(model, ASKED, SAMPLING, STOP, adapter, rows=8)
    answers = [torch.tensor(a.tokens) for a in found]
    sampled = torch.tensor([p for a in found for p in a.logprobs])
    a, b = (learned(m, answers, adapter) for m in (model, exact))
    assert (a.detach().cpu() - sampled).abs().mean() < 1e-2
    assert (a.detach().cpu() - sampled).abs().max() < 5e-2
    assert (a - b).detach().abs().mean() < 1e-2
    for logprobs in (a, b):
        (logprobs * torch.linspace(-1, 1, len(logprobs), device=GPU)).sum().backward()
    for (name, p), q in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert (p.grad - q.grad).norm() < 0.1 * q.grad.norm(), name


def quantized(bits: Bits, dtype: torch.dtype, device: torch.device | str, size: float = 0.05) -> Transformer:
    """`made` with quantized weights, the head in 8 bits, and an adapter."""
    model = made(dtype, "cpu", size).requires_grad_(False)
    head = laid([quantize(model.head, 8)], torch.device(device))  # type: ignore[arg-type]
    for name, layer in [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Linear)]:
        held = head if name == "unembedding" else laid([quantize(layer.weight, bits)], torch.device(device))
        model.set_submodule(name, QuantizedLinear(layer, held))
    model.embedding = QuantizedEmbedding(head, dtype)  # type: ignore[assignment]
    model = model.to(device)
    for p in lora.add(model, "policy", 4, 8.0, 0):
        p.data = 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())).to(device)
    return model


def blocks(o: int, i: int, bits: Bits, with_minima: bool) -> Blocks:
    found = quantize(torch.randn(o, i, generator=torch.Generator().manual_seed(o)) / i**0.5, bits)
    least = 8 if bits == 4 and with_minima else 0
    minima = torch.randn(found.scales.shape, generator=torch.Generator().manual_seed(i)) / i**0.5
    return Blocks(found.numbers + least, found.scales, minima.half() if with_minima else None, bits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("with_minima", [False, True])
@pytest.mark.parametrize(("i", "o"), [(1024, 4096), (3072, 1000), (544, 70)])
def test_products_with_quantized_weights(dtype: torch.dtype, bits: Bits, with_minima: bool, i: int, o: int) -> None:
    of = blocks(o, i, bits, with_minima)
    held, known = QuantizedRows.on([of], GPU), laid([of], torch.device("cpu"))
    weight, bias = held.widened(dtype), torch.randn(o, device=GPU).to(dtype)
    assert torch.equal(weight.cpu(), known.widened(dtype))
    chosen = torch.tensor([5, 0, o - 1])
    assert torch.equal(held.rows(chosen.to(GPU), dtype).cpu(), weight.cpu()[chosen])
    x = torch.randn(300, i, device=GPU).to(dtype)
    exact = x.double() @ weight.double().T + bias.double()
    for rows in (1, 7, 64, 256, 300):
        found = held.product(x[:rows], bias).double()
        torch.testing.assert_close(found, exact[:rows], atol=1e-4, rtol=1e-5 if dtype == torch.float32 else 2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_product_whatever_stands_beside_it(dtype: torch.dtype) -> None:
    held, x = QuantizedRows.on([blocks(1000, 3072, 8, False)], GPU), torch.randn(256, 3072, device=GPU).to(dtype)
    together = held.product(x, None)
    for rows in (1, 16, 17, 64):
        assert torch.equal(held.product(x[:rows], None), together[:rows])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("dtype", "mean", "most"), [(torch.float32, 1e-5, 1e-4), (torch.bfloat16, 1e-2, 5e-2)])
def test_quantized_weights_say_what_is_learned_from(bits: Bits, dtype: torch.dtype, mean: float, most: float) -> None:
    """Before and after DPO of the adapter, and on a processor."""
    here, there = quantized(bits, torch.float32, "cpu"), quantized(bits, dtype, GPU)
    policy = TextPolicy(there, Words(), "policy")  # type: ignore[arg-type]
    learner = DPO(policy, comparisons(8), parameters=lora.parameters(there, "policy"), **fixed(20, batch_size=4, lr=1e-3))
    before = [p.detach().clone() for p in lora.parameters(there, "policy")]
    for after in (False, True):
        found = generate(there, ASKED, SAMPLING, STOP, "policy", rows=8)
        answers = [torch.tensor(a.tokens) for a in found]
        sampled = torch.tensor([p for a in found for p in a.logprobs])
        a, b = learned(there, answers, "policy"), learned(here, answers, "policy")
        apart = (a.detach().cpu() - sampled).abs()
        assert apart.mean() < mean, after
        assert apart.max() < most, after
        if not after:
            assert (a.detach().cpu() - b.detach()).abs().mean() < mean
            gradients = [
                torch.autograd.grad((p * torch.linspace(-1, 1, len(p), device=p.device)).sum(), lora.parameters(m, "policy"))
                for p, m in ((a, there), (b, here))
            ]
            for x, y in zip(*gradients, strict=True):
                assert (x.cpu() - y).norm() < 10 * mean * y.norm()
            for _ in range(20):
                learner.step()
    assert all((p - q).abs().max() > 1e-3 for p, q in zip(lora.parameters(there, "policy"), before, strict=True)), "it has learned"


@pytest.mark.parametrize("weights", ["int8", "q4"])
def test_a_file_with_quantized_weights_is_loaded_onto_a_gpu(smollm2: Path, weights: str) -> None:
    here, policy = (rather.load(smollm2, weights=weights, dtype="float32", device=on) for on in ("cpu", GPU.type))  # type: ignore[arg-type]
    assert isinstance(policy, TextPolicy)
    held = [m.held for m in policy.model.modules() if isinstance(m, QuantizedLinear | QuantizedEmbedding)]
    assert {h.numbers.device.type for h in held} == {GPU.type}
    said, expected = (p.generate(["Name three colors."], max_tokens=8) for p in (policy, here))
    assert said == expected
    rows = [{"prompt": "Name a color.", "chosen": "Red.", "rejected": "I would rather not say which."}] * 4
    learner = rather.DPO(policy, rather.comparisons(rows), batch_size=4, steps=2, adapter=rather.LoRA(rank=4))
    assert all(torch.isfinite(torch.tensor(learner.step()["loss"])) for _ in range(2))


class Words:
    """Enough of a tokenizer for trajectories that have their tokens."""

    stop = frozenset[int]()

    def encode_prompt(self, prompt: str) -> list[int]:
        return []


def comparisons(count: int) -> list[Comparison]:
    chance = torch.Generator().manual_seed(1)

    def side(task: Task, n: int) -> tuple[Trajectory, ...]:
        prompt, answer = (torch.randint(0, 1000, (m,), generator=chance).numpy() for m in (20 + n, 30 + n))
        return (Trajectory(task, "p", "", observations=prompt, actions=answer),)

    tasks = [Task("t", str(i), "?") for i in range(count)]
    return [Comparison(side(t, i), side(t, 3 * i), preference=1.0, key=t.key) for i, t in enumerate(tasks)]


@contextmanager
def nothing_waited_for() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_part_of_a_step_waits_for_nothing() -> None:
    policy = TextPolicy(made(torch.bfloat16, GPU), Words())  # type: ignore[arg-type]
    pairs = Pairs.of(policy, comparisons(4))

    def part() -> None:
        logprobs, _ = policy.evaluate(pairs.batch)
        bradley_terry_loss(*pairs.scores((logprobs * pairs.batch.mask).sum(-1)), pairs.preference).backward()

    part()
    with nothing_waited_for():
        part()
        with pytest.raises(RuntimeError, match="synchroniz"):
            pairs.batch.mask.sum().item()


def test_decoding_waits_once_for_many_tokens() -> None:
    model = made(torch.bfloat16, GPU)
    generate(model, ASKED, SAMPLING, frozenset(), rows=16)
    work = Recorded.kept[model][1]
    size = max(work.graphs)
    work.turn.zero_()
    before = work.positions[:size].clone()
    with nothing_waited_for():
        for _ in range(Recorded.AHEAD):
            work.graphs[size]()
    assert torch.equal(work.positions[:size], before + Recorded.AHEAD)


def test_sampler_and_learner_are_the_same_after_a_thousand_steps() -> None:
    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        policy = TextPolicy(made(dtype, GPU, 0.05), Words())  # type: ignore[arg-type]
        reference = TextPolicy(made(dtype, GPU, 0.05).requires_grad_(False), Words())  # type: ignore[arg-type]
        how = fixed(1000, batch_size=4, lr=1e-4)
        learner = DPO(policy, comparisons(8), reference, list(policy.model.parameters()), **how)
        before = policy.model.embedding.weight.detach().clone()
        for step in range(1000):
            learner.step()
            if step % 250 == 249:
                found = generate(policy.model, ASKED, SAMPLING, STOP, rows=8)
                sampled = torch.tensor([p for a in found for p in a.logprobs])
                logprobs = learned(policy.model, [torch.tensor(a.tokens) for a in found]).detach().cpu()
                assert (logprobs - sampled).abs().mean() < near, (dtype, step)
        assert (policy.model.embedding.weight - before).abs().max() > 1e-3, "it has learned"


def test_training_gives_the_same_numbers_twice() -> None:
    def weights() -> list[Tensor]:
        policy = TextPolicy(made(torch.bfloat16, GPU, 0.05), Words())  # type: ignore[arg-type]
        for p in policy.model.parameters():
            p.data = p.data.float()
        reference = TextPolicy(made(torch.bfloat16, GPU, 0.05).requires_grad_(False), Words())  # type: ignore[arg-type]
        how = fixed(20, batch_size=4, lr=1e-3, micro_batch_tokens=100)
        learner = DPO(policy, comparisons(8), reference, list(policy.model.parameters()), **how)
        for _ in range(20):
            learner.step()
        return [p.detach() for p in policy.model.parameters()]

    for a, b in zip(weights(), weights(), strict=True):
        assert torch.equal(a, b)
