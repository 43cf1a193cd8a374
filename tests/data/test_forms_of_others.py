"""The forms in which other people's files hold comparisons: whole conversations, texts of turns, ratings, margins and ranks."""

import csv
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rather.core import Prompt
from rather.data.forms import read_comparisons, read_tasks
from rather.errors import DataError, RatherWarning

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi?"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}
TOOL = {"role": "tool", "name": "f", "content": "2"}


def said(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def turns(*words: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {w}" for i, w in enumerate(words))


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def read(tmp_path: Path, *rows: Any, skipped: Counter[str] | None = None) -> list[tuple[Prompt | None, str | None, str | None, float]]:
    """Prompt, better answer, other answer and how much better."""
    found = []
    for c in read_comparisons(jsonl(tmp_path / "c.jsonl", *rows), skipped):
        assert c.preference is not None
        better = c if c.preference >= 0.5 else c.swapped()
        assert better.preference is not None
        found.append((better.a[0].task.prompt, better.a[0].text, better.b[0].text, round(better.preference, 4)))
    return found


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Hi?", "chosen": [USER, said("good")], "rejected": [USER, said("bad")]}, [USER]),
        ({"prompt": "Hi?", "chosen": [SYSTEM, USER, said("good")], "rejected": [SYSTEM, USER, said("bad")]}, [SYSTEM, USER]),
        ({"prompt": [USER], "chosen": [USER, said("good")], "rejected": [USER, said("bad")]}, [USER]),
        ({"chosen": [USER, said("x"), USER, said("good")], "rejected": [USER, said("x"), USER, said("bad")]}, [USER, said("x"), USER]),
        ({"prompt": [USER], "chosen": [CALL, TOOL, said("good")], "rejected": [CALL, TOOL, said("bad")]}, [USER, CALL, TOOL]),
        ({"prompt": [USER], "chosen": said("good"), "rejected": said("bad")}, [USER]),
        ({"prompt": [USER], "chosen": "good", "rejected": "bad"}, [USER]),
        ({"chosen": turns("Hi?", "good"), "rejected": turns("Hi?", "bad")}, [USER]),
        ({"chosen": turns("Hi?", "x", "Hi?", "good"), "rejected": turns("Hi?", "x", "Hi?", "bad")}, [USER, said("x"), USER]),
        ({"prompt": turns("Hi?") + "\n\nAssistant:", "chosen": "good", "rejected": "bad"}, [USER]),
        ({"prompt": turns("Hi?") + "\n\nAssistant:", "chosen": turns("Hi?", "good"), "rejected": turns("Hi?", "bad")}, [USER]),
    ],
)
def test_conversations(tmp_path: Path, row: dict[str, Any], prompt: Prompt) -> None:
    assert read(tmp_path, row) == [(prompt, "good", "bad", 1.0)]


def test_what_two_answers_begin_with_stays_theirs(tmp_path: Path) -> None:
    row = {"chosen": turns("Hi?", "I think that yes\n\nor so"), "rejected": turns("Hi?", "I think that no")}
    assert read(tmp_path, row) == [([USER], "I think that yes\n\nor so", "I think that no", 1.0)]
    row = {"chosen": [USER, said("good")], "rejected": [USER, said("good")]}
    assert read(tmp_path, row) == [([USER], "good", "good", 1.0)]


def test_conversations_that_part_earlier_are_counted(tmp_path: Path) -> None:
    rows = [
        {"chosen": turns("Hi?", "a", "So?", "x"), "rejected": turns("Hi?", "b", "So?", "x")},
        {"chosen": turns("Hi?", "good"), "rejected": turns("Hi?", "bad")},
        {"chosen": [USER, said("x"), USER, said("y")], "rejected": [USER, said("x")]},
    ]
    skipped = Counter[str]()
    assert len(read(tmp_path, *rows, skipped=skipped)) == 1
    assert skipped == {"its conversations part before the last answer": 2}
    with pytest.raises(DataError, match="line 1 of .*: its conversations part before the last answer"):
        read(tmp_path, *rows)


def sigmoid(x: float) -> float:
    return round(1 / (1 + math.exp(-x)), 4)


def test_ratings_of_answers_to_one_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": p, "response": r, "helpfulness": h} for p, r, h in [("p", "x", 3), ("p", "y", 4), ("q", "x", 2), ("q", "z", 2)]]
    skipped = Counter[str]()
    alone = {"prompt": "r", "response": "x", "helpfulness": 0}
    pair = {"prompt": "s", "chosen": "x", "rejected": "y"}
    found = read(tmp_path, *rows, alone, pair, skipped=skipped)
    assert found[0] == ("p", "y", "x", sigmoid(1))
    assert (found[1][0], {found[1][1], found[1][2]}, found[1][3]) == ("q", {"x", "z"}, 0.5)
    assert found[2:] == [("s", "x", "y", 1.0)]
    assert skipped == {"it is the only rated answer to its prompt by its judge; answers to one prompt should stand together": 1}
    three = [{"prompt": "p", "response": str(i), "score": i * 1.5} for i in range(3)]
    assert sorted(read(tmp_path, *three)) == [("p", "1", "0", sigmoid(1.5)), ("p", "2", "0", sigmoid(3)), ("p", "2", "1", sigmoid(1.5))]


def test_ratings_of_two_judges_are_compared_each_with_their_own(tmp_path: Path) -> None:
    rated = [("x", 5, "alice"), ("x", 2, "bob"), ("y", 4, "alice"), ("y", 4, "bob"), ("z", 1, "bob")]
    rows = [{"prompt": "p", "response": r, "rating": n, "judge": judge} for r, n, judge in rated]
    path = tmp_path / "rated.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = Counter((c.judge, frozenset({c.a[0].text, c.b[0].text})) for c in read_comparisons(path))
    assert found == {("alice", frozenset("xy")): 1, **{("bob", frozenset(pair)): 1 for pair in ("xy", "xz", "yz")}}


def test_ranks_scores_and_margins(tmp_path: Path) -> None:
    ranked = {"prompt": "p", "answers": ["x", [said("y")], "z"], "ranks": [2, 1, 2]}
    found = read(tmp_path, ranked)
    assert [x for x in found if x[3] == 1] == [("p", "y", "x", 1.0), ("p", "y", "z", 1.0)]
    assert [x[3] for x in found if {x[1], x[2]} == {"x", "z"}] == [0.5]
    assert read(tmp_path, {"prompt": "p", "answers": ["x", "y"], "scores": [1, 3]}) == [("p", "y", "x", sigmoid(2))]
    assert read(tmp_path, {"prompt": "p", "chosen": "x", "rejected": "y", "margin": 2.0}) == [("p", "x", "y", sigmoid(2))]
    assert read(tmp_path, {"prompt": "p", "chosen": "x", "rejected": "y", "margin": None}) == [("p", "x", "y", 1.0)]
    assert read(tmp_path, {"prompt": "p", "chosen": "x", "rejected": "y", "margin": 1e6}) == [("p", "x", "y", 1.0)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Ho?", "chosen": [USER, said("1")], "rejected": [USER, said("2")]}, "do not begin with the prompt 'Ho\\?'"),
        ({"prompt": [SYSTEM, USER], "chosen": [USER, said("1")], "rejected": [USER, said("2")]}, "do not begin with the prompt"),
        ({"prompt": "x", "chosen": "1", "rejected": "2", "margin": -1}, "margin -1 is negative"),
        ({"prompt": "x", "chosen": "1", "rejected": "2", "margin": "big"}, "margin 'big' is no number"),
        ({"prompt": "x", "chosen": "1", "rejected": "2", "tools": [{"name": "f"}]}, "has 'tools', which a prompt of text has no place for"),
        ({"prompt": "x", "chosen": "1", "rejected": "2", "images": ["x.png"]}, "has 'images'"),
        ({"prompt": "x", "response": "1", "score": float("inf")}, "only rated answer"),
        ({"prompt": "x", "chosen": "1", "rejected": "2", "judge": float("nan")}, "the judge nan is neither text nor a number"),
        ({"prompt": "x", "completion": "1", "label": True, "judge": ["Ann"]}, "the judge .'Ann'. is neither text nor a number"),
        ({"prompt": "x", "answers": ["1", "2"], "scores": [1, 10**400]}, "is no number"),
        ({"prompt": "x", "a": "1", "b": "2", "preference": 10**400}, "is no number"),
        ({"prompt": "x", "answers": ["1", "2"]}, "need a list 'ranks' .1 is the best. or 'scores'"),
        ({"prompt": "x", "answers": ["1", "2"], "ranks": [1]}, "one number for each answer"),
        ({"prompt": "x", "answers": ["1", "2"], "ranks": [1, None]}, "the rank None is no number"),
        ({"prompt": "x", "answers": ["1"] * 101, "ranks": [1] * 101}, "101 answers to one prompt; 100 can be compared"),
        ({"prompt": [USER], "chosen": [CALL], "rejected": [said("x")]}, "answer has the field 'tool_calls'"),
        ({"prompt": [USER], "chosen": [{**said("x"), "reasoning_content": "so"}], "rejected": [said("y")]}, "field 'reasoning_content'"),
        ({"prompt": [USER], "chosen": [USER], "rejected": [said("y")]}, "message of the role 'user'; it should be the assistant's"),
        ({"prompt": [USER], "chosen": [said(None)], "rejected": [said("y")]}, "whose content is None, neither text nor text parts"),
    ],
)
def test_what_is_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, row)


@pytest.mark.parametrize("write", [json.dumps, str, lambda messages: str(messages).replace("}, {", "}\n {")])  # the last one as pandas does
def test_conversations_in_the_cells_of_a_table_are_refused(tmp_path: Path, write: Callable[[Any], str]) -> None:
    for prompt, chosen in ((write([SYSTEM, USER]), "x"), ("p", write([said("x")])), ("p", write([{"content": "x", "role": "assistant"}]))):
        with (tmp_path / "c.csv").open("w") as file:
            csv.writer(file).writerows([["prompt", "chosen", "rejected"], [prompt, chosen, "y"]])
        with pytest.raises(
            DataError, match="line 2 of .*: (prompt|chosen) is a list of messages written as text, .*; write the file as JSON"
        ):
            list(read_comparisons(tmp_path / "c.csv"))
    assert read(tmp_path, {"prompt": "p", "chosen": str([said("x")]), "rejected": "y"})[0][1] == str([said("x")]), "other files have lists"


def test_judges_are_called_alike_however_a_table_writes_them(tmp_path: Path) -> None:
    pair = {"prompt": "p", "chosen": "x", "rejected": "y"}
    path = jsonl(tmp_path / "c.jsonl", *[pair | {"judge": judge} for judge in ("Ann", " Ann ", 3, 3.0, "3", " ", None)])
    assert [c.judge for c in read_comparisons(path)] == ["Ann", "Ann", "3", "3", "3", "", ""]


def test_rows_with_nothing_to_compare_are_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": "x", "rejected": "x"},
        {"prompt": "p", "a": "x", "b": "x", "preference": 1},
        {"prompt": "p", "a": "x", "b": "x", "preference": 1, "a_terminated": False},  # one goes on where the other one ends
        {"prompt": "p", "answers": ["x"], "ranks": [1]},
        {"prompt": "p", "answers": ["x", "x", "y"], "scores": [1, 1, 2]},
    ]
    path, skipped = jsonl(tmp_path / "c.jsonl", *rows), Counter[str]()
    assert len(list(read_comparisons(path, skipped))) == 3, "the truncated one, and y beside each x"
    assert skipped == {"its two answers are the same": 3, "it has fewer than two answers": 1}
    with pytest.raises(DataError, match="line 4 of .*: it has fewer than two answers"):
        list(read_comparisons(path))


def test_columns_that_are_left_out_are_named_once(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": "x", "rejected": "y", "score_chosen": 3, "tools": []},
        {"prompt": "q", "chosen": "x", "rejected": "y", "id": 1},
    ]
    with pytest.warns(RatherWarning, match="^columns of .*c.jsonl that are left out: 'id', 'score_chosen', 'tools'$") as warned:
        assert len(read(tmp_path, *rows)) == 2
    assert len(warned) == 1


def text(*words: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": w} for w in words]


@pytest.mark.parametrize(
    ("messages", "kept"),
    [
        ([{"role": "user", "content": text("Look: ", "this")}], [{"role": "user", "content": "Look: this"}]),
        ([USER, {**CALL, "content": None}, TOOL], [USER, CALL, TOOL]),
        ([{**USER, "name": "Ann", "tool_calls": None, "extra": []}], [{**USER, "name": "Ann"}]),
        (
            [USER, {**said("x"), "reasoning_content": "so", "weight": 0}, USER],
            [USER, {**said("x"), "reasoning_content": "so", "weight": 0}, USER],
        ),
        (turns("Hi?", "x", "Hi?") + "\n\nAssistant:", [USER, said("x"), USER]),
        ("\n\nHuman: no end", "\n\nHuman: no end"),
        ('[{"role": "user", "content": "x"}]', '[{"role": "user", "content": "x"}]'),
    ],
)
def test_messages_keep_what_they_hold(tmp_path: Path, messages: Any, kept: Prompt) -> None:
    train, _ = read_tasks(str(jsonl(tmp_path / "p.jsonl", {"prompt": messages})), held_out=0.0)
    assert [t.prompt for t in train] == [kept]


@pytest.mark.parametrize(
    ("message", "refused"),
    [
        (
            {"role": "user", "content": [*text("x"), {"type": "image_url", "image_url": {"url": "x.png"}}]},
            "content of the type 'image_url'",
        ),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "content of the type 'input_audio'"),
        ({"role": "user", "content": [{"type": "file", "text": None}]}, "content of the type 'file'"),
        ({"role": "user", "content": [{**text("x")[0], "cache_control": {}}]}, "text part with 'cache_control'"),
        ({"role": "user", "content": None}, "role 'user' whose content is None"),
        ({"role": "user", "content": 3}, "role 'user' whose content is 3"),
        ({"role": None, "content": "x"}, "message without a role"),
    ],
)
def test_messages_of_more_than_text_are_refused_by_name(tmp_path: Path, message: dict[str, Any], refused: str) -> None:
    with pytest.raises(DataError, match=f"line 1 of .*: prompt has .*{refused}"):
        read_tasks(str(jsonl(tmp_path / "p.jsonl", {"prompt": [message]})))
