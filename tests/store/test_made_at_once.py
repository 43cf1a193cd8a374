"""A new file that somebody else is making at this moment."""

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rather.store import Store
from rather.text.head.cache import Cache


def store(path: Path) -> None:
    Store(str(path)).close()


def cache(path: Path) -> None:
    Cache(path, "base").put({b"answer": np.zeros((1, 2), np.float32)})


@pytest.mark.parametrize("use", [store, cache])
@pytest.mark.parametrize("lock", ["immediate", "exclusive"])
def test_whoever_comes_second_waits(tmp_path: Path, use: Callable[[Path], None], lock: str) -> None:
    path = tmp_path / "new.db"
    first = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    first.execute(f"begin {lock}")
    first.execute("create table theirs (number int)")
    done = threading.Timer(0.5, lambda: first.execute("rollback"))
    done.start()
    use(path)
    assert done.finished.is_set()  # not before the other was done
    first.close()
