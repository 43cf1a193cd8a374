"""The labelling page's server: a FastAPI app over the store. What it answers with is described at /api/openapi.json."""

import hashlib
from typing import Annotated, Any, Literal

import jinja2
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi import Path as FromPath
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from starlette.middleware.sessions import SessionMiddleware

from rather.core import Label, Prompt, Trajectory
from rather.errors import StoreError
from rather.store import Question, Store, asking
from rather.store.clips import facts, picture, problems
from rather.store.people import Person, person
from rather.store.rows import LETTERS
from rather.web.guard import Guard
from rather.web.owner import router
from rather.web.words import html

LAST = 2**31 - 1
"""The highest number a row can have: what PostgreSQL calls an integer."""
Number = Annotated[int, Field(ge=1, le=LAST)]
Choice = Literal["left", "right", "place", "tie", "both_bad", "skip"]
PREFERENCE = {"left": 1.0, "right": 0.0, "tie": 0.5, "both_bad": 0.5, "skip": None}


class Answer(BaseModel):
    """One answer of one person. The same `key` sent again counts once."""

    question: Number
    choice: Choice = Field(description="Of more than two sides, the one at `place`.")
    place: int = Field(default=1, ge=1, le=len(LETTERS), description="From 1, in the order in which the sides were shown.")
    key: str = Field(min_length=8, max_length=80, description="Made by the sender, different for every answer.")
    slight: bool = Field(default=False, description="The preferred side is only a little better.")
    reason: str = Field(default="", max_length=500, pattern=r"^[^\x00]*$")
    seconds: float | None = Field(default=None, ge=0, le=86_400, description="Time it took.")


class Undo(BaseModel):
    """Withdraws the answer to a question; sent again it changes nothing."""

    question: Number


def create(store: Store, run: str, instruction: str, key: str, secure: bool = False) -> FastAPI:
    """The app for one run's questions; `key` signs sessions."""
    app = FastAPI(title="rather", docs_url=None, redoc_url=None, openapi_url="/api/openapi.json")
    app.add_middleware(SessionMiddleware, secret_key=key, same_site="lax", https_only=secure, max_age=30 * 86_400)
    app.mount("/static", StaticFiles(packages=[("rather.web", "static")]))
    guard = Guard(store)
    somebody = Depends(guard)
    pages = jinja2.Environment(loader=jinja2.PackageLoader("rather.web"), autoescape=True, undefined=jinja2.StrictUndefined)

    def page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        return HTMLResponse(pages.get_template(template).render(base=f"{request.scope['root_path']}/", **values), status)

    @app.exception_handler(StoreError)
    def store_fails(_: Request, error: StoreError) -> Response:
        return JSONResponse({"detail": str(error)}, 503)

    @app.get("/join/{token}", include_in_schema=False)
    def join(request: Request, token: str) -> Response:
        found = guard.enter(request, token)
        if found is None:
            return page(request, "closed.html", 401)
        return RedirectResponse(f"{request.scope['root_path']}/{'owner' if found.role == 'owner' else ''}", 303)

    @app.get("/", include_in_schema=False)
    def label_page(request: Request) -> Response:
        found = person(store, request.session.get("name", ""))
        if found is None:
            return page(request, "closed.html", 401)
        return page(request, "label.html", name=found.name, token=request.session["token"], instruction=instruction, run=run)

    @app.get("/owner", include_in_schema=False)
    def owner_page(request: Request) -> Response:
        found = person(store, request.session.get("name", ""))
        if found is None or found.role != "owner":
            return page(request, "closed.html", 401)
        return page(request, "owner.html", name=found.name, token=request.session["token"], run=run)

    @app.get("/api/next")
    def next_question(
        held: Annotated[list[int] | None, Query(description="Questions that the sender has at hand.", max_length=1000)] = None,
        who: Person = somebody,
    ) -> dict[str, Any]:
        """The next question for whoever asks, leased for ten minutes; `question` is null when there is none left.

        `problem` says why clips could not be drawn, where that may be why there is no question.
        """
        counts = store.count(run, who.name)
        found = asking.next_question(store, run, who.name, counts.turns, [n for n in held or () if 0 < n <= LAST])
        progress = {"mine": counts.answered, "questions": counts.questions}
        problem = next(iter(problems(store, run)), "") if found is None else ""
        return {"question": found and _shown(store, found, who), "progress": progress, "problem": problem}

    @app.get("/api/clips/{trajectory}", response_class=Response)
    def clip(trajectory: Annotated[int, FromPath(ge=1, le=LAST)], _: Person = somebody) -> Response:
        """The picture sheet of a clip, WebP."""
        webp = picture(store, trajectory, run)
        if webp is None:
            raise HTTPException(404, f"there is no clip {trajectory}")
        return Response(webp, media_type="image/webp", headers={"Cache-Control": "private, max-age=86400, immutable"})

    @app.post("/api/answers")
    def answer(given: Answer, who: Person = somebody) -> dict[str, int]:
        """Keep an answer; when this returns it is on disk. Returns the label's number, the same one for the same key."""
        asked = store.question(given.question, run, who.name)
        if asked is None:
            raise HTTPException(404, f"question {given.question} is not one of those that are asked here")
        left, count, best = _left(asked, who.name), len(asked.comparison.sides), None
        meant = given.place <= count > 2 if given.choice == "place" else count == 2 or given.choice not in ("left", "right")
        if not meant:
            raise HTTPException(422, f"question {given.question} has {count} sides; {given.choice!r} does not answer it")
        if given.choice == "place":
            best = given.place - 1 if left == "a" else count - given.place
            preference = float(best == 0)
        else:
            preference = PREFERENCE[given.choice]
            if preference in (0.0, 1.0) and given.slight:
                preference = 0.25 + 0.5 * preference
            if preference is not None and left == "b":
                preference = 1 - preference
        reason = given.reason or {"both_bad": "both bad", "skip": "skipped"}.get(given.choice, "")
        label = Label(given.question, who.name, preference, reason, given.seconds, left, best=best)
        return {"label": store.answer(label, hashlib.sha256(f"{who.name}\0{given.key}".encode()).hexdigest())}

    @app.post("/api/undo")
    def undo(given: Undo, who: Person = somebody) -> dict[str, bool]:
        """Withdraw an answer: the question is open again. `undone` is false if there is none."""
        return {"undone": store.undo(run, who.name, given.question) is not None}

    app.include_router(router(store, run, guard))
    return app


def _left(question: Question, judge: str) -> str:
    """Which side this person sees on the left: half of the questions each, the same at every look; a repeat shows the other one."""
    number = hashlib.sha256(f"{question.original or question.id}\0{judge}".encode()).digest()[0]
    return "ab"[(number + (question.original is not None)) % 2]


def _shown(store: Store, question: Question, who: Person) -> dict[str, Any]:
    filmed = question.comparison.a[0].text is None
    asked = [_prompt(t.task.prompt) for t in question.comparison.a]
    alone = len(set(asked)) == 1  # else every attempt stands under its own prompt
    clips = facts(store, [number for numbers in question.trajectories for number in numbers]) if filmed else {}
    sides = [
        [
            _attempt(t, number, clips.get(number), who.simulated) | ({} if alone or filmed else {"prompt": _prompt(t.task.prompt)})
            for t, number in zip(attempts, numbers, strict=True)
        ]
        for attempts, numbers in zip(question.comparison.sides, question.trajectories, strict=True)
    ]
    shown = sides if _left(question, who.name) == "a" else sides[::-1]
    return {"id": question.id, "prompt": asked[0] if alone else "", "sides": shown}


def _attempt(t: Trajectory, number: int, clip: dict[str, int] | None, simulated: bool) -> dict[str, Any]:
    """One attempt as the page shows it; a simulated judge, who cannot look at clips, is told what the attempt was paid."""
    if clip is None:
        return {"html": html(t.text or ""), "text": t.text or "", "cut": not t.terminated}
    paid = {"reward": float(t.rewards.sum())} if simulated and t.rewards is not None else {}
    return {"clip": {"url": f"api/clips/{number}", **clip}} | paid


def _prompt(prompt: Prompt | None) -> str:
    if prompt is None or isinstance(prompt, str):
        return html(prompt or "")
    return html("\n\n".join(f"**{m['role']}:** {m['content']}" if len(prompt) > 1 else m["content"] for m in prompt))
