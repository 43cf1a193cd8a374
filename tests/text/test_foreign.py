from pathlib import Path

import pytest
import torch

from rather.core import Comparison, Task, Trajectory
from rather.learners.common import Optimisation
from rather.learners.dpo import DPO
from rather.text import load
from rather.text.engine import Sampling
from rather.text.foreign import ForeignPolicy
from rather.text.policy import TextReward, TextSampler

CPU = torch.device("cpu")


@pytest.fixture
def neox(tiny: Path, tmp_path: Path) -> Path:
    """A random GPT-NeoX, which is none of our families."""
    from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=100, max_position_embeddings=128, **sizes)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path)
    return tmp_path


def test_sampling_evaluation_and_scores(neox: Path) -> None:
    policy = load.policy(neox, CPU, torch.float32, False, 0.9)
    assert isinstance(policy, ForeignPolicy)
    tasks = [Task("f", str(i), f"question {i}") for i in range(3)]
    drawn = TextSampler(policy, Sampling(8, temperature=0.9)).sample(tasks, seed=0)
    batch = policy.collate(drawn)
    logprobs, entropy = policy.evaluate(batch)
    torch.testing.assert_close(logprobs, batch.logprobs, atol=1e-5, rtol=0)
    assert (entropy[batch.mask.bool()] > 0).all()
    assert TextReward(policy, 2, 0).scores(batch).shape == (2, 3)


@pytest.mark.parametrize("adapter", [True, False])
def test_dpo_learns_and_goes_to_disk_and_back(neox: Path, tmp_path: Path, adapter: bool) -> None:
    start = load.policy(neox, CPU, torch.float32, not adapter, 1.0)
    policy, parameters = load.with_adapter(start, "policy", 4, 8.0, 0) if adapter else (start, load.parameters(start))
    task = Task("f", "1", "ab")
    pair = Comparison((Trajectory(task, "p", "good"),), (Trajectory(task, "p", "bad"),), 1.0)
    learner = DPO(policy, start, [pair], parameters, Optimisation(30, batch_size=1, lr=1e-2))
    losses = [learner.step()["loss"] for _ in range(30)]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[-1] < 0.55
    policy.save(tmp_path / "saved")
    batch = policy.collate(pair.a)
    expected = policy.evaluate(batch)[0].detach()
    with torch.no_grad():
        for p in parameters:
            p.zero_()
    policy.restore(tmp_path / "saved")
    torch.testing.assert_close(policy.evaluate(batch)[0], expected)
