import codecs
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rather.data import readers
from rather.data.readers import read_rows
from rather.errors import DataError

ROWS = [{"prompt": "Grüße, 世界 🙂", "answer": "1"}, {"prompt": "two\u2028lines\r\nand a \rhalf", "answer": "=2"}]
LINES = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ROWS).encode()
CSV = 'prompt,answer\r\n"Grüße, 世界 🙂",1\r\n\r\n"two\u2028lines\r\nand a \rhalf",=2\r\n'.encode()
ARRAY = json.dumps(ROWS, indent=1, ensure_ascii=False).encode()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.jsonl", LINES),
        ("X.JSONL", LINES),
        ("x.ndjson", codecs.BOM_UTF8 + LINES),
        ("x.json", LINES),
        ("x.json", ARRAY),
        ("x.json", codecs.BOM_UTF8 + b" \n" + ARRAY + b"\n"),
        ("x.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("x.JSON.GZ", gzip.compress(codecs.BOM_UTF8 + ARRAY, mtime=0)),
        ("x.csv", CSV),
        ("x.CSV", codecs.BOM_UTF8 + CSV),
        ("x.csv.gz", gzip.compress(CSV, mtime=0)),
        ("x.csv", CSV.replace(b'",', b'";').replace(b"prompt,", b"prompt;")),
        ("x.csv", CSV.replace(b'",', b'"\t').replace(b"prompt,", b"prompt\t")),
        ("x.tsv", CSV.replace(b'",', b'"\t').replace(b"prompt,", b"prompt\t")),
    ],
)
def test_the_same_rows_in_every_format(tmp_path: Path, name: str, data: bytes) -> None:
    assert [row for _, row in read_rows(write(tmp_path / name, data))] == ROWS


def test_a_json_array_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in range(1, 12):
        monkeypatch.setattr(readers, "CHUNK", size)
        assert [row for _, row in read_rows(write(tmp_path / "x.json", ARRAY))] == ROWS


def test_long_cells_and_many_row_groups(tmp_path: Path) -> None:
    ((_, row),) = read_rows(write(tmp_path / "x.csv", b"prompt\n" + b"a" * 300_000 + b"\n"))
    assert len(row["prompt"]) == 300_000
    pq.write_table(pa.table({"n": range(3000)}), tmp_path / "x.parquet", row_group_size=700)
    assert [(place, row["n"] + 1) for place, row in read_rows(tmp_path / "x.parquet")] == [
        (f"row {i} of {tmp_path / 'x.parquet'}", i) for i in range(1, 3001)
    ]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.jsonl", b'{"a": 1}\n{"prompt": "x\\ud83d"}\n', r"line 2 of .*: 'prompt' holds \\ud83d, one half of a character"),
        ("x.jsonl", b'{"m": [{"content": "\\udc00"}]}\n', r"line 1 of .*: 'm' holds \\udc00"),
        ("x.json", b'[{"a": 1}, {"\\ud800": 1}]', r"item 2 of .* holds \\ud800"),
        ("x.jsonl", b'{"prompt": "a\\u0000b"}\n', "line 1 of .*: 'prompt' holds a NUL"),
        ("x.csv", b"prompt\na\nb\0c\n", "line 3 of .*: 'prompt' holds a NUL"),
        ("x.csv", "prompt\nok\ncaf\xe9\n".encode("latin1"), "line 3 of .* is not UTF-8: it holds the byte 0xe9; .* iconv -f latin1"),
        ("x.jsonl", '{"prompt": "caf\xe9"}'.encode("latin1"), "line 1 of .* is not UTF-8: it holds the byte 0xe9"),
        ("x.json", '[{"prompt": "caf\xe9"}]'.encode("latin1"), "x.json is not UTF-8: it holds the byte 0xe9"),
        ("x.csv", "prompt\nx\n".encode("utf-16"), "is UTF-16; .* iconv -f utf-16"),
        ("x.jsonl", '{"prompt": "x"}'.encode("utf-16-le"), "is UTF-16"),
        ("x.csv", "prompt\nx\n".encode("utf-32"), "is UTF-32; .* iconv -f utf-32"),
        ("x.jsonl", '{"prompt": "x"}'.encode("utf-32-be"), "is UTF-32"),
        ("x.jsonl", b"[" * 100_000, "line 1 of .* is no JSON"),
        ("x.json", b"[" * 100_000, "item 1 of .* begins with '\\['"),
        ("x.json", b'[{"a": ' + b"[" * 100_000, "item 1 of .* is no JSON"),
        ("x.json", b'[{"a": 1} {"a": 2}]', "item 1 of .* is followed by '{'"),
        ("x.json", b'[{"a": 1},]', "item 2 of .* begins with ']'"),
        ("x.json", b'[{"a": 1}', "item 1 of .* is followed by ''"),
        ("x.jsonl", b'{"a": 1}\n{"b": {"a": 1, "a": 2}}\n', "line 2 of .* has 'a' twice; leave one of them out"),
        ("x.json", b'[{"a": 1}, {"a": 1, "a": 2}]', "item 2 of .* has 'a' twice"),
        ("x.json", b'[{"a": 1}, {"a": ', "item 2 of .* is no JSON"),
        ("x.json", b'[{"a": 1}] []', "goes on after its array"),
        ("x.json", b"[]", "is empty"),
        ("x.json", b"", "is empty"),
        ("x.jsonl.gz", LINES, "is no gzip file"),
        ("x.jsonl.gz", gzip.compress(LINES * 500, mtime=0)[:-20], "is no gzip file"),
        ("x.parquet.gz", b"", "is none of"),
        ("x.gz", b"", "is none of"),
        ("x.csv", b"a,b,a\n1,2,3\n", "has two columns 'a'"),
        ("x.csv", b'a,b\n1,2\n"1,2\n', "line 3 of .* is no CSV"),
        ("x.csv", b"sep=;\na;b;c\n1;2;3\n", r"line 2 of .* has 3 cells, not as many as the heading, which is \['sep=', ''\]"),
        ("x.csv", b"a,rather_csv\nx,2\n", "line 2 of .* has rather_csv '2'; this version"),
        ("x.csv", b"a,rather_csv\n[1,1\n", "line 2 of .*: a is no JSON"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_rows(write(tmp_path / name, data)))


def test_damaged_parquet_files(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="has two columns 'a'"):
        list(read_rows(tmp_path / "x.parquet"))
    text = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({"prompt": text}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="is no Parquet file that can be read"):
        list(read_rows(tmp_path / "x.parquet"))


@pytest.mark.parametrize("text", ["'tis", "[1]", '{"a": 1}', "=1+1", "-", "'", "[{'role': 'user'}]"])
def test_cells_of_other_peoples_files_stay_as_they_are(tmp_path: Path, text: str) -> None:
    quoted = '"' + text.replace('"', '""') + '"'
    ((_, row),) = read_rows(write(tmp_path / "x.csv", f"prompt,answer\nq,{quoted}\n".encode()))
    assert row == {"prompt": "q", "answer": text}


def test_empty_rows_of_a_spreadsheet_are_none(tmp_path: Path) -> None:
    found = list(read_rows(write(tmp_path / "x.csv", b"prompt;answer\n;\nq;1\n\n;2\n;\n;\n")))
    assert found == [
        (f"line 3 of {tmp_path}/x.csv", {"prompt": "q", "answer": "1"}),
        (f"line 5 of {tmp_path}/x.csv", {"prompt": "", "answer": "2"}),
    ]


def test_a_file_in_another_format_has_the_same_empty_columns(tmp_path: Path) -> None:
    kept: Any = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("name", pa.string())]))
    rows = [[{"role": "user", "content": "x", "name": None}], [{"role": "user", "content": "x", "name": "Ann"}]]
    pq.write_table(pa.table({"prompt": pa.array(rows, kept)}), tmp_path / "x.parquet")
    found = [row["prompt"] for _, row in read_rows(tmp_path / "x.parquet")]
    assert found == [[{"role": "user", "content": "x"}], [{"role": "user", "content": "x", "name": "Ann"}]]
