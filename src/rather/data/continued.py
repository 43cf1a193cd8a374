"""Files that are made row by row, for hours perhaps: what is done is kept, and the same command goes on from there."""

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rather.data.readers import Row
from rather.data.writers import FORMATS, write_rows
from rather.errors import DataError

Work = Callable[[Sequence[tuple[int, Row]]], list[list[Row]]]
"""Makes of some rows, with their numbers, the rows that each becomes."""


def write(
    target: Path,
    about: object,
    rows: Sequence[Row],
    work: Work,
    size: int,
    advance: Callable[[int], None],
    made: Callable[[Row], None] | None = None,
) -> int:
    """Write what `work` makes of `rows`, `size` at a time, to a new file; returns how many rows that are.

    What is done stands in a hidden file beside it until all of it is. It is taken up again if rows and `about`, the settings that matter,
    are the same. `advance` gets how many rows are done since the last call, and `made` at the end each row that was made, then or before.

    Raises:
        DataError: the file is there already, has a name that says no format, was begun with other rows or settings, or is being written.
    """
    check(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    digest = hashlib.sha256(json.dumps([about, rows]).encode()).hexdigest()
    with part.open("a", encoding="utf-8", newline="\n") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another command writes {target}; wait until it has ended, or name another file") from None
        done = _begin(part, digest)
        advance(done)
        for start in range(done, len(rows), size):
            some = [(i, rows[i]) for i in range(start, min(start + size, len(rows)))]
            file.writelines(json.dumps(each) + "\n" for each in work(some))
            file.flush()
            advance(len(some))
        count = write_rows(target, (row for each in _lines(part) for row in each))
        if made is not None:
            for row in (row for each in _lines(part) for row in each):
                made(row)
        part.unlink()
    return count


def check(target: Path) -> None:
    """Make sure that a file can be made.

    Raises:
        DataError: it is there already, or has a name that says no format.
    """
    if target.exists():
        raise DataError(f"{target} is there already; name another file, or delete it")
    if target.suffix.lower() not in FORMATS:
        raise DataError(f"{target} is none of {', '.join(FORMATS)}")


def _begin(part: Path, digest: str) -> int:
    """How many rows are done; a line that was cut off is taken out."""
    if not part.stat().st_size:
        part.write_text(json.dumps(digest) + "\n", encoding="utf-8")
        return 0
    whole, _, cut = part.read_bytes().rpartition(b"\n")
    if cut:
        part.write_bytes(whole + b"\n")
    first, *done = whole.split(b"\n")
    if not done and first != json.dumps(digest).encode():  # nothing is lost
        part.write_text(json.dumps(digest) + "\n", encoding="utf-8")
        return 0
    if first != json.dumps(digest).encode():
        raise DataError(f"{part} was begun with other rows or settings; delete it to start over, or set them back to go on")
    return len(done)


def _lines(part: Path) -> Iterator[list[Row]]:
    with part.open(encoding="utf-8", newline="\n") as file:
        next(file)
        yield from map(json.loads, file)
