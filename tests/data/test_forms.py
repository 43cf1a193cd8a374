import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rather.data.forms import read_comparisons, read_tasks
from rather.errors import DataError, RatherWarning

USER = [{"role": "user", "content": "Hi?"}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_the_prompts_that_come_with_rather() -> None:
    train, held_out = read_tasks("package")
    assert (len(train), len(held_out)) == (200, 60)
    assert len({t.prompt for t in train + held_out}) == 260


def test_prompt_files_of_every_format(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}", "key": f"k{i}", "answer": str(i)} for i in range(40)]
    jsonl(tmp_path / "p.jsonl", *rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    with (tmp_path / "p.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    found = [read_tasks(str(tmp_path / f"p.{form}")) for form in ("jsonl", "parquet", "csv")]
    for train, held_out in found:
        assert {t.prompt for t in train + held_out} == {r["prompt"] for r in rows}
        assert 3 <= len(held_out) <= 15
        assert [(t.key, t.answer, t.prompt) for t in held_out] == [(t.key, t.answer, t.prompt) for t in found[0][1]]


def test_conversational_prompts_and_other_columns(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", {"q": USER}, {"q": "plain"})
    train, _ = read_tasks(str(path), column="q", held_out=0.0)
    assert [t.prompt for t in train] == [USER, "plain"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"prompt": "a"}\n{"prompt": \n', "line 2 of .* is no JSON"),
        ('{"prompt": "a"}\n\n[1]\n', "line 3 of .* is list"),
        ('{"text": "a"}\n', "line 1 of .* has no 'prompt', only 'text'; set data.column"),
        ('{"prompt": " "}\n', "line 1 of .* neither text nor a list of messages"),
        ('{"prompt": [{"role": "user"}]}\n', "line 1 of .*: prompt has a message of the role 'user' whose content is None"),
        ('{"prompt": "a", "answer": NaN}\n', "line 1 of .*: the answer nan is neither text nor a number"),
        ('{"prompt": "a", "answer": ["4", "four"]}\n', r"line 1 of .*: the answer \['4', 'four'\] is neither text nor a number"),
        ('{"prompt": "a", "key": {}}\n', "line 1 of .*: the key {} is neither"),
        ('{"prompt": "a", "split": "test"}\n', "line 1 of .* has split 'test'"),
        ('{"prompt": "a", "split": "held_out"}\n', "no prompt to train on"),
    ],
)
def test_broken_prompt_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_tasks(str(tmp_path / "p.jsonl"))


def test_other_broken_files(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,answer\na,1\nb\n")
    with pytest.raises(DataError, match="line 3 of .* has 1 cells, not as many as the heading"):
        read_tasks(str(tmp_path / "p.csv"))
    (tmp_path / "p.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="no Parquet file"):
        read_tasks(str(tmp_path / "p.parquet"))
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match="line 1 of .* is not UTF-8: it holds the byte 0xff"):
        read_tasks(str(tmp_path / "p.jsonl"))
    with pytest.raises(DataError, match=r"none of .jsonl, .ndjson, .json, .csv, .tsv, .parquet"):
        read_tasks(str(tmp_path / "p.txt"))
    with pytest.raises(DataError, match="there is no file"):
        read_tasks(str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Hi?", "chosen": "good", "rejected": "bad"}, "Hi?"),
        ({"prompt": USER, "chosen": said("good"), "rejected": said("bad")}, USER),
        ({"chosen": USER + said("good"), "rejected": USER + said("bad")}, USER),
        ({"prompt": "Hi?", "a": "good", "b": "bad", "preference": 1}, "Hi?"),
        ({"prompt": "Hi?", "a": "bad", "b": "good", "preference": 0.0}, "Hi?"),
    ],
)
def test_comparisons_of_every_form(tmp_path: Path, row: dict[str, Any], prompt: Any) -> None:
    (found,) = read_comparisons(jsonl(tmp_path / "c.jsonl", row))
    better = found.a if found.preference == 1 else found.b
    assert (better[0].text, found.preference in (0, 1)) == ("good", True)
    assert {found.a[0].text, found.b[0].text} == {"good", "bad"}
    assert found.a[0].task.prompt == prompt


def test_the_side_of_the_chosen_answer_is_drawn(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "chosen": "good", "rejected": "bad"} for i in range(200)]
    found = read_comparisons(jsonl(tmp_path / "c.jsonl", *rows))
    assert 70 < sum(c.preference == 1 for c in found) < 130


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "a": "1", "b": "2", "preference": 1.2}, r"line 1 of .* preference 1.2 is outside \[0, 1\]"),
        ({"prompt": "x", "a": "1", "b": "2", "preference": "yes"}, "line 1 of .* 'yes' is no number"),
        (
            {"prompt": "x", "a": "1", "b": "2", "preference": 1, "b_terminated": "no"},
            "b_terminated is 'no'; write true, or false",
        ),
        ({"prompt": "x", "chosen": "1"}, "line 1 of .* needed are"),
        ({"chosen": "Hi? good", "rejected": "Hi? bad"}, "not certain; add a column prompt"),
        ({"chosen": said("good"), "rejected": said("bad")}, "no common beginning"),
        ({"prompt": "x", "chosen": 3, "rejected": "1"}, "the answer 3 is neither"),
    ],
)
def test_broken_comparisons(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_comparisons(jsonl(tmp_path / "c.jsonl", row)))


def test_parquet_in_row_groups_keeps_each_label_with_its_question(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "a": f"a{i}", "b": f"b{i}", "preference": i % 2, "key": "same"} for i in range(30)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet", row_group_size=10)
    found = list(read_comparisons(tmp_path / "c.parquet"))
    assert len({c.key for c in found}) == len({c.a[0].task.key for c in found}) == 30
    assert [(c.a[0].task.prompt, c.a[0].text, c.preference) for c in found] == [(r["prompt"], r["a"], r["preference"]) for r in rows]
    with pytest.warns(RatherWarning, match="c.parquet that are left out: 'a', 'b', 'preference'$"):
        train, held_out = read_tasks(str(tmp_path / "c.parquet"))
    assert len({t.key for t in train + held_out}) == 30


def test_a_prompt_is_named_by_what_it_asks(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    here, _ = read_tasks(str(jsonl(tmp_path / "p.jsonl", *({"prompt": p, "key": "same"} for p in "xyz"))), held_out=0.0)
    there, _ = read_tasks(str(jsonl(tmp_path / "other/p.jsonl", {"prompt": "u"}, {"prompt": "v", "key": None})), held_out=0.0)
    again, _ = read_tasks(str(jsonl(tmp_path / "p.jsonl", {"prompt": "v"}, {"prompt": "u"})), held_out=0.0)
    assert len({(t.source, t.key) for t in here + there}) == 5
    assert {t.key for t in there} == {t.key for t in again}
    with pytest.raises(DataError, match="line 1 of .* has a key of 151 characters"):
        read_tasks(str(jsonl(tmp_path / "p.jsonl", {"prompt": "v", "key": "k" * 151})))


def test_a_prompt_that_stands_there_again_is_counted_or_refused_where_rows_contradict_one_another(tmp_path: Path) -> None:
    row = {"prompt": "2 + 2?", "answer": "4", "split": "train"}
    path = jsonl(tmp_path / "p.jsonl", row, {"prompt": "x", "split": "held_out"}, {**row, "key": "again"}, {**row, "answer": 4})
    with pytest.warns(RatherWarning, match=r"2 rows of .*p.jsonl repeat the prompt of an earlier row and are left out"):
        train, held_out = read_tasks(str(path))
    assert [(t.prompt, t.answer) for t in train] == [("2 + 2?", "4")]
    assert [t.prompt for t in held_out] == ["x"]
    for other, said in (
        ({**row, "answer": "5"}, "another answer: '5', not '4'"),
        ({**row, "answer": None}, "another answer: None, not '4'"),
        ({**row, "split": "held_out"}, "another split: 'held_out', not 'train'"),
    ):
        path = jsonl(tmp_path / "p.jsonl", row, {"prompt": "x", "split": "train"}, other)
        with pytest.raises(DataError, match=rf"line 3 of .*p.jsonl has the prompt of line 1 of .*p.jsonl with {said}; keep one"):
            read_tasks(str(path))
        if "answer" in said:
            with pytest.warns(RatherWarning, match="1 rows of"):
                assert len(read_tasks(str(path), verified=False)[0]) == 2, "nobody reads answers"
