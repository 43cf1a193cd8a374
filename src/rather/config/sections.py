"""What a section of settings is, and how a setting says what it matters to."""

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A TOML section; a key that is not listed is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MattersTo:
    """Declares that a setting or a section matters to some uses alone: to learners by name, to "sample" and to "eval".

    What is not declared matters to all of them: neither training nor sampling goes on from what was made with another value, and an
    evaluation with another value is another evaluation. `settings.mattering` reads it.
    """

    def __init__(self, *uses: str) -> None:
        self.uses = frozenset(uses)


T = TypeVar("T")
LEARNERS = ("sft", "reward", "dpo", "ppo", "grpo", "zeroth")
ForLearners = Annotated[T, MattersTo(*LEARNERS)]
ForLearnersAndSampling = Annotated[T, MattersTo(*LEARNERS, "sample")]
ForActing = Annotated[T, MattersTo("ppo", "grpo", "zeroth")]
"""Learners whose policy meets the prompts itself; the others learn from labels, wherever these come from."""
ForEval = Annotated[T, MattersTo("eval")]
Free = Annotated[T, MattersTo()]
"""Changes neither what is learned nor what is evaluated, or may grow when a run goes on."""
