"""The labelling page's server: a FastAPI app over the store. What it answers with is described at /api/openapi.json."""

import hashlib
from typing import Annotated, Any, Literal

import jinja2
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from starlette.middleware.sessions import SessionMiddleware

from rather.core import Label, Prompt, Trajectory
from rather.errors import StoreError
from rather.store import Question, Store
from rather.store.people import Person, everybody, invite, person, revoke
from rather.web.guard import Frame, Guard
from rather.web.words import html

LEASE_S = 600.0
Name = Annotated[str, Field(pattern=r"^[\w .@-]{1,80}$")]
Choice = Literal["left", "right", "tie", "both_bad", "skip"]
PREFERENCE = {"left": 1.0, "right": 0.0, "tie": 0.5, "both_bad": 0.5, "skip": None}


class Answer(BaseModel):
    """One answer of one person. The same `key` sent again counts once."""

    question: int = Field(ge=1, lt=2**63)
    choice: Choice
    key: str = Field(min_length=8, max_length=80, description="Made by the sender, different for every answer.")
    slight: bool = Field(default=False, description="The preferred side is only a little better.")
    reason: str = Field(default="", max_length=500, pattern=r"^[^\x00]*$")
    seconds: float | None = Field(default=None, ge=0, le=86_400, description="Time it took.")


class Undo(BaseModel):
    """Withdraws the answer to a question; sent again it changes nothing."""

    question: int = Field(ge=1, lt=2**63)


class Invitation(BaseModel):
    """Somebody to invite."""

    name: Name
    days: float = Field(default=30, gt=0, le=3650)


def create(store: Store, run: str, instruction: str, key: str, purpose: str = "train", overlap: int = 1, secure: bool = False) -> FastAPI:
    """The app for one run's questions of one `purpose`, each answered by `overlap` people; `key` signs sessions."""
    app = FastAPI(title="rather", docs_url=None, redoc_url=None, openapi_url="/api/openapi.json")
    app.add_middleware(SessionMiddleware, secret_key=key, same_site="lax", https_only=secure, max_age=30 * 86_400)
    app.add_middleware(Frame)
    app.mount("/static", StaticFiles(packages=[("rather.web", "static")]))
    guard = Guard(store)
    somebody, owner = Depends(guard), Depends(guard.owner)
    pages = jinja2.Environment(loader=jinja2.PackageLoader("rather.web"), autoescape=True, undefined=jinja2.StrictUndefined)

    def page(template: str, status: int = 200, **values: Any) -> HTMLResponse:
        return HTMLResponse(pages.get_template(template).render(**values), status)

    @app.exception_handler(StoreError)
    def store_fails(_: Request, error: StoreError) -> Response:
        return JSONResponse({"detail": str(error)}, 503)

    @app.get("/join/{token}", include_in_schema=False)
    def join(request: Request, token: str) -> Response:
        found = guard.enter(request, token)
        if found is None:
            return page("closed.html", 401)
        return RedirectResponse("/owner" if found.role == "owner" else "/", 303)

    @app.get("/", include_in_schema=False)
    def label_page(request: Request) -> Response:
        found = person(store, request.session.get("name", ""))
        if found is None:
            return page("closed.html", 401)
        return page("label.html", name=found.name, token=request.session["token"], instruction=instruction, run=run)

    @app.get("/owner", include_in_schema=False)
    def owner_page(request: Request) -> Response:
        found = person(store, request.session.get("name", ""))
        if found is None or found.role != "owner":
            return page("closed.html", 401)
        return page("owner.html", name=found.name, token=request.session["token"], run=run)

    @app.get("/api/next")
    def next_question(
        held: Annotated[list[int] | None, Query(description="Questions that the sender has at hand.", max_length=1000)] = None,
        who: Person = somebody,
    ) -> dict[str, Any]:
        """The next question for whoever asks, leased for ten minutes; `question` is null when there is none left."""
        found = store.lease(run, who.name, purpose, overlap, LEASE_S, [n for n in held or () if 0 < n < 2**63])
        return {"question": None if found is None else _shown(found, who.name), "progress": _progress(store, run, purpose, who.name)}

    @app.post("/api/answers")
    def answer(given: Answer, who: Person = somebody) -> dict[str, int]:
        """Keep an answer; when this returns it is on disk. Returns the label's number, the same one for the same key."""
        left = _left(given.question, who.name)
        preference = PREFERENCE[given.choice]
        if preference in (0.0, 1.0) and given.slight:
            preference = 0.25 + 0.5 * preference
        if preference is not None and left == "b":
            preference = 1 - preference
        reason = given.reason or {"both_bad": "both bad", "skip": "skipped"}.get(given.choice, "")
        if not store.has(given.question, run, purpose):
            raise HTTPException(404, f"question {given.question} is not one of those that are asked here")
        label = Label(given.question, who.name, preference, reason, given.seconds, left)
        return {"label": store.answer(label, hashlib.sha256(f"{who.name}\0{given.key}".encode()).hexdigest())}

    @app.post("/api/undo")
    def undo(given: Undo, who: Person = somebody) -> dict[str, bool]:
        """Withdraw an answer: the question is open again. `undone` is false if there is none."""
        return {"undone": store.undo(run, who.name, given.question) is not None}

    @app.get("/api/people", dependencies=[owner])
    def people() -> dict[str, Any]:
        """Who is invited, and how many answers each has given."""
        labels = store.labels(run, purpose)
        shown = [{"name": p.name, "role": p.role, "answers": sum(x.judge == p.name for x in labels)} for p in everybody(store)]
        return {"people": shown, "questions": len(store.keys(run, purpose)), "answers": len(labels), "overlap": overlap}

    @app.post("/api/people", dependencies=[owner])
    def invite_person(given: Invitation) -> dict[str, str]:
        """Invite somebody; returns the path of their link, which is shown this once. Invited again, the old link ends."""
        return {"link": f"/join/{invite(store, given.name, 'annotator', given.days)}"}

    @app.delete("/api/people/{name}")
    def revoke_person(name: Name, who: Person = owner) -> dict[str, bool]:
        """Take an invitation back; answers stay."""
        if name == who.name:
            raise HTTPException(409, "that would lock you out yourself")
        known = person(store, name) is not None
        revoke(store, name)
        return {"revoked": known}

    return app


def _left(question: int, judge: str) -> str:
    """Which side this person sees on the left: half of the questions each, the same at every look."""
    return "ab"[hashlib.sha256(f"{question}\0{judge}".encode()).digest()[0] % 2]


def _shown(question: Question, judge: str) -> dict[str, Any]:
    left = _left(question.id, judge)
    comparison = question.comparison if left == "a" else question.comparison.swapped()
    return {
        "id": question.id, "prompt": _prompt(comparison.a[0].task.prompt),
        "left": [_side(t) for t in comparison.a], "right": [_side(t) for t in comparison.b],
    }  # fmt: skip


def _prompt(prompt: Prompt | None) -> str:
    if prompt is None or isinstance(prompt, str):
        return html(prompt or "")
    return html("\n\n".join(f"**{m['role']}:** {m['content']}" if len(prompt) > 1 else m["content"] for m in prompt))


def _side(t: Trajectory) -> dict[str, Any]:
    return {"html": html(t.text or ""), "text": t.text or "", "cut": not t.terminated}


def _progress(store: Store, run: str, purpose: str, judge: str) -> dict[str, int]:
    mine, questions = store.count(run, purpose, judge)
    return {"mine": mine, "questions": questions}
