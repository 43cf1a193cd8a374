"""Around the app: the outer address of every request, bodies that can be kept, and the headers of every answer."""

import asyncio
import json
from contextlib import AsyncExitStack
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LONGEST_BODY = 128 * 1024
"""Of an answer that somebody writes themselves, whose 20,000 characters may take six bytes each in JSON."""
AT_ONCE = 4
"""Requests of one address that are worked on at the same time; more of them wait."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Frame:
    """ASGI middleware.

    With a `url`, the address that people open, every request is one to that address: scheme, host and prefix are the URL's, whatever
    headers say. A proxy may pass paths on with the prefix or without it. Bodies that are too long, of unknown length or that no
    database could keep are refused before the app sees them. The requests of one address are worked on a few at a time, so that many
    of them delay nobody else.
    """

    def __init__(self, app: ASGIApp, url: str = "") -> None:
        self.app = app
        self.outer = urlsplit(url)
        self.turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        turn, begun = AsyncExitStack(), False

        async def framed(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                await turn.aclose()  # whoever does not read the answer keeps nobody waiting
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        async def refuse(status: int, detail: str) -> None:
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            await framed({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": json.dumps({"detail": detail}).encode()})

        given = dict(scope["headers"])
        length = given.get(b"content-length", b"0")
        if b"transfer-encoding" in given or not length.isdigit() or int(length) > LONGEST_BODY:
            await refuse(413, f"the request is too long; {LONGEST_BODY} bytes are allowed, and their number must be said beforehand")
            return
        body = await _whole(receive)
        if body is None:
            return  # whoever sent it is gone
        if body and not _can_be_kept(body):
            await refuse(422, "the request is no JSON, or holds a number that is not finite or half of a character")
            return
        rest = [{"type": "http.request", "body": body, "more_body": False}]

        async def received() -> Message:
            return rest.pop() if rest else await receive()

        async with turn:
            at_once = self.turns.setdefault((scope["client"] or ("",))[0], asyncio.Semaphore(AT_ONCE))
            await turn.enter_async_context(at_once)
            if not await Request(scope, receive).is_disconnected():
                try:
                    await self.app(self._outer(scope), received, framed)
                except asyncio.CancelledError:  # it took too long when the server was stopped
                    if not begun:
                        await refuse(503, "the server is being stopped; nothing is lost, send it again later")

    def _outer(self, scope: Scope) -> Scope:
        if not self.outer.netloc:
            return scope
        prefix, path = self.outer.path, scope["path"]
        if path != prefix and not path.startswith(f"{prefix}/"):
            path = prefix + path
        headers = [(b"host", self.outer.netloc.encode())] + [(k, v) for k, v in scope["headers"] if k != b"host"]
        return {**scope, "scheme": self.outer.scheme, "root_path": prefix, "path": path, "headers": headers}


async def _whole(receive: Receive) -> bytes | None:
    """The body of a request, or None if it did not come to its end."""
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _can_be_kept(body: bytes) -> bool:
    """Whether it is JSON that can be written as JSON again: Python reads NaN, 1e999 and halves of a surrogate pair, too."""
    try:
        json.dumps(json.loads(body), ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return False
    return True
