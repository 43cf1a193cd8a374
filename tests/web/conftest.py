import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright
from questions import question

from rather.hacking.curves import Curves
from rather.store import Store
from rather.store.quality import Asking
from rather.web import demo as example
from rather.web import limits
from rather.web.frame import Frame
from rather.web.project import Project
from rather.web.serve import server


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(str(tmp_path / "store.db"))
    yield made
    made.close()


@pytest.fixture
def either(where: str) -> Iterator[Store]:
    """A store of either kind, SQLite and PostgreSQL in turn."""
    made = Store(where)
    yield made
    made.close()


@pytest.fixture
def elsewhere(either: Store, where: str) -> Iterator[Store]:
    """The same store, as another server has it."""
    made = Store(where)
    yield made
    made.close()


@contextmanager
def served(
    store: Store,
    run: str,
    guidelines: str = "",
    port: int = 0,
    criteria: tuple[str, ...] = (),
    metrics: Path | None = None,
    head: bool = False,
) -> Iterator[str]:
    """The real server over `store`: its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = port or free.getsockname()[1]
    curves = Curves(metrics, folders=[metrics.parent] if metrics else ())
    serving, url = server(store, Project(run, "Which is better?", guidelines, criteria, curves.read, head), "127.0.0.1", port)
    thread = threading.Thread(target=serving.run, daemon=True)
    thread.start()
    while not serving.started:
        time.sleep(0.01)
    try:
        yield url
    finally:
        serving.should_exit = True
        thread.join(10)


@contextmanager
def app_served(app: Any, url: str = "", proxies: tuple[str, ...] = ()) -> Iterator[int]:
    """Another app within the same limits: its port."""
    listener = limits.Listener("127.0.0.1", 0, [ip_network(x) for x in proxies])
    serving = limits.Server(Frame(app, url), listener)
    thread = threading.Thread(target=serving.run, daemon=True)
    thread.start()
    while not serving.started:
        time.sleep(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        serving.should_exit = True
        thread.join(10)


@pytest.fixture
def serve(store: Store) -> Iterator[Callable[..., str]]:
    """Starts the server for the run "r", without repeats, and returns its URL."""
    with ExitStack() as stack:

        def start(overlap: int = 1, guidelines: str = "", criteria: tuple[str, ...] = ()) -> str:
            store.set_asking("r", Asking(overlap, repeats=0))
            return stack.enter_context(served(store, "r", guidelines, criteria=criteria))

        yield start


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("needs Debian's chromium")
    expect.set_options(timeout=20_000)  # the page looks again every 5 s
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu", "--disable-quic"])
        yield browser
        browser.close()


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    made = chromium.new_context()
    yield made
    made.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate for localhost that it signed itself, and its key; made by openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tls")
    made = [str(folder / "certificate.pem"), str(folder / "key.pem")]
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    subprocess.run([*command.split(), "-out", made[0], "-keyout", made[1]], check=True, capture_output=True)
    return made[0], made[1]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Store]:
    """A run of 200 questions; `tmp_path` is the folder to serve it from."""
    (tmp_path / "run.toml").write_text('[run]\nname = "r"\nstore = "store.db"\n')
    store = Store(str(tmp_path / "store.db"))
    store.ask("r", [question(i) for i in range(200)])
    store.set_asking("r", Asking(repeats=0))
    yield store
    store.close()


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's store, with words, clips and batches."""
    path = tmp_path_factory.mktemp("demo") / "store.db"
    store = Store(str(path))
    example.fill(store)
    store.close()
    return path


@pytest.fixture
def demo_page(demo: Path, tmp_path: Path) -> Iterator[tuple[Store, str]]:
    shutil.copy(demo, tmp_path / "demo.db")
    store = Store(str(tmp_path / "demo.db"))
    store.set_asking(example.RUN, Asking(repeats=0, random=0))
    with served(store, example.RUN) as url:
        yield store, url
    store.close()
