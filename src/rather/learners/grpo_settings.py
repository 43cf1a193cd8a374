"""The settings of GRPO."""

from typing import Literal

from pydantic import Field

from rather.learners.settings import OptimizationOptions, SamplingOptions
from rather.settings import Section


class GRPOSettings(Section):
    """Group-relative policy optimization: several answers to a prompt, each scored relative to the others; no critic."""

    group_size: int = Field(default=8, description="Answers to each prompt.", ge=2)
    updates: int = Field(default=1, description="Optimizer steps on the same answers.", ge=1)
    scale: Literal["group", "batch", "none"] = Field(default="group", description='Std that scores are divided by; "none": Dr. GRPO.')
    mean: Literal["token", "sequence", "constant"] = Field(
        default="token", description='What counts equally: tokens (DAPO), answers, or tokens over sample.max_tokens ("constant", Dr. GRPO).'
    )
    ratio: Literal["token", "sequence"] = Field(default="token", description="Probability ratio of tokens, or of whole answers (GSPO).")
    clip: float = Field(default=0.2, description="How far a probability may move from the sampled one.", gt=0)
    clip_high: float | None = Field(default=None, description="The same upwards; unset: as clip.")
    kl: float = Field(default=0.0, description="Weight of the KL from the reference (k3).", ge=0)
    kl_bound: float | None = Field(default=None, description="Nats a token that the policy may be from the reference.", gt=0)
    measure_kl: bool = Field(default=True, description="Log the KL even where its weight is 0, for one forward pass of the reference.")
    max_resample: int = Field(default=0, description="How often to sample other prompts in place of groups without variance.", ge=0)


class GRPOOptions(OptimizationOptions, SamplingOptions, total=False):
    """The settings of `GRPO` as keyword arguments."""

    group_size: int
    updates: int
    scale: Literal["group", "batch", "none"]
    mean: Literal["token", "sequence", "constant"]
    ratio: Literal["token", "sequence"]
    clip: float
    clip_high: float | None
    kl: float
    kl_bound: float | None
    measure_kl: bool
    max_resample: int
