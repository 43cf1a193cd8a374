"""What a labelling page is about."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rather.hacking.curves import Curves


@dataclass(frozen=True)
class Project:
    """A run's questions and how they are asked.

    `instruction` is the sentence that people go by, `guidelines` the owner's longer rules in Markdown, and `criteria` what each answer says
    a preference on beside the whole. `curves` gives what the run's learner has measured so far, as plots; `head` says whether a reward
    head is what learns from the answers.
    """

    run: str
    instruction: str
    guidelines: str = ""
    criteria: tuple[str, ...] = ()
    curves: Callable[[], dict[str, Any]] = Curves(None).read
    head: bool = False
