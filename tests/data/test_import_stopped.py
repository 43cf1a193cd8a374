"""An import that is stopped at any moment, by kill -9 or Ctrl-C, and begun again ends with exactly the file."""

import itertools
import json
import os
import signal
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from sqlalchemy import event

import command
from rather.data.transfer import import_comparisons
from rather.store import Store

ROWS = 1200


def bring(where: str, run: str, path: str, last: int, said: Connection) -> None:
    """Import the file up to the moment `last`, and wait there; after all of it, tell the number of the last one.

    Moments are before and after each statement, after each part of the file, before the commit, and when all is done.
    """
    store, moments = Store(where), itertools.count()

    def moment(*_: object) -> None:
        if next(moments) == last:
            said.send("there")
            time.sleep(600)

    for name in ("before_cursor_execute", "after_cursor_execute", "commit"):
        event.listen(store.engine, name, moment)
    import_comparisons(store, run, Path(path), judge="file", advance=moment)
    moment()
    said.send(next(moments) - 1)


def begun(where: str, run: str, path: Path, last: int = -1) -> tuple[BaseProcess, object]:
    """A process that imports the file, and what it said."""
    ours, theirs = command.SERVER.Pipe(duplex=False)
    process = command.SERVER.Process(target=bring, args=(where, run, str(path), last, theirs))
    process.start()
    theirs.close()
    return process, ours.recv()


@pytest.mark.slow
@pytest.mark.parametrize("step", [7, 1])
def test_a_stopped_import_keeps_nothing_or_all(where: str, tmp_path: Path, step: int) -> None:
    path, store = tmp_path / "c.jsonl", Store(where)
    words = [f"answer {i % 1100}" for i in range(ROWS)]  # the last hundred stand there twice
    path.write_text("".join(json.dumps({"prompt": "Hi?", "chosen": x, "rejected": ""}) + "\n" for x in words))
    import_comparisons(store, "first", path, judge="file")  # which makes the judge
    process, done = begun(where, "whole", path)
    process.join()
    assert isinstance(done, int)
    for last in (done, *range(done - 1, -1, -step)):
        process, said = begun(where, f"run-{last}", path, last)
        assert said == "there"
        assert process.pid is not None
        while process.is_alive():  # Python may lose a Ctrl-C that comes while C calls back; whoever pressed it does so again
            os.kill(process.pid, signal.SIGKILL if last % 2 else signal.SIGINT)
            process.join(5)
        assert process.exitcode != 0
        rows = ROWS if last == done else 0
        assert (len(store.keys(f"run-{last}", "train")), len(store.labels(f"run-{last}"))) == (rows, rows), "all or nothing is kept"
        import_comparisons(store, f"run-{last}", path, judge="file")
        found = store.answered(f"run-{last}").comparisons
        assert sorted((c.a if c.preference == 1 else c.b)[0].text or "" for c in found) == sorted(words)
    store.close()
