"""The labelling page's server: a FastAPI app over the store. What it answers with is described at /api/openapi.json."""

import hashlib
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import quote

import jinja2
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi import Path as FromPath
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from starlette.middleware.sessions import SessionMiddleware

from rather.core import Label
from rather.errors import DataError, InvitationError, StoreError
from rather.store import Question, Store, asking, own
from rather.store.better import LONGEST, write
from rather.store.clips import picture, problems
from rather.store.engine import now
from rather.store.own import Said
from rather.store.people import Person
from rather.store.rows import LETTERS
from rather.store.share import share
from rather.web.described import Kept, Next, OnCriterion, OwnAnswers, Shown, Undone, errors, says
from rather.web.guard import Guard
from rather.web.owner import router
from rather.web.project import Project
from rather.web.shown import shown
from rather.web.words import html, is_empty, visible

LAST = 2**31 - 1
"""The highest number a row can have: what PostgreSQL calls an integer."""
Number = Annotated[int, Field(ge=1, le=LAST)]
Choice = Literal["left", "right", "place", "tie", "both_bad", "good", "bad", "skip"]
NUL = "\0"
CLOCK_S = 5.0
"""How much longer an answer may say that it took than lies between giving out and getting back: clocks of two servers differ."""
BOTH_BAD = "both bad"
"""What the reason of such an answer begins with: its preference is that of a tie."""
PREFERENCE = {"left": 1.0, "right": 0.0, "tie": 0.5, "both_bad": 0.5, "good": 1.0, "bad": 0.0, "skip": None}
ALONE = ("good", "bad", "skip")
"""What can be said of one side alone; "good" and "bad" of nothing else."""


class Answer(BaseModel):
    """One answer of one person, to what was on their screen. The same `key` sent again counts once.

    `lease`, `order` and `invitation` are sent back as they came with the question.
    """

    question: Number = Field(description="Its `id`.")
    lease: str = Field(max_length=40, description="The token of what was given out.")
    order: str = Field(pattern="^[a-h]{1,8}$", description="The sides in the order in which they were shown.")
    invitation: Number | None = Field(description="The invitation under which the question was given; null if at a terminal.")
    choice: Choice = Field(description="Of more than two sides, the one at `place`; one side alone is good or bad.")
    place: int = Field(default=1, ge=1, le=len(LETTERS), description="From 1, in the order in which the sides were shown.")
    key: str = Field(min_length=8, max_length=80, description="Made by the sender, different for every answer.")
    slight: bool = Field(default=False, description="The preferred side is only a little better.")
    criteria: dict[str, OnCriterion] = Field(
        default={},
        description="What is said on the criteria that came with the question, by name; none with a skip, and any may be left out.",
    )
    reason: str = Field(default="", max_length=500, pattern=r"^[^\x00]*$")
    better: str | None = Field(
        default=None,
        max_length=LONGEST,
        pattern=r"^[^\x00]*$",
        description="With both_bad, an answer in words that is better than all sides.",
    )
    seconds: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="Time from showing to answering; a person's answer without it is flagged fast."
    )


class Undo(BaseModel):
    """Withdraws the answer to a question, or only the one that was sent with that `key`; sent again it changes nothing."""

    question: Number
    key: str | None = Field(default=None, min_length=8, max_length=80)


class Secret(BaseModel):
    """What stands behind the # of an invite link."""

    secret: str = Field(max_length=80)


def create(store: Store, project: Project, key: str, secure: bool = False) -> FastAPI:
    """The app for one run's questions; `key` signs sessions."""
    run = project.run
    everywhere = errors(401, 413, 422, 503)
    app = FastAPI(title="rather", docs_url=None, redoc_url=None, openapi_url="/api/openapi.json", responses=everywhere)
    # Browsers send cookies to every port of a host: two runs there must not share the name of theirs.
    cookie = f"rather-{hashlib.sha256(f'{run}{NUL}{key}'.encode()).hexdigest()[:12]}"
    app.add_middleware(SessionMiddleware, secret_key=key, session_cookie=cookie, same_site="lax", https_only=secure, max_age=30 * 86_400)
    app.mount("/static", StaticFiles(packages=[("rather.web", "static")]))
    guidelines = html(project.guidelines) if project.guidelines else ""  # safe HTML
    known = {*project.criteria, *store.criteria(run)}  # an answer that comes late may be on one that is not asked for any more
    version = hashlib.sha256(project.guidelines.encode()).hexdigest()[:16]
    guard = Guard(store, run)
    somebody = Depends(guard)
    pages = jinja2.Environment(loader=jinja2.PackageLoader("rather.web"), autoescape=True, undefined=jinja2.StrictUndefined)

    def page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        base = f"{request.scope['root_path']}/"
        return HTMLResponse(pages.get_template(template).render(base=base, **values), status)

    def for_person(request: Request, template: str, found: Person | None, **values: Any) -> HTMLResponse:
        if found is None:
            return page(request, "closed.html", 401)
        return page(
            request,
            template,
            name=found.name,
            invitation=found.invitation,
            person=f"{cookie}-{found.judge}",
            token=request.session["token"],
            run=run,
            **values,
        )

    @app.exception_handler(InvitationError)
    def invitation_has_ended(_: Request, error: InvitationError) -> Response:
        return JSONResponse({"detail": f"{error}; ask for a new link"}, 401)

    @app.exception_handler(StoreError)
    def store_fails(_: Request, error: StoreError) -> Response:
        return JSONResponse({"detail": str(error)}, 503)

    @app.get("/join", include_in_schema=False)
    def join_page(request: Request) -> Response:
        return page(request, "join.html")

    @app.get("/join/{token}", include_in_schema=False)
    def join_by_an_old_link(request: Request, token: str) -> Response:
        return RedirectResponse(f"{request.scope['root_path']}/join#{quote(token)}", 303)

    @app.post("/api/join", include_in_schema=False)
    def join(request: Request, given: Secret) -> dict[str, str]:
        found = guard.enter(request, given.secret)
        if found is None:
            raise HTTPException(401, "this link has expired or been taken back; ask for a new one")
        return {"page": f"{'owner' if found.role == 'owner' else 'label'}/{found.invitation}"}

    @app.post("/api/leave", include_in_schema=False)
    def leave(request: Request, who: Person = somebody) -> dict[str, str]:
        guard.leave(request, who.invitation)
        return {"page": "left"}

    @app.get("/left", include_in_schema=False)
    def left_page(request: Request) -> Response:
        return page(request, "left.html")

    @app.get("/", include_in_schema=False)
    def first_page(request: Request) -> Response:
        found = guard.last_entered(request)
        if found is None:
            return page(request, "closed.html", 401)
        return RedirectResponse(f"{request.scope['root_path']}/label/{found.invitation}", 303)

    @app.get("/label/{invitation}", include_in_schema=False)
    def label_page(request: Request, invitation: str) -> Response:
        found = guard.entered(request, invitation)
        answered = bool(guidelines) and found is not None and store.count(run, found.name).turns > 0
        return for_person(
            request, "label.html", found, instruction=project.instruction, guidelines=guidelines, version=version, answered=answered,
            criteria=bool(project.criteria),
        )  # fmt: skip

    @app.get("/owner/{invitation}", include_in_schema=False)
    def owner_page(request: Request, invitation: str) -> Response:
        found = guard.entered(request, invitation)
        if found is None or found.role != "owner":
            return for_person(request, "owner.html", None)
        return for_person(request, "owner.html", found, criteria=store.criteria(run), head=project.head)

    @app.get("/api/next", response_model=None, responses=says(Next))
    def next_question(
        held: Annotated[list[int] | None, Query(description="Questions that the sender has at hand.", max_length=1000)] = None,
        who: Person = somebody,
    ) -> dict[str, Any]:
        """The next question for whoever asks, leased for ten minutes; `question` is null when there is none left.

        The question's `criteria` are the names of what an answer says a preference on beside the whole; there are none for more than two
        sides. `problem` says why clips could not be drawn, where that may be why there is no question.
        """
        counts = store.count(run, who.name)
        found = asking.next_question(store, run, who.name, counts.turns, [n for n in held or () if 0 < n <= LAST], who.invitation)
        mine = share(store, run, who.judge)
        known = counts.turns - counts.answered  # gold questions and repeats, which nobody is to tell from others
        progress = {"mine": counts.turns, "share": mine.questions + known, "minutes": mine.minutes}
        problem = next(iter(problems(store, run)), "") if found is None else ""
        return {"question": found and _given(store, found, who, project.criteria), "progress": progress, "problem": problem}

    @app.get("/api/clips/{trajectory}", response_class=Response, responses=errors(404) | {200: {"content": {"image/webp": {}}}})
    def clip(trajectory: Annotated[int, FromPath(ge=1, le=LAST)], _: Person = somebody) -> Response:
        """The picture sheet of a clip, WebP."""
        webp = picture(store, trajectory, run)
        if webp is None:
            raise HTTPException(404, f"there is no clip {trajectory}")
        return Response(webp, media_type="image/webp", headers={"Cache-Control": "private, max-age=86400, immutable"})

    @app.post("/api/answers", response_model=None, responses=says(Kept, 403, 404, 409, 429))
    def answer(given: Answer, who: Person = somebody) -> dict[str, int]:
        """Keep an answer; when this returns it is on disk. Returns the label's number, the same one for the same key.

        It is taken from whoever the question was given to, also when their time for it is over, and then flagged `late`.
        """
        asked = store.given(run, who.name, given.question)
        if asked is None or asked.lease is None:
            raise HTTPException(404, f"question {given.question} was not given to you; nothing is kept")
        lease = asked.lease
        if (given.lease, given.order, given.invitation) != (lease.token, lease.shown, lease.invitation):
            raise HTTPException(409, f"question {given.question} was not shown to you like this; reload the page and answer it again")
        if given.seconds is not None and given.seconds > now() - lease.given + CLOCK_S:
            raise HTTPException(422, f"seconds is {given.seconds:g}, but question {given.question} was given out later than that")
        preference, best = _meaning(given)
        criteria = _on_criteria(given, known)
        reason = f"{BOTH_BAD}: {given.reason}".removesuffix(": ") if given.choice == "both_bad" else given.reason
        reason = reason or ("skipped" if given.choice == "skip" else "")
        unmeasured = given.seconds is None and preference is not None and not who.simulated
        flags = (*["fast"] * unmeasured, *["late"] * (0 < lease.expires < now()))
        label = Label(given.question, who.name, preference, reason, given.seconds, lease.shown, flags, best=best, criteria=criteria)
        if given.better is None:
            return {"label": store.answer(label, _token(who, given.key), who.invitation)}
        if given.choice != "both_bad" or is_empty(given.better):
            raise HTTPException(422, "a better answer is one in words, and goes with the choice both_bad")
        try:
            return {"label": write(store, label, given.better, _token(who, given.key), who.invitation)}
        except DataError as e:
            raise HTTPException(422, str(e)) from None

    @app.get("/api/answers", response_model=None, responses=says(OwnAnswers))
    def own_answers(
        before: Annotated[int, Query(ge=1, le=LAST, description="Only labels with lower numbers.")] = LAST, who: Person = somebody
    ) -> dict[str, Any]:
        """The asker's own answers that count, the latest first, fifty at a time."""
        return {"answers": [_answered(x) for x in own.answers(store, run, who.name, before)]}

    @app.get("/api/questions/{question}", response_model=None, responses=says(Shown, 404))
    def question(question: Annotated[int, FromPath(ge=1, le=LAST)], who: Person = somebody) -> dict[str, Any]:
        """A question that was given to the asker before, as they saw it."""
        found = store.given(run, who.name, question)
        if found is None:
            raise HTTPException(404, f"question {question} was not given to you")
        return _given(store, found, who, project.criteria)

    @app.post("/api/undo", response_model=None, responses=says(Undone, 403, 429))
    def undo(given: Undo, who: Person = somebody) -> dict[str, bool]:
        """Withdraw an answer: the question is open again. `undone` is false if there is none."""
        token = None if given.key is None else _token(who, given.key)
        return {"undone": store.undo(run, who.name, given.question, token, invitation=who.invitation) is not None}

    app.include_router(router(store, project, guard))
    return app


def _meaning(given: Answer) -> tuple[float | None, int | None]:
    """The preference for a, and of more than two sides the number of the one that was picked.

    Raises:
        HTTPException: 422 that is no answer to so many sides.
    """
    count = len(given.order)
    if (given.choice in ("good", "bad") and count > 1) or (count == 1 and (given.choice not in ALONE or given.slight)):
        slightly = ", slightly," if given.slight else ""
        raise HTTPException(
            422, f"question {given.question} has {count} side{'s' * (count > 1)}; {given.choice!r}{slightly} does not answer it"
        )
    if given.choice == "place":
        if not given.place <= count > 2:
            raise HTTPException(422, f"question {given.question} has {count} sides; place {given.place} is none of more than two")
        best = LETTERS.index(given.order[given.place - 1])
        return float(best == 0), best
    if given.choice in ("left", "right") and count > 2:
        raise HTTPException(422, f"question {given.question} has {count} sides; {given.choice!r} does not answer it")
    return _preference(given.choice, given.slight, given.order), None


def _preference(choice: str, slight: bool, order: str) -> float | None:
    """The preference for a that a choice between what was shown means."""
    preference = PREFERENCE[choice]
    if preference in (0.0, 1.0) and slight:
        preference = 0.25 + 0.5 * preference
    return preference if preference is None or order[0] == "a" else 1 - preference


def _on_criteria(given: Answer, known: Collection[str]) -> dict[str, float]:
    """The preferences for a on criteria.

    Raises:
        HTTPException: 422 they are none of the `known` ones, or the question has none.
    """
    if given.criteria and len(given.order) != 2:
        raise HTTPException(422, f"question {given.question} has {len(given.order)} sides; criteria compare two")
    if given.criteria and given.choice == "skip":
        raise HTTPException(422, f"question {given.question} is skipped; leave out what is said on criteria")
    for name in given.criteria:
        if name not in known:
            asked = f"it asks for {', '.join(sorted(known))}" if known else "it asks for none"
            raise HTTPException(422, f"{visible(name[:40])!r} is no criterion of this page; {asked}")
    said = {name: _preference(x.choice, x.slight, given.order) for name, x in given.criteria.items()}
    return {name: preference for name, preference in said.items() if preference is not None}


def _answered(said: Said) -> dict[str, Any]:
    """An answer of one's own, in the words in which it was sent."""
    x, found = said.label, dict[str, Any]({"label": said.label.id, "question": said.label.comparison, "created": said.created})
    found |= {"beginning": visible(said.beginning), "sides": len(x.shown), "reason": x.reason}
    found |= {"criteria": {name: _chosen(preference, x.shown) for name, preference in x.criteria.items()}}
    if x.best is not None:
        return found | {"choice": "place", "place": x.shown.index(LETTERS[x.best]) + 1}
    if x.preference is None:
        return found | {"choice": "skip"}
    if len(x.shown) == 1:
        return found | {"choice": "good" if x.preference > 0.5 else "bad"}
    if x.preference == 0.5:
        bad, comment = x.reason.partition(": ")[::2]
        better = {"better": visible(said.better)} if said.better else {}
        return found | ({"choice": "both_bad", "reason": comment, **better} if bad == BOTH_BAD else {"choice": "tie"})
    return found | _chosen(x.preference, x.shown)


def _chosen(preference: float, order: str) -> dict[str, Any]:
    """A preference for a as a choice between what was shown."""
    left = preference if order[0] == "a" else 1 - preference
    return {"choice": "tie" if left == 0.5 else "left" if left > 0.5 else "right", "slight": left in (0.25, 0.75)}


def _given(store: Store, question: Question, who: Person, criteria: Sequence[str]) -> dict[str, Any]:
    """A question as it was given to somebody; an answer sends `lease`, `order` and `invitation` back."""
    lease = question.lease
    assert lease is not None
    given = {"lease": lease.token, "order": lease.shown, "invitation": lease.invitation}
    given |= {"criteria": criteria if len(lease.shown) == 2 else ()}
    return shown(store, question, lease.shown, who) | given


def _token(who: Person, key: str) -> str:
    """What an answer is known by in the store: keys of different people are different."""
    return hashlib.sha256(f"{who.name}{NUL}{key}".encode()).hexdigest()
