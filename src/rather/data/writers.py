"""Rows to JSONL, CSV and Parquet files, whole or not at all."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rather.data.readers import FORMATS
from rather.errors import DataError


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows, whole or not at all. In CSV a cell that a spreadsheet would run as a formula is escaped."""
    if path.suffix not in FORMATS:
        raise DataError(f"{path} is none of {', '.join(FORMATS)}")
    kept = list(rows)
    names = list(dict.fromkeys(name for row in kept for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    if path.suffix == ".jsonl":
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([{k: _cell(row.get(k)) for k in names} for row in kept]), temporary)
    else:
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows({k: _inert(_cell(v)) for k, v in row.items()} for row in kept)
    temporary.replace(path)
    return len(kept)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _inert(value: Any) -> Any:
    return "'" + value if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
