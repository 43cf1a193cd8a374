"""Features on disk, so that an answer is read once by the language model: rows of float32 in one SQLite file."""

import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from rather.errors import StoreError
from rather.learners.head import Raw

WAIT_S = 60
"""Seconds to wait for another process that writes."""


class Cache:
    """Features of answers to prompts by the digest of their tokens, under the digest of the model that they are from.

    Several processes may read and write. What another base model has left in the file is never given out, since its digest is another.
    Without a `path` features are kept in memory alone.
    """

    def __init__(self, path: Path | None, base: str) -> None:
        self.path, self.base = path, base
        self.known: dict[bytes, Raw] = {}

    def get(self, keys: Sequence[bytes], shape: tuple[int, ...]) -> dict[bytes, Raw]:
        """The features that are there, by key.

        Raises:
            StoreError: the file cannot be read, or holds something else.
        """
        missing = [key for key in dict.fromkeys(keys) if key not in self.known]
        if missing and self.path is not None:
            with self._opened(self.path) as connection:
                for key in missing:
                    row = connection.execute("select value from features where base = ? and answer = ?", (self.base, key)).fetchone()
                    if row is not None and len(row[0]) != 4 * math.prod(shape):
                        raise StoreError(f"{self.path} holds features of another size than {shape}; delete it, and they are computed again")
                    if row is not None:
                        self.known[key] = np.frombuffer(row[0], "<f4").reshape(shape)
        return {key: self.known[key] for key in keys if key in self.known}

    def put(self, features: Mapping[bytes, Raw]) -> None:
        """Keep features by key.

        Raises:
            StoreError: the file cannot be written, or holds something else.
        """
        self.known |= features
        if features and self.path is not None:
            rows = [(self.base, key, value.astype("<f4").tobytes()) for key, value in features.items()]
            with self._opened(self.path) as connection, connection:
                connection.executemany("insert or ignore into features values (?, ?, ?)", rows)

    @contextmanager
    def _opened(self, path: Path) -> Iterator[sqlite3.Connection]:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(path, timeout=WAIT_S)) as connection:
                connection.execute(
                    "create table if not exists features (base text, answer blob, value blob, primary key (base, answer)) without rowid"
                )
                yield connection
        except (sqlite3.Error, OSError) as e:
            raise StoreError(f"the cache of features {path} cannot be used ({e}); delete it, and they are computed again") from None
