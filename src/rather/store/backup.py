"""A copy of a store that is in use: what was committed when the copy began, all of it and nothing else."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from rather.errors import StoreError
from rather.store import engine as opening

PAGES = 256


def backup(where: str, target: Path, advance: Callable[[int], None] = lambda _: None) -> dict[str, int]:
    """Copy the SQLite store at `where` to a new file, which is there only once it is whole and checked; returns the rows of each table.

    Others may read and write meanwhile: the copy reads in one transaction, which in WAL mode hinders nobody. `advance` gets how
    many percent more there are, again and again.

    Raises:
        StoreError: it is no SQLite store, the target is there already, or the copy is not what was copied.
    """
    if "://" in where:
        url = sa.make_url(where).set(drivername="postgresql").render_as_string(hide_password=True)
        raise StoreError(f"PostgreSQL copies its own databases while they are used: pg_dump --format=custom --file {target} '{url}'")
    if not Path(where).is_file():
        raise StoreError(f"there is no store {where}")
    if target.exists():
        raise StoreError(f"{target} is there already, and a copy overwrites nothing; give another file")
    part = target.with_name(f"{target.name}.part")
    engine = sa.create_engine(opening.address(where))
    try:
        with opening.plain_errors(where), engine.connect() as connection:
            source = connection.connection.driver_connection
            assert isinstance(source, sqlite3.Connection)
            source.isolation_level = None
            rows = _copy(source, part, where, advance)
        shutil.copymode(where, part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        if target.exists():
            raise StoreError(f"somebody else has just made {target}; give another file")
        part.rename(target)
        folder = os.open(target.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except (OSError, sqlite3.Error) as e:
        raise StoreError(f"the store {where} cannot be copied to {target}: {getattr(e, 'strerror', None) or e}") from e
    finally:
        engine.dispose()
        for name in (part, *(part.with_name(part.name + end) for end in ("-wal", "-shm", "-journal"))):
            name.unlink(missing_ok=True)
    return rows


def _copy(source: sqlite3.Connection, part: Path, where: str, advance: Callable[[int], None]) -> dict[str, int]:
    part.unlink(missing_ok=True)  # of a copy that was killed
    os.close(os.open(part, os.O_CREAT | os.O_EXCL, 0o600))
    done = 0

    def copied(_: int, remaining: int, total: int) -> None:
        nonlocal done
        percent = 100 * (total - remaining) // total
        advance(percent - done)
        done = percent

    source.execute("begin")
    rows = _rows(source)  # the transaction begins with its first read
    if "alembic_version" not in rows:
        raise StoreError(f"{where} is no store of rather's")
    copy = sqlite3.connect(part, isolation_level=None)
    try:
        source.backup(copy, pages=PAGES, progress=copied)
        found = [r[0] for r in copy.execute("pragma integrity_check")] + [str(r) for r in copy.execute("pragma foreign_key_check")]
        if found != ["ok"]:
            raise StoreError(f"the store {where} is damaged, and so would its copy be: {found[0]}; restore it from an older copy")
        if _rows(copy) != rows:
            raise StoreError(f"the copy of {where} has not the same rows; try again")
    finally:
        copy.close()
        source.execute("rollback")
    return rows


def _rows(connection: sqlite3.Connection) -> dict[str, int]:
    names = [r[0] for r in connection.execute("select name from sqlite_master where type = 'table' order by name")]
    return {name: connection.execute(f'select count(*) from "{name}"').fetchone()[0] for name in names}
