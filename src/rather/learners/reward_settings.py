"""The settings of the reward model's learner."""

from typing import Self, TypedDict

from pydantic import Field, model_validator

from rather.learners.settings import OptimizationOptions
from rather.settings import Section


class RewardSettings(Section):
    """What the learner of a reward model takes, in a run or from Python."""

    center: float | None = Field(
        default=None, description="Weight of (s_a + s_b)^2, which holds scores near 0; unset: 0.01 for text, 0 for control.", ge=0
    )
    temperatures: bool = Field(default=True, description="Learn a temperature for each judge, so that careful judges weigh more.")


class HeldBack(Section):
    """What is kept from the reward model of a run, and what that is for."""

    held_out: float = Field(
        default=0.2, description="Share of questions kept back to measure accuracy and calibration, and by reward.patience.", ge=0, lt=1
    )
    patience: int = Field(
        default=0,
        description="End a fit after so many epochs without a lower loss on the questions kept back; the best weights stay. 0: none.",
        ge=0,
    )


class SURFSettings(Section):
    """Control: more from few comparisons of fragments; see control/surf.py."""

    crop: float = Field(
        default=1.0, description="control: least share of each fragment's steps that a step learns from, cut at random; 1: all.", gt=0, le=1
    )
    pseudo_labels: int = Field(
        default=0, description="control: extra pairs for each comparison, labeled by the ensemble where it is sure; 0: none.", ge=0
    )
    confidence: float = Field(
        default=0.99, description="control: how likely one side is to be better where members are sure.", ge=0.5, lt=1
    )
    pseudo_weight: float = Field(default=1.0, description="control: weight of the loss on such pairs.", gt=0)

    @model_validator(mode="after")
    def _of_pairs(self) -> Self:
        for name in ("confidence", "pseudo_weight"):
            value, default = getattr(self, name), SURFSettings.model_fields[name].default
            if value != default and not self.pseudo_labels:
                raise ValueError(f"{name} = {value} is of pseudo-labels, and pseudo_labels is 0; set it to 4, or {name} to {default:g}")
        return self


class REEDSettings(SURFSettings):
    """Control: what the environment does teaches reward nets, too; see control/reed.py."""

    dynamics: float = Field(
        default=0.0,
        description="control: weight of the loss of predicting the next state from each net's last hidden layer (REED); 0: none.",
        ge=0,
        allow_inf_nan=False,
    )


class SURFOptions(TypedDict, total=False):
    """The settings of `SURFSettings` as keyword arguments."""

    crop: float
    pseudo_labels: int
    confidence: float
    pseudo_weight: float


class REEDOptions(SURFOptions, total=False):
    """The settings of `REEDSettings` as keyword arguments."""

    dynamics: float


class ScoreOptions(TypedDict, total=False):
    """The settings of `RewardSettings` as keyword arguments."""

    center: float | None
    temperatures: bool


class RewardOptions(ScoreOptions, OptimizationOptions, total=False):
    """The settings of `Reward` as keyword arguments."""
