"""One answer alone, good or bad: out to a file as TRL's KTO reads it, and in again."""

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rather.core import Comparison, Label, Message, Task, Trajectory
from rather.data.forms import read_comparisons
from rather.data.readers import read_rows
from rather.data.transfer import export, import_comparisons
from rather.errors import DataError
from rather.store import Store

CHAT: list[Message] = [{"role": "user", "content": "Say so."}]


def alone(key: str, prompt: Any = "Say it.") -> Comparison:
    return Comparison((Trajectory(Task("f", key, prompt), "p", f"answer {key}"),), (), key=key)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path / "store.db"))
    one, two, three, four = made.ask("r", [alone("1"), alone("2", CHAT), alone("3"), alone("4")], "unpaired")
    for name in ("ann", "ben", "cat"):
        made.add_judge(name, "person")
    said = {one: (1.0, 1.0, 0.0), two: (0.0,), three: (1.0, 0.0), four: (None,)}
    for number, answers in said.items():
        for name, p in zip(("ann", "ben", "cat"), answers, strict=False):
            made.answer(Label(number, name, p, shown="a"))
    return made


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_row_a_question_says_what_most_say_and_ties_are_counted(store: Store, tmp_path: Path, ending: str) -> None:
    file, skipped = tmp_path / f"unpaired.{ending}", Counter[str]()
    assert export(store, "r", file, "unpaired", skipped=skipped) == 2
    assert skipped == {"as many say good as bad, which --form all alone can hold": 1}
    yes, no = ("True", "False") if ending == "csv" else (True, False)
    assert [row for _, row in read_rows(file)] == [
        {"prompt": "Say it.", "completion": "answer 1", "label": yes},
        {"prompt": CHAT, "completion": [{"role": "assistant", "content": "answer 2"}], "label": no},
    ]
    assert export(store, "r", tmp_path / "all.jsonl") == 7
    assert vars(import_comparisons(store, "again", file)) == {"questions": 2, "answers": 0, "changed": 0, "unchanged": 0}
    assert vars(import_comparisons(store, "again", file))["unchanged"] == 2
    found = store.answered("again", "unpaired").comparisons
    assert [(c.a[0].task.prompt, c.a[0].text, c.b, c.preference) for c in found] == [
        ("Say it.", "answer 1", (), 1.0),
        (CHAT, "answer 2", (), 0.0),
    ]
    assert {(q.purpose, q.comparison.key[:7]) for q in store.questions("again")} == {("unpaired", "import/")}
    assert {x.shown for x in store.labels("again")} == {"a"}


def test_trl_reads_it(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "unpaired.jsonl"
    export(store, "r", file, "unpaired")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    if importlib.util.find_spec("trl") is None:
        for row in rows:  # trl's "unpaired preference" format, standard or conversational
            assert list(row) == ["prompt", "completion", "label"]
            assert isinstance(row["label"], bool)
            assert type(row["prompt"]) is type(row["completion"])
        return
    from trl.data_utils import is_conversational  # type: ignore[import-not-found]

    assert [is_conversational(row) for row in rows] == [False, True]


def test_a_file_may_hold_pairs_too(tmp_path: Path) -> None:
    store, file = Store(str(tmp_path / "store.db")), tmp_path / "both.jsonl"
    rows = [
        {"prompt": "p", "completion": "x", "label": True, "judge": "ann"},
        {"prompt": "p", "chosen": "y", "rejected": "z"},
        {"prompt": "p", "completion": "x", "label": False, "judge": "ben"},
    ]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert vars(import_comparisons(store, "r", file)) == {"questions": 2, "answers": 1, "changed": 0, "unchanged": 0}
    assert sorted(q.purpose for q in store.questions("r")) == ["train", "unpaired"]
    assert [c.preference for c in store.answered("r", "unpaired").comparisons] == [0.5]
    assert len(store.answered("r", "train").comparisons) == 1
    with pytest.raises(DataError, match="stand alone"):
        import_comparisons(store, "r", file, "gold")


@pytest.mark.parametrize("label", ["yes", 1, "", 0.5])
def test_a_label_that_is_neither_is_refused(tmp_path: Path, label: Any) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps({"prompt": "p", "completion": "x", "label": label}) + "\n")
    with pytest.raises(DataError, match="write true where the completion is good"):
        list(read_comparisons(file))
