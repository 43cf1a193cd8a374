"""A copy of a store that is being written to."""

import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rather.core import Comparison, Label, Task, Trajectory
from rather.errors import StoreError
from rather.store import Store
from rather.store.backup import backup

WRITER = """
import sys
from rather.core import Label
from rather.store import Store
store = Store(sys.argv[1])
for turn in range(10**9):
    number = store.answer(Label(1 + turn % 1000, "ann", 1.0, f"because of {turn}", 1.5), f"token-{turn}")
    print(number, flush=True)
"""


def question(number: int) -> Comparison:
    task = Task("test", str(number), "Which?")
    a, b = ((Trajectory(task, "p@0", f"{side} {number} " * 200),) for side in ("one", "two"))
    return Comparison(a, b, key=f"q{number}")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """1,000 questions, some megabytes."""
    made = Store(str(tmp_path / "store.db"))
    made.add_judge("ann", "person")
    made.ask("r", [question(i) for i in range(1000)])
    yield made
    made.close()


@contextmanager
def writing(where: str, folder: Path) -> Iterator[Callable[[], int]]:
    """A process that answers all the time; yields what says which label was acknowledged last."""
    log = folder / "acknowledged"
    with log.open("w") as out, subprocess.Popen([sys.executable, "-c", WRITER, where], stdout=out) as process:

        def latest() -> int:
            lines = log.read_text().splitlines(keepends=True)
            return max((int(x) for x in lines if x.endswith("\n")), default=0)

        try:
            wait(latest, 20)
            yield latest
            assert process.poll() is None, "it writes still"
        finally:
            process.kill()


def wait(latest: Callable[[], int], number: int) -> None:
    end = time.monotonic() + 60
    while latest() < number:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_copy_holds_all_that_was_acknowledged_before_and_nothing_by_halves(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    percents: list[int] = []
    with writing(store.where, tmp_path) as latest:

        def advance(percent: int) -> None:
            if len(percents) < 5:  # the store changes between one piece and the next
                wait(latest, latest() + 3)
            percents.append(percent)

        before = latest()
        rows = backup(store.where, target, advance)
        after = latest()
    assert len(percents) >= 5
    assert sum(percents) == 100
    assert after >= before + 15
    copy = Store(str(target))
    copied, written = copy.history("r"), store.history("r")
    assert before <= len(copied) < after, "what came later is not in it"
    assert copied == written[: len(copied)]
    assert rows["label"] == len(copied)
    assert rows["comparison"] == len(copy.questions("r")) == 1000
    assert copy.answer(Label(7, "ann", 0.0)) == len(copied) + 1, "it is a store like any other"
    copy.close()


def test_the_command_copies_while_a_process_writes(store: Store, tmp_path: Path, rather: Callable[..., Any]) -> None:
    (tmp_path / "run.toml").write_text('[run]\nname = "r"\nstore = "store.db"\n')
    Path(store.where).chmod(0o600)
    with writing(store.where, tmp_path) as latest:
        before = latest()
        done = rather("backup", "run.toml", "copy.db")
    copy = Store(str(tmp_path / "copy.db"))
    count = len(copy.history("r"))
    copy.close()
    assert count >= before
    assert f"copy.db: 1000 questions, {count} answers, checked" in done.stdout
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600, "nobody may read it who could not read the store"
    again = rather("backup", "run.toml", "copy.db", code=2)
    assert "copy.db is there already" in again.stderr
    assert sorted(p.name for p in tmp_path.glob("copy*")) == ["copy.db"]


def refused(where: str, target: Path, reason: str) -> None:
    before = sorted(target.parent.iterdir()) if target.parent.exists() else []
    with pytest.raises(StoreError, match=reason) as error:
        backup(where, target)
    assert "\n" not in str(error.value)
    assert (sorted(target.parent.iterdir()) if target.parent.exists() else []) == before, "nothing is left behind"


def test_what_cannot_be_copied_is_refused(store: Store, tmp_path: Path) -> None:
    store.close()
    target = tmp_path / "there" / "copy.db"
    refused(store.where, target, "No such file or directory")
    target.parent.mkdir()
    refused(str(tmp_path / "none.db"), target, "there is no store")
    refused("postgresql+psycopg://ann:hunter2@db/r", target, r"pg_dump --format=custom --file .*copy.db 'postgresql://ann:\*\*\*@db/r'")
    (tmp_path / "text").write_text("no database " * 1000)
    refused(str(tmp_path / "text"), target, "not a database")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("create table x (y)")
    other.close()
    refused(str(tmp_path / "other.db"), target, "no store of rather's")
    bytes_ = bytearray(Path(store.where).read_bytes())
    bytes_[len(bytes_) // 2 : len(bytes_) // 2 + 40_000] = b"\xff" * 40_000
    (tmp_path / "damaged.db").write_bytes(bytes_)
    refused(str(tmp_path / "damaged.db"), target, "damaged")
    target.write_text("mine")
    refused(store.where, target, "is there already")
    assert target.read_text() == "mine"
