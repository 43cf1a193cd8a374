"""The owner's side of the page's server: who may answer, how it goes, how questions are given out, and the answers as files."""

import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException
from fastapi import Path as FromPath
from fastapi.responses import FileResponse, Response
from pydantic import AfterValidator, BaseModel, Field
from starlette.background import BackgroundTask

from rather.data import transfer
from rather.errors import StoreError
from rather.store import Store
from rather.store.clips import problems
from rather.store.overview import overview
from rather.store.people import Person, erase, everybody, invite, named, note, noted, proper, revoke
from rather.store.quality import Asking
from rather.web.guard import Guard
from rather.web.project import Project
from rather.web.watch import Watch

Name = Annotated[str, AfterValidator(proper)]
Judge = Annotated[int, FromPath(ge=1, le=2**31 - 1)]
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
    leave_out: list[Flag] | None = Field(default=None, max_length=4, description="Answers with these flags are not learnt from.")


def router(store: Store, project: Project, guard: Guard) -> APIRouter:
    """What only owners may do; all of it is written down."""
    run = project.run
    found = APIRouter(prefix="/api")
    owner = Depends(guard.owner)
    watch = Watch(store, run)

    @found.get("/overview")
    def show_overview(_: Person = owner) -> dict[str, Any]:
        """Progress, agreement, everybody's figures, contested questions and flagged answers.

        Progress is of this moment, the others of `as_of`; they are null until they have been counted once.
        """
        return overview(store, run, watch.figures()) | {"problems": problems(store, run)}

    @found.put("/asking")
    def change(given: Change, who: Person = owner) -> dict[str, Any]:
        """Change how questions are given out."""
        new = {k: v for k, v in given.model_dump().items() if v is not None}
        store.set_asking(run, Asking(**(vars(store.asking(run)) | new)))
        note(store, who.name, f"set {', '.join(f'{k} to {v}' for k, v in new.items()) or 'nothing'}")
        return vars(store.asking(run))

    @found.post("/people")
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

    @found.delete("/people/{judge}")
    def revoke_person(judge: Judge, who: Person = owner) -> dict[str, bool]:
        """Take the invitation of the judge of that number back; answers stay."""
        name = other_than(who, judge)
        revoked = revoke(store, name, run)
        note(store, who.name, "revoked", judge)
        return {"revoked": revoked}

    @found.delete("/people/{judge}/answers")
    def erase_person(judge: Judge, who: Person = owner) -> dict[str, int]:
        """Erase a person: their answers in this run, their invitation, and with the last of their answers their name."""
        gone = erase(store, other_than(who, judge), run)
        watch.forget()
        note(store, who.name, f"erased one person with {gone} rows")
        return {"rows": gone}

    @found.get("/export")
    def export(
        form: Literal["all", "comparisons", "trl", "unpaired"] = "all",
        file: Literal["jsonl", "csv", "parquet"] = "jsonl",
        who: Person = owner,
    ) -> Response:
        """The answers as a file: every answer with provenance, comparisons, or TRL's pairs (trl) and single answers (unpaired)."""
        folder = tempfile.TemporaryDirectory()
        path = Path(folder.name) / f"{run}-{form}.{file}"
        transfer.export(store, run, path, form)
        note(store, who.name, f"exported {form} as {file}")
        return FileResponse(path, filename=path.name, background=BackgroundTask(folder.cleanup))

    @found.get("/audit")
    def audit(_: Person = owner) -> list[dict[str, Any]]:
        """What owners did, the latest first."""
        return noted(store)

    def other_than(who: Person, judge: int) -> str:
        """The name of a judge; refuses what an owner would do to themselves."""
        name = named(store, judge)
        if name is None:
            raise HTTPException(404, f"there is nobody with the number {judge}")
        if judge == who.judge:
            raise HTTPException(409, "that would lock you out yourself")
        return name

    return found
