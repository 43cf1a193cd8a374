"""Opening a store: one SQLite file or a PostgreSQL database, brought to the newest layout.

SQLite: WAL, every commit on disk (synchronous=FULL), and writers that take the lock at once (BEGIN IMMEDIATE): with the
default, two writers can both read first and then lease the same question.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
from pydantic_core import from_json
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from rather.errors import StoreError

MIGRATIONS = Path(__file__).parent / "migrations"
TIMEOUT_S = 30


def address(where: str) -> str:
    """The database URL of a store: `where` as it is, or as the path of an SQLite file.

    One in a folder that cannot be written to is read as it lies there, with what its log holds where it was not closed.
    """
    if "://" in where:
        return where
    file = Path(where)
    if not file.is_file() or os.access(file.parent, os.W_OK):
        return f"sqlite:///{where}"
    log = file.with_name(f"{file.name}-wal")
    logged = log.exists() and log.stat().st_size > 0
    return f"sqlite:///file:{quote(str(file.resolve()))}?{'mode=ro' if logged else 'immutable=1'}&uri=true"


def connect(where: str) -> Engine:
    """Open the store at `where`, make it if it is not there, and bring its layout up to date.

    Raises:
        StoreError: it cannot be reached or opened, or a newer version of rather wrote it.
    """
    url = address(where)
    if url.startswith("sqlite:///") and "uri=true" not in url:
        folder = Path(url.removeprefix("sqlite:///")).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise StoreError(f"the folder {folder} of the store cannot be made: {e.strerror}") from None
    try:
        engine = sa.create_engine(url, json_deserializer=from_json)  # several times as fast as the standard library's
    except (ArgumentError, NoSuchModuleError, ImportError) as e:
        raise StoreError(f"{where!r} is no store: give a file, or postgresql+psycopg://user@host/name ({e})") from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    try:
        with plain_errors(where):
            _migrate(engine, where)
    except BaseException:
        engine.dispose()
        raise
    return engine


@contextmanager
def plain_errors(where: str) -> Iterator[None]:
    """Say in one sentence what the database would say in thirty lines."""
    try:
        yield
    except DBAPIError as e:
        reason = str(e.orig).strip().splitlines()[0]
        remedies = {
            "locked": "another program holds it; close that program or wait, then run this again",
            "full": "the disk is full; make room, then run this again: every answer so far is kept",
            "not a database": "the file is something else; give another path as run.store",
            "malformed": "the file is damaged; restore it from a copy",
            "readonly": "it may not be written; mend the permissions of the file and its folder",
        }
        remedy = next((r for word, r in remedies.items() if word in reason), None)
        if remedy is None and not isinstance(e, OperationalError):
            raise
        raise StoreError(f"the store {where} cannot be used: {reason}" + (f"; {remedy}" if remedy else "")) from e


def _prepare_sqlite(connection, _record) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={TIMEOUT_S * 1000}")
    _write_ahead(cursor)
    for pragma in ("synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    """Set the mode of the file; where another program sets it just now, SQLite fails at once, whatever its timeout."""
    until = time.monotonic() + TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as e:
            if e.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _migrate(engine: Engine, where: str) -> None:
    """Bring the layout to the newest revision; Alembic is imported only where there is something to do."""
    newest = sorted(path.stem.split("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))[-1]
    with engine.connect() as connection:
        present = sa.inspect(connection).has_table("alembic_version")
        found = connection.execute(sa.text("select version_num from alembic_version")).scalar() if present else None
    if found is not None and found > newest:
        raise StoreError(f"the store {where} has layout {found}, written by a newer rather (this one knows {newest}): upgrade")
    if found == newest:
        return
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.connect().execution_options(write=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":  # two programs may open a new store at once
            connection.execute(sa.text("select pg_advisory_xact_lock(7281)"))
        config.attributes["connection"] = connection
        last = _numbers_given(connection)
        command.upgrade(config, "head")
        for table, number in last.items():  # where a table was copied, those of erased rows would be given again
            connection.execute(sa.text("delete from sqlite_sequence where name = :table"), {"table": table})
            connection.execute(
                sa.text("insert into sqlite_sequence (name, seq) values (:table, :number)"), {"table": table, "number": number}
            )


def _numbers_given(connection: Connection) -> dict[str, int]:
    """The highest number that SQLite has given to a row of each table that gives none twice."""
    if connection.dialect.name != "sqlite" or not sa.inspect(connection).has_table("sqlite_sequence"):
        return {}
    return {r.name: r.seq for r in connection.execute(sa.text("select name, seq from sqlite_sequence"))}


def scrub(engine: Engine) -> None:
    """Leave nothing in the database's files of what has been deleted.

    SQLite overwrites what it deletes (`secure_delete`), but its log holds earlier pages until it is emptied. PostgreSQL writes the tables
    anew; its own log goes as the server recycles it.

    Raises:
        StoreError: somebody reads the store all the time, so that the log could not be emptied.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if engine.dialect.name == "postgresql":
            tables = "label criterion lease invitation judge audit probe standing asked written comparison side trajectory"
            for table in tables.split():
                connection.exec_driver_sql(f"VACUUM FULL {table}")
            return
        driver = connection.connection.driver_connection
        assert driver is not None
        end = time.monotonic() + TIMEOUT_S
        while driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            if time.monotonic() > end:
                raise StoreError("what was erased is gone, but still stands in the store's log; stop the programs that use the store")
            time.sleep(0.05)


def now() -> float:
    """Seconds since 1970."""
    return time.time()
