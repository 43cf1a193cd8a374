"""Several adapters on one model of `transformers`: whatever is trained, each is its own, goes to disk and back, and resumes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from rather.config.schema import Config
from rather.core import Answered, Comparison, Task, Trajectory
from rather.learners import checkpoint
from rather.learners.checkpoint import Lineage
from rather.pipeline import build
from rather.pipeline.text_domain import TextDomain
from rather.text import foreign, load
from rather.text.engine import Sampling
from rather.text.foreign import ForeignPolicy
from rather.text.language_model import TextSampler
from rather.text.reward_model import RewardModel

MODELS, LEARNERS = ("olmo", "gemma2", "mixtral", "mamba", "gemma3"), ("dpo", "reward", "ppo", "grpo")
FAST = [("gemma2", "ppo"), ("olmo", "dpo"), ("mamba", "dpo"), ("gemma3", "dpo")]
EVERY = [pytest.param(m, n, marks=() if (m, n) in FAST else pytest.mark.slow) for m in MODELS for n in LEARNERS]
PROMPTS = [Task("f", str(i), f"question {i}") for i in range(3)]
PAIRS = [Comparison((Trajectory(t, "p", "good"),), (Trajectory(t, "p", "bad bad"),), 1.0, t.key, "me") for t in PROMPTS]
ENDS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
SIZES = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, **ENDS,
}  # fmt: skip


def foreign_model(kind: str, tiny: Path, folder: Path) -> Path:
    """A random model of an architecture that `rather` leaves to `transformers`."""
    import transformers as tf

    configs = {
        "olmo": lambda: tf.OlmoConfig(**SIZES),
        "gemma2": lambda: tf.Gemma2Config(**SIZES, head_dim=8, query_pre_attn_scalar=8),
        "mixtral": lambda: tf.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
        "mamba": lambda: tf.MambaConfig(vocab_size=100, hidden_size=32, state_size=4, num_hidden_layers=2, **ENDS),
        "gemma3": lambda: tf.Gemma3Config(
            text_config={**SIZES, "head_dim": 8, "query_pre_attn_scalar": 8},
            vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28},
            mm_tokens_per_image=4,
        ),
    }
    torch.manual_seed(0)
    tf.AutoModelForCausalLM.from_config(configs[kind]()).save_pretrained(folder)
    tf.AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def settings(model: Path, learner: str, **more: Any) -> Config:
    return Config.model_validate(
        {
            "run": {"date": "2026-01-01"},
            "model": {"path": str(model), "dtype": "float32", "device": "cpu", "rank": 4, "alpha": 8.0} | more,
            "sample": {"max_tokens": 6},
            "train": {"learner": learner, "reward": "labels", "lr": 1e-2, "batch_size": 2, "epochs": 5.0, "schedule": "constant"},
            "ppo": {"rollout_batch_size": 4, "update_epochs": 1},
            "grpo": {"group_size": 4},
        }
    )


class Trainee:
    """A run's parts as `Run` puts them together: the start, the reward model that pays, and what learns."""

    def __init__(self, config: Config, name: str, reward_folder: Path | None = None) -> None:
        domain = TextDomain(config, Console(quiet=True))
        domain.tasks = PROMPTS, []
        self.start = domain.base_policy
        self.reward_fn = domain.reward_model(reward_folder) if reward_folder else None
        if self.reward_fn is None:
            self.learner = domain.learner(name, Answered(PAIRS, [1, 2, 3], 3), 0, None)
        else:
            self.learner = domain.improver(0, self.start, self.reward_fn, build.steps(config, name, len(PROMPTS)), config)
        self.policy = self.learner.model.body if name == "reward" else self.learner.model

    def save(self, folder: Path, config: Config, step: int) -> Path:
        return checkpoint.save(folder, step, self.learner, Lineage(config.model_dump(), 3, [1, 2, 3]))

    def scores(self) -> torch.Tensor:
        model = self.learner.model if self.reward_fn is None else self.reward_fn
        return scores(model)


@torch.no_grad()
def scores(model: RewardModel) -> torch.Tensor:
    return model.scores(model.collate([t for c in PAIRS for t in (*c.a, *c.b)]))


@torch.no_grad()
def logprobs(policy: ForeignPolicy) -> torch.Tensor:
    return policy.evaluate(policy.collate([t for c in PAIRS for t in (*c.a, *c.b)]))[0]


def same_files(one: Path, two: Path) -> bool:
    files = sorted(p.relative_to(one) for p in one.rglob("*.safetensors"))
    assert len(files) > 1
    return all(torch.equal(a, b) for f in files for a, b in zip(load_file(one / f).values(), load_file(two / f).values(), strict=True))


def peft_logprobs(model: Path, adapter: Path, policy: ForeignPolicy) -> torch.Tensor:
    """What `peft` makes of a saved adapter."""
    from peft import PeftModel

    theirs = load.policy(model, torch.device("cpu"), torch.float32, False, 1.0)
    assert isinstance(theirs, ForeignPolicy)
    inner = PeftModel.from_pretrained(theirs.inner, adapter).eval()
    return logprobs(ForeignPolicy(inner, policy.tokens, "default"))


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_learner_trains_an_adapter_of_its_own_and_resumes_exactly(kind: str, name: str, tiny: Path, tmp_path: Path) -> None:
    model = foreign_model(kind, tiny, tmp_path / "model")
    reward_folder, expected = None, torch.zeros(0)
    if name in ("ppo", "grpo"):
        judged = settings(model, "reward")
        reward = Trainee(judged, "reward")
        for _ in range(3):
            reward.learner.step()
        reward_folder, expected = reward.save(tmp_path / "reward", judged, 3), reward.scores()
        assert expected.std() > 0.01, "it has learned something"
    config = settings(model, name)
    one = Trainee(config, name, reward_folder)
    assert isinstance(one.start, ForeignPolicy)
    assert isinstance(one.policy, ForeignPolicy)
    base = logprobs(one.start)
    if reward_folder:
        assert torch.equal(one.scores(), expected), "the reward model is read as it was saved"
    first = one.learner.step()
    if name == "dpo":
        assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    if name in ("ppo", "grpo"):
        assert first["kl"] == pytest.approx(0, abs=1e-5)
    saved = one.save(tmp_path / "one", config, 1)
    then = logprobs(one.policy)
    second = one.learner.step()
    last = one.save(tmp_path / "one", config, 2)
    assert (logprobs(one.policy) - base).abs().max() > 1e-3, "the policy has changed"
    assert torch.equal(logprobs(one.start), base), "the base has not"
    if reward_folder:
        assert torch.equal(one.scores(), expected), "nor the reward model that the policy is trained on"

    two = Trainee(config, name, reward_folder)
    checkpoint.load(saved, two.learner)
    assert torch.equal(logprobs(two.policy), then), "what was saved is what is read"
    torch.testing.assert_close(peft_logprobs(model, saved / "model", two.policy), then, atol=1e-5, rtol=0)
    assert two.learner.step() == second
    assert same_files(last, two.save(tmp_path / "two", config, 2))


@pytest.mark.parametrize("kind", ["mamba", "gemma3"])
def test_all_weights_that_compute_text_are_trained_and_read_back(kind: str, tiny: Path, tmp_path: Path) -> None:
    config = settings(foreign_model(kind, tiny, tmp_path / "model"), "dpo", train="full")
    one = Trainee(config, "dpo")
    sampled = TextSampler(one.start, Sampling(6)).sample(PROMPTS, seed=0)
    batch = one.start.collate(sampled)
    torch.testing.assert_close(one.start.evaluate(batch)[0], batch.logprobs, atol=1e-5, rtol=0)
    first = logprobs(one.policy)
    one.learner.step()
    assert (logprobs(one.policy) - first).abs().max() > 1e-3
    saved = one.save(tmp_path / "one", config, 1)
    two = Trainee(config, "dpo")
    checkpoint.load(saved, two.learner)
    assert torch.equal(logprobs(two.policy), logprobs(one.policy))


def test_which_layers_are_adapted_is_said(tiny: Path, tmp_path: Path) -> None:
    said = foreign.adapted(foreign_model("mixtral", tiny, tmp_path / "mixtral"), "it is none of ours")
    assert "LoRA adapts the layers k_proj, o_proj, q_proj, v_proj; not the experts" in said
    assert foreign.adapted(foreign_model("mamba", tiny, tmp_path / "mamba"), "").endswith("layers in_proj, x_proj")
