"""Rows to JSONL, CSV and Parquet files, whole or not at all, without holding them all."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rather.data import cells
from rather.errors import DataError
from rather.store.counting import parts

if TYPE_CHECKING:
    from rather.data.columns import Columns

FORMATS = (".jsonl", ".csv", ".parquet")


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows, whole or not at all; returns their number. What is written is read back by `read_rows` as it was.

    They go to a JSONL file first; a CSV or Parquet file, whose columns are those of all rows, is made of that one.

    Raises:
        DataError: the name's ending is none of .jsonl, .csv and .parquet.
    """
    form = path.suffix.lower()
    if form not in FORMATS:
        raise DataError(f"{path} is none of {', '.join(FORMATS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines, whole = (path.with_name(f".{path.name}.{end}") for end in ("rows", "tmp"))
    names, columns, count, encode = dict[str, None](), None, 0, json.JSONEncoder(ensure_ascii=False).encode
    if form == ".parquet":
        from rather.data.columns import Columns  # here, since most processes do without the 30 MB of pyarrow

        columns = Columns()
    try:
        with lines.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(encode(row) + "\n")
                names |= dict.fromkeys(row)
                if columns is not None:
                    columns.look(row)
                count += 1
        if form == ".csv":
            _write_csv(whole, list(names), _read(lines))
        elif columns is not None:
            _write_parquet(whole, columns, _read(lines))
        (lines if form == ".jsonl" else whole).replace(path)
    finally:
        lines.unlink(missing_ok=True)
        whole.unlink(missing_ok=True)
    return count


def _read(lines: Path) -> Iterator[dict[str, Any]]:
    with lines.open(encoding="utf-8", newline="\n") as file:
        yield from map(json.loads, file)


def _write_csv(path: Path, names: list[str], rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, cells.MARK])
        writer.writerows([*(cells.cell(row.get(name)) for name in names), cells.VERSION] for row in rows)


def _write_parquet(path: Path, columns: "Columns", rows: Iterable[dict[str, Any]]) -> None:
    import pyarrow.parquet as pq

    from rather.data.columns import BATCH

    schema = columns.schema()
    with pq.ParquetWriter(path, schema) as writer:
        for some in parts(rows, BATCH):
            writer.write_table(columns.table(some, schema))
