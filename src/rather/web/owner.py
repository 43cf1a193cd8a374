"""The owner's side of the page's server: who may answer, how it goes, how questions are given out, and the answers as files."""

import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, Field
from starlette.background import BackgroundTask

from rather.data import transfer
from rather.errors import StoreError
from rather.store import Store
from rather.store.clips import problems
from rather.store.overview import overview
from rather.store.people import Person, erase, invite, note, noted, person, revoke
from rather.store.quality import Asking
from rather.web.guard import Guard
from rather.web.watch import Watch

Name = Annotated[str, Field(pattern=r"^[\w .@-]{1,80}$")]
Share = Annotated[float, Field(ge=0, le=1)]


class Invitation(BaseModel):
    """Somebody to invite."""

    name: Name
    days: float = Field(default=30, gt=0, le=3650)
    simulated: bool = Field(default=False, description="A program; its answers are kept as a simulated judge's.")


class Change(BaseModel):
    """How questions are given out from now on; what is left out stays."""

    overlap: int | None = Field(default=None, ge=1, le=1000, description="People who answer each question.")
    gold: Share | None = Field(default=None, description="Share of gold questions.")
    repeats: Share | None = Field(default=None, description="Share of a person's own earlier questions, asked again.")
    random: Share | None = Field(default=None, description="Share drawn at random instead of by priority.")
    fastest_s: float | None = Field(default=None, ge=0, le=3600, description="Answers within so many seconds are suspicious.")
    flagged: bool | None = Field(default=None, description="Learn from suspicious answers too.")


def router(store: Store, run: str, guard: Guard) -> APIRouter:
    """What only owners may do; all of it is written down."""
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
        """Invite somebody; returns the path of their link, which is shown this once. Invited again, the old link ends."""
        try:
            link = f"/join/{invite(store, given.name, 'annotator', given.days, given.simulated)}"
        except StoreError as e:
            raise HTTPException(409, str(e)) from None
        note(store, who.name, f"invited {given.name} for {given.days:g} days")
        return {"link": link}

    @found.delete("/people/{name}")
    def revoke_person(name: Name, who: Person = owner) -> dict[str, bool]:
        """Take an invitation back; answers stay."""
        other_than(who, name)
        known = person(store, name) is not None
        revoke(store, name)
        note(store, who.name, f"revoked {name}")
        return {"revoked": known}

    @found.delete("/people/{name}/answers")
    def erase_person(name: Name, who: Person = owner) -> dict[str, int]:
        """Erase a person: their answers, their name, their invitation. Nothing brings them back."""
        other_than(who, name)
        gone = erase(store, name)
        note(store, who.name, f"erased one person with {gone} rows")
        return {"rows": gone}

    @found.get("/export")
    def export(
        form: Literal["all", "comparisons", "trl"] = "all", file: Literal["jsonl", "csv", "parquet"] = "jsonl", who: Person = owner
    ) -> Response:
        """The answers as a file: every answer with provenance, comparisons, or TRL's prompt, chosen, rejected."""
        folder = tempfile.TemporaryDirectory()
        path = Path(folder.name) / f"{run}-{form}.{file}"
        transfer.export(store, run, path, form)
        note(store, who.name, f"exported {form} as {file}")
        return FileResponse(path, filename=path.name, background=BackgroundTask(folder.cleanup))

    @found.get("/audit")
    def audit(_: Person = owner) -> list[dict[str, Any]]:
        """What owners did, the latest first."""
        return noted(store)

    return found


def other_than(who: Person, name: str) -> None:
    """Refuse what an owner would do to themselves."""
    if name == who.name:
        raise HTTPException(409, "that would lock you out yourself")
