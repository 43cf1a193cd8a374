"""What a labelling page is about."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Project:
    """A run's questions and how they are asked.

    `instruction` is the sentence that people go by, `guidelines` the owner's longer rules in Markdown, and `criteria` what each answer says
    a preference on beside the whole. `metrics` is the file in which the run writes down what its learner measures.
    """

    run: str
    instruction: str
    guidelines: str = ""
    criteria: tuple[str, ...] = ()
    metrics: Path | None = None
