"""What becomes of a file's rows in the store: questions are what they ask, and the last file that speaks of them is right."""

import json
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from hypothesis import given, settings
from hypothesis import strategies as st

from rather.core import Comparison, Task, Trajectory
from rather.data.transfer import import_comparisons
from rather.errors import DataError
from rather.store import Store, engine
from rather.store.imports import Imported, import_all

Row = dict[str, Any]


def jsonl(path: Path, *rows: Row) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def row(prompt: str = "Hi?", chosen: str = "Hello.", rejected: str = "No.", **more: Any) -> Row:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def opinions(store: Store, run: str = "run") -> list[tuple[str, str, str]]:
    """Judge, prompt and the answer that is preferred, of every label that counts."""
    questions = {q.id: q.comparison for q in store.questions(run)}

    def better(comparison: Comparison, preference: float | None) -> str:
        return ((comparison.a if preference == 1 else comparison.b)[0].text) or ""

    return sorted(
        (x.judge, str(questions[x.comparison].a[0].task.prompt), better(questions[x.comparison], x.preference)) for x in store.labels(run)
    )


@pytest.fixture
def store(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    made = Store(where)
    yield made
    made.close()


def test_files_of_the_same_name_are_different_files(store: Store, tmp_path: Path) -> None:
    assert import_comparisons(store, "run", jsonl(tmp_path / "x/train.jsonl", row())) == Imported(questions=1)
    assert import_comparisons(store, "run", jsonl(tmp_path / "y/train.jsonl", row("Bye?"))) == Imported(questions=1)
    assert import_comparisons(store, "run", jsonl(tmp_path / "z/train.jsonl", row(chosen="No.", rejected="Hello."))) == Imported(answers=1)
    assert opinions(store) == [
        ("import:x/train.jsonl", "Hi?", "Hello."),
        ("import:y/train.jsonl", "Bye?", "Hello."),
        ("import:z/train.jsonl", "Hi?", "No."),
    ]


def test_a_corrected_label_is_a_new_label_of_the_same_question(store: Store, tmp_path: Path) -> None:
    rows = [row(f"question {i}") for i in range(8)]
    first = jsonl(tmp_path / "c.jsonl", *rows)
    assert import_comparisons(store, "run", first) == Imported(questions=8)
    assert import_comparisons(store, "run", first) == Imported(unchanged=8)
    for i in (2, 3, 5):
        rows[i] = row(f"question {i}", "No.", "Hello.")
    rows.reverse()
    assert import_comparisons(store, "run", jsonl(first, *rows)) == Imported(changed=3, unchanged=5)
    assert len(store.questions("run")) == 8
    assert opinions(store) == [("import:c.jsonl", f"question {i}", "No." if i in (2, 3, 5) else "Hello.") for i in range(8)]


def test_a_row_that_stands_there_twice_is_two_opinions(store: Store, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "c.jsonl", row(), row(chosen="No.", rejected="Hello."), row())
    assert import_comparisons(store, "run", path) == Imported(questions=3)
    assert import_comparisons(store, "run", path) == Imported(unchanged=3)
    assert [answer for _, _, answer in opinions(store)] == ["Hello.", "Hello.", "No."]


def test_the_same_words_cut_off_are_another_answer(store: Store, tmp_path: Path) -> None:
    said = {"prompt": "Hi?", "a": "Hello.", "b": "No.", "preference": 1.0}
    assert import_comparisons(store, "run", jsonl(tmp_path / "c.jsonl", said)) == Imported(questions=1)
    assert import_comparisons(store, "run", jsonl(tmp_path / "c.jsonl", {**said, "a_terminated": False})) == Imported(questions=1)
    assert sorted(q.comparison.a[0].terminated for q in store.questions("run")) == [False, True]


def test_an_answer_and_its_beginning_that_was_cut_off_are_told_apart_by_side(store: Store, tmp_path: Path) -> None:
    said = {"prompt": "Hi?", "a": "Hello.", "b": "Hello.", "preference": 0.0, "a_terminated": False}
    turned = {"prompt": "Hi?", "a": "Hello.", "b": "Hello.", "preference": 1.0, "b_terminated": False}
    assert import_comparisons(store, "run", jsonl(tmp_path / "c.jsonl", said)) == Imported(questions=1)
    assert import_comparisons(store, "run", jsonl(tmp_path / "c.jsonl", turned)) == Imported(unchanged=1)


def test_others_can_write_while_the_file_is_fetched(store: Store, where: str) -> None:
    def rows() -> Iterator[Comparison]:
        other = Store(where)  # as the page does, meanwhile
        with other.transaction(write=True):
            pass
        other.close()
        task = Task("f", "1", "Hi?")
        yield Comparison(*((Trajectory(task, "p", text),) for text in ("x", "y")), preference=1.0)

    assert import_all(store, "run", rows(), "train", "ann") == Imported(questions=1)


def test_two_judges_of_one_file_answer_one_question(store: Store, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "c.jsonl", row(judge="ann"), row(judge="ben", chosen="No.", rejected="Hello."))
    assert import_comparisons(store, "run", path) == Imported(questions=1, answers=1)
    assert opinions(store) == [("ann", "Hi?", "Hello."), ("ben", "Hi?", "No.")]
    assert [c.preference for c in store.answered("run").comparisons] == [0.5]


def test_gold_questions_are_questions_of_their_own(store: Store, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "c.jsonl", row())
    assert import_comparisons(store, "run", path) == Imported(questions=1)
    assert import_comparisons(store, "run", path, "gold") == Imported(questions=1)
    assert import_comparisons(store, "run", path, "gold") == Imported(unchanged=1)
    (gold,) = store.questions("run", "gold")
    known, _ = store.probes("run")[gold.id]
    assert ((gold.comparison.a if known == 1 else gold.comparison.b)[0].text) == "Hello."
    jsonl(path, row(chosen="No.", rejected="Hello."))
    assert import_comparisons(store, "run", path, "gold") == Imported(changed=1)
    assert store.probes("run") == {gold.id: (1 - known, None)}
    assert opinions(store) == [("import:c.jsonl", "Hi?", "Hello.")]


def test_a_broken_line_keeps_nothing(store: Store, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "c.jsonl", *(row(f"question {i}") for i in range(2500)))
    with path.open("a") as file:
        file.write("{")
    with pytest.raises(DataError, match="line 2501"):
        import_comparisons(store, "run", path)
    assert (store.keys("run", "train"), store.judges(), store.latest()) == (set(), {}, 0)


def test_a_judge_with_too_long_a_name_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 201 characters; at most 200 are kept"):
        import_comparisons(store, "run", jsonl(tmp_path / "c.jsonl", row(judge="x" * 201)))


def test_questions_of_an_older_store_are_known_again(store: Store, where: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "c.jsonl", *(row(f"question {i // 2}", judge="ann") for i in range(6)))
    gold = jsonl(tmp_path / "gold.jsonl", row())
    import_comparisons(store, "run", path)
    import_comparisons(store, "run", gold, "gold")
    config = Config()
    config.set_main_option("script_location", str(engine.MIGRATIONS))
    with store.engine.begin() as connection:  # the keys that they had
        connection.execute(sa.text("update comparison set key = 'import/c.jsonl/' || id where purpose = 'train'"))
        connection.execute(sa.text("update comparison set key = 'gold/import/gold.jsonl/1' where purpose = 'gold'"))
        newest = connection.execute(sa.text("select version_num from alembic_version")).scalar()
        connection.execute(sa.text("update alembic_version set version_num = '0004'"))
        config.attributes["connection"] = connection
        command.upgrade(config, "0005")
        connection.execute(sa.text("update alembic_version set version_num = :newest"), {"newest": newest})
    again = Store(where)
    assert import_comparisons(again, "run", path) == Imported(unchanged=6)
    assert import_comparisons(again, "run", gold, "gold") == Imported(unchanged=1)
    assert len(again.keys("run", "train")) == 6
    again.close()


ANSWERS = ["one", "two", "three"]
ROWS = st.builds(
    lambda prompt, pair, preference, judge, plain: (prompt, *pair, preference, judge, plain),
    st.sampled_from(["first?", "second?"]),
    st.permutations(ANSWERS).map(lambda x: x[:2]),
    st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]),
    st.sampled_from(["", "ann"]),
    st.booleans(),
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Path]]:
    folder = tmp_path_factory.mktemp("files")
    made = Store(str(folder / "store.db"))
    yield made, folder
    made.close()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["x", "y"]), st.lists(ROWS, min_size=1, max_size=7)), min_size=1, max_size=5))
def test_the_last_file_that_speaks_of_a_pair_is_right(shared: tuple[Store, Path], files: list[Any]) -> None:
    """Held against a table that knows nothing of stores: who thinks what of which pair, the first time, the second time, ..."""
    (store, folder), run = shared, uuid.uuid4().hex
    table: dict[Any, float] = {}
    for name, rows in files:
        seen = Counter[Any]()
        path = jsonl(
            folder / name / "c.jsonl",
            *(
                row(prompt, *((a, b) if p == 1 else (b, a)), judge=judge)
                if plain and p in (0, 1)
                else {"prompt": prompt, "a": a, "b": b, "preference": p, "judge": judge}
                for prompt, a, b, p, judge, plain in rows
            ),
        )
        done = import_comparisons(store, run, path)
        assert sum(vars(done).values()) == len(rows)
        assert import_comparisons(store, run, path) == Imported(unchanged=len(rows))
        for prompt, a, b, p, judge, _ in rows:
            who = judge or f"import:{path}"
            place = (prompt, *sorted([a, b]), who)
            table[*place, seen[place]] = round(p if a < b else 1 - p, 6)
            seen[place] += 1
    questions = {q.id: q.comparison for q in store.questions(run)}
    found = Counter[Any]()
    for x in store.labels(run):
        c = questions[x.comparison]
        a, b = c.a[0].text or "", c.b[0].text or ""
        assert x.preference is not None
        found[(c.a[0].task.prompt, *sorted([a, b]), x.judge, round(x.preference if a < b else 1 - x.preference, 6))] += 1
    assert found == Counter((*place[:-1], p) for place, p in table.items())
