"""Comparisons from a file into the store, and from the store into a file."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rather.core import Comparison, Trajectory
from rather.data import hub
from rather.data.forms import read_comparisons
from rather.data.writers import write_rows
from rather.errors import DataError
from rather.store import Store, exports
from rather.store.imports import Imported, import_all

Advance = Callable[[int], object]


def import_comparisons(
    store: Store,
    run: str,
    path: str | Path,
    purpose: str = "train",
    judge: str = "",
    skipped: Counter[str] | None = None,
    advance: Advance = lambda rows: None,
) -> Imported:
    """Put a file's comparisons and their preferences into the store, all or none; what it has already is left as it is.

    With the purpose "gold" they become gold questions: people are asked them like any other, and what they say is held against the file.
    Rows that name no judge are answers of `judge`, or else of `file_judge(path)`. `skipped` counts rows that cannot be learned from, by
    reason; without it the first of them is an error. `advance` is called with numbers of rows.
    """
    return import_all(store, run, read_comparisons(path, skipped), purpose, judge or file_judge(path), advance)


def file_judge(path: str | Path) -> str:
    """Who answered in a file that names no judges: import:FILE, with its folders from the current one on, or all of them."""
    if hub.is_name(path):
        return f"import:{re.sub('^hf:/+', 'hf://', str(path))}"
    whole = Path(path).resolve()
    return f"import:{(whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole).as_posix()}"


def export(
    store: Store,
    run: str,
    path: Path,
    form: str = "all",
    advance: Advance = lambda rows: None,
    skipped: Counter[str] | None = None,
    criterion: str = "",
) -> int:
    """Write a run's answers to `path` (.jsonl, .csv or .parquet); returns the number of rows.

    `form` "all" is every row ever written, undone ones too, with both sides and where they come from. The others are of the
    training questions: "comparisons" is one row each with the mean preference of all judges and whether its answers came to an end, which
    `read_comparisons` reads; "trl" is prompt, chosen, rejected of the clear ones. With a `criterion` these two say which side is
    preferred on that one, not on the whole, where an answer says so. "unpaired" is of the answers that were shown alone, for TRL's KTO:
    prompt, completion, and as label whether most say that it is good. What these cannot hold is counted in `skipped`, by reason. They are
    read a thousand at a time, and `advance` is called with how many were.

    Raises:
        DataError: another form or format; a criterion that no answer says anything on, or with "all".
    """
    skipped = Counter() if skipped is None else skipped
    forms = {
        "all": lambda: _all_rows(store, run, advance),
        "comparisons": lambda: map(_comparison_row, _kept(store, run, "train", advance, _no_pair, skipped, criterion)),
        "trl": lambda: map(_trl_row, _kept(store, run, "train", advance, _not_clear, skipped, criterion)),
        "unpaired": lambda: map(_unpaired_row, _kept(store, run, "unpaired", advance, _not_most, skipped)),
    }
    if form not in forms:
        raise DataError(f"there is no form {form!r}; take one of {', '.join(forms)}")
    if criterion and form == "all":
        raise DataError("the form all has every criterion in its column criteria; leave the criterion out, or take comparisons or trl")
    if criterion and form == "unpaired":
        raise DataError("an answer alone is good or bad as a whole; leave the criterion out, or take comparisons or trl")
    if criterion and criterion not in (names := store.criteria(run)):
        raise DataError(f"no answer says anything on {criterion!r}; the criteria in the store are {', '.join(names) or 'none'}")
    return write_rows(path, forms[form]())


def _all_rows(store: Store, run: str, advance: Advance) -> Iterator[dict[str, Any]]:
    for page in exports.history(store, run):
        yield from page
        advance(len(page))


def _kept(
    store: Store, run: str, purpose: str, advance: Advance, unfit: Callable[[Comparison], str], skipped: Counter[str], criterion: str = ""
) -> Iterator[Comparison]:
    """The comparisons of a purpose; those for which `unfit` gives a reason are counted instead."""
    for page in exports.answered(store, run, purpose, criterion):
        for c in page:
            if reason := unfit(c):
                skipped[reason] += 1
            else:
                yield c
        advance(len(page))


def _no_pair(c: Comparison) -> str:
    """Why a comparison is not one of two texts; "" if it is."""
    if any(len(side) > 1 for side in c.sides):
        return "a side is several answers, which --form all alone can hold"
    return "a side is no text, which --form all alone can hold" if any(t.text is None for side in c.sides for t in side) else ""


def _not_clear(c: Comparison) -> str:
    return _no_pair(c) or ("neither answer is preferred, which --form comparisons can hold" if c.preference == 0.5 else "")


def _not_most(c: Comparison) -> str:
    return _no_pair(c) or ("as many say good as bad, which --form all alone can hold" if c.preference == 0.5 else "")


def _comparison_row(c: Comparison) -> dict[str, Any]:
    (a,), (b,) = c.sides
    ended = {"a_terminated": a.terminated, "b_terminated": b.terminated}
    return {"key": c.key, "prompt": a.task.prompt, "a": a.text, "b": b.text, **ended, "preference": c.preference}


def _trl_row(c: Comparison) -> dict[str, Any]:
    better = c if (c.preference or 0.0) > 0.5 else c.swapped()
    return {"prompt": better.a[0].task.prompt, "chosen": _said(better.a[0]), "rejected": _said(better.b[0])}


def _unpaired_row(c: Comparison) -> dict[str, Any]:
    return {"prompt": c.a[0].task.prompt, "completion": _said(c.a[0]), "label": (c.preference or 0.0) > 0.5}


def _said(answer: Trajectory) -> Any:
    """An answer as TRL has it: text, or a message where its prompt is messages."""
    return answer.text if isinstance(answer.task.prompt, str) else [{"role": "assistant", "content": answer.text}]
