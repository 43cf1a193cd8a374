"""The owner's side of the page's server: who may answer, how it goes, how questions are given out, and the answers as files."""

import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query
from fastapi import Path as FromPath
from fastapi.responses import FileResponse, Response
from pydantic import AfterValidator, BaseModel, Field
from starlette.background import BackgroundTask

from rather.data import transfer
from rather.errors import DataError, StoreError
from rather.store import Question, Store
from rather.store.clips import problems
from rather.store.decisions import decide
from rather.store.opened import any_answered, opened
from rather.store.overview import overview
from rather.store.people import Person, erase, everybody, invite, named, note, noted, proper, revoke
from rather.store.quality import Asking
from rather.store.rows import LETTERS
from rather.web.described import errors
from rather.web.guard import Guard
from rather.web.project import Project
from rather.web.shown import shown
from rather.web.watch import Watch

Name = Annotated[str, AfterValidator(proper)]
Number = Annotated[int, FromPath(ge=1, le=2**31 - 1)]
Flag = Literal["fast", "gold", "inconsistent", "late"]
Share = Annotated[float, Field(ge=0, le=1)]


class Invitation(BaseModel):
    """Somebody to invite."""

    name: Name
    days: float = Field(default=30, gt=0, le=3650)
    simulated: bool = Field(default=False, description="A program; its answers are kept as a simulated judge's.")
    renew: bool = Field(default=False, description="End the link that the person has, if they have one.")
    every_run: bool = Field(default=False, description="Let them in to every run of the store, not only to this one.")


class Change(BaseModel):
    """How questions are given out from now on; what is left out stays."""

    overlap: int | None = Field(default=None, ge=1, le=1000, description="People who answer each question.")
    gold: Share | None = Field(default=None, description="Share of gold questions.")
    repeats: Share | None = Field(default=None, description="Share of a person's own earlier questions, asked again.")
    random: Share | None = Field(default=None, description="Share drawn at random instead of by priority.")
    fastest_s: float | None = Field(default=None, ge=0, le=3600, description="Answers within so many seconds are suspicious.")
    leave_out: list[Flag] | None = Field(default=None, max_length=4, description="Answers with these flags are not learned from.")


class Decision(BaseModel):
    """What an owner decides about a question, whatever people say: it alone is learned from."""

    choice: Literal["a", "b", "c", "d", "e", "f", "g", "h", "tie", "good", "bad"] = Field(
        description="The side that is better, or of several the best; of one side alone whether it is good."
    )
    reason: str = Field(default="", max_length=500, pattern=r"^[^\x00]*$")


def router(store: Store, project: Project, guard: Guard) -> APIRouter:
    """What only owners may do; all of it is written down."""
    run = project.run
    found = APIRouter(prefix="/api", responses=errors(403))
    owner = Depends(guard.owner)
    watch = Watch(store, run)

    @found.get("/overview")
    def show_overview(_: Person = owner) -> dict[str, Any]:
        """Progress, agreement, everybody's figures, contested questions and flagged answers.

        Progress is of this moment, the others of `as_of`; they are null until they have been counted once.
        """
        return overview(store, run, watch.figures()) | {"problems": problems(store, run)}

    @found.get("/owner/questions/random", responses=errors(404))
    def open_any(who: Person = owner) -> dict[str, Any]:
        """A question that somebody has answered, drawn at random, as below."""
        number = any_answered(store, run)
        if number is None:
            raise HTTPException(404, "no question has been answered yet")
        return open_question(number, who)

    @found.get("/owner/questions/{number}", responses=errors(404))
    def open_question(number: Number, who: Person = owner) -> dict[str, Any]:
        """A question of the run as people see it, but with its sides in the order a, b, ...; and all that was ever said about it."""
        question = one(number)
        order = LETTERS[: len(question.comparison.sides)]
        return {"question": shown(store, question, order, who) | {"order": order}} | opened(store, question)

    @found.put("/owner/questions/{number}/decision", responses=errors(404, 429))
    def decide_question(number: Number, given: Decision, who: Person = owner) -> dict[str, int]:
        """Decide a question in place of what people say about it; returns the label's number."""
        preference, best = _meaning(given.choice, len(one(number).comparison.sides), number)
        label = decide(store, run, who.name, number, preference, best, given.reason, who.invitation)
        note(store, who.name, f"decided question {number}: {given.choice}")
        return {"label": label}

    @found.delete("/owner/questions/{number}/decision", responses=errors(404, 429))
    def withdraw_decision(number: Number, who: Person = owner) -> dict[str, int]:
        """Take back what was decided: people's answers count again. Returns the label's number."""
        if not any(x["kind"] == "decision" and x["counts"] for x in opened(store, one(number))["answers"]):
            raise HTTPException(404, f"nothing is decided about question {number}")
        label = decide(store, run, who.name, number, None, invitation=who.invitation)
        note(store, who.name, f"took the decision about question {number} back")
        return {"label": label}

    @found.get("/owner/curves")
    def show_curves(_: Person = owner) -> dict[str, Any]:
        """What the run's learner has measured so far, a few hundred points each; alarms; what is wrong with its file."""
        return project.curves()

    @found.put("/asking", responses=errors(429))
    def change(given: Change, who: Person = owner) -> dict[str, Any]:
        """Change how questions are given out."""
        new = {k: v for k, v in given.model_dump().items() if v is not None}
        store.set_asking(run, Asking(**(vars(store.asking(run)) | new)))
        note(store, who.name, f"set {', '.join(f'{k} to {v}' for k, v in new.items()) or 'nothing'}")
        return vars(store.asking(run))

    @found.post("/people", responses=errors(409, 429))
    def invite_person(given: Invitation, who: Person = owner) -> dict[str, str]:
        """Invite somebody; returns their link, relative to the page's address, which is shown this once.

        Whoever has a link already is invited again only with `renew`: the old link and its sessions end.
        """
        if not given.renew and any(p.name == given.name for p in everybody(store, run)):
            raise HTTPException(409, f"{given.name} has a link that holds; with a new one the old one ends (renew)")
        days = f"{given.days:g} days"
        try:
            token = invite(store, given.name, "annotator", given.days, given.simulated, None if given.every_run else run)
        except StoreError as e:
            raise HTTPException(409, str(e)) from None
        judge = next(p.judge for p in everybody(store, run) if p.name == given.name)
        note(store, who.name, f"invited for {days}" + (", to every run" if given.every_run else ""), judge)
        return {"link": f"join#{token}"}

    @found.delete("/people/{judge}", responses=errors(404, 409, 429))
    def revoke_person(judge: Number, who: Person = owner) -> dict[str, bool]:
        """Take the invitation of the judge of that number back; answers stay."""
        name = other_than(who, judge)
        revoked = revoke(store, name, run)
        note(store, who.name, "revoked", judge)
        return {"revoked": revoked}

    @found.delete("/people/{judge}/answers", responses=errors(404, 409, 429))
    def erase_person(judge: Number, who: Person = owner) -> dict[str, int]:
        """Erase a person: their answers in this run, their invitation, and with the last of their answers their name."""
        gone = erase(store, other_than(who, judge), run)
        note(store, who.name, f"erased one person with {gone} rows")
        return {"rows": gone}

    @found.get("/export", response_class=FileResponse)
    def export(
        form: Literal["all", "comparisons", "trl", "unpaired"] = "all",
        file: Literal["jsonl", "csv", "parquet"] = "jsonl",
        criterion: Annotated[str, Query(max_length=40, description="Preferences on this one; empty: on the whole.")] = "",
        who: Person = owner,
    ) -> Response:
        """The answers as a file: every answer with provenance, comparisons, or TRL's pairs (trl) and single answers (unpaired)."""
        folder = tempfile.TemporaryDirectory()
        path = Path(folder.name) / f"{run}-{form}.{file}"
        try:
            transfer.export(store, run, path, form, criterion=criterion)
        except DataError as e:
            folder.cleanup()
            raise HTTPException(422, str(e)) from None
        note(store, who.name, f"exported {form} as {file}{f', on {criterion}' if criterion else ''}")
        return FileResponse(path, filename=path.name, background=BackgroundTask(folder.cleanup))

    @found.get("/audit")
    def audit(_: Person = owner) -> list[dict[str, Any]]:
        """What owners did, the latest first."""
        return noted(store)

    def one(number: int) -> Question:
        question = store.question(number, run)
        if question is None:
            raise HTTPException(404, f"this run has no question {number}")
        return question

    def other_than(who: Person, judge: int) -> str:
        """The name of a judge; refuses what an owner would do to themselves."""
        name = named(store, judge)
        if name is None:
            raise HTTPException(404, f"there is nobody with the number {judge}")
        if judge == who.judge:
            raise HTTPException(409, "that would lock you out yourself")
        return name

    return found


def _meaning(choice: str, sides: int, number: int) -> tuple[float, int | None]:
    """The preference for a, or P(good) of one side alone, and of more than two sides the number of the best.

    Raises:
        HTTPException: 422 that decides nothing about so many sides.
    """
    if choice == "tie":
        return 0.5, None
    if (choice in ("good", "bad")) != (sides == 1) or (sides > 1 and choice not in LETTERS[:sides]):
        raise HTTPException(422, f"question {number} has {sides} side{'s' * (sides > 1)}; {choice!r} decides nothing about it")
    return float(choice in ("a", "good")), LETTERS.index(choice) if sides > 2 else None
