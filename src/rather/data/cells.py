"""Cells of CSV files that rather writes: lists and nothing at all come back as they were, and no spreadsheet runs a formula.

Such a file has a column `rather_csv`, which says of each row that its cells are written so: text that begins like a formula, like a
list or with an apostrophe, and empty text, have an apostrophe in front; lists are JSON; an empty cell is nothing. Without that mark a
cell is the text that it is: an apostrophe in somebody's own file is theirs.
"""

import json
from typing import Any

from rather.errors import DataError

MARK = "rather_csv"
VERSION = "1"
ESCAPED = ("'", "=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20", "\t", "\r", "\n", "[", "{")
"""Beginnings of text that get an apostrophe: what spreadsheets run (also in full width), and what reads as something else."""


def cell(value: object) -> object:
    """What is written into a cell."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and (not value or value.startswith(ESCAPED)):
        return "'" + value
    return value


def row(found: dict[str, Any], place: str) -> dict[str, Any]:
    """A row as it was before it was written; one that rather has not written stays as it is.

    Raises:
        DataError: it was written by a newer version, or is marked and damaged.
    """
    mark = found.get(MARK, "")
    if not mark:
        return {name: value for name, value in found.items() if name != MARK}
    if mark != VERSION:
        raise DataError(f"{place} has {MARK} {mark!r}; this version of rather reads {VERSION}, or rows without it")
    return {name: _value(text, f"{place}: {name}") for name, text in found.items() if name != MARK}


def _value(text: str, place: str) -> Any:
    if text.startswith("'"):
        return text[1:]
    if text.startswith(("[", "{")):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as e:
            raise DataError(f"{place} is no JSON: {e}; put an apostrophe in front if it is text") from None
    return text or None
