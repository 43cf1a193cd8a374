"""The settings of KTO."""

from pydantic import Field

from rather.learners.settings import OptimizationOptions
from rather.settings import Section


class KTOSettings(Section):
    """Kahneman-Tversky optimization: answers that are good or bad each by itself, and pairs as one of each."""

    beta: float = Field(default=0.1, description="How strongly the policy is held to the reference.", gt=0)
    desirable_weight: float = Field(default=1.0, description="Weight of good answers.", gt=0)
    undesirable_weight: float = Field(default=1.0, description="Weight of bad answers.", gt=0)


class KTOOptions(OptimizationOptions, total=False):
    """The settings of `KTO` as keyword arguments."""

    beta: float
    desirable_weight: float
    undesirable_weight: float
