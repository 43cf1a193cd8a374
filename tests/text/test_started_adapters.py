"""A run that starts with an adapter: what is trained, sampled and compared starts from it, and it itself stays what it is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rather.errors import ModelError
from rather.pipeline import build
from rather.text import load
from rather.text.reward_model import RewardModel
from text.test_foreign_adapters import PAIRS, Trainee, foreign_model, settings


@pytest.fixture(params=["llama", "olmo"])
def model(request: pytest.FixtureRequest, tiny: Path, tmp_path: Path) -> Path:
    """A model of our own architectures, and one that `transformers` computes."""
    return tiny if request.param == "llama" else foreign_model(request.param, tiny, tmp_path / "model")


def adapter(model: Path, folder: Path) -> Path:
    """An adapter of another rank and scale than the settings', on some of the layers, as fine-tuning by others would leave it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model)
    found = get_peft_model(
        base, LoraConfig(r=3, lora_alpha=9, target_modules=["o_proj", "down_proj"], layers_to_transform=[1], use_rslora=True)
    )
    with torch.no_grad():
        for name, p in found.named_parameters():
            if ".lora_" in name:
                p.copy_(0.2 * torch.randn_like(p))
    found.save_pretrained(folder)
    return folder


@torch.no_grad()
def logprobs(policy: Any) -> torch.Tensor:
    return policy.evaluate(policy.collate([t for c in PAIRS for t in (*c.a, *c.b)]))[0]


def reference(model: Path, folder: Path, batch_of: Any) -> torch.Tensor:
    """What `peft` and `transformers` make of the two."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    inner = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), folder).eval()
    batch = batch_of.collate([t for c in PAIRS for t in (*c.a, *c.b)])
    found = torch.zeros_like(batch.mask)
    for i, (prompt, answer) in enumerate(zip(batch.observations, batch.actions, strict=True)):
        prompt, answer = prompt[prompt >= 0], answer[answer >= 0]
        with torch.no_grad():
            all_ = torch.log_softmax(inner(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1].float(), -1)
        found[i, : len(answer)] = all_.gather(1, answer[:, None])[:, 0]
    return found


@pytest.mark.parametrize("name", ["dpo", "ppo", "grpo"])
def test_the_reference_is_what_the_policy_started_from(name: str, model: Path, tmp_path: Path) -> None:
    started = adapter(model, tmp_path / "sft")
    reward_folder = None
    if name != "dpo":
        reward = Trainee(settings(model, "reward"), "reward")
        reward_folder = reward.save(tmp_path / "reward", settings(model, "reward"), 0)
    one = Trainee(settings(model, name, adapter=str(started)), name, reward_folder)
    expected = reference(model, started, one.start)
    bare = logprobs(load.policy(model, torch.device("cpu"), torch.float32, False, 1.0))
    assert (expected - bare).abs().max() > 0.1
    for policy in (one.start, one.policy):
        torch.testing.assert_close(logprobs(policy), expected, atol=1e-4, rtol=0)
    first = one.learner.step()
    if name == "dpo":
        assert first["loss"] == pytest.approx(0.693147, abs=1e-6)
    else:
        assert first["kl"] == pytest.approx(0, abs=1e-4)
    one.learner.step()
    assert (logprobs(one.policy) - expected).abs().max() > 1e-3, "the policy has changed"
    torch.testing.assert_close(logprobs(one.start), expected, atol=1e-4, rtol=0)
    one.policy.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert (config["r"], config["layers_to_transform"]) == (3, [1])
    torch.testing.assert_close(reference(model, tmp_path / "saved", one.start), logprobs(one.policy), atol=1e-4, rtol=0)


def test_the_reward_model_starts_from_the_adapter_and_is_read_without_it(model: Path, tmp_path: Path) -> None:
    started = adapter(model, tmp_path / "sft")
    config = settings(model, "reward", adapter=str(started))
    one = Trainee(config, "reward")
    assert isinstance(one.learner.model, RewardModel)
    torch.testing.assert_close(logprobs(one.policy), reference(model, started, one.start), atol=1e-4, rtol=0)
    one.learner.step()
    saved, expected = one.save(tmp_path / "checkpoints", config, 1), one.scores()
    shutil.rmtree(started)
    again = build.saved_reward(config, saved)
    batch = again.collate([t for c in PAIRS for t in (*c.a, *c.b)])
    with torch.no_grad():
        torch.testing.assert_close(again.scores(batch), expected)


def test_where_all_weights_are_trained_the_adapter_becomes_a_part_of_them(model: Path, tmp_path: Path) -> None:
    started = adapter(model, tmp_path / "sft")
    one = Trainee(settings(model, "sft", adapter=str(started), train="full"), "sft")
    torch.testing.assert_close(logprobs(one.start), reference(model, started, one.start), atol=1e-4, rtol=0)
    assert one.policy.adapter is None
    one.learner.step()


def test_the_folder_of_an_adapter_can_be_the_model(model: Path, tmp_path: Path) -> None:
    started = adapter(model, tmp_path / "sft")
    one = build.base_policy(settings(model, "dpo", adapter=str(started)))
    two = build.base_policy(settings(started, "dpo"))
    assert torch.equal(logprobs(one), logprobs(two))
    torch.testing.assert_close(logprobs(two), reference(model, started, two), atol=1e-4, rtol=0)


def test_an_adapter_whose_base_is_not_known_says_how(tiny: Path, tmp_path: Path) -> None:
    started = adapter(tiny, tmp_path / "sft")
    file = started / "adapter_config.json"
    config = json.loads(file.read_text())

    with pytest.raises(ModelError, match=r"model.path .*sft is an adapter, and model.adapter is 'other'"):
        build.base_policy(settings(started, "dpo", adapter="other"))
    for base, message in (
        (None, "names no base model"),
        (str(tmp_path / "gone"), "is for a base model that cannot be had: there is no model at"),
    ):
        file.write_text(json.dumps(config | {"base_model_name_or_path": base}))
        with pytest.raises(ModelError, match=f"{message}.*set model.path to the model that it is for, and model.adapter to .*sft"):
            build.base_policy(settings(started, "dpo"))
