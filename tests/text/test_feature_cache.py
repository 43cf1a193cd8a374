"""Two processes that keep what they have read in one file at once."""

from pathlib import Path
from typing import Any

import numpy as np

import command
from rather.text.head.cache import Cache

PROCESSES, TIMES, SHAPE = 2, 10, (2, 8)


def value(number: int) -> np.ndarray:
    return np.full(SHAPE, number, np.float32)


def write(path: str, which: int, begin: Any) -> None:
    """Own features, and those that all write."""
    begin.wait()
    for i in range(TIMES):
        mine = TIMES * which + i
        Cache(Path(path), "base").put({f"own {mine}".encode(): value(mine), f"shared {i}".encode(): value(i)})
        assert set(Cache(Path(path), "base").get([f"shared {i}".encode(), b"other"], SHAPE)) == {f"shared {i}".encode()}


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    for attempt in range(2):  # the file is new each time, and all of them make it
        path = tmp_path / f"{attempt}.db"
        begin = command.SERVER.Barrier(PROCESSES)
        writing = [command.SERVER.Process(target=write, args=(str(path), which, begin)) for which in range(PROCESSES)]
        for process in writing:
            process.start()
        for process in writing:
            process.join(60)
        assert [process.exitcode for process in writing] == [0] * PROCESSES
        keys = [f"own {i}".encode() for i in range(PROCESSES * TIMES)] + [f"shared {i}".encode() for i in range(TIMES)]
        found = Cache(path, "base").get(keys, SHAPE)
        assert [*found] == keys
        for key, known in found.items():
            assert np.array_equal(known, value(int(key.split()[1])))
