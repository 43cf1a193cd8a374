"""Rows of JSONL, CSV and Parquet files, with the places where they stand."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rather.errors import DataError

FORMATS = (".jsonl", ".csv", ".parquet")
BATCH = 1024
"""Rows of a Parquet file that are held at once."""


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file with their line numbers (Parquet: row numbers), from 1.

    Raises:
        DataError: the file is missing, empty, of another format, or a line is broken; the message names the line.
    """
    if path.suffix not in FORMATS:
        raise DataError(f"{path} is none of {', '.join(FORMATS)}")
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    read = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}[path.suffix]
    empty = True
    for number, row in read(path):
        empty = False
        yield number, row
    if empty:
        raise DataError(f"{path} is empty")


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode())
            except (ValueError, UnicodeDecodeError) as e:
                raise DataError(f"line {number} of {path} is no JSON: {e}") from None
            if not isinstance(row, dict):
                raise DataError(f'line {number} of {path} is {type(row).__name__}, not an object like {{"prompt": ...}}')
            yield number, row


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"line {reader.line_num} of {path} has not as many cells as the heading")
                yield reader.line_num, row
        except (csv.Error, UnicodeDecodeError) as e:
            raise DataError(f"line {reader.line_num + 1} of {path} is no CSV: {e}") from None


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{path} is no Parquet file that can be read: {e}") from None
