from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rather import kernels
from rather.core import Task
from rather.text import engine, lora, weights
from rather.text.decoder import Cache, Several
from rather.text.engine import Request, Sampling, generate
from rather.text.language_model import TextSampler
from rather.text.linear import Linear
from rather.text.load import dtype
from rather.text.load import policy as load_policy
from rather.text.packing import pack
from rather.text.sampling import draw
from rather.text.transformer import TokenLogprobs, Transformer

STOP = frozenset(range(0, 99, 8))
PROMPTS = [(5, 6, 7), (8, 9), (5, 6, 7), (10, 11, 12, 13, 14, 15), (8, 9)]


def requests() -> list[Request]:
    return [Request(prompt, seed) for seed, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_answer_does_not_depend_on_the_batch_it_travels_in(family, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and not kernels.Laid.out(torch.ones(2, 2, dtype=dtype)):
        pytest.skip("a matrix library may round differently with another number of rows")
    model = weights.load(family[1])
    model.dtype = dtype
    # One prompt is long, so the cache of the others shrinks once its row has left, and grows with theirs.
    asked = [*requests(), Request(tuple(range(9, 39)), 5)]
    alone = [generate(model, [r], Sampling(34), STOP)[0] for r in asked]
    for rows in (1, 2, 3, 8):
        together = generate(model, asked, Sampling(34), STOP, rows=rows)
        assert [a.tokens for a in together] == [a.tokens for a in alone]
        assert [a.terminated for a in together] == [a.terminated for a in alone]
    assert len({tuple(a.tokens) for a in alone}) == len(alone)
    assert any(a.terminated for a in alone)
    assert len({len(a.tokens) for a in alone}) > 1, "rows of different lengths, so that eviction is at work"


@pytest.mark.parametrize("compiled", [True, False])
def test_kept_logprobs_are_those_of_a_forward_pass(family, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(kernels, "library", lambda *_: None)
    model = weights.load(family[1])
    sampling = Sampling(20, temperature=0.8, top_p=0.9, top_k=30, min_p=0.01)
    for request, answer in zip(requests(), generate(model, requests(), sampling, frozenset({0})), strict=True):
        laid = pack([torch.tensor(request.prompt)], [torch.tensor(answer.tokens)])
        with torch.no_grad():
            every = model.logits(model(laid.ids, laid.positions, laid))[laid.before[0]] / 0.8
        expected = every.log_softmax(-1).gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rows", [1, 8])
def test_in_bfloat16_the_learner_finds_the_logprobs_that_were_sampled_with(smollm2: Path, rows: int) -> None:
    if rows == 1 and dtype("auto", torch.device("cpu")) != torch.bfloat16:
        pytest.skip("this processor does not multiply bfloat16, and rather computes in float32 on it")
    model = load_policy(smollm2, torch.device("cpu"), torch.bfloat16, False, 1.0).model
    asked = [Request(tuple(range(1000 * i, 1000 * i + 30)), i) for i in range(8)]
    found = generate(model, asked, Sampling(24), frozenset(), rows=rows)
    answers = [torch.tensor(a.tokens) for a in found]
    laid = pack([torch.tensor(r.prompt) for r in asked], answers, torch.bfloat16)
    with torch.enable_grad():  # as a learner computes: not with the weights that are laid out for sampling
        hidden = model(laid.ids, laid.positions, laid)[torch.cat(laid.before)]
        known, _ = TokenLogprobs.apply(hidden, model.unembedding.weight, torch.cat(answers), 1.0)  # type: ignore[misc]
    apart = float((known - torch.tensor([p for a in found for p in a.logprobs])).abs().mean())
    if kernels.Laid.out(torch.ones(2, 2, dtype=torch.bfloat16)) and not hasattr(kernels.library(torch.bfloat16), "tiles"):
        assert apart == 0, "to the bit with products of our own"
    else:  # oneDNN's products in tiles (AMX) round differently with another number of rows: apart as far as both are from float32
        exact = load_policy(smollm2, torch.device("cpu"), torch.float32, False, 1.0).model
        laid = pack([torch.tensor(r.prompt) for r in asked], answers)
        with torch.no_grad():
            hidden = exact(laid.ids, laid.positions, laid)[torch.cat(laid.before)]
            expected, _ = TokenLogprobs.apply(hidden, exact.unembedding.weight, torch.cat(answers), 1.0)  # type: ignore[misc]
        assert apart < 1.5 * float((known - expected).abs().mean()) < 0.15


def adapted(model: Transformer) -> tuple[str | None, Several | None]:
    """An adapter whose rank is no whole number of words in bfloat16."""
    for p in lora.add(model, "policy", 3, 5.0, 0):
        p.data = 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    return "policy", None


def updated(model: Transformer) -> tuple[str | None, Several | None]:
    """Two policies that differ in the weights of some layers; an adapter is not theirs."""
    adapter, _ = adapted(model)
    chance = torch.Generator().manual_seed(2)

    def numbers(*shape: int) -> torch.Tensor:
        return (0.3 * torch.randn(shape, generator=chance)).to(model.dtype)

    layers = [layer for name, layer in lora.layers(model).items() if "down" not in name]
    return adapter, Several(updates={x: (numbers(5, x.weight.shape[1]), numbers(5, len(x.weight)), numbers(2, 5)) for x in layers})


def shifted(model: Transformer) -> tuple[str | None, Several | None]:
    """Two policies that add something to the residual stream, the first of them nothing."""
    return None, Several(after={i: torch.stack([torch.zeros(32), torch.linspace(-1, 1, 32)]) for i in (0, 1)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", [lambda model: (None, None), adapted, updated, shifted])
def test_all_blocks_in_one_call_give_what_they_give_one_by_one(
    family, dtype: torch.dtype, how: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = weights.load(family[1])
    model.dtype = dtype
    adapter, several = how(model)
    called: list[int] = []
    inner = engine.Decoder.__call__

    def counting(self, ids, *more):
        called.append(len(ids))
        return inner(self, ids, *more)

    def answers() -> list[engine.Answer]:
        asked = [Request(prompt, seed, seed % 2) for seed, prompt in enumerate(PROMPTS)]
        return generate(model, asked, Sampling(20), STOP, adapter, rows=3, several=several)

    monkeypatch.setattr(engine.Decoder, "__call__", counting)
    found = answers()
    assert bool(called) == bool(kernels.Laid.out(torch.ones(2, 2, dtype=dtype)) and not model.shape.is_gpt2)
    called.clear()
    monkeypatch.setattr(engine.Decoder, "of", lambda *_: None)
    expected = answers()
    assert not called
    if dtype == torch.float32:  # whose sums oneDNN and MKL make in orders of their own
        assert [a.tokens for a in found] == [a.tokens for a in expected]
        for a, b in zip(found, expected, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=2e-5)  # of a few nats, in float32, summed in another order
    else:
        assert found == expected, "to the bit"


def test_temperature_zero_takes_the_likeliest_as_transformers_does(family) -> None:
    reference, folder = family
    found = generate(weights.load(folder), requests(), Sampling(12, temperature=0), frozenset())
    for request, answer in zip(requests(), found, strict=True):
        ids = torch.tensor([request.prompt])
        with torch.no_grad():
            for token in answer.tokens:
                assert int(reference(ids).logits[0, -1].argmax()) == token
                ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(), [0, 1, 2, 3]),
        (Sampling(temperature=0.5), [0, 1, 2, 3]),
        (Sampling(top_k=2), [0, 1]),
        (Sampling(top_p=0.7), [0, 1]),  # 0.5, then 0.5 < 0.7
        (Sampling(top_p=0.5), [0]),
        (Sampling(min_p=0.25), [0, 1, 2]),  # at least 0.125
        (Sampling(min_p=0.3), [0, 1]),  # at least 0.15
        (Sampling(temperature=0.5, min_p=0.2), [0, 1]),  # 0.5^2, 0.25^2 = a quarter of it, 0.15^2 = 0.09 of it
    ],
)
def test_cuts_keep_the_right_tokens_in_the_right_proportion(sampling: Sampling, kept: list[int]) -> None:
    p = torch.tensor([0.5, 0.25, 0.15, 0.1])
    n = 40_000
    uniforms = (torch.arange(n) + 0.5) / n  # every quantile once
    tokens, logprobs = draw(p.log().expand(n, 4), uniforms, sampling)
    weights_ = (p ** (1 / sampling.temperature))[kept]
    shares = torch.bincount(tokens, minlength=4) / n
    assert shares.nonzero()[:, 0].tolist() == kept
    torch.testing.assert_close(shares[kept], weights_ / weights_.sum(), atol=1e-4, rtol=0)
    uncut = torch.log_softmax(p.log() / sampling.temperature, 0)
    torch.testing.assert_close(logprobs, uncut[tokens])


@pytest.mark.parametrize("compiled", [True, False])
def test_a_token_is_drawn_where_the_cumulative_distribution_passes_its_number(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(kernels, "library", lambda *_: None)
    logits = 3 * torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))  # four blocks, the last one cut short
    logits[:, torch.randperm(1000, generator=torch.Generator().manual_seed(1))[:300]] = -torch.inf
    logits[:, [0, 255, 256, 999]] = -torch.inf
    cumulative = logits[0].double().softmax(0).cumsum(0)
    chances = torch.cat([torch.linspace(0, 1, 2001, dtype=torch.float64)[:-1], torch.tensor([1 - 2.0**-53], dtype=torch.float64)])
    drawn, logprobs = draw(logits.expand(len(chances), -1), chances, Sampling())
    assert logprobs.isfinite().all(), "a token that cannot be is not drawn, not even by the least and the largest number"
    before = torch.where(drawn > 0, cumulative[drawn - 1], 0)
    assert (before - 1e-6 <= chances).all()
    assert (chances <= cumulative[drawn] + 1e-6).all()


def test_a_prompt_of_a_group_is_read_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = weights.load(tiny)
    read: list[int] = []
    inner = engine.Prefill.__call__

    def counting(self, layer, window, q, k, v):
        read.append(len(q))
        return inner(self, layer, window, q, k, v)

    monkeypatch.setattr(engine.Prefill, "__call__", counting)
    generate(model, [Request((5, 6, 7, 8), seed) for seed in range(8)], Sampling(4), frozenset())
    assert read == [4, 4], "four tokens in each of the two layers"


def test_finished_rows_are_evicted(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = weights.load(tiny)
    computed: list[int] = []
    inner = engine.Cache.step

    def counting(self, rows):
        computed.append(rows)
        return inner(self, rows)

    monkeypatch.setattr(engine.Cache, "step", counting)
    answers = generate(model, requests(), Sampling(40), frozenset(range(12)), rows=8)
    assert sum(computed) == sum(len(a.tokens) - 1 for a in answers), "no row is computed after its last token"


def test_frozen_weights_stay_laid_out_until_they_are_written_to(tiny: Path) -> None:
    def changed(model: Transformer) -> Transformer:
        with torch.no_grad():
            model.blocks[0].up.weight.mul_(-2)
        return model

    def logprobs(model: Transformer) -> list[list[float]]:
        return [a.logprobs for a in generate(model, requests(), Sampling(4), frozenset())]

    def laid_out(model: Transformer) -> list[torch.Tensor]:
        return [m._packed for m in model.modules() if isinstance(m, Linear) and m._packed is not None]

    model = weights.load(tiny).requires_grad_(False)
    before = logprobs(model)
    kept = laid_out(model)
    assert logprobs(model) == before
    assert kept
    assert all(a is b for a, b in zip(kept, laid_out(model), strict=True))
    layer, x = changed(model).blocks[0].up, torch.randn(3, model.shape.width)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), x @ layer.weight.T)
        another = model.blocks[1].up
        torch.testing.assert_close(another(x.bfloat16()).float(), x @ another.weight.T, atol=0.02, rtol=0.02)
    assert logprobs(model) == logprobs(changed(weights.load(tiny))) != before
    assert [a is b for a, b in zip(kept, laid_out(model), strict=True)].count(False) == 1
    logprobs(model.requires_grad_())
    assert not laid_out(model), "weights that are trained change before the next time"


class Reads(TorchDispatchMode):
    """Notes what would make the host wait for a GPU: numbers that are read, and results as large as their values say."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in args[1]
        )
        if by_mask or name in ("_local_scalar_dense", "nonzero", "repeat_interleave", "masked_select", "equal", "_unique2"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_the_host_waits_for_nothing_but_what_is_drawn(family) -> None:
    model = weights.load(family[1])
    with Reads() as reads:
        generate(model, requests(), Sampling(6), STOP, rows=3)
    assert not reads.found
    with reads:
        torch.arange(3)[torch.arange(3) > 1].sum().item()
    assert reads.found == ["index", "_local_scalar_dense"], "it notices"


@pytest.mark.parametrize("how", [lambda model: (None, None), adapted, updated, shifted])
def test_steps_that_a_gpu_records_give_what_steps_one_by_one_give(family, how: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = weights.load(family[1])
    adapter, several = how(model)

    def answers(most: int) -> list[engine.Answer]:
        asked = [Request(prompt, seed, seed % 2 if several else 0) for seed, prompt in enumerate(PROMPTS * 6)]
        return generate(model, asked, Sampling(most), STOP, adapter, rows=20, several=several)

    expected = [answers(most) for most in (30, 7)]
    made: list[int] = []
    inner = engine.Recorded._record

    def counting(self, n):
        made.append(n)
        return inner(self, n)

    monkeypatch.setattr(engine, "records", lambda model: True)
    monkeypatch.setattr(engine.Recorded, "_record", counting)
    monkeypatch.setattr(engine.Decoder, "of", lambda *_: None)  # which is a processor's
    found = [answers(most) for most in (30, 7)]
    for before, after in zip(expected, found, strict=True):
        assert [a.tokens for a in after] == [a.tokens for a in before]
        for a, b in zip(after, before, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=2e-5)  # of a few nats, in float32, summed in another order
    assert {20} < set(made) <= {20, 16, 8}, "one graph for every number of rows that is a multiple of 8, and for all"
    made.clear()
    assert answers(7) == found[1]
    assert bool(made) == bool(several), "what was recorded is kept, but for policies that came with the call"
    if adapter and not several:
        with torch.no_grad():
            for p in lora.parameters(model, adapter):
                p.mul_(2)
        now = answers(7)
        monkeypatch.setattr(engine, "records", lambda model: False)
        assert [a.tokens for a in now] == [a.tokens for a in answers(7)] != [a.tokens for a in found[1]], "as the adapter is now"


def test_same_seed_same_answers_and_progress(tiny: Path) -> None:
    policy = load_policy(tiny, torch.device("cpu"), torch.float32, False, 1.0)
    tasks = [Task("f", str(i), f"question {i}?") for i in (1, 2, 1)]
    finished: list[int] = []
    sampler = TextSampler(policy, Sampling(10), rows=2, progress=finished.append)
    first = sampler.sample(tasks, seed=3)
    assert sum(finished) == 3
    assert [t.text for t in sampler.sample(tasks, seed=3)] == [t.text for t in first]
    assert [t.text for t in sampler.sample(tasks[::-1], seed=3)][1] == first[1].text
    assert first[0].text != first[2].text, "two answers to one prompt differ"
    assert [t.text for t in sampler.sample(tasks, seed=4)] != [t.text for t in first]


def test_the_cache_grows_in_few_steps_and_for_long_prompts_not_at_all(tiny: Path) -> None:
    """What grew with every 32 tokens stood in memory three times over."""
    model = weights.load(tiny)
    cache, rooms = Cache(model, 1, answer=10_000), []
    for n in range(1, 1000):
        cache.fit(n)
        held = cache.keys
        cache.fit(n)
        assert cache.keys is held
        rooms.append(held.shape[3])
        assert n <= rooms[-1] < 1.25 * n + 32
    assert len(set(rooms)) < 15
    cache = Cache(model, 1, answer=64)
    for n in (901, 964, 500, 901):
        cache.fit(n)
        assert cache.keys.shape[3] == 992
    cache.fit(100)
    assert cache.keys.shape[3] == 128, "shorter ones need not hold so much"
