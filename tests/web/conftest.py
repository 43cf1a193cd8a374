import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rather.store import Store
from rather.web.serve import server


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(str(tmp_path / "store.db"))
    yield made
    made.close()


@pytest.fixture
def serve(store: Store, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Starts the real server over `store` and returns its URL."""
    running = []

    def start(overlap: int = 1) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        serving, url = server(store, tmp_path / "run", "r", "Which is better?", "127.0.0.1", port, overlap)
        thread = threading.Thread(target=serving.run, daemon=True)
        thread.start()
        running.append((serving, thread))
        while not serving.started:
            time.sleep(0.01)
        return url

    yield start
    for serving, thread in running:
        serving.should_exit = True
        thread.join(10)
