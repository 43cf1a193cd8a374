"""What the API answers with, as /api/openapi.json describes it; whoever writes a program for it has nothing else to go by."""

from typing import Any, Literal

from pydantic import BaseModel, Field

MEANINGS = {
    401: "No invitation that holds: the link has expired, or was taken back or replaced.",
    403: "Not allowed to whoever asks, or sent by another site than the page.",
    404: "There is no such thing, or it was never given to whoever asks.",
    409: "It does not fit what is there now; `detail` says what would do.",
    413: "The request is too long, or does not say beforehand how long it is.",
    422: "The request is not understood; nothing was done.",
    429: "Too many at once; nothing was done. Send it again after `Retry-After` seconds.",
    503: "The store cannot be used now; nothing was done. Send it again later.",
}


class Problem(BaseModel):
    """What is wrong, in a sentence, or field by field."""

    detail: str | list[dict[str, Any]]


def errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Answers with these codes."""
    found: dict[int | str, dict[str, Any]] = {code: {"model": Problem, "description": MEANINGS[code]} for code in codes}
    if 429 in found:
        found[429]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}}
    return found


def says(model: type[BaseModel], *codes: int) -> dict[int | str, dict[str, Any]]:
    """An answer of that model, or with one of these codes."""
    return {200: {"model": model}} | errors(*codes)


class Clip(BaseModel):
    """A picture sheet: frames of one size in rows of so many columns, each shown for so long."""

    url: str = Field(description="Relative to the page's address.")
    frames: int
    columns: int
    width: int
    height: int
    milliseconds: int


class ShownTrajectory(BaseModel):
    """An answer in words, as it was written (`text`) and as the page shows it (`html`), or a clip."""

    text: str = ""
    html: str = ""
    cut: bool = Field(default=False, description="It was truncated by a limit.")
    prompt: str = Field(default="", description="HTML of its own prompt, where the trajectories of a side have several.")
    clip: Clip | None = None
    reward: float | None = Field(default=None, description="The reward of a clip's trajectory; for simulated judges alone.")


class OnCriterion(BaseModel, extra="forbid"):
    """What is said on one criterion."""

    choice: Literal["left", "right", "tie"] = Field(description="The side that is more of it.")
    slight: bool = Field(default=False, description="Only a little more.")


class Shown(BaseModel):
    """A question as it was given to somebody; their answer sends `lease`, `order` and `invitation` back as they are."""

    id: int
    prompt: str = Field(description="HTML.")
    sides: list[list[ShownTrajectory]] = Field(
        description="In the order in which they are shown: the first is the left one, or at place 1."
    )
    lease: str
    order: str
    invitation: int | None
    criteria: list[str] = Field(description="What an answer says a preference on beside the whole; none of more than two sides.")


class Progress(BaseModel):
    """How far whoever asks is."""

    mine: int = Field(description="Questions that they have answered or skipped.")
    share: int = Field(description="Those that are theirs: the answered ones, and an equal part of the answers that are still wanted.")
    minutes: int | None = Field(description="About how long the rest of their share takes; null before they have given a few answers.")


class Next(BaseModel):
    """The next question; null if there is none now, and then `problem` may say why."""

    question: Shown | None
    progress: Progress
    problem: str


class Kept(BaseModel):
    """The number of the label that is on disk."""

    label: int


class Own(BaseModel):
    """One of one's own answers, in the words in which it was sent."""

    label: int
    question: int
    choice: str
    reason: str
    sides: int
    beginning: str = Field(description='How the question begins; "" for clips.')
    created: float = Field(description="When the answer was kept, in seconds since 1970.")
    better: str = Field(default="", description="How an answer begins that was written because no side was good enough.")
    slight: bool = False
    place: int | None = None
    criteria: dict[str, OnCriterion] = Field(description="What was said on criteria, by name.")


class OwnAnswers(BaseModel):
    """One's own answers that count, the latest first."""

    answers: list[Own]


class Undone(BaseModel):
    """Whether there was an answer to withdraw."""

    undone: bool
