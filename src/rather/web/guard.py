"""Who sends a request, and whether they may: sessions, the origin of requests, how fast somebody may answer."""

import os
import secrets
import time
from pathlib import Path

from fastapi import HTTPException, Request

from rather.store import Store
from rather.store.people import Person, bearer, person

ANSWERS_A_SECOND, BURST = 10.0, 30.0


def secret(folder: Path) -> str:
    """The key that sessions are signed with, made at first start; nobody but its owner may read the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "secret.key"
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(file, "w") as out:
        out.write(secrets.token_urlsafe(32))
    return path.read_text().strip()


class Guard:
    """Says who sends a request, and whether they may.

    A browser shows its session, a signed cookie that names the person; a program shows its invite token as a bearer. Both end when the
    invitation does. What a browser changes must come from our own page: its Origin is ours, and it knows the session's token.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.left: dict[str, tuple[float, float]] = {}

    def __call__(self, request: Request) -> Person:
        """The person.

        Raises:
            HTTPException: 401 nobody, 403 not from our page, 413 too long, 429 too fast.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            found = bearer(self.store, token)
        else:
            found = person(self.store, request.session.get("name", ""))
            if found is not None and request.method not in ("GET", "HEAD"):
                self._from_our_page(request)
        if found is None:
            raise HTTPException(401, "open the invite link that you were given; it may have expired or been revoked")
        if request.method not in ("GET", "HEAD"):
            self._not_too_fast(found.name)
        return found

    def owner(self, request: Request) -> Person:
        """The person, who must be an owner."""
        found = self(request)
        if found.role != "owner":
            raise HTTPException(403, "this is for owners")
        return found

    def enter(self, request: Request, token: str) -> Person | None:
        """Begin a session for whose token this is."""
        found = bearer(self.store, token)
        if found is not None:
            request.session.update(name=found.name, token=secrets.token_urlsafe(16))
        return found

    def _from_our_page(self, request: Request) -> None:
        origin = request.headers.get("origin")
        ours = f"{request.url.scheme}://{request.headers.get('host')}"
        known = secrets.compare_digest(request.headers.get("x-rather-token", "").encode(), request.session.get("token", "").encode())
        if origin != ours or not known:
            raise HTTPException(403, "this did not come from the labelling page; reload it and try again")

    def _not_too_fast(self, name: str) -> None:
        now = time.monotonic()
        left, since = self.left.get(name, (BURST, now))
        left = min(BURST, left + (now - since) * ANSWERS_A_SECOND)
        if left < 1:
            raise HTTPException(429, "too many answers at once; nothing is lost, send it again in a second", {"Retry-After": "1"})
        self.left[name] = (left - 1, now)
