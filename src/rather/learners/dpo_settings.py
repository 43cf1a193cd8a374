"""The settings of DPO."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from rather.learners.settings import OptimizationOptions
from rather.settings import MattersTo, Section

LOSSES = ("dpo", "ipo", "hinge", "robust", "simpo", "orpo")
WITH_REFERENCE = ("dpo", "ipo", "hinge", "robust")
"""The losses that compare the policy with a reference, as a function of scores does, too."""


def _loss(name: str) -> str:
    if name not in LOSSES and ":" not in name:
        names = ", ".join(f'"{loss}"' for loss in LOSSES)
        raise ValueError(f'take {names}, or "module:name" of a function')
    return name


def _of(*losses: str) -> AfterValidator:
    """What these losses use alone: with another one it stays at its default. A function of scores uses what "dpo" does."""

    def check(value: object, info: ValidationInfo) -> object:
        loss = info.data.get("loss", losses[0])  # one that is wrong has been refused
        known, default = loss if loss in LOSSES else "dpo", DPOSettings.model_fields[info.field_name or ""].default
        if known not in losses and value != default:
            raise ValueError(f"it is of the loss {' or '.join(losses)}, but the loss is {loss}; leave it at {default!r}")
        return value

    return AfterValidator(check)


class DPOSettings(Section):
    """Direct preference optimization."""

    loss: Annotated[str, AfterValidator(_loss)] = Field(
        default="dpo",
        description="Logistic (dpo), squared (ipo), hinge (SLiC) or robust loss; without a reference simpo or orpo; "
        'or "module:name" of a function of (score_a, score_b, preference).',
    )
    beta: Annotated[float, _of("dpo", "ipo", "hinge", "robust", "orpo")] = Field(
        default=0.1, description="How strongly the policy is held to the reference; orpo: weight of the odds ratio.", gt=0
    )
    normalized: Annotated[bool, _of("ipo")] = Field(default=False, description="ipo: log-ratios averaged over tokens.")
    flip_rate: Annotated[float, _of("robust"), MattersTo("dpo")] = Field(
        default=0.1, description="robust: share of the labels that are taken to be flipped.", ge=0, lt=0.5
    )
    simpo_beta: Annotated[float, _of("simpo"), MattersTo("dpo")] = Field(
        default=2.0, description="simpo: scale of the log-probabilities, which are averaged over tokens.", gt=0
    )
    simpo_gamma: Annotated[float, _of("simpo"), MattersTo("dpo")] = Field(
        default=1.0, description="simpo: target margin between the scores.", ge=0
    )
    sft_weight: Annotated[float, _of("dpo", "ipo", "hinge", "robust", "simpo"), MattersTo("dpo")] = Field(
        default=0.0, description="Weight of the preferred side's NLL (RPO); orpo has it with weight 1.", ge=0
    )
    reference_logprobs: Annotated[Literal["once", "each"], _of(*WITH_REFERENCE)] = Field(
        default="once", description="Evaluate the reference once, or again at each step."
    )

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares the policy with a reference."""
        return self.loss in WITH_REFERENCE or self.loss not in LOSSES


class DPOOptions(OptimizationOptions, total=False):
    """The settings of `DPO` as keyword arguments, but for `loss`."""

    beta: float
    normalized: bool
    flip_rate: float
    simpo_beta: float
    simpo_gamma: float
    sft_weight: float
    reference_logprobs: Literal["once", "each"]
