"""The settings of zeroth-order optimization, whose learner stands in `rather.zeroth`."""

import math
from typing import Literal

from pydantic import Field

from rather.learners.settings import SamplingOptions
from rather.settings import Free, Section


class ZerothSettings(Section):
    """Zeroth-order optimization: perturb the policy, ask which behaves better, update; see docs/concepts/zeroth-order.md."""

    answers: Free[int] = Field(default=120, description="Answers in all, without those about held-out tasks.", ge=1)
    directions: int = Field(default=8, description="Fresh directions an update.", ge=1)
    comparisons: int = Field(default=1, description="Questions about each direction; more than 1 wastes answers.", ge=1)
    side: int = Field(default=4, description="Trajectories on each side of a question.", ge=1)
    mu: float = Field(
        default=0.3, description="How far a side is from the policy: root mean square of its numbers; text: share of the state."
    )
    lr: float = Field(default=0.3, description="Step along the mean of the directions, by their signs.", gt=0)
    mirrored: bool = Field(default=True, description="Compare theta + mu v with theta - mu v; false: with theta.")
    kind: Literal["gaussian", "sphere", "block"] = Field(default="gaussian", description='Directions; "block" is that of ZBCPG.')
    block: int = Field(default=8, description="Coordinates of a block.", ge=1)
    best_of: int = Field(default=2, description="Sides of a question, of which the best is picked; an even number if mirrored.", ge=2, le=8)
    estimator: Literal["sign", "zpg", "dpo", "reinforce"] = Field(
        default="sign",
        description="Use the sign of the answers, or invert the link; dpo and reinforce ask about two trajectories of the policy itself and"
        " follow the gradient (first order).",
    )
    link: str = Field(default="logistic", description="zpg: logistic, probit, cloglog, weibull or linear.")
    trim: float = Field(default=0.05, description="zpg: shares of votes are held this far from 0 and 1.")
    optimizer: str = Field(default="SGD", description="A class in torch.optim.")
    radius: float = Field(default=math.inf, description="Bound on the parameter norm: root mean square.")
    kl: float = Field(default=math.inf, description="Bound on the KL from the base policy, nats an action, looked at with each check.")
    check_every: int = Field(default=5, description="Updates between comparisons with the base policy on held-out tasks; 0: none.", ge=0)
    checks: int = Field(default=8, description="Questions of such a check.", ge=1)
    space: Literal["steering", "low_rank", "lora", "weights"] = Field(
        default="steering", description="text: a vector on the residual stream; linear layers by low rank; a LoRA adapter; any weights."
    )
    names: list[str] = Field(default=["*"], description="control, and text's weights: parameters that are perturbed, by name, * for any.")
    layers: list[int] = Field(
        default=[], description="text: layers; empty: the one three eighths up (contrasts: three layers near the middle; low_rank: all)."
    )
    rank: int = Field(default=1, description="low_rank: rank of a layer's direction.", ge=1)
    components: int = Field(default=0, description="steering: principal directions of a layer that are steered along; 0: all of it.", ge=0)
    contrasts: list[tuple[str, str]] = Field(
        default=[],
        description='text: pairs of instructions such as ["Answer briefly.", "Answer at length."] whose differences are steered along.',
    )


class ZerothOptions(SamplingOptions, total=False):
    """The settings of `ZerothOrder` as keyword arguments."""

    directions: int
    comparisons: int
    side: int
    mu: float
    lr: float
    mirrored: bool
    kind: Literal["gaussian", "sphere", "block"]
    block: int
    best_of: int
    estimator: Literal["sign", "zpg", "dpo", "reinforce"]
    link: str
    trim: float
    optimizer: str
    radius: float
    space: Literal["steering", "low_rank", "lora", "weights"]
    names: list[str]
    layers: list[int]
    rank: int
    components: int
    contrasts: list[tuple[str, str]]
