"""The settings of `rather.control.PPO` and `rather.control.RewardModel`: those of the learners, with defaults for control."""

from typing import Literal, Self, TypedDict

from pydantic import Field, PositiveInt, model_validator

from rather.learners.ppo_settings import ClipOptions, ClipSettings
from rather.learners.reward_settings import REEDOptions, REEDSettings, ScoreOptions
from rather.learners.reward_settings import RewardSettings as ScoreSettings
from rather.learners.settings import Descent, DescentOptions, Schedule, ScheduleOptions
from rather.settings import Section


class EnvironmentSettings(Section):
    """How the environment is seen."""

    horizon: int = Field(default=0, description="Steps of every episode, the last ones in an absorbing state; 0: as it says.", ge=0)
    pixels: bool = Field(default=False, description="Take environments that show pictures, laid flat, whatever memory that takes.")
    network: Literal["mlp", "cnn"] = Field(default="mlp", description='"mlp": tanh layers; "cnn": the Nature CNN, which sees pictures.')
    hidden: tuple[PositiveInt, ...] = Field(default=(64, 64), description="Widths of the hidden tanh layers; none: a linear network.")

    @property
    def takes_pictures(self) -> bool:
        """Whether observations may be pictures."""
        return self.pixels or self.network == "cnn"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.network == "cnn" and self.hidden != (64, 64):
            raise ValueError('hidden is of the "mlp", and network = "cnn" has layers of its own; leave hidden out')
        return self


class PPOSettings(ClipSettings, Schedule, Descent, EnvironmentSettings):
    """PPO-Clip for control."""

    envs: int = Field(default=8, description="Copies of the environment that the policy acts in.", ge=1)
    rollout_segment: int = Field(default=64, description="Steps in each copy between updates.", ge=1)
    log_std_init: float = Field(
        default=0.0, description="Logarithm of the standard deviation that a Box's actions begin with.", ge=-20, le=2
    )
    normalize: bool = Field(
        default=True, description="Scale observations by their running mean and standard deviation; cnn: pixels by 1/255, always."
    )
    update_epochs: int = Field(default=10, description="Times that an update uses its steps.", ge=1)
    batch_size: int = Field(default=128, description="Environment steps of a minibatch.", ge=1)
    lr: float = Field(default=1e-3, description="Learning rate of policy and critic.", gt=0)
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="How the learning rate falls after that, to 0 at the end of each `train`."
    )
    max_grad_norm: float = Field(default=0.5, description="Gradients are scaled down to this norm.", gt=0)
    gamma: float = Field(default=0.98, description="Discount of what comes later.", gt=0, le=1)
    value_clip: float = Field(default=0.0, description="How far a value may move in an update; 0: without limit.", ge=0)


class RewardSettings(REEDSettings, ScoreSettings, Descent, EnvironmentSettings):
    """The Bradley-Terry reward model for control."""

    kind: Literal["nets", "head"] = Field(
        default="nets", description='"nets": an ensemble of networks; "head": a linear reward of products of what is seen and done.'
    )
    members: int = Field(default=3, description="Members of the ensemble.", ge=1)
    epochs: float = Field(default=30.0, description="Times that every comparison is used.", gt=0)
    batch_size: int = Field(default=25, description="Comparisons a step.", ge=1)
    lr: float = Field(default=3e-4, description="Learning rate.", gt=0)
    center: float = Field(default=0.0, description="Weight of (s_a + s_b)^2, which holds scores near 0.", ge=0)
    pessimism: float = Field(default=0.0, description="Standard deviations of the members that are taken off a reward.", ge=0)

    @model_validator(mode="after")
    def _has_layers(self) -> Self:
        of_both = {"kind", "members", "pessimism", "temperatures", "horizon", "pixels"}
        others = {name: field.default for name, field in RewardSettings.model_fields.items() if name not in of_both}
        of_nets = [name for name, default in others.items() if getattr(self, name) != default]
        if self.kind == "head" and of_nets:
            raise ValueError(f'{", ".join(of_nets)}: of kind = "nets"; kind = "head" has no layers and is fitted in one step')
        return self

    @model_validator(mode="after")
    def _predicts(self) -> Self:
        if self.dynamics and (self.network == "cnn" or not self.hidden):
            other = 'network = "cnn" has others' if self.network == "cnn" else "hidden is empty"
            raise ValueError(f"dynamics = {self.dynamics} trains hidden tanh layers, and {other}; set it to 0")
        return self


class EnvironmentOptions(TypedDict, total=False):
    """Keywords of `EnvironmentSettings`."""

    horizon: int
    pixels: bool
    network: Literal["mlp", "cnn"]
    hidden: tuple[int, ...] | list[int]


class PPOOptions(EnvironmentOptions, DescentOptions, ScheduleOptions, ClipOptions, total=False):
    """Keywords of `PPOSettings`."""

    envs: int
    rollout_segment: int
    log_std_init: float
    normalize: bool


class RewardOptions(EnvironmentOptions, DescentOptions, ScoreOptions, REEDOptions, total=False):
    """Keywords of `RewardSettings`."""

    kind: Literal["nets", "head"]
    members: int
    pessimism: float
    epochs: float
