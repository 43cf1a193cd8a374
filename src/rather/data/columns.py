"""Columns of Parquet files: conversations as lists of messages, as TRL reads them.

A column has one type. What has no common one (plain prompts beside conversations, what tools are called with) is written as JSON, and
the field is marked, so that it comes back as it was.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rather.errors import DataError

BATCH = 1024
"""Rows that are held at once."""
MARK = {b"rather": b"json"}
"""What the metadata of a field says whose text is JSON."""


def read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a Parquet file, each with its place.

    Raises:
        DataError: it is none, or is damaged.
    """
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            fields = list(file.schema_arrow)
            names = [field.name for field in fields]
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise DataError(f"{path} has two columns {twice!r}; rename one")
            for batch in file.iter_batches(BATCH):
                values = [_values(batch.column(i), field) for i, field in enumerate(fields)]
                for row in zip(*values, strict=True):
                    number += 1
                    yield f"row {number} of {path}", dict(zip(names, row, strict=True))
    except (pa.ArrowException, OSError, ValueError, OverflowError) as e:
        raise DataError(f"{path} is no Parquet file that can be read (after row {number}): {e}") from None


def _values(array: pa.Array, field: pa.Field) -> list[Any]:
    if (field.metadata or {}).get(b"rather") == b"json":
        return [None if text is None else json.loads(text) for text in array.to_pylist()]
    marked = _marked(field.type)
    return [_present(value, marked) for value in array.to_pylist()]


def _marked(kind: pa.DataType) -> frozenset[str]:
    """Which fields of a list's messages are JSON."""
    if not (pa.types.is_list(kind) and pa.types.is_struct(kind.value_type)):
        return frozenset()
    members = [kind.value_type.field(i) for i in range(kind.value_type.num_fields)]
    return frozenset(x.name for x in members if (x.metadata or {}).get(b"rather") == b"json")


def _present(value: Any, marked: frozenset[str] = frozenset()) -> Any:
    """A value without the members that are only there because another row has them."""
    if isinstance(value, dict):
        found = {k: v for k, v in value.items() if v is not None}
        return {k: json.loads(v) if k in marked else _present(v) for k, v in found.items()}
    return [_present(item, marked) for item in value] if isinstance(value, list) else value


class Columns:
    """The type of each column, found by looking at every row; then tables of some rows."""

    def __init__(self) -> None:
        self.kinds: dict[str, set[str]] = {}
        self.members: dict[str, dict[str, bool]] = {}

    def look(self, row: dict[str, Any]) -> None:
        """Take notice of a row."""
        for name, value in row.items():
            self.kinds.setdefault(name, set())
            if value is not None:
                self.kinds[name].add(_kind(value))
                if _is_messages(value):
                    known = self.members.setdefault(name, {})
                    for message in value:
                        for key, item in message.items():
                            known[key] = known.get(key, False) or not isinstance(item, str)

    def schema(self) -> pa.Schema:
        """The columns, in the order of their first appearance."""
        return pa.schema([self._field(name, kinds) for name, kinds in self.kinds.items()])

    def _field(self, name: str, kinds: set[str]) -> pa.Field:
        if kinds in ({"empty", "texts"}, {"empty", "messages"}):
            kinds = kinds - {"empty"}
        if kinds == {"messages"}:
            members = [pa.field(k, pa.string(), metadata=MARK if json_ else None) for k, json_ in self.members[name].items()]
            return pa.field(name, pa.list_(pa.struct(members)))
        plain = {"text": pa.string(), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64()}
        lists = {"texts": pa.list_(pa.string()), "empty": pa.list_(pa.string())}
        if kinds == {"int", "float"}:
            return pa.field(name, pa.float64())
        if len(kinds) <= 1 and not kinds & {"other"}:
            return pa.field(name, (plain | lists)[next(iter(kinds), "text")])
        return pa.field(name, pa.string(), metadata=MARK)

    def table(self, rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
        """Some rows."""
        kept = list(rows)
        return pa.table({f.name: pa.array([_written(r.get(f.name), f) for r in kept], f.type) for f in schema}, schema=schema)


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -(2**53) <= value <= 2**53 else "other"  # beyond, it would not survive beside numbers with a point
    if isinstance(value, float):
        return "float"
    if value == []:
        return "empty"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "texts"
    return "messages" if _is_messages(value) else "other"


def _is_messages(value: Any) -> bool:
    """Whether it is a list of messages none of whose members is there and nothing, which a Parquet file could not say."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and {"role", "content"} <= set(m) and None not in m.values() for m in value)
    )


def _written(value: Any, field: pa.Field) -> Any:
    if value is None:
        return None
    if field.metadata:
        return json.dumps(value, ensure_ascii=False)
    marked = _marked(field.type)
    if not marked:
        return value
    return [{k: json.dumps(v, ensure_ascii=False) if k in marked else v for k, v in message.items()} for message in value]
