"""The settings of PPO."""

from typing import Literal, TypedDict

from pydantic import Field

from rather.learners.settings import OptimizationOptions, SamplingOptions
from rather.settings import Section


class ClipSettings(Section):
    """PPO-Clip with a critic, whatever the policy acts in."""

    update_epochs: int = Field(default=2, description="Times that a step's answers are used.", ge=1)
    gamma: float = Field(default=1.0, description="Discount of what comes later.", gt=0, le=1)
    lam: float = Field(default=0.95, description="Generalized advantage estimation: 1 sums rewards, 0 trusts the critic.", ge=0, le=1)
    clip: float = Field(default=0.2, description="How far a probability may move from the sampled one.", gt=0)
    clip_high: float | None = Field(default=None, description="The same upwards; unset: as clip.")
    clip_schedule: Literal["constant", "linear"] = Field(
        default="constant", description="linear: clip is multiplied by 1 - n / steps in step n = 0, 1, ...; constant: it stays."
    )
    dual_clip: float | None = Field(default=None, description="Bound on the loss of bad actions, above 1; unset: none.")
    value_clip: float = Field(default=0.2, description="How far a value may move in an update; 0: as far as it likes.", ge=0)
    value_weight: float = Field(default=0.5, description="Weight of the critic's loss.", ge=0)
    entropy_weight: float = Field(default=0.0, description="Weight of the entropy, which keeps answers varied.", ge=0)
    reward_clip: float | None = Field(default=None, description="Bound on the reward of an action; unset: none.")
    normalize_reward: bool = Field(
        default=False, description="Divide rewards by the standard deviation of their discounted sums so far; ppo.kl weighs what is left."
    )
    whiten: bool = Field(default=True, description="Shift and scale advantages to mean 0 and variance 1.")


class ClipOptions(TypedDict, total=False):
    """The settings of `ClipSettings` as keyword arguments."""

    update_epochs: int
    gamma: float
    lam: float
    clip: float
    clip_high: float | None
    clip_schedule: Literal["constant", "linear"]
    dual_clip: float | None
    value_clip: float
    value_weight: float
    entropy_weight: float
    reward_clip: float | None
    normalize_reward: bool
    whiten: bool


class PPOSettings(ClipSettings):
    """PPO-Clip with policy, critic, reward model and reference."""

    rollout_batch_size: int = Field(default=32, description="Prompts answered a step, once each.", ge=2)
    kl: float = Field(default=0.05, description="Weight of the penalty on leaving the reference.", ge=0)
    kl_target: float | None = Field(default=None, description="KL, in nats an answer, that the weight adapts to; unset: the weight stays.")
    critic_lr: float | None = Field(default=1e-3, description="Learning rate of the critic of text; in control it has train.lr.", gt=0)


class PPOOptions(ClipOptions, OptimizationOptions, SamplingOptions, total=False):
    """The settings of `PPO` as keyword arguments."""

    rollout_batch_size: int
    kl: float
    kl_target: float | None
    critic_lr: float | None
