"""How long strangers may take and how many connections they may hold, for a server without a proxy: uvicorn alone sets no such limits.

Whoever waits first does not keep others out. Where there are too many connections, the one that has kept the server waiting for longest
goes: first among those whose request has not come, then among those that are idle. One whose request is being worked on stays.
"""

import asyncio
import resource
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 10
"""Within so many seconds of its first byte a request must be here, head and body; within so many of its beginning a TLS handshake."""
KEEP_ALIVE_S = 75
ANSWER_S = 30
"""Within so many seconds whoever asked must have taken something of the answer."""
EACH, ALL = 400, 1000
"""Connections of one address (a trusted proxy may have all), and in all."""
STOP_S = 2
"""How long requests that are being worked on may still take when the server is stopped."""
ARRIVING = (h11.IDLE, h11.SEND_BODY)


class Rank(IntEnum):
    """Who goes first where there are too many connections."""

    WAITED_FOR = 0
    IDLE = 1
    AT_WORK = 2
    GOING = 3


@dataclass
class Connection:
    """One that has been accepted."""

    socket: socket.socket
    address: str
    rank: Rank = Rank.WAITED_FOR
    since: float = field(default_factory=time.monotonic)


class Listener(socket.socket):
    """A listening socket that makes room before there are too many connections, those with an unfinished TLS handshake counted.

    `each` is how many one address may have.
    """

    def __init__(self, host: str, port: int, proxies: Sequence[IPv4Network | IPv6Network] = (), each: int = EACH) -> None:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        super().__init__(fileno=socket.create_server(address, family=family).detach())
        self.proxies, self.each = proxies, each
        self.connections: dict[int, Connection] = {}
        self.most = min(max(ALL, each), _open_files(2 * max(ALL, each)) // 2)  # the other half is for the store and for files

    def listen(self, backlog: int = 0, /) -> None:  # noqa: ARG002
        """Let the kernel keep many that wait; asyncio takes `backlog` of them at a time, and nobody else gets a turn meanwhile."""
        super().listen(1024)

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection; whoever must go for it goes.

        Raises:
            BlockingIOError: not at this moment: those that were dropped are still being closed.
            ConnectionAbortedError: there are too many, and a request of each is being worked on.
        """
        self.connections = {n: c for n, c in self.connections.items() if c.socket.fileno() == n}
        if len(self.connections) >= self.most + self.each:
            raise BlockingIOError
        made, (address, *_) = super().accept()
        everybody = list(self.connections.values())
        proxied = any(ip_address(address) in proxy for proxy in self.proxies)
        mine = [] if proxied else [c for c in everybody if c.address == address]
        if not (_make_room(mine, self.each) and _make_room(everybody, self.most)):
            made.close()
            raise ConnectionAbortedError
        self.connections[made.fileno()] = Connection(made, address)
        return made, (address, *_)


def _open_files(wanted: int) -> int:
    """How many files this process may have open: as many as are wanted, where the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def _make_room(crowd: Sequence[Connection], most: int) -> bool:
    """Drop one of the crowd if there is no room for another one; returns whether there is room now."""
    staying = [c for c in crowd if c.rank is not Rank.GOING]
    if len(staying) < most:
        return True
    last = min(staying, key=lambda c: (c.rank, c.since))
    if last.rank is Rank.AT_WORK:
        return False
    last.rank = Rank.GOING
    with suppress(OSError):  # gone already
        last.socket.shutdown(socket.SHUT_RDWR)  # the event loop then sees its end and closes it
    return True


class Protocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, with an end to all waiting."""

    def __init__(self, listener: Listener, **given: Any) -> None:
        super().__init__(**given)
        self.listener = listener
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.place = self.listener.connections[transport.get_extra_info("socket").fileno()]
        self._is(Rank.WAITED_FOR, REQUEST_S)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._within(None)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state in ARRIVING:
            if self.place.rank is not Rank.WAITED_FOR:  # what comes byte by byte has no more time than what comes at once
                self._is(Rank.WAITED_FOR, REQUEST_S)
        else:
            self._is(Rank.AT_WORK, None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state not in ARRIVING:
            self._is(Rank.AT_WORK, ANSWER_S if self.transport.is_closing() else None)
        elif self.conn.trailing_data[0]:
            self._is(Rank.WAITED_FOR, REQUEST_S)
        else:
            self._is(Rank.IDLE, KEEP_ALIVE_S + ANSWER_S)  # uvicorn closes it before that, if the answer has been taken

    def pause_writing(self) -> None:
        super().pause_writing()
        self._within(ANSWER_S)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.place.rank is Rank.AT_WORK:
            self._within(None)

    def shutdown(self) -> None:
        if self.place.rank is Rank.AT_WORK or self.transport.get_write_buffer_size():
            super().shutdown()
        else:
            self.transport.abort()

    def _is(self, rank: Rank, seconds: float | None) -> None:
        if self.place.rank is not Rank.GOING:
            self.place.rank, self.place.since = rank, time.monotonic()
        self._within(seconds)

    def _within(self, seconds: float | None) -> None:
        """Have the connection cut unless something else happens within so many seconds."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)


class Loop(asyncio.SelectorEventLoop):
    """asyncio's own event loop, which accepts through `Listener`; TLS has no more time than the rest."""

    async def create_server(self, *given: Any, **more: Any) -> asyncio.Server:
        """The server."""
        if more.get("ssl"):
            more |= {"ssl_handshake_timeout": REQUEST_S, "ssl_shutdown_timeout": STOP_S}
        return await super().create_server(*given, **more)


class Server(uvicorn.Server):
    """uvicorn within these limits.

    Raises:
        OSError: it cannot listen there, or the certificate cannot be read.
    """

    def __init__(self, app: ASGIApp, listener: Listener, certificate: str = "", key: str = "") -> None:
        tls: dict[str, Any] = {"ssl_certfile": certificate, "ssl_keyfile": key or None} if certificate else {}
        # Neither an access log, where the path of an invite link would stand, nor warnings, which strangers could fill a disk with.
        config = uvicorn.Config(
            app, loop=f"{__name__}:Loop", http=partial(Protocol, listener), ws="none", backlog=1, access_log=False, log_level="error",  # type: ignore[arg-type]
            server_header=False, proxy_headers=bool(listener.proxies), forwarded_allow_ips=[str(proxy) for proxy in listener.proxies],
            timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=STOP_S, **tls,
        )  # fmt: skip
        config.load()
        super().__init__(config)
        self.listener = listener

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal comes."""
        super().run(sockets or [self.listener])
