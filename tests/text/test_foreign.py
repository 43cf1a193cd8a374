from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fixed import fixed
from rather.core import Comparison, Task, Trajectory
from rather.errors import ModelError
from rather.learners.dpo import DPO
from rather.learners.ppo import PPO
from rather.learners.rollouts import Rollouts
from rather.text import load
from rather.text.critic import TextCritic
from rather.text.engine import Sampling
from rather.text.foreign import ForeignPolicy
from rather.text.language_model import TextSampler
from rather.text.reward_model import RewardModel

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
    assert RewardModel(policy, 2, 0, parameters=[]).scores(batch).shape == (2, 3)
    same, states = policy.look(batch)
    torch.testing.assert_close(same, logprobs)
    n = batch.mask.sum(-1).long()
    torch.testing.assert_close(states[torch.arange(3), n], policy.ends(batch))
    head = policy.inner.get_output_embeddings()
    before = torch.log_softmax(head(states[:, :-1]) / 0.9, dim=-1).gather(-1, batch.actions[..., None])[..., 0]
    torch.testing.assert_close(before * batch.mask, logprobs, msg="each state is that before its token")
    assert not [x for row, t in zip(states, n, strict=True) for x in row[t + 1 :] if x.any()]


@pytest.mark.parametrize("adapter", [True, False])
def test_dpo_learns_and_goes_to_disk_and_back(neox: Path, tmp_path: Path, adapter: bool) -> None:
    start = load.policy(neox, CPU, torch.float32, not adapter, 1.0)
    policy, parameters = load.with_adapter(start, "policy", 4, 8.0, 0) if adapter else (start, load.parameters(start))
    task = Task("f", "1", "ab")
    pair = Comparison((Trajectory(task, "p", "good"),), (Trajectory(task, "p", "bad"),), 1.0)
    learner = DPO(policy, [pair], start, parameters, **fixed(30, batch_size=1, lr=1e-2))
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


def test_an_adapter_on_the_last_blocks_alone_is_refused(neox: Path) -> None:
    with pytest.raises(ModelError, match="model.blocks can be set for rather's own architectures only"):
        load.with_adapter(load.policy(neox, CPU, torch.float32, False, 1.0), "policy", 4, 8.0, 0, blocks=1)


def test_ppo_makes_what_is_paid_likelier(neox: Path) -> None:
    start = load.policy(neox, CPU, torch.float32, False, 1.0)
    policy, parameters = load.with_adapter(start, "policy", 4, 8.0, 0)

    class Paid:
        """Even tokens are worth something."""

        sampler = TextSampler(policy, Sampling(4))

        def sample(self, tasks: list[Task], seed: int) -> list[Trajectory]:
            return [replace(t, rewards=(t.actions % 2 == 0).astype(np.float32)) for t in self.sampler.sample(tasks, seed)]

        def sync(self) -> None:
            """Nothing to do."""

    source = Rollouts(policy, Paid(), lambda _: [Task("f", str(i), f"question {i}") for i in range(8)], 0)
    how = fixed(9, 8, 1e-2, update_epochs=3, gamma=0.01, critic_lr=1e-2)
    batch, critic = source.collect(0), TextCritic(policy.width, CPU, 0)
    learner = PPO(policy, (), None, start, parameters, critic=critic, source=source, **how)

    def inclination() -> float:
        """How much likelier than at the start what is paid is now, less the same of what is not."""
        with torch.no_grad():
            moved, used = policy.evaluate(batch)[0] - batch.logprobs, batch.mask.bool()
        paid = batch.rewards > 0
        return float(moved[used & paid].mean() - moved[used & ~paid].mean())

    assert inclination() == pytest.approx(0, abs=1e-4)
    first = learner.step()
    assert first["kl"] == pytest.approx(0, abs=1e-4)
    assert inclination() > 0.02
    assert critic.values(start.look(batch)[1])[:, 0].mean() > 0.05, "the critic has noticed that there is something to earn"


def test_a_checkpoint_that_lacks_a_tensor_or_has_an_unknown_one_is_refused(neox: Path) -> None:
    state = load_file(neox / "model.safetensors")
    save_file(state | {"gpt_neox.layers.0.attention.sinks": torch.ones(4)}, neox / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"has an unknown tensor 'gpt_neox.layers.0.attention.sinks'"):
        load.policy(neox, CPU, torch.float32, False, 1.0)
    del state["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"]
    save_file(state, neox / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks the tensor 'gpt_neox.layers.1.mlp.dense_h_to_4h.weight'"):
        load.policy(neox, CPU, torch.float32, False, 1.0)


def test_models_that_are_not_causal_are_refused(neox: Path, tmp_path: Path) -> None:
    import transformers as tf

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 100}
    tf.BertLMHeadModel(tf.BertConfig(**sizes)).save_pretrained(neox)
    with pytest.raises(ModelError, match="'bert', in which tokens see those after them"):
        load.policy(neox, CPU, torch.float32, False, 1.0)
    tf.T5Config().save_pretrained(neox)
    with pytest.raises(ModelError, match="'t5', which is no causal language model"):
        load.policy(neox, CPU, torch.float32, False, 1.0)
