"""An import that is stopped at any moment, by kill -9 or Ctrl-C, and begun again ends with exactly the file."""

import contextlib
import json
import os
import random
import signal
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

import command
from rather.data.transfer import import_comparisons
from rather.store import Store

ROWS = 1200


def bring(where: str, run: str, path: str, said: Connection) -> None:
    """Import the file; tell when that begins and when it is done."""
    store = Store(where)
    said.send("begun")
    import_comparisons(store, run, Path(path), judge="file")
    said.send("done")


def begun(where: str, run: str, path: Path) -> tuple[BaseProcess, Connection]:
    ours, theirs = command.SERVER.Pipe(duplex=False)
    process = command.SERVER.Process(target=bring, args=(where, run, str(path), theirs))
    process.start()
    theirs.close()
    assert ours.recv() == "begun"
    return process, ours


@pytest.mark.parametrize("moments", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_stopped_import_keeps_nothing_or_all(where: str, tmp_path: Path, moments: int) -> None:
    path, chance, store = tmp_path / "c.jsonl", random.Random(moments), Store(where)
    words = [f"answer {i % 1100}" for i in range(ROWS)]  # the last hundred stand there twice
    path.write_text("".join(json.dumps({"prompt": "Hi?", "chosen": x, "rejected": ""}) + "\n" for x in words))
    process, said = begun(where, "whole", path)
    clock = time.monotonic()
    assert said.recv() == "done"
    whole = time.monotonic() - clock
    process.join()
    stopped = 0
    for i in range(moments):
        process, _ = begun(where, f"run-{i}", path)
        time.sleep(chance.random() * whole)
        assert process.pid is not None
        with contextlib.suppress(ProcessLookupError):  # it was quicker than the first one, and is done
            os.kill(process.pid, signal.SIGKILL if i % 2 else signal.SIGINT)
        process.join()
        stopped += process.exitcode != 0
        kept = len(store.keys(f"run-{i}", "train")), len(store.labels(f"run-{i}"))
        assert kept in ((0, 0), (ROWS, ROWS)), "a part of the file was kept"
        import_comparisons(store, f"run-{i}", path, judge="file")
        found = store.answered(f"run-{i}").comparisons
        assert sorted((c.a if c.preference == 1 else c.b)[0].text or "" for c in found) == sorted(words)
    assert moments < 50 or stopped >= moments // 4, "many of them were stopped on their way"  # a few moments may all come too late
    store.close()
