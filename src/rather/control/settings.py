"""The settings of `rather.control.PPO` and `rather.control.RewardModel`: the TOML's names, with defaults for control."""

from typing import Literal, TypedDict

from pydantic import Field

from rather.settings import Section


class EnvironmentSettings(Section):
    """How the environment is seen."""

    horizon: int = Field(default=0, description="Steps of every episode, the last ones in an absorbing state; 0: as it says.", ge=0)
    pixels: bool = Field(default=False, description="Take environments that show pictures, laid flat, whatever memory that takes.")
    hidden: tuple[int, ...] = Field(default=(64, 64), description="Widths of the hidden tanh layers; none: a linear network.")


class PPOSettings(EnvironmentSettings):
    """PPO-Clip for control."""

    envs: int = Field(default=8, description="Copies of the environment that the policy acts in.", ge=1)
    rollout_segment: int = Field(default=64, description="Steps in each copy between updates.", ge=1)
    normalize: bool = Field(default=True, description="Scale observations by their running mean and standard deviation.")
    update_epochs: int = Field(default=10, description="Times that an update uses its steps.", ge=1)
    batch_size: int = Field(default=128, description="Environment steps of a minibatch.", ge=1)
    lr: float = Field(default=1e-3, description="Learning rate of policy and critic.", gt=0)
    warmup: int = Field(default=0, description="Optimizer steps in which the learning rate rises from 0.", ge=0)
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="How the learning rate falls after that, to 0 at the end of each `train`."
    )
    weight_decay: float = Field(default=0.0, description="Decoupled weight decay of AdamW.", ge=0)
    max_grad_norm: float = Field(default=0.5, description="Gradients are scaled down to this norm.", gt=0)
    gamma: float = Field(default=0.98, description="Discount of what comes later.", gt=0, le=1)
    lam: float = Field(default=0.95, description="Generalized advantage estimation: 1 sums rewards, 0 trusts the critic.", ge=0, le=1)
    clip: float = Field(default=0.2, description="How far a probability may move from the sampled one.", gt=0)
    clip_high: float | None = Field(default=None, description="The same upwards; None: as clip.")
    dual_clip: float | None = Field(default=None, description="Bound on the loss of bad actions, above 1; None: none.")
    value_clip: float = Field(default=0.0, description="How far a value may move in an update; 0: without limit.", ge=0)
    value_weight: float = Field(default=0.5, description="Weight of the critic's loss.", ge=0)
    entropy_weight: float = Field(default=0.0, description="Weight of the entropy, which keeps actions varied.", ge=0)
    reward_clip: float | None = Field(default=None, description="Bound on the reward of an action; None: none.")
    whiten: bool = Field(default=True, description="Shift and scale advantages to mean 0 and variance 1.")
    checkpoint_every: int = Field(default=20, description="Updates between checkpoints, with folder=.", ge=1)
    keep: int = Field(default=2, description="Checkpoints that are kept.", ge=1)


class RewardSettings(EnvironmentSettings):
    """The Bradley-Terry reward model for control."""

    members: int = Field(default=3, description="Members of the ensemble.", ge=1)
    epochs: float = Field(default=30.0, description="Times that every comparison is used.", gt=0)
    batch_size: int = Field(default=25, description="Comparisons a step.", ge=1)
    lr: float = Field(default=3e-4, description="Learning rate.", gt=0)
    weight_decay: float = Field(default=0.0, description="Decoupled weight decay of AdamW.", ge=0)
    max_grad_norm: float = Field(default=1.0, description="Gradients are scaled down to this norm.", gt=0)
    center: float = Field(default=0.0, description="Weight of (s_a + s_b)^2, which holds scores near 0.", ge=0)
    temperatures: bool = Field(default=True, description="Learn a temperature for each judge, so that careful judges weigh more.")


class EnvironmentOptions(TypedDict, total=False):
    """Keywords of `EnvironmentSettings`."""

    horizon: int
    pixels: bool
    hidden: tuple[int, ...] | list[int]


class PPOOptions(EnvironmentOptions, total=False):
    """Keywords of `PPOSettings`."""

    envs: int
    rollout_segment: int
    normalize: bool
    update_epochs: int
    batch_size: int
    lr: float
    warmup: int
    schedule: Literal["constant", "linear", "cosine"]
    weight_decay: float
    max_grad_norm: float
    gamma: float
    lam: float
    clip: float
    clip_high: float | None
    dual_clip: float | None
    value_clip: float
    value_weight: float
    entropy_weight: float
    reward_clip: float | None
    whiten: bool
    checkpoint_every: int
    keep: int


class RewardOptions(EnvironmentOptions, total=False):
    """Keywords of `RewardSettings`."""

    members: int
    epochs: float
    batch_size: int
    lr: float
    weight_decay: float
    max_grad_norm: float
    center: float
    temperatures: bool
