import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rather.core import Comparison, Label, Task, Trajectory
from rather.data.forms import read_comparisons
from rather.data.readers import read_rows
from rather.data.transfer import export, import_comparisons
from rather.errors import DataError
from rather.store import Store

USER = [{"role": "user", "content": "Hi?"}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path / "store.db"))
    rows = [{"prompt": USER, "chosen": said(f"good {i}"), "rejected": said("=bad")} for i in range(3)]
    assert import_comparisons(made, "run", jsonl(tmp_path / "c.jsonl", *rows)).questions == 3
    assert import_comparisons(made, "run", tmp_path / "c.jsonl").unchanged == 3
    return made


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_what_is_exported_can_be_imported(store: Store, tmp_path: Path, form: str) -> None:
    assert export(store, "run", tmp_path / f"trl.{form}", "trl") == 3
    assert export(store, "run", tmp_path / "own.jsonl", "comparisons") == 3
    if form == "jsonl":
        for name in ("trl.jsonl", "own.jsonl"):
            found = read_comparisons(tmp_path / name)
            assert sorted((c.a if c.preference == 1 else c.b)[0].text or "" for c in found) == ["good 0", "good 1", "good 2"]
    else:
        assert pq.read_table(tmp_path / "trl.parquet").column_names == ["prompt", "chosen", "rejected"]


def test_what_is_exported_to_train_on_is_what_is_trained_on(store: Store, tmp_path: Path) -> None:
    """No known answer, and nothing that an evaluation asked of the prompts that are held out."""
    asked = [{"prompt": f"held out {i}?", "chosen": "yes", "rejected": "no"} for i in range(2)]
    import_comparisons(store, "run", jsonl(tmp_path / "gold.jsonl", asked[0]), "gold")
    import_comparisons(store, "run", jsonl(tmp_path / "eval.jsonl", asked[1]), "eval-12345678")
    for form in ("comparisons", "trl"):
        assert export(store, "run", tmp_path / "x.jsonl", form) == 3
        assert "held out" not in (tmp_path / "x.jsonl").read_text()
    export(store, "run", tmp_path / "all.jsonl")
    assert "held out 1?" in (tmp_path / "all.jsonl").read_text()


def test_everything_is_exported_with_its_provenance(store: Store, tmp_path: Path) -> None:
    store.add_judge("ann", "person")
    store.answer(Label(1, "ann", 0.5))
    store.undo("run", "ann")
    assert export(store, "run", tmp_path / "all.jsonl") == 5
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [r["kind"] for r in rows] == ["answer"] * 4 + ["undo"]
    assert rows[0]["a_policy"] == ["import:c.jsonl"]
    assert rows[0]["judge"] == f"import:{tmp_path.resolve()}/c.jsonl"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_questions_of_two_and_of_four_sides_are_exported_together(store: Store, tmp_path: Path, kind: str) -> None:
    sides = [(Trajectory(Task("f", "k", "prompt"), "p", word),) for word in ("one", "two", "three", "four")]
    (number,) = store.ask("run", [Comparison(sides[0], sides[1], key="four", others=(sides[2], sides[3]))])
    store.add_judge("picks", "simulated")
    store.answer(Label(number, "picks", 0.0, best=3))
    count = export(store, "run", tmp_path / f"all.{kind}")
    rows = [row for _, row in read_rows(tmp_path / f"all.{kind}")]
    assert len(rows) == count > 1
    assert (int(rows[-1]["best"]), "four" in str(rows[-1]["d_text"])) == (3, True)
    assert export(store, "run", tmp_path / f"pairs.{kind}", "trl") >= 3


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_what_was_said_on_criteria_comes_back_from_every_format(store: Store, tmp_path: Path, kind: str) -> None:
    one, two, three = (q.id for q in store.questions("run"))
    store.add_judge("ann", "person")
    said = [{"helpful": 1.0, "=honest, '": 0.25}, {"[]": 0.5}, {}]
    for number, criteria in zip((one, two, three), said, strict=True):
        store.answer(Label(number, "ann", 0.0, criteria=criteria))
    export(store, "run", tmp_path / f"all.{kind}")
    rows = [row for _, row in read_rows(tmp_path / f"all.{kind}")]
    assert [r["criteria"] for r in rows if r["judge"] == "ann"] == said
    export(store, "run", tmp_path / f"some.{kind}", "comparisons", criterion="=honest, '")
    ((_, row),) = read_rows(tmp_path / f"some.{kind}")
    assert float(row["preference"]) == 0.25
    (found,) = read_comparisons(tmp_path / f"some.{kind}")
    assert found.preference == 0.25, "it can be imported and learned from as any other"
    assert export(store, "run", tmp_path / f"trl.{kind}", "trl", criterion="helpful") == 1


def test_a_criterion_that_a_form_cannot_say_is_refused(store: Store, tmp_path: Path) -> None:
    for form, sentence in (("all", "has every criterion in its column criteria"), ("trl", "no answer says anything on 'x'; .* are none")):
        with pytest.raises(DataError, match=sentence):
            export(store, "run", tmp_path / "x.jsonl", form, criterion="x")
    assert not (tmp_path / "x.jsonl").exists()


def test_what_a_form_cannot_hold_is_left_out_and_counted(store: Store, tmp_path: Path) -> None:
    answers = [Trajectory(Task("f", "k", "prompt"), "p", word) for word in ("one", "two", "three", "four")]
    clips = [Trajectory(Task("env", "seed", None), "p", None, rewards=np.ones(2)) for _ in range(2)]
    asked = [Comparison((answers[0], answers[1]), (answers[2], answers[3]), key="sets"), Comparison(*((x,) for x in clips), key="clips")]
    asked += [Comparison((answers[0],), (answers[1],), key="tie"), Comparison((answers[0],), (answers[2],), key="clear")]
    numbers = store.ask("run", asked)
    store.add_judge("ann", "person")
    store.answer_all([Label(n, "ann", 0.5 if c.key == "tie" else 1.0) for n, c in zip(numbers, asked, strict=True)])
    neither = {
        "a side is several answers, which --form all alone can hold": 1,
        "a side is no text, which --form all alone can hold": 1,
    }
    tie = {"neither answer is preferred, which --form comparisons can hold": 1}
    for form, count, left in (("all", 7, {}), ("comparisons", 5, neither), ("trl", 4, neither | tie)):
        skipped = Counter[str]()
        assert export(store, "run", tmp_path / f"{form}.jsonl", form, skipped=skipped) == count, form
        assert skipped == left
    assert len([*read_comparisons(tmp_path / "comparisons.jsonl")]) == 5, "all of it can be read"


def test_formulas_are_escaped_in_csv(store: Store, tmp_path: Path) -> None:
    export(store, "run", tmp_path / "c.csv", "comparisons")
    with (tmp_path / "c.csv").open(newline="") as file:
        cells = [cell for row in csv.DictReader(file) for cell in (row["a"], row["b"])]
    assert "'=bad" in cells
    assert not any(cell.startswith("=") for cell in cells)


def test_an_unknown_form(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="take one of all, comparisons, trl, unpaired"):
        export(store, "run", tmp_path / "x.jsonl", "nonsense")
