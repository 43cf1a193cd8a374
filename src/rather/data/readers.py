"""Rows of JSON, CSV and Parquet files, one by one, with the places where they stand.

Strangers' bytes come in here: what is not UTF-8, broken, or cannot be stored is refused with its place.
"""

import codecs
import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from rather.data import cells, hub
from rather.errors import DataError

READABLE = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
CHUNK = 2**20
"""Bytes of a JSON array that are read at once."""
WHITESPACE = re.compile(r"[ \t\n\r]*")

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]
"""Rows, each with its place: "line 3 of train.jsonl"."""


def read_rows(source: str | Path) -> Rows:
    """The rows of a file, or of a data set on the hub (`hf://datasets/ORG/NAME?split=train`).

    Raises:
        DataError: the file is missing, empty, of another format or encoding; a line is broken, or holds what no database can keep.
    """
    empty = True
    for path in hub.files(str(source)) if hub.is_name(source) else [Path(source)]:
        for place, row in _read(path):
            empty = False
            _check(row, place)
            yield place, row
    if empty:
        raise DataError(f"{source} is empty")


def format_of(path: Path) -> str:
    """The format that a file's name tells: its ending in lower case, without .gz."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _read(path: Path) -> Rows:
    form = format_of(path)
    if form not in READABLE or (form == ".parquet" and path.suffix.lower() == ".gz"):
        raise DataError(f"{path} is none of {', '.join(READABLE)}, with or without .gz")
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if form == ".parquet":
        from rather.data import columns  # here, since most processes do without the 30 MB of pyarrow

        yield from columns.read_parquet(path)
        return
    with _opened(path) as file:
        if form in (".csv", ".tsv"):
            yield from _read_csv(file, path, "\t" if form == ".tsv" else None)
        elif form == ".json" and _first_character(file) == b"[":
            yield from _read_array(file, path)
        else:
            yield from _read_lines(file, path)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, uncompressed and without a byte order mark."""
    compressed = path.suffix.lower() == ".gz"
    try:
        with path.open("rb") as raw:
            file = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if compressed else raw  # type: ignore[arg-type]
            start = file.peek(4)[:4]  # type: ignore[union-attr]
            if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start[:2]:
                bits = 32 if b"\0\0" in start else 16
                again = f"iconv -f utf-{bits} -t utf-8 {path.name} > utf8{path.suffix}"
                raise DataError(f"{path} is UTF-{bits}; write it as UTF-8: {again}")
            if start.startswith(b"\xef\xbb\xbf"):
                file.read(3)
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise DataError(f"{path} is no gzip file that can be read: {e}") from None


def _decoded(line: bytes, place: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as e:
        raise _no_utf8(place, e) from None


def _no_utf8(place: str, e: UnicodeDecodeError) -> DataError:
    remedy = "if the file is Latin-1, write it anew: iconv -f latin1 -t utf-8 OLD > NEW"
    return DataError(f"{place} is not UTF-8: it holds the byte 0x{e.object[e.start]:02x}; {remedy}")


def _check(value: Any, place: str, name: str = "") -> None:
    """Refuse text that breaks later: half of a surrogate pair cannot be written as UTF-8, and PostgreSQL keeps no NUL."""
    if isinstance(value, str):
        if "\0" in value:
            raise DataError(f"{place}: {name or 'the row'} holds a NUL character, which databases do not keep; take it out")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as e:
                half = f"\\u{ord(value[e.start]):04x}"
                raise DataError(f"{place}: {name or 'the row'} holds {half}, one half of a character; take it out or write both") from None
    elif isinstance(value, dict):
        for key, item in value.items():
            _check(key, place)
            _check(item, place, name or repr(key))
    elif isinstance(value, list):
        for item in value:
            _check(item, place, name)


class _TwiceError(Exception):
    """A name stands twice in one object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two values of one name Python would take the last, and say nothing."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise _TwiceError(f"has {twice!r} twice; leave one of them out")
    return found


def _read_lines(file: BinaryIO, path: Path) -> Rows:
    for number, line in enumerate(file, 1):
        place = f"line {number} of {path}"
        if line.strip():
            try:
                row = json.loads(_decoded(line, place), object_pairs_hook=_object)
            except _TwiceError as e:
                raise DataError(f"{place} {e}") from None
            except (ValueError, RecursionError) as e:
                raise DataError(f"{place} is no JSON: {e}") from None
            if not isinstance(row, dict):
                raise DataError(f'{place} is {type(row).__name__}, not an object like {{"prompt": ...}}')
            yield place, row


def _first_character(file: BinaryIO) -> bytes:
    return file.peek(64).lstrip()[:1]  # type: ignore[attr-defined]


def _read_array(file: BinaryIO, path: Path) -> Rows:
    """The objects of one JSON array, of which little more than one is held at once."""
    window, number, after = _Window(file, path), 0, "["
    window.take()
    while window.peek() != "]" or after == ",":
        if not after:
            raise DataError(f"item {number} of {path} is followed by {window.peek()!r}; there should be a comma, or ] at the end")
        number += 1
        place = f"item {number} of {path}"
        if window.peek() != "{":
            raise DataError(f'{place} begins with {window.peek()!r}; there should be an object like {{"prompt": ...}}')
        yield place, window.value(place)
        after = window.take() if window.peek() == "," else ""
    window.take()
    if window.peek():
        raise DataError(f"{path} goes on after its array with {window.peek()!r}; there should be one array, or one object a line")


class _Window:
    """The part of a JSON text that is held, and the place in it."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file = file
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.path = path
        self.held = ""
        self.at = 0

    def more(self) -> bool:
        """Hold more of the text, as much again as what is left; False at its end."""
        self.held, self.at = self.held[self.at :], 0
        data = self.file.read(max(CHUNK, len(self.held)))
        try:
            self.held += self.decoder.decode(data, final=not data)
        except UnicodeDecodeError as e:
            raise _no_utf8(str(self.path), e) from None
        return bool(data)

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            self.at = WHITESPACE.match(self.held, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.held):
                return self.held[self.at]
            if not self.more():
                return ""

    def take(self) -> str:
        """The next character that is no space, and move behind it."""
        character = self.peek()
        self.at += 1
        return character

    def value(self, place: str) -> Row:
        """The next object, and move behind it."""
        while True:
            try:
                value, self.at = json.JSONDecoder(object_pairs_hook=_object).raw_decode(self.held, self.at)
            except _TwiceError as e:
                raise DataError(f"{place} {e}") from None
            except (ValueError, RecursionError) as e:
                if isinstance(e, RecursionError) or not self.more():
                    raise DataError(f"{place} is no JSON: {e}") from None
            else:
                return value


def _read_csv(file: BinaryIO, path: Path, delimiter: str | None) -> Rows:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    lines = (_decoded(line, f"line {number} of {path}") for number, line in enumerate(file, 1))
    first = next(lines, "")
    place = f"line 1 of {path}"
    try:
        reader = csv.reader(chain([first], lines), delimiter=delimiter or _delimiter(first), strict=True)
        names = next(reader, [])
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise DataError(f"{path} has two columns {twice!r}; rename one")
        place = f"line {reader.line_num + 1} of {path}"
        for values in reader:
            if any(values):  # spreadsheets write cells of empty rows, too
                if len(values) != len(names):
                    raise DataError(f"{place} has {len(values)} cells, not as many as the heading, which is {names!r:.200}")
                yield place, cells.row(dict(zip(names, values, strict=True)), place)
            place = f"line {reader.line_num + 1} of {path}"
    except csv.Error as e:
        raise DataError(f"{place} is no CSV: {e}") from None


def _delimiter(heading: str) -> str:
    """What divides the cells: of comma, semicolon and tab the one that makes the most columns of the heading."""
    return max(",;\t", key=lambda delimiter: len(next(csv.reader([heading], delimiter=delimiter), [])))
