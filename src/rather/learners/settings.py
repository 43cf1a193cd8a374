"""Settings that several learners share, each described once: sections of a run's TOML, and keyword arguments of the learners.

A class such as `OptimizationOptions` names the keyword arguments for type checkers and editors.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypedDict

from pydantic import Field

from rather.errors import ConfigError
from rather.settings import Free, Section, Temperature


class Descent(Section):
    """A step of AdamW."""

    batch_size: int = Field(
        default=8, description="Comparisons (sft: answers, kto: labels, ppo: answers of a minibatch, grpo: prompts) a step.", ge=1
    )
    lr: float = Field(default=1e-4, description="Learning rate.", gt=0)
    weight_decay: float = Field(default=0.0, description="Decoupled weight decay of AdamW.", ge=0)
    max_grad_norm: float = Field(default=1.0, description="Gradients are scaled down to this norm.", gt=0)


class DescentOptions(TypedDict, total=False):
    """The settings of `Descent` as keyword arguments."""

    batch_size: int
    lr: float
    weight_decay: float
    max_grad_norm: float


class Schedule(Section):
    """How the learning rate goes from step to step, and what is kept of a training."""

    warmup: int = Field(default=0, description="Steps in which the learning rate rises from 0.", ge=0)
    schedule: Literal["constant", "linear", "cosine"] = Field(default="linear", description="How the learning rate falls after that.")
    checkpoint_every: Free[int] = Field(default=20, description="Steps between checkpoints.", ge=1)
    keep: Free[int] = Field(default=2, description="Checkpoints that are kept.", ge=1)


class ScheduleOptions(TypedDict, total=False):
    """The settings of `Schedule` as keyword arguments."""

    warmup: int
    schedule: Literal["constant", "linear", "cosine"]
    checkpoint_every: int
    keep: int


class Optimization(Schedule, Descent):
    """How a learner optimizes: AdamW with a schedule of the learning rate.

    A batch is forwarded and backwarded in parts of about `micro_batch_tokens` tokens, those of prompts too, which bounds memory and
    changes no gradient; where none is needed, in parts of `common.WITHOUT_GRADIENT` times as many.
    """

    epochs: Free[float] = Field(default=2.0, description="Times that every label (ppo, grpo: prompt) is used.", gt=0)
    steps: Free[int] = Field(default=0, description="Steps; 0: as many as the epochs need.", ge=0)
    micro_batch_tokens: int = Field(default=1536, description="Tokens forwarded at a time, prompts too (no gradient: 4 times that).", ge=1)

    def factor(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied with at optimizer step `step` of `steps`, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = min((step - self.warmup) / max(steps - self.warmup, 1), 1.0)
        if self.schedule == "linear":
            return 1 - progress
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return 1.0

    def steps_on(self, items: int, together: int = 0) -> int:
        """Steps on so many items, `together` (`batch_size`) a step: `steps`, or as many as the epochs need."""
        return self.steps or max(1, round(self.epochs * items / (together or self.batch_size)))


class OptimizationOptions(DescentOptions, ScheduleOptions, total=False):
    """The settings of `Optimization` as keyword arguments."""

    epochs: float
    steps: int
    micro_batch_tokens: int


class Sampling(Section):
    """How answers are drawn."""

    max_tokens: int = Field(default=64, description="Longest answer, in tokens.", ge=1)
    temperature: Temperature = Field(default=1.0, description="Temperature of the policy; 0 is greedy.")
    top_p: float = Field(default=1.0, description="Keep the most likely tokens up to this total probability.", gt=0, le=1)
    top_k: int = Field(default=0, description="Keep that many likeliest tokens; 0: all.", ge=0)
    min_p: float = Field(default=0.0, description="Keep tokens at least this share as likely as the likeliest.", ge=0, le=1)


class SamplingOptions(TypedDict, total=False):
    """The settings of `Sampling` as keyword arguments."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float


@dataclass(frozen=True)
class LoRA:
    """A new low-rank adapter (Hu et al. 2021), which is trained in place of the weights; updates are multiplied by `alpha` / `rank`.

    It sits on the last `blocks` blocks of the model, 0: on all.
    """

    rank: int = 16
    alpha: float = 32.0
    blocks: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or self.rank < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"LoRA: rank is {self.rank!r}; set it to a whole number above 0")
        if not isinstance(self.alpha, int | float) or not self.alpha > 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"LoRA: alpha is {self.alpha!r}; set it above 0")
        if not isinstance(self.blocks, int) or self.blocks < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"LoRA: blocks is {self.blocks!r}; take 0 for all blocks, or how many of the last ones")
