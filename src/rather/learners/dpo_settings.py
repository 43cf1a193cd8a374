"""The settings of DPO."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from rather.learners.settings import OptimizationOptions
from rather.settings import MattersTo, Section


def _loss(name: str) -> str:
    if name not in ("dpo", "ipo") and ":" not in name:
        raise ValueError('take "dpo", "ipo", or "module:name" of a function')
    return name


class DPOSettings(Section):
    """Direct preference optimization."""

    beta: float = Field(default=0.1, description="How strongly the policy is held to the reference.", gt=0)
    loss: Annotated[str, AfterValidator(_loss)] = Field(
        default="dpo", description='Logistic (dpo) or squared (ipo) loss, or "module:name" of a function of (score_a, score_b, preference).'
    )
    normalized: bool = Field(default=False, description="IPO on log-ratios averaged over tokens.")
    sft_weight: Annotated[float, MattersTo("dpo")] = Field(default=0.0, description="Weight of the preferred side's NLL (RPO).", ge=0)
    reference_logprobs: Literal["once", "each"] = Field(default="once", description="Evaluate the reference once, or again at each step.")


class DPOOptions(OptimizationOptions, total=False):
    """The settings of `DPO` as keyword arguments, but for `loss`."""

    beta: float
    normalized: bool
    sft_weight: float
    reference_logprobs: Literal["once", "each"]
