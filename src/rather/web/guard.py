"""Who sends a request, and whether they may: sessions, the origin of requests, how fast somebody may answer."""

import secrets
import time

from fastapi import HTTPException, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from rather.store import Store
from rather.store.people import Person, bearer

ANSWERS_A_SECOND, BURST = 10.0, 30.0


BEARER = HTTPBearer(auto_error=False, description="The token of an invite link: what stands behind its #.")
MOST_ENTERED = 30
"""Invitations that one browser remembers; a cookie has no room for many more."""


class Guard:
    """Says who sends a request, and whether they may.

    A program shows its invite token as a bearer. A browser has entered by one invitation or several: its session, a signed cookie, holds
    their tokens, and each request says by `as` under which one it is sent, so that two links in one browser are two people. All of it
    ends when the invitation does, and neither the key that signs sessions nor a copy of the store lets anybody in without a token. What
    a browser changes must come from our own page: its Origin is ours, and it knows the session's token.
    """

    def __init__(self, store: Store, run: str) -> None:
        self.store, self.run = store, run
        self.left: dict[int, tuple[float, float]] = {}

    def __call__(self, request: Request, _: HTTPAuthorizationCredentials | None = Security(BEARER)) -> Person:
        """The person.

        Raises:
            HTTPException: 401 nobody, 403 not from our page, 413 too long, 429 too fast.
        """
        scheme, _separator, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            found = self._here(bearer(self.store, token))
        else:
            found = self.entered(request, request.query_params.get("as", ""))
            if found is not None and request.method not in ("GET", "HEAD"):
                self._from_our_page(request)
        if found is None:
            raise HTTPException(401, "open the invite link that you were given; it may have expired or been revoked")
        if request.method not in ("GET", "HEAD"):
            self._not_too_fast(found.judge)
        return found

    def owner(self, request: Request, _: HTTPAuthorizationCredentials | None = Security(BEARER)) -> Person:
        """The person, who must be an owner."""
        found = self(request)
        if found.role != "owner":
            raise HTTPException(403, "this is for owners")
        return found

    def enter(self, request: Request, token: str) -> Person | None:
        """Let a browser in by the token of an invitation, beside those by which it is in already.

        Raises:
            HTTPException: 403 another site sent it.
        """
        if request.headers.get("origin") != _ours(request):
            raise HTTPException(403, "this did not come from the labelling page; open the link itself")
        found = self._here(bearer(self.store, token))
        if found is not None:
            others = {k: v for k, v in self._tokens(request).items() if k != str(found.invitation)}
            latest = dict([*others.items(), (str(found.invitation), token)][-MOST_ENTERED:])
            request.session.update(entered=latest, token=request.session.get("token") or secrets.token_urlsafe(16))
        return found

    def entered(self, request: Request, invitation: str) -> Person | None:
        """Who is in by that invitation, if it holds and this browser has entered by it."""
        found = self._here(bearer(self.store, self._tokens(request).get(invitation, "")))
        return found if found is not None and str(found.invitation) == invitation else None

    def last_entered(self, request: Request) -> Person | None:
        """Who is in by the invitation that this browser entered by last, of those that hold."""
        people = (self.entered(request, number) for number in reversed(self._tokens(request)))
        return next((p for p in people if p is not None), None)

    def leave(self, request: Request, invitation: int) -> None:
        """Forget an invitation in this browser."""
        request.session["entered"] = {k: v for k, v in self._tokens(request).items() if k != str(invitation)}

    def _tokens(self, request: Request) -> dict[str, str]:
        return request.session.get("entered", {})

    def _here(self, found: Person | None) -> Person | None:
        return found if found is not None and found.run in (None, self.run) else None

    def _from_our_page(self, request: Request) -> None:
        known = secrets.compare_digest(request.headers.get("x-rather-token", "").encode(), request.session.get("token", "").encode())
        if request.headers.get("origin") != _ours(request) or not known:
            raise HTTPException(403, "this did not come from the labelling page; reload it and try again")

    def _not_too_fast(self, judge: int) -> None:
        now = time.monotonic()
        left, since = self.left.get(judge, (BURST, now))
        left = min(BURST, left + (now - since) * ANSWERS_A_SECOND)
        if left < 1:
            raise HTTPException(429, "too many answers at once; nothing is lost, send it again in a second", {"Retry-After": "1"})
        self.left[judge] = (left - 1, now)


def _ours(request: Request) -> str:
    return f"{request.url.scheme}://{request.headers.get('host')}"
