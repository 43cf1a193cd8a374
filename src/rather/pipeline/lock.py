"""One command at a time in a run's folder: a lock that says who holds it, and that the system frees when its owner dies.

It is `flock` on the file `lock`. On NFS it holds between machines, too, where the server locks (Linux since 2.6.12; not with the mount
option `nolock`). A folder that cannot be written to needs no lock: nobody changes anything there.
"""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from rather.errors import BusyError
from rather.scale import ranks


class InFolder(Protocol):
    """What works in a run's folder."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        ...


S = TypeVar("S", bound=InFolder)
P = ParamSpec("P")
R = TypeVar("R")

_held: set[Path] = set()


@contextmanager
def alone(folder: Path) -> Generator[None]:
    """Hold the lock of a run's folder; what this process holds already it may have again.

    Raises:
        BusyError: another command holds it.
    """
    path = folder.resolve() / "lock"
    if path in _held or ranks.rank():
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as e:
        if e.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{_owner(path)} is at work in {folder}; wait until it has ended, or use another run.name") from None
        file.truncate(0)
        words = " ".join(["rather", *sys.argv[1:2]])
        file.write(json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": time.time(), "command": words}))
        file.flush()
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)


def exclusive(phase: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """A phase of a run that nobody else may be in at the same time."""

    @wraps(phase)
    def locked(run: S, *given: P.args, **named: P.kwargs) -> R:
        with alone(run.folder):
            return phase(run, *given, **named)

    return locked


def _owner(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        since = datetime.fromtimestamp(holder["since"]).isoformat(" ", "seconds")
        return f"`{holder['command']}` (process {holder['process']} on {holder['host']}, since {since})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another command"
