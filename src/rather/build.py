"""Settings to objects: the only file that knows every class."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from rather import checkpoint
from rather.config import Config
from rather.core import Answered, Comparison
from rather.errors import ConfigError
from rather.judges.known import SimulatedJudge, utility
from rather.judges.language import LanguageJudge
from rather.judges.model import ModelJudge
from rather.learners.common import Optimisation
from rather.learners.dpo import DPO
from rather.learners.reward import Reward
from rather.learners.sft import SFT
from rather.text import engine, load, lora
from rather.text.foreign import ForeignPolicy
from rather.text.policy import TextPolicy, TextReward, TextSampler

AnyPolicy = TextPolicy | ForeignPolicy


def start_policy(config: Config) -> AnyPolicy:
    """The model that starts the run; `model.adapter` is merged into nothing: it is what the new adapter starts from."""
    m = config.model
    on = load.device(m.device)
    compute = load.dtype(m.dtype, on)
    policy = load.policy(load.locate(m.path), on, compute, m.train == "full", config.sample.temperature, m.chat)
    policy.name = f"{config.run.name}@0"
    if m.gradient_checkpointing:
        if not isinstance(policy, TextPolicy):
            raise ConfigError("model.gradient_checkpointing can be set for rather's own architectures only")
        policy.model.checkpointing = True
    return policy


def trained_policy(config: Config, start: AnyPolicy, name: str = "policy") -> tuple[AnyPolicy, list[nn.Parameter]]:
    """What is trained: an adapter on the start, or the start's own weights; and its parameters."""
    m = config.model
    if m.train == "full":
        return start, load.parameters(start)
    policy, parameters = load.with_adapter(start, name, m.rank, m.alpha, config.run.seed)
    if m.adapter and name == "policy":
        if not isinstance(policy, TextPolicy):
            raise ConfigError("model.adapter can be set for rather's own architectures only")
        lora.load(policy.model, name, Path(m.adapter))
    return policy, parameters


def sampler(config: Config, policy: AnyPolicy, progress: Callable[[int], None]) -> TextSampler:
    """Draws answers from `policy`."""
    s = config.sample
    how = engine.Sampling(s.max_tokens, s.temperature, s.top_p, s.top_k, s.min_p)
    return TextSampler(policy, how, s.rows, progress)


def judges(config: Config) -> list[Any]:
    """Who answers the questions; none for people, who are asked by `judges.people`."""
    j = config.judge
    match j.kind:
        case "panel":
            if not j.panel or len({p.name for p in j.panel}) < len(j.panel):
                raise ConfigError("judge.panel needs at least one judge, and each needs a name of its own")
            return [
                SimulatedJudge(p.name, utility(p.utility), p.temperature, p.mistake, p.tie, p.abstain, config.run.seed) for p in j.panel
            ]
        case "model":
            if not j.checkpoint:
                raise ConfigError('judge.kind = "model" needs judge.checkpoint, the checkpoint folder of a reward model')
            return [ModelJudge(j.name, _saved_reward(config))]
        case "language":
            if not j.model:
                raise ConfigError('judge.kind = "language" needs judge.model, the name of the model at judge.url')
            key = os.environ.get(j.key_variable, "")
            return [LanguageJudge(j.name, j.url, j.model, j.instruction, key, j.timeout_s, j.concurrency)]
        case "people":
            return []


def _saved_reward(config: Config) -> TextReward:
    manifest = checkpoint.check(Path(config.judge.checkpoint))
    of = Config.model_validate({k: v for k, v in manifest["settings"].items() if k in Config.model_fields})
    body, _ = trained_policy(of, start_policy(of), "reward")
    model = TextReward(body, of.reward.members, of.run.seed)
    model.restore(Path(config.judge.checkpoint) / "model")
    return model


def steps(config: Config, items: int) -> int:
    """Optimiser steps of a training run on `items` items."""
    t = config.train
    return t.steps or max(1, round(t.epochs * items / t.batch_size))


def optimisation(config: Config, items: int) -> Optimisation:
    """How to optimise on `items` items."""
    t = config.train
    return Optimisation(
        steps(config, items), t.batch_size, t.lr, t.warmup, t.schedule, t.weight_decay, t.max_grad_norm, t.micro_tokens, config.run.seed
    )


def learner(
    config: Config,
    start: AnyPolicy,
    trained: AnyPolicy,
    parameters: Sequence[nn.Parameter],
    data: Answered,
    progress: Callable[[int], None],
) -> Any:
    """The learner of `train.learner`, on the labels in `data`."""
    how = optimisation(config, len(data.comparisons))
    match config.train.learner:
        case "dpo":
            d = config.dpo
            if d.reference == "each" and trained is start:
                raise ConfigError('dpo.reference = "each" needs model.train = "lora": full training changes the reference too')
            return DPO(trained, start, data.comparisons, parameters, how, d.beta, d.loss, d.normalised, d.reference, progress)
        case "reward":
            r = config.reward
            model = TextReward(trained, r.members, config.run.seed)
            names = sorted({c.judge for c in data.comparisons}) if r.temperatures else []
            return Reward(model, data.comparisons, [*parameters, model.heads], how, r.centre, names if len(names) > 1 else [])
        case "sft":
            liked = [t for c in data.comparisons for t in preferred(c)]
            return SFT(trained, liked, parameters, how)


def preferred(comparison: Comparison) -> tuple[Any, ...]:
    """The side that was preferred; none for a tie."""
    assert comparison.preference is not None
    if comparison.preference == 0.5:
        return ()
    return comparison.a if comparison.preference > 0.5 else comparison.b
