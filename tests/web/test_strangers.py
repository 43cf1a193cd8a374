"""Strangers cannot stop `rather serve`: sockets that send halves of requests, hundreds at once, floods; and signals stop it."""

import asyncio
import resource
import signal
import sqlite3
import ssl
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from clients import answer_to, given
from process import Server, answer, person, until
from starlette.responses import PlainTextResponse
from strangers import KINDS, connected, seconds_till_closed, strangers

from conftest import app_served
from rather.store import Store
from rather.web import limits
from rather.web.frame import AT_ONCE

pytestmark = pytest.mark.slow


def borne(port: int, sent: dict[str, tuple[bytes, bytes]]) -> dict[str, float]:
    """How long each of these is borne, all at once: what is sent first, and what drips after it."""
    times: dict[str, float] = {}

    def one(name: str, first: bytes, drip: bytes) -> None:
        times[name] = seconds_till_closed(connected(port, first), drip)

    threads = [threading.Thread(target=one, args=(name, *what)) for name, what in sent.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def test_half_a_request_is_dropped_after_ten_seconds_however_it_comes(run: Store, tmp_path: Path) -> None:
    whole = b"GET /static/icon.svg HTTP/1.1\r\nHost: x\r\n\r\n"
    with Server(tmp_path) as server:
        times = borne(
            server.port,
            {
                "nothing": (b"", b""),
                "a head": (KINDS["head"], b""),
                "a head, byte by byte": (KINDS["drip"], b"x"),
                "a body": (KINDS["body"], b""),
                "a body, byte by byte": (KINDS["body"], b" "),
                "after a whole one": (whole + KINDS["head"], b""),
                "after a whole one, byte by byte": (whole + KINDS["drip"], b"x"),
            },
        )
    for what, seconds in times.items():
        assert 9 < seconds < 13, (what, seconds)


def test_half_a_tls_handshake_or_request_is_dropped_after_ten_seconds(run: Store, tmp_path: Path, certificate: tuple[str, str]) -> None:
    with Server(tmp_path, "--certificate", certificate[0], "--key", certificate[1]) as server:
        trusting = ssl.create_default_context(cafile=certificate[0])
        hello = bytes.fromhex("16030100f8010000f40303")  # the beginning of a ClientHello
        times = borne(server.port, {"nothing": (b"", b""), "a hello": (hello, b""), "a hello, byte by byte": (hello, b"\0")})
        with trusting.wrap_socket(connected(server.port), server_hostname="localhost") as inside:
            inside.sendall(KINDS["head"])
            times["a head"] = seconds_till_closed(inside)
        with person(server, verify=trusting) as client:
            answer(client)
    for what, seconds in times.items():
        assert 9 < seconds < 13, (what, seconds)


@pytest.mark.parametrize(
    ("kind", "address"),
    [("head", "127.0.0.2"), ("head", "127.0.0.1"), ("body", "127.0.0.1"), ("drip", "127.0.0.1"), ("silent", "127.0.0.1")],
)
def test_three_hundred_halves_of_requests_change_nothing(run: Store, tmp_path: Path, kind: str, address: str) -> None:
    with Server(tmp_path) as server, person(server) as before, strangers(kind, server.port, 300, address) as found:
        until(lambda: len(found.selector.get_map()) == 300)
        labels = [answer(before) for _ in range(10)]
        for _ in range(10):  # new connections, too
            with person(server) as client:
                labels.append(answer(client))
        assert len(found.selector.get_map()) >= 290, "they are still there"
        assert found.refused == 0
    assert [x.id for x in run.labels("r")] == sorted(labels)


@pytest.mark.parametrize("kind", ["flood", "pipeline"])
@pytest.mark.parametrize("address", ["127.0.0.2", "127.0.0.1"])
def test_a_flood_of_requests_keeps_nobody_out(run: Store, tmp_path: Path, kind: str, address: str) -> None:
    with Server(tmp_path) as server, strangers(kind, server.port, 100, address), person(server) as client:
        time.sleep(1)
        for _ in range(5):
            answer(client)
    assert len(run.labels("r")) == 5


def test_more_connections_than_there_may_be_cost_neither_files_nor_people_their_place(run: Store, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4000), hard))
    with Server(tmp_path) as server, person(server) as before:
        answer(before)
        files = Path(f"/proc/{server.process.pid}/fd")
        with strangers("head", server.port, limits.EACH + 200) as one:
            until(lambda: one.closed > 200)
            assert len(list(files.iterdir())) < limits.EACH + 150, "of one address"
            answer(before)
            with person(server) as client:
                answer(client)
        with ExitStack() as stack:
            attacks = [stack.enter_context(strangers("head", server.port, 350, f"127.0.0.{i}")) for i in (2, 3, 4, 5)]
            until(lambda: sum(attack.closed for attack in attacks) > 400)
            assert len(list(files.iterdir())) < limits.ALL + 150, "in all"
            answer(before)
            with person(server) as client:
                answer(client)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(run.labels("r")) == 5


def test_a_few_requests_of_an_address_are_worked_on_at_a_time_and_none_stands_in_anothers_way() -> None:
    working: list[str] = []
    most = 0
    enough = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal most
        if scope["type"] == "http" and scope["path"] == "/slow":
            working.append("slow")
            most = max(most, len(working))
            await enough.wait()
            working.pop()
        elif scope["type"] == "http" and scope["path"] == "/enough":
            enough.set()
        if scope["type"] == "http":
            await PlainTextResponse("done")(scope, receive, send)

    with app_served(app) as port, ExitStack() as stack:
        asking = [stack.enter_context(connected(port, b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n", "127.0.0.2")) for _ in range(50)]
        gone = [connected(port, b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n", "127.0.0.2") for _ in range(50)]
        until(lambda: len(working) == AT_ONCE)
        for one in gone:  # they wait for nothing any more
            one.close()
        assert httpx.get(f"http://127.0.0.1:{port}/").text == "done"
        assert len(working) == AT_ONCE
        assert httpx.get(f"http://127.0.0.1:{port}/enough").text == "done"
        for one in asking:  # each has its turn
            heard = b""
            while not heard.endswith(b"done"):
                heard += one.recv(1000) or pytest.fail(f"no answer, {heard!r}")
    assert most == AT_ONCE


def test_whoever_does_not_take_the_answer_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ANSWER_S", 2)
    ended: list[float] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        ended.append(time.monotonic())

    ask = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with app_served(app) as port, connected(port, ask) as reading, connected(port, ask):
        begun, size = time.monotonic(), 0
        while size < 65_536_000:  # slowly, but it goes on
            size += len(reading.recv(1 << 20))
            if size < 20_000_000:
                time.sleep(0.1)
        until(lambda: len(ended) == 2, 20)  # for the one who reads nothing there is nobody to send to
        assert time.monotonic() - begun > 2


def test_what_is_too_large_is_refused(run: Store, tmp_path: Path) -> None:
    post = b"POST /api/undo HTTP/1.1\r\nHost: x\r\n"
    with Server(tmp_path) as server:
        for sent, status in (
            (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000, b"400"),
            (b"GET /" + b"x" * 100_000, b"400"),
            (post + b"Content-Length: 131073\r\n\r\n", b"413"),
            (post + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", b"400"),
            (post + b"Transfer-Encoding: chunked\r\n\r\n" + b"5\r\n", b"413"),
        ):
            with connected(server.port, sent) as connection:
                assert connection.recv(12) == b"HTTP/1.1 " + status
                assert seconds_till_closed(connection) < 5, "and that is the end"
        assert "Traceback" not in server.log.read_text()


def test_nothing_that_strangers_send_is_logged(run: Store, tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        before = server.log.read_text()
        for sent in (
            b"\x16\x03\x01",
            b"nonsense\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        ):
            with connected(server.port, sent + b"\r\n\r\n") as connection:
                connection.recv(1000)
        assert server.log.read_text() == before


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_within_three_seconds_and_what_was_acknowledged_is_kept(run: Store, tmp_path: Path, sent: signal.Signals) -> None:
    with Server(tmp_path) as server, person(server) as client:
        label, shown = answer(client), given(client)  # and the connection stays open
        halves = [connected(server.port, KINDS[kind]) for kind in ("silent", "head", "body")]
        lock = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
        lock.execute("begin immediate")  # an answer that comes now cannot be written
        with closing(lock), person(server) as other, ExitStack() as stack:
            for half in halves:
                stack.enter_context(half)
            failed: list[bool] = []
            waits = answer_to(shown)

            def post() -> None:
                try:
                    failed.append(other.post("/api/answers", json=waits).status_code != 200)
                except httpx.TransportError:
                    failed.append(True)

            waiting = threading.Thread(target=post)
            waiting.start()
            time.sleep(1)
            assert waiting.is_alive(), "it is being worked on"
            begun = time.monotonic()
            server.process.send_signal(sent)
            server.process.wait(20)
            assert time.monotonic() - begun < 3
            waiting.join()
        assert failed == [True], "what was not written was not acknowledged"
    assert [x.id for x in run.labels("r")] == [label]
    assert "Traceback" not in server.log.read_text()
