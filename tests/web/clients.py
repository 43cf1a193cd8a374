"""Programs and browsers that speak to the page's server over HTTP."""

from typing import Any

import httpx
import sqlalchemy as sa

from rather.store import Store, tables
from rather.store.people import invite

OPEN: list[httpx.Client] = []
SHOWN = ("lease", "order", "invitation")


def client_of(url: str, **more: Any) -> httpx.Client:
    """A client that is closed at the end of the test."""
    OPEN.append(httpx.Client(base_url=url, timeout=30, **more))
    return OPEN[-1]


def program(url: str, store: Store, name: str, **invitation: Any) -> httpx.Client:
    """A program with an invite token."""
    return client_of(url, headers={"Authorization": f"Bearer {invite(store, name, **invitation)}"})


def enter(client: httpx.Client, token: str) -> httpx.Response:
    """What the page of an invite link sends when it is opened."""
    return client.post("/api/join", json={"secret": token}, headers={"Origin": str(client.base_url).rstrip("/")})


def browser(url: str, token: str, **more: Any) -> httpx.Client:
    """What a browser sends once it has opened an invite link."""
    client = client_of(url, follow_redirects=True, **more)
    page = client.get(f"/{enter(client, token).json()['page']}").text
    known = page.split('name="rather-token" content="')[1].split('"')[0]
    number = page.split('name="rather-invitation" content="')[1].split('"')[0]

    def say_under_which(request: httpx.Request) -> None:
        request.url = request.url.copy_add_param("as", number)

    client.event_hooks = {"request": [say_under_which]}
    client.headers.update({"Origin": url, "X-Rather-Token": known})
    return client


def given(client: httpx.Client, held: tuple[int, ...] = ()) -> dict[str, Any]:
    """The next question."""
    return client.get("/api/next", params={"held": list(held)}).json()["question"]


def answer_to(shown: dict[str, Any], **said: Any) -> dict[str, Any]:
    """An answer to what is shown."""
    return {"question": shown["id"], **{k: shown[k] for k in SHOWN}, "key": f"answer-{shown['id']}", "choice": "left"} | said


def answer(client: httpx.Client, **said: Any) -> httpx.Response:
    """Answer the next question."""
    return client.post("/api/answers", json=answer_to(given(client), **said))


def pass_by(store: Store, seconds: float) -> None:
    """Let the time of all that has been given out pass."""
    with store.transaction(write=True) as connection:
        lease = tables.lease.c
        changed = sa.update(tables.lease).where(lease.expires > 0)
        connection.execute(changed.values(expires=lease.expires - seconds, given=lease.given - seconds))
