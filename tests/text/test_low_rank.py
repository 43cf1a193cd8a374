"""Directions in weights: a population on shared weights answers as each policy would alone."""

from pathlib import Path

import pytest
import torch
from test_steering import BEGUN, PROMPTS, TWINS, checksum

from rather.core import Perturbation, direction
from rather.errors import ConfigError
from rather.text import lora, weights
from rather.text.engine import Request, Sampling, generate
from rather.text.transformer import Transformer
from rather.zeroth.spaces.weights import Factors, LowRank, Weights

SCALE = 0.02
SMALL = [None if p is None else Perturbation(p.seed, p.scale * SCALE) for p in TWINS]


@pytest.fixture(params=["low_rank", "rank_2", "lora"])
def space(request, family) -> tuple[Transformer, LowRank | Factors | Weights, str | None]:
    """A model, a space of it that stands away from its start, and the name of its adapter."""
    model = weights.load(family[1]).requires_grad_(True)
    if request.param == "lora":
        lora.add(model, "policy", 2, 4.0, 0)
        found = Factors(model, "policy")
    else:
        found = LowRank(model, rank=2 if request.param == "rank_2" else 1)
    with torch.no_grad():
        for p in found.parameters:
            p.copy_(torch.from_numpy(direction(9, p.numel())).view_as(p) * SCALE)
    found.sync()
    return model, found, "policy" if request.param == "lora" else None


def moved_by(space, p: Perturbation | None) -> None:
    """Go where the perturbation leads, weights and all."""
    if p is not None:
        with torch.no_grad():
            for parameter, step in zip(space.parameters, space.combined([p], [1.0]), strict=True):
                parameter.add_(step)
    space.sync()


def test_rows_with_their_own_direction_equal_materialised_weights(space) -> None:
    model, found, adapter = space
    before, was = checksum(model), [p.detach().clone() for p in found.parameters]
    asked = [Request(prompt, 10 * i + j, j) for i, prompt in enumerate(BEGUN) for j in range(len(TWINS))]
    stop = frozenset(range(0, 99, 8))
    together = generate(model, asked, Sampling(12), stop, adapter, rows=5, several=found.several(SMALL))
    assert checksum(model) == before
    for j, p in enumerate(SMALL):
        moved_by(found, p)
        mine = [i for i, r in enumerate(asked) if r.policy == j]
        alone = generate(model, [asked[i] for i in mine], Sampling(12), stop, adapter)
        for i, e in zip(mine, alone, strict=True):
            assert together[i].tokens == e.tokens
            torch.testing.assert_close(torch.tensor(together[i].logprobs), torch.tensor(e.logprobs), atol=1e-3, rtol=0)
        with torch.no_grad():
            for parameter, value in zip(found.parameters, was, strict=True):
                parameter.copy_(value)
        found.sync()
    assert len({tuple(a.tokens) for a in together}) > len(PROMPTS), "directions make a difference"


def test_a_row_without_direction_is_bit_equal_to_plain(family) -> None:
    model = weights.load(family[1])
    found = LowRank(model)
    plain, beside = generate(model, [Request(PROMPTS[0], 4), Request(PROMPTS[1], 5)], Sampling(12), frozenset())
    several = found.several([None, Perturbation(1, 0.1)])
    zero, other = generate(model, [Request(PROMPTS[0], 4, 0), Request(PROMPTS[1], 5, 1)], Sampling(12), frozenset(), several=several)
    assert (plain.tokens, plain.logprobs) == (zero.tokens, zero.logprobs)
    assert other.logprobs != beside.logprobs
    again, _ = generate(model, [Request(PROMPTS[0], 4, 0), Request(PROMPTS[2], 6, 1)], Sampling(12), frozenset(), several=several)
    assert again.tokens == zero.tokens, "rows do not hear of each other"


def test_low_rank_directions_have_the_moments_of_full_ones(family) -> None:
    found = LowRank(weights.load(family[1]), [1], rank=2)
    assert {name.split(".")[1] for name in found.layers} == {"1"}
    draws = torch.stack([found.combined([Perturbation(seed, 1.0)], [1.0])[0].flatten()[:6] for seed in range(4000)])
    torch.testing.assert_close(draws.mean(0), torch.zeros(6), atol=0.08, rtol=0)
    torch.testing.assert_close(draws.T @ draws / len(draws), torch.eye(6), atol=0.12, rtol=0)
    two = [Perturbation(1, 0.5), Perturbation(2, 1.0)]
    together = found.combined(two, [2.0, -1.0])
    one, other = (found.combined([Perturbation(seed, 1.0)], [1.0]) for seed in (1, 2))
    for t, a, b in zip(together, one, other, strict=True):
        torch.testing.assert_close(t, a - b)
    assert all(not x.any() for x in found.combined([], []))


def test_all_weights_are_put_together_for_each_policy_and_given_back(family) -> None:
    model = weights.load(family[1])
    found, before = Weights(model), checksum(model)
    assert found.size == sum(p.numel() for p in model.parameters())
    p = Perturbation(3, 0.05)
    with found.at(p):
        v = torch.from_numpy(direction(3, found.size))
        name, first = next(iter(model.named_parameters()))
        torch.testing.assert_close(first.flatten(), found.initial[name].flatten() + 0.05 * v[: first.numel()])
        assert checksum(model) != before
    assert checksum(model) == before
    assert set(Weights(model, ["blocks.0.*", "norm.weight"]).chosen) == {
        n for n, _ in model.named_parameters() if n.startswith("blocks.0.") or n == "norm.weight"
    }
    with pytest.raises(ConfigError, match=r"\['nothing'\] matches none of embedding.weight"):
        Weights(model, ["nothing"])


def test_a_merged_adapter_says_the_same(family) -> None:
    model = weights.load(family[1])
    found = Factors(model, (lora.add(model, "policy", 2, 4.0, 0), "policy")[1])
    moved_by(found, Perturbation(1, 0.1))
    adapted = generate(model, [Request(PROMPTS[0], 3)], Sampling(8), frozenset(), "policy")[0]
    merged = generate(lora.merged(model, "policy"), [Request(PROMPTS[0], 3)], Sampling(8), frozenset())[0]
    plain = generate(model, [Request(PROMPTS[0], 3)], Sampling(8), frozenset())[0]
    assert merged.tokens == adapted.tokens
    torch.testing.assert_close(torch.tensor(merged.logprobs), torch.tensor(adapted.logprobs), atol=1e-4, rtol=0)
    assert plain.logprobs != adapted.logprobs


def test_the_gradient_comes_to_the_numbers(space, tmp_path: Path) -> None:
    model, found, adapter = space
    from rather.text.packing import pack

    ids = torch.tensor(PROMPTS[2])
    laid = pack([ids], [ids[:0]], model.dtype)

    def loss() -> torch.Tensor:
        return model(laid.ids, laid.positions, laid, adapter).square().sum()

    loss().backward()
    found.gather()
    v = found.combined([Perturbation(5, 1.0)], [1.0])
    slope = sum(float((p.grad * x).sum()) for p, x in zip(found.parameters, v, strict=True))
    ends = []
    for step in (1e-4, -2e-4):
        moved_by(found, Perturbation(5, step))
        ends.append(float(loss().detach()))
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=0.05, abs=0.5)
    assert all(p.grad is None for n, p in model.named_parameters() if ".weight" in n and n in getattr(found, "chosen", {}))
