"""`train.micro_batch_tokens` bounds what a model forwards at a time, wherever it does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from rather.config import toml
from rather.core import Batch, Task, Trajectory
from rather.judges.concise import Surprise
from rather.judges.model import ModelJudge
from rather.learners.common import WITHOUT_GRADIENT
from rather.pipeline.run import Run
from rather.report.cost import base_logprobs
from rather.text import load
from rather.text.policy import TextPolicy
from rather.text.reward_model import RewardModel

TOKENS = 30  # a comparison of two answers of 7 tokens to one prompt of 13 has 27


@pytest.fixture
def forwarded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """Whether with gradient, and how many tokens, pass by pass."""
    found: list[tuple[bool, int]] = []

    def spied(known: Callable[..., Any]) -> Callable[..., Any]:
        def forward(self: TextPolicy, batch: Batch, *more: Any) -> Any:
            assert batch.prompts is not None
            found.append((torch.is_grad_enabled(), int(batch.mask.sum()) + sum(dict(batch.prompts.tolist()).values())))
            return known(self, batch, *more)

        return forward

    for name in ("evaluate", "ends", "look"):
        monkeypatch.setattr(TextPolicy, name, spied(getattr(TextPolicy, name)))
    return found


@pytest.mark.parametrize("learner", ["dpo", "kto", "reward", "sft", "ppo", "grpo", "zeroth"])
def test_no_pass_of_a_run_forwards_more(learner: str, tiny: Path, tmp_path: Path, forwarded: list[tuple[bool, int]]) -> None:
    rows = [{"prompt": f"say {i}?", "split": "held_out" if i % 2 else "train"} for i in range(32)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    changed = [f"model.path={tiny}", "model.dtype=float32", "model.rank=2", f"run.folder={tmp_path}"]
    changed += [f"data.prompts={tmp_path}/prompts.jsonl", "sample.max_tokens=6", f"train.learner={learner}", "train.reward=labels"]
    changed += [
        f"train.micro_batch_tokens={TOKENS}",
        "train.steps=1",
        "train.batch_size=16",
        "reward.held_out=0.6",
        "ppo.rollout_batch_size=16",
    ]
    changed += ["zeroth.answers=2", "zeroth.directions=2", "zeroth.check_every=1", "zeroth.checks=6"]
    Run(toml.load(None, [*changed, 'judge.panel=[{name = "x", utility = "concise"}]']), Console(quiet=True)).loop()
    assert max((tokens for gradient, tokens in forwarded if gradient), default=0) <= TOKENS
    assert TOKENS < max(tokens for gradient, tokens in forwarded if not gradient) <= WITHOUT_GRADIENT * TOKENS


@pytest.mark.parametrize("what", ["reward", "surprise", "cost"])
def test_in_parts_a_model_says_the_same(what: str, tiny: Path, forwarded: list[tuple[bool, int]]) -> None:
    policy = load.policy(tiny, torch.device("cpu"), torch.float32, False, 1.0, None)
    answers = [Trajectory(Task("f", f"{i}", f"say {i // 4}?"), "p", "word " * (1 + i % 5), terminated=i % 3 > 0) for i in range(30)]

    def said(tokens: int) -> torch.Tensor:
        if what == "surprise":
            surprise = Surprise(policy, tokens)
            surprise.read(answers)
            return torch.tensor([surprise(t) for t in answers])
        if what == "cost":
            return torch.tensor(base_logprobs(policy, answers, tokens))
        model = RewardModel(policy, 3, 0, parameters=[])
        torch.nn.init.normal_(model.heads)
        return ModelJudge("reward", model, tokens).each(answers)

    with torch.random.fork_rng():
        whole = said(10_000)
    passes = len(forwarded)
    torch.testing.assert_close(said(TOKENS), whole)
    assert len(forwarded) > 2 * passes
