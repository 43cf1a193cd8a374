"""The loops in C give what PyTorch gives: each test compares the two."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rather import kernels
from rather.text.decoder import Step

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(9, 3, 64), (4, 4, 128), (6, 1, 24), (2, 2, 4)]


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch):
    """Runs something without compiled code."""

    def run(work):
        with monkeypatch.context() as m:
            m.setattr(kernels, "library", lambda *_: None)
            return work()

    return run


def agree(found: Tensor, expected: Tensor) -> None:
    """In bfloat16 sums that differ in their order may be rounded to neighbors, which few are."""
    assert found.dtype == expected.dtype
    assert_close(found, expected, atol=1e-5, rtol=1e-6 if found.dtype == torch.float32 else 2**-7)
    assert (found != expected).float().mean() < (1 if found.dtype == torch.float32 else 0.01)


def test_there_is_a_compiler() -> None:
    """Without one, the tests below would compare PyTorch with itself."""
    for dtype in DTYPES:
        assert kernels.library(dtype) is not None
        assert kernels.library(dtype, 64, 3) is not None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "i", "o"), [(1, 576, 960), (8, 2, 48), (13, 514, 50), (3, 1030, 7), (40, 1536, 300)])
def test_product(dtype: torch.dtype, n: int, i: int, o: int) -> None:
    """With sums that are begun anew, tiles that are not full, and bias. A row gets the same numbers whatever stands beside it."""
    x, weight, bias = draw(n, i, dtype=dtype), draw(o, i, dtype=dtype, seed=1) / i**0.5, draw(o, dtype=dtype, seed=2)
    laid = kernels.Laid.out(weight)
    if laid is None:
        pytest.skip("this processor does not multiply such numbers")
    found, exact = laid(x, bias), x.double() @ weight.double().T
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-3, "rtol": 2**-8}  # rounded once, not twice
    assert_close(found, (exact + bias.double()).to(dtype), **tolerance)
    assert_close(laid(x, None), exact.to(dtype), **tolerance)
    assert torch.equal(laid(x[-1:], bias), found[-1:])


@pytest.mark.parametrize("i", [576, 1536])
def test_a_product_is_to_the_bit_that_of_onednn(i: int) -> None:
    """With which a learner multiplies. A sum that is begun anew elsewhere rounds otherwise in some ten of these numbers."""
    x, weight = draw(256, i, dtype=torch.bfloat16), draw(960, i, dtype=torch.bfloat16, seed=1) / i**0.5
    laid = kernels.Laid.out(weight)
    if laid is None:
        pytest.skip("this processor does not multiply such numbers")
    if hasattr(kernels.library(torch.bfloat16), "tiles"):
        pytest.skip("with tiles (AMX) oneDNN begins sums anew in other places, depending on how many rows there are")
    assert torch.equal(laid(x, None), torch.nn.functional.linear(x, weight))


def test_a_product_that_is_not_made_of_whole_words_is_left_to_pytorch() -> None:
    assert kernels.Laid.out(torch.ones(3, 5, dtype=torch.bfloat16)) is None
    assert kernels.Laid.out(torch.ones(3, 5)) is not None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 576), (300, 129), (4, 3, 64)])
@pytest.mark.parametrize("plus", [0.0, 1.0])
def test_norm(dtype: torch.dtype, shape: tuple[int, ...], plus: float, plain) -> None:
    x, weight = draw(*shape, dtype=dtype), draw(shape[-1], seed=1)
    found, expected = kernels.norm(x, weight, 1e-5, plus), plain(lambda: kernels.norm(x, weight, 1e-5, plus))
    agree(found[0], expected[0])
    assert_close(found[1], expected[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 34), (300, 256)])
@pytest.mark.parametrize("gelu", [False, True])
def test_glu(dtype: torch.dtype, shape: tuple[int, int], gelu: bool, plain) -> None:
    both = (2 if gelu else 10) * draw(*shape, dtype=dtype)
    both[0, :8] = torch.tensor([0, -0.0, 90, -90, 1e4, -1e4, 3e38, -3e38])
    both[1, 0] = torch.nan
    found, expected = kernels.glu(both, gelu), plain(lambda: kernels.glu(both, gelu))
    if gelu:  # PyTorch's own loses digits in 1 + tanh
        gate, up = both.chunk(2, dim=-1)
        assert_close(expected.nan_to_num(), found.nan_to_num(), atol=1e-2, rtol=1e-2)
        expected = torch.nn.functional.gelu(gate.double(), approximate="tanh").to(dtype) * up
    assert found.isnan().nonzero().tolist() == [[1, 0]], "what is not a number stays so"
    agree(found.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotate(dtype: torch.dtype, plain) -> None:
    """On the first heads of rows that are longer."""
    cos, sin = (draw(7, 1, 64, dtype=dtype, seed=s) for s in (1, 2))
    rows = draw(7, 15, 64, dtype=dtype)
    with torch.no_grad():
        expected = plain(lambda: kernels.rotate(rows[:, :12], cos, sin))
        rest = rows[:, 12:].clone()
        agree(kernels.rotate(rows[:, :12], cos, sin), expected)
    assert torch.equal(rows[:, 12:], rest)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_embedding_of_a_part_of_every_head(dtype: torch.dtype, plain) -> None:
    cos, sin = (draw(7, 1, 48, dtype=dtype, seed=s) for s in (1, 2))
    rows = draw(7, 15, 64, dtype=dtype)
    with torch.no_grad():
        expected = torch.cat([plain(lambda: kernels.rotate(rows[..., :48], cos, sin)), rows[..., 48:]], dim=-1)
        agree(plain(lambda: kernels.rotate(rows, cos, sin)), expected)
        agree(kernels.rotate(rows, cos, sin), expected)


def slopes(exact, inputs: list[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
    """What reaches the inputs of a function by autograd in float64."""
    wide = [x.double().requires_grad_() for x in inputs]
    return torch.autograd.grad(exact(*wide), wide, gradient.double())


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 576), (300, 129), (40, 3, 64), (20_000, 16)])
@pytest.mark.parametrize("plus", [0.0, 1.0])
def test_norm_backward(compiled: bool, dtype: torch.dtype, shape: tuple[int, ...], plus: float, plain) -> None:
    x, weight, gradient = draw(*shape, dtype=dtype), draw(shape[-1], dtype=dtype, seed=1), draw(*shape, dtype=dtype, seed=2)
    of = x, weight, kernels.norm(x, weight, 1e-5)[1], gradient, plus
    found = kernels.norm_backward(*of) if compiled else plain(lambda: kernels.norm_backward(*of))
    expected = slopes(lambda x, weight: x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * (plus + weight), [x, weight], gradient)
    assert_close(found[0], expected[0].to(dtype), atol=1e-5, rtol=1e-5 if dtype == torch.float32 else 2**-7)
    assert_close(found[1], expected[1].float(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 34), (300, 256)])
@pytest.mark.parametrize("gelu", [False, True])
def test_glu_backward(compiled: bool, dtype: torch.dtype, shape: tuple[int, int], gelu: bool, plain) -> None:
    both, gradient = 3 * draw(*shape, dtype=dtype), draw(shape[0], shape[1] // 2, dtype=dtype, seed=1)
    found = kernels.glu_backward(both, gradient, gelu) if compiled else plain(lambda: kernels.glu_backward(both, gradient, gelu))
    act = partial(torch.nn.functional.gelu, approximate="tanh") if gelu else torch.nn.functional.silu
    (expected,) = slopes(lambda both: act(both[:, : shape[1] // 2]) * both[:, shape[1] // 2 :], [both], gradient)
    assert_close(found, expected.to(dtype), atol=1e-5 if dtype == torch.float32 else 1e-2, rtol=1e-5 if dtype == torch.float32 else 2**-6)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs(compiled: bool, dtype: torch.dtype, temperature: float, plain) -> None:
    """Against autograd in float64; on rows of four blocks, the last one cut short."""
    logits, targets, slopes = 3 * draw(7, 1000, dtype=dtype), torch.arange(0, 1000, 150), draw(7, seed=1)
    exact = logits.double().requires_grad_()
    every = (exact / temperature).log_softmax(-1)
    expected = every.gather(1, targets[:, None])[:, 0]
    (wanted,) = torch.autograd.grad((expected * slopes).sum(), exact)

    def chosen(*slopes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        used = logits.clone()
        return *kernels.token_logprobs_(used, targets, temperature, *slopes), used

    for given in ((), (slopes,)):
        logprobs, entropy, used = chosen(*given) if compiled else plain(lambda given=given: chosen(*given))
        assert_close(logprobs.double(), expected, atol=1e-5, rtol=1e-6)
        assert_close(entropy.double(), -(every.exp() * every).sum(-1), atol=1e-5, rtol=1e-6)
    assert_close(used, wanted.to(dtype), atol=1e-7, rtol=1e-5 if dtype == torch.float32 else 2**-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_drawn_has_to_the_bit_the_log_probability_that_a_learner_finds(dtype: torch.dtype) -> None:
    logits = 3 * draw(300, 1000, dtype=dtype)
    found = kernels.draw(logits, torch.rand(300, dtype=torch.float64), 0.7)
    assert found is not None
    tokens, logprobs = found
    assert torch.equal(kernels.token_logprobs_(logits, tokens, 0.7)[0], logprobs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(("heads", "kv", "width"), SHAPES)
def test_a_step(dtype: torch.dtype, window: int | None, heads: int, kv: int, width: int, plain) -> None:
    """Rows of unequal length in a cache with room, whose unused places hold what must not be read. A width of 4 is left to PyTorch."""
    positions = torch.tensor([0, 3, 30, 17])
    rows = draw(4, heads + 2 * kv, width, dtype=dtype)
    cache = [draw(4, kv, 32, width, dtype=dtype, seed=s) for s in (1, 2)]
    for held in cache:
        held.masked_fill_((torch.arange(32) > positions[:, None])[:, None, :, None], 20.0)

    def attended() -> tuple[Tensor, Tensor, Tensor]:
        keys, values = cache[0].clone(), cache[1].clone()
        return Step(keys[None], values[None], positions)(0, window, *rows.split([heads, kv, kv], dim=1)), keys, values

    with torch.no_grad():
        (found, *held), (expected, *held_there) = attended(), plain(attended)
    for mine, its in zip(held, held_there, strict=True):
        assert torch.equal(mine, its)
    assert_close(found, expected, atol=1e-5 if dtype == torch.float32 else 0.03, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(("heads", "kv", "width"), SHAPES[:3])
def test_a_token_of_a_piece_gets_to_the_bit_what_it_gets_from_a_step(
    dtype: torch.dtype, window: int | None, heads: int, kv: int, width: int
) -> None:
    """Five tokens after four; which is why what is sampled has the log-probabilities that a learner finds."""
    rows = draw(9, heads + 2 * kv, width, dtype=dtype)
    q, k, v = rows.split([heads, kv, kv], dim=1)
    out, shares = kernels.piece(q[4:], k, v, window, keep=True)
    keys, values = k.transpose(0, 1)[None], v.transpose(0, 1)[None]
    assert shares is not None
    for i in range(5):
        held, place = [x.contiguous().clone() for x in (keys, values)], torch.tensor([4 + i])
        assert torch.equal(out[i], kernels.step(q[4 + i :][:1], k[4 + i :][:1], v[4 + i :][:1], *held, place, window)[0])
    shares = shares[..., :9].transpose(1, 2).flatten(1, 2)  # (K, H / K * T, S)
    for_values = (shares.float() @ v.transpose(0, 1).float()).view(heads, 5, width).transpose(0, 1)
    assert_close(out, for_values.to(dtype), atol=1e-5, rtol=1e-5 if dtype == torch.float32 else 2**-7)
    assert dtype == torch.float32 or (out != for_values.to(dtype)).float().mean() < 0.02
    assert_close(shares.float().sum(-1), torch.ones(kv, heads // kv * 5), atol=1e-5 if dtype == torch.float32 else 1e-2, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(("t", "s"), [(1, 1), (5, 9), (40, 40), (33, 70)])
@pytest.mark.parametrize(("heads", "kv", "width"), [*SHAPES[:3], (5, 1, 32), (4, 2, 128)])
def test_what_reaches_a_piece(dtype: torch.dtype, window: int | None, t: int, s: int, heads: int, kv: int, width: int) -> None:
    rows, gradient = draw(s, heads + 2 * kv, width, dtype=dtype), draw(t, heads, width, dtype=dtype, seed=1)
    q, k, v = rows.split([heads, kv, kv], dim=1)
    _, kept = kernels.piece(q[s - t :], k, v, window, keep=True)
    assert kept is not None
    found = kernels.piece_backward(q[s - t :], k, v, window, kept, gradient)

    exact = [x.double().requires_grad_() for x in (q[s - t :], k, v)]
    wide = [exact[0], *(x.repeat_interleave(heads // kv, dim=1) for x in exact[1:])]
    behind = torch.arange(s - t, s)[:, None] - torch.arange(s)
    hidden = (behind < 0) | (behind >= (window or s))
    shares = torch.einsum("thd,shd->hts", wide[0], wide[1]).div(width**0.5).masked_fill(hidden, -torch.inf).softmax(-1)
    torch.einsum("hts,shd->thd", shares, wide[2]).backward(gradient.double())
    for mine, x in zip(found, exact, strict=True):
        assert x.grad is not None
        far = (mine.double() - x.grad).norm() / x.grad.norm().clamp_min(1e-6)
        assert far < (1e-5 if dtype == torch.float32 else 1e-2)


def test_what_cannot_be_compiled_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert kernels.library.__wrapped__(torch.float32) is None
    monkeypatch.setenv("CC", "false")
    assert kernels.library.__wrapped__(torch.float32) is None
    monkeypatch.delenv("CC")
    assert kernels.library.__wrapped__(torch.float64) is None
