"""What a GPU computes, by Triton's interpreter on a processor: the same as PyTorch. It cannot multiply bfloat16: see test_gpu.py."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rather import kernels
from rather.text import engine
from rather.text.decoder import Step
from rather.text.packing import pack
from rather.text.sampling import draw
from rather.text.shape import Shape
from rather.text.transformer import Rotary, turned

pytest.importorskip("triton")
from rather.kernels import gpu as on_gpu

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="test_gpu.py has the real thing"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # of numbers that are masked out afterwards
]
HEADS, KV, WIDTH = 6, 2, 24
NEAR = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], tuple[Any, Any]]:
    """Does something by Triton, then by PyTorch."""

    def done(work: Callable[[], Any]) -> tuple[Any, Any]:
        with monkeypatch.context() as m:
            m.setattr(kernels, "_for", lambda *_: None)
            m.setattr(kernels, "on_gpu", lambda _: on_gpu)
            found = work()
            m.setattr(kernels, "on_gpu", lambda _: None)
            return found, work()

    return done


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("plus", [0.0, 1.0])
def test_norm(both, plus: float) -> None:
    x, weight, gradient = numbers(3, 7, 40), numbers(40, seed=1), numbers(3, 7, 40, seed=2)
    assert_close(*both(lambda: kernels.norm(x, weight, 1e-6, plus)), **NEAR)
    scale = kernels.norm(x, weight, 1e-6)[1]
    assert_close(*both(lambda: kernels.norm_backward(x, weight, scale, gradient, plus)), **NEAR)


@pytest.mark.parametrize("gelu", [False, True])
def test_glu(both, gelu: bool) -> None:
    x, gradient = numbers(5, 2 * 1100), numbers(5, 1100, seed=1)
    assert_close(*both(lambda: [kernels.glu(x, gelu), kernels.glu_backward(x, gradient, gelu)]), **NEAR)


@pytest.mark.parametrize(("normed", "turned_width"), [(True, WIDTH), (False, WIDTH), (True, 16)])
def test_heads(both, normed: bool, turned_width: int) -> None:
    shape = Shape("qwen3", 9, 8, 1, HEADS, KV, turned_width, 8, 64, 1e-6, True, qk_norm=normed)
    cos, sin = (table[0] for table in Rotary(shape)(torch.tensor([3, 0, 60, 7]), torch.float32))
    qkv, slope = numbers(4, HEADS + 2 * KV, WIDTH), numbers(4, HEADS + KV, WIDTH, seed=1)

    def work() -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in (qkv, numbers(WIDTH, seed=2), numbers(WIDTH, seed=3))]
        turn = (leaves[1], leaves[2]) if normed else None, HEADS, cos, sin, 1e-6, 1.0
        out = turned(leaves[0][:, : HEADS + KV], *turn)
        out.backward(slope)
        with torch.no_grad():
            plain = turned(qkv[:, : HEADS + KV].clone(), *turn)
        return [out.detach(), plain, *(x.grad for x in leaves[: 3 if normed else 1])]  # type: ignore[list-item]

    assert_close(*both(work), **NEAR)


@pytest.mark.parametrize("slopes", [None, numbers(4, seed=1)])
def test_token_logprobs(both, slopes: Tensor | None) -> None:
    logits, targets = 3 * numbers(4, 9000), torch.tensor([0, 8999, 4096, 5])

    def work() -> list[Tensor]:
        own = logits.clone()
        found = kernels.token_logprobs_(own, targets, 0.7, slopes)
        return [*found, *([own] if slopes is not None else [])]

    assert_close(*both(work), **NEAR)


def test_drawing(both) -> None:
    logits = 3 * numbers(7, 9000)
    logits[0, 1:] = logits[1, :-1] = -torch.inf
    chances = torch.tensor([0.999, 0.0, 0.0, 0.3, 0.5, 0.7, 1 - 1e-9], dtype=torch.float64)
    (tokens, logprobs), (expected, known) = both(lambda: draw(logits, chances, engine.Sampling(temperature=0.7)))
    assert tokens[:6].tolist() == expected[:6].tolist()
    assert tokens[6] >= expected[6] - 5, "the last ones, but for roundings"
    assert_close(logprobs[:6], known[:6])


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize(("parts", "turn"), [(1, None), (4, None), (1, "plain"), (4, "normed")])
def test_decoding_step(both, monkeypatch: pytest.MonkeyPatch, window: int | None, parts: int, turn: str | None) -> None:
    keys, values, qkv = numbers(3, KV, 300, WIDTH), numbers(3, KV, 300, WIDTH, seed=1), numbers(3, HEADS + 2 * KV, WIDTH, seed=2)
    inner = on_gpu.step
    monkeypatch.setattr(on_gpu, "step", lambda *given: inner(*given, parts))
    places = torch.tensor([0, 131, 299])
    shape = Shape("qwen3", 9, 8, 1, HEADS, KV, WIDTH, 8, 64, 1e-6, True)
    weights = (numbers(WIDTH, seed=3), numbers(WIDTH, seed=4)) if turn == "normed" else None
    how = weights, HEADS, *(table[0] for table in Rotary(shape)(places, torch.float32)), 1e-6, 1.0

    def work() -> list[Tensor]:
        k, v, (qk, new) = keys.clone(), values.clone(), qkv.clone().split([HEADS + KV, KV], dim=1)
        step = Step(k[None], v[None], places)
        late = [how] if turn and step.turns else []
        if turn and not late:
            with torch.no_grad():
                qk = turned(qk, *how)
        return [step(0, window, *qk.split([HEADS, KV], dim=1), new, *late), k, v]

    assert_close(*both(work), **NEAR)


def test_prompts_go_into_the_cache(both) -> None:
    qkv = numbers(6, HEADS + 2 * KV, WIDTH)
    source, row, place = torch.tensor([3, 1, 2, 2]), torch.tensor([0, 0, 1, 2]), torch.tensor([4, 5, 0, 29])

    def work() -> list[Tensor]:
        held = [torch.zeros(3, KV, 30, WIDTH) for _ in range(2)]
        kernels.fill(*qkv.split([HEADS, KV, KV], dim=1)[1:], source, row, place, *held)
        return held

    assert_close(*both(work), **NEAR)


@pytest.mark.parametrize("columns", [1, 3])
def test_every_row_with_an_update_of_its_own(columns: int) -> None:
    y, x, down, up = numbers(6, 300), numbers(6, 100, seed=1), numbers(7, 100, seed=2), numbers(7, 300, seed=3)
    share, which, first = torch.zeros(3, 7), torch.tensor([0, 2, 1, 1, 0, 2]), torch.tensor([0, 4, 7 - columns])
    for p in (1, 2):
        share[p, first[p] : first[p] + columns] = p
    expected = y + ((x @ down.T) * share[which]) @ up
    found = on_gpu.update_(y.clone(), x, down, up, share, which, first, columns)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(found[which == 0], y[which == 0]), "a policy without a share adds exactly nothing"


@pytest.mark.parametrize("window", [None, 37])
def test_attention_of_a_pack(both, window: int | None) -> None:
    def tokens(n: int, seed: int) -> Tensor:
        return torch.randint(0, 9, (n,), generator=torch.Generator().manual_seed(seed))

    shared = tokens(12, 0)
    one, two = torch.cat([shared, tokens(33, 1)]), torch.cat([shared, tokens(5, 2)])
    laid = pack([one, two, one], [tokens(n, 3 + n) for n in (40, 1, 9)])
    qkv, slope = numbers(len(laid.ids), 2 * KV + 2 * KV, WIDTH), numbers(len(laid.ids), 2 * KV, WIDTH, seed=1)

    def work() -> list[Tensor]:
        given = qkv.clone().requires_grad_()
        out = laid(0, window, *given.split([2 * KV, KV, KV], dim=1))
        out.backward(slope)
        assert given.grad is not None
        return [out.detach(), given.grad]

    assert_close(*both(work), **NEAR)
