import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rather.core import Prompt
from rather.data.forms import read_comparisons, read_tasks
from rather.data.readers import read_rows
from rather.data.transfer import export, import_comparisons
from rather.data.writers import write_rows
from rather.errors import DataError
from rather.store import Store

FORMATS = ["jsonl", "csv", "parquet"]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20) | st.sampled_from(
    [
        "",
        "'",
        "''",
        "'=1",
        "=1+1",
        "-a",
        "@x",
        "[1]",
        '{"a": 1}',
        "[",
        "null",
        "None",
        "\r",
        "\n",
        "\r\n x",
        "\u2028",
        " ",
        "\ufeff",
        '"',
        ",;\t",
        "\uff1d1",
        "NaN",
    ]
)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": TEXT},
    optional={
        "name": TEXT,
        "reasoning_content": TEXT,
        "tool_calls": st.lists(st.fixed_dictionaries({"function": st.dictionaries(TEXT, VALUE, max_size=2)}), min_size=1, max_size=2),
        "tool_call_id": TEXT | st.integers(),
    },
)
MESSAGES = st.lists(MESSAGE, min_size=1, max_size=3)
ROW = st.dictionaries(
    st.sampled_from(["prompt", "a", "b", "ünusual, name"]), st.none() | TEXT | MESSAGES | st.lists(TEXT, max_size=3), min_size=1, max_size=4
)
PROMPT = TEXT.filter(str.strip) | MESSAGES
PAIR = st.tuples(PROMPT, TEXT, TEXT, st.floats(0, 1))

fast = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
thorough = settings(parent=fast, max_examples=1500)


def rows_come_back(path: Path, rows: list[dict[str, Any]]) -> None:
    write_rows(path, rows)
    found = [{k: v for k, v in row.items() if v is not None} for _, row in read_rows(path)]
    assert found == [{k: v for k, v in row.items() if v is not None} for row in rows]


def comparisons_come_back(path: Path, pairs: list[tuple[Prompt, str, str, float]], form: str) -> None:
    rows: list[dict[str, Any]]
    if form == "comparisons":
        rows = [dict(zip(("prompt", "a", "b", "preference"), pair, strict=True)) for pair in pairs]
    elif form == "text":
        rows = [{"prompt": prompt, "chosen": a, "rejected": b} for prompt, a, b, _ in pairs]
    else:
        said = [[[{"role": "assistant", "content": text}] for text in pair[1:3]] for pair in pairs]
        rows = [{"prompt": pair[0], "chosen": a, "rejected": b} for pair, (a, b) in zip(pairs, said, strict=True)]
    write_rows(path, rows)
    found = list(read_comparisons(path))
    better = [c if form == "comparisons" or c.preference == 1 else c.swapped() for c in found]
    meant = [(prompt, a, b, preference if form == "comparisons" else 1.0) for prompt, a, b, preference in pairs]
    assert [(c.a[0].task.prompt, c.a[0].text, c.b[0].text, c.preference) for c in better] == meant


@pytest.mark.parametrize("kind", FORMATS)
@fast
@given(rows=st.lists(ROW, min_size=1, max_size=4))
def test_rows_come_back_as_they_were(tmp_path: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    rows_come_back(tmp_path / f"x.{kind}", rows)


@pytest.mark.parametrize("form", ["comparisons", "text", "messages"])
@pytest.mark.parametrize("kind", FORMATS)
@fast
@given(pairs=st.lists(PAIR, min_size=1, max_size=4))
def test_comparisons_come_back_as_they_were(tmp_path: Path, kind: str, form: str, pairs: list[tuple[Prompt, str, str, float]]) -> None:
    comparisons_come_back(tmp_path / f"x.{kind}", pairs, form)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
@thorough
@given(rows=st.lists(ROW, min_size=1, max_size=4))
def test_any_rows_come_back(tmp_path: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    rows_come_back(tmp_path / f"x.{kind}", rows)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["comparisons", "text", "messages"])
@pytest.mark.parametrize("kind", FORMATS)
@thorough
@given(pairs=st.lists(PAIR, min_size=1, max_size=4))
def test_any_comparisons_come_back(tmp_path: Path, kind: str, form: str, pairs: list[tuple[Prompt, str, str, float]]) -> None:
    comparisons_come_back(tmp_path / f"x.{kind}", pairs, form)


def refused_or_text(path: Path, data: bytes) -> None:
    """Bytes of a stranger are rows of text that can be stored, or one sentence."""
    path.write_bytes(data)
    try:
        for _, row in read_rows(path):
            json.dumps(row, ensure_ascii=False).encode()
    except DataError as e:
        assert str(path) in str(e)  # noqa: PT017


BYTES = st.binary(max_size=60) | st.lists(
    st.sampled_from(
        [b"[", b"]", b"{", b"}", b'"a"', b":", b",", b"1", b"\\ud800", b'"\\ud83d"', b"\n", b"\r", b'"', b"\xff", b"\0", b"null", b";"]
    ),
    max_size=20,
).map(b"".join)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "jsonl.gz"])
@fast
@given(data=BYTES)
def test_strange_bytes_are_text_or_a_sentence(tmp_path: Path, kind: str, data: bytes) -> None:
    refused_or_text(tmp_path / f"x.{kind}", data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "jsonl.gz"])
@thorough
@given(data=BYTES)
def test_any_bytes_are_text_or_a_sentence(tmp_path: Path, kind: str, data: bytes) -> None:
    refused_or_text(tmp_path / f"x.{kind}", data)


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "- apples"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": None, "y": 1.5}}}]},
    {"role": "tool", "name": "f", "content": "'=1"},
]
ASKED: list[tuple[Prompt, str, str, float]] = [
    (CONVERSATION, "'tis", "- apples", 0.25),
    (CONVERSATION[:2], "[1]", "", 1.0),
    ([{"role": "user", "content": "🙂"}], '[{"role": "user"}]', "a\r\nb\rc", 0.0),
]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("plain", [False, True], ids=["conversations", "with plain prompts"])
def test_what_is_exported_is_imported_as_it_was(tmp_path: Path, kind: str, plain: bool) -> None:
    asked = ASKED + ([("=1+1", "x", "'", 1.0), ("[]", "y", "-1", 0.75)] if plain else [])
    rows = [dict(zip(("prompt", "a", "b", "preference"), x, strict=True)) for x in asked]
    rows[1] |= {"a_terminated": False}
    write_rows(tmp_path / "first.jsonl", rows)
    store, other = Store(str(tmp_path / "store.db")), Store(str(tmp_path / "other.db"))
    import_comparisons(store, "run", tmp_path / "first.jsonl")
    assert export(store, "run", tmp_path / f"x.{kind}", "comparisons") == len(asked)
    import_comparisons(other, "run", tmp_path / f"x.{kind}")
    found = other.answered("run").comparisons
    assert [(c.a[0].task.prompt, c.a[0].text, c.b[0].text, c.preference) for c in found] == asked
    assert [(c.a[0].terminated, c.b[0].terminated) for c in found] == [(i != 1, True) for i in range(len(asked))], "what was cut off"
    export(store, "run", tmp_path / f"trl.{kind}", "trl")
    better = [c if c.preference == 1 else c.swapped() for c in read_comparisons(tmp_path / f"trl.{kind}")]
    meant = [(p, a, b) if preference > 0.5 else (p, b, a) for p, a, b, preference in asked]
    assert [(c.a[0].task.prompt, c.a[0].text, c.b[0].text) for c in better] == meant
    export(store, "run", tmp_path / f"all.{kind}")
    assert [row["a_text"] for _, row in read_rows(tmp_path / f"all.{kind}")] == [[a] for _, a, _, _ in asked]


def test_conversations_in_parquet_are_lists_of_messages_as_trl_reads_them(tmp_path: Path) -> None:
    rows = [{"prompt": p, "chosen": [{"role": "assistant", "content": a}]} for p, a, _, _ in ASKED]
    write_rows(tmp_path / "x.parquet", rows)
    schema = pq.read_schema(tmp_path / "x.parquet")
    assert str(schema.field("chosen").type) in (f"list<{x}: struct<role: string, content: string>>" for x in ("item", "element"))
    found = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert found[2]["prompt"] == [{"role": "user", "content": "🙂", "tool_calls": None, "name": None}]
    assert json.loads(found[0]["prompt"][2]["tool_calls"]) == CONVERSATION[2]["tool_calls"]


def test_a_spreadsheet_sees_no_formula(tmp_path: Path) -> None:
    words = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1"]
    write_rows(tmp_path / "x.csv", [{"prompt": "p", "a": w} for w in words])
    lines = (tmp_path / "x.csv").read_bytes().decode()
    assert not any(start in lines for w in words for start in (f",{w}", f',"{w}'))
    assert [row["a"] for _, row in read_rows(tmp_path / "x.csv")] == words


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("before")

    def rows() -> Any:
        yield {"a": "x"}
        raise DataError("no more")

    with pytest.raises(DataError):
        write_rows(tmp_path / "x.csv", rows())
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x.csv", "before")]


def test_prompts_come_back_too(tmp_path: Path) -> None:
    for kind in FORMATS:
        write_rows(tmp_path / f"x.{kind}", [{"prompt": p, "answer": f"'{i}"} for i, (p, *_) in enumerate(ASKED)])
        train, _ = read_tasks(str(tmp_path / f"x.{kind}"), held_out=0.0)
        assert [(t.prompt, t.answer) for t in train] == [(p, f"'{i}") for i, (p, *_) in enumerate(ASKED)]


def test_the_sides_of_a_question_do_not_depend_on_who_won(tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "chosen": "x", "rejected": "y"} for i in range(20)]
    write_rows(tmp_path / "x.jsonl", rows)
    write_rows(tmp_path / "corrected.jsonl", [{**r, "chosen": r["rejected"], "rejected": r["chosen"]} for r in rows])
    first, second = (list(read_comparisons(tmp_path / name)) for name in ("x.jsonl", "corrected.jsonl"))
    asked: list[list[tuple[Any, Any]]] = [[(c.a[0].text, c.b[0].text) for c in found] for found in (first, second)]
    assert asked[0] == asked[1]
    assert [c.preference for c in first] == [1 - (c.preference or 0) for c in second]
