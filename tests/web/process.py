"""The command line as processes that can be killed with -9 and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import httpx
from clients import answer_to, given


class Process:
    """`rather ARGUMENTS`, running in `folder`; what it prints goes to a file there."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.arguments = folder, arguments
        self.log = folder / f"{arguments[0]}.log"
        self.start()

    def start(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "rather", *self.arguments]
        with self.log.open("a") as out:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=out, stderr=out, env=environment)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def wait(self, seconds: float = 180) -> None:
        assert self.process.wait(seconds) == 0, self.log.read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Server(Process):
    """`rather serve`; `link` is the owner's, if this is the server that printed it."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = port()
        super().__init__(folder, "serve", "run.toml", "--port", str(self.port), *options)
        until(lambda: "/join#" in self.log.read_text() or "--new-link makes another" in self.log.read_text())
        until(lambda: listens(self.port))
        said = [word for word in self.log.read_text().split() if word.startswith("http")]
        self.link = next((word for word in said if "/join#" in word), "")
        self.url = said[0].split("/join#")[0]


def port() -> int:
    """One that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def listens(port: int) -> bool:
    """Whether something answers there: the link is printed a moment before."""
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def person(server: Server, **more: object) -> httpx.Client:
    """The owner, who answers as everybody does."""
    token = server.link.partition("#")[2]
    return httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {token}"}, timeout=20, **more)  # type: ignore[arg-type]


def answer(client: httpx.Client) -> int:
    """Answer the next question; returns the label's number."""
    sent = client.post("/api/answers", json=answer_to(given(client)))
    assert sent.status_code == 200, sent.text
    return sent.json()["label"]
