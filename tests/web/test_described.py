"""A program that knows nothing but /api/openapi.json and the token of a link; and every error that is described there."""

import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from clients import OPEN, answer_to, browser, client_of, given, program
from questions import of_four, question

from rather.store import Store
from rather.store.people import everybody, invite
from rather.web import guard

Serve = Callable[..., str]
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


class Program:
    """Sends what the description asks for, and holds every answer of the server against it."""

    def __init__(self, url: str, token: str) -> None:
        self.client = client_of(url, headers={"Authorization": f"Bearer {token}"})
        self.described = httpx.get(f"{url}/api/openapi.json").json()
        self.waited = 0

    def said(self, operation: dict[str, Any], answer: httpx.Response) -> Any:
        assert str(answer.status_code) in operation["responses"], f"{answer.status_code} is not described: {answer.text}"
        response = operation["responses"][str(answer.status_code)]
        jsonschema.validate(answer.json(), response["content"]["application/json"]["schema"] | {"components": self.described["components"]})
        return answer.json()

    def fields(self, operation: dict[str, Any]) -> dict[str, Any]:
        """What the body of a request must have, by name."""
        name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        schema = self.described["components"]["schemas"][name]
        return {field: schema["properties"][field] for field in schema["required"]}

    def __call__(self, method: str, path: str, about: dict[str, Any] | None = None, **more: Any) -> Any:
        """Ask, with the required fields taken from what the request is `about`; and again when the server wants a pause."""
        operation = self.described["paths"][path][method]
        body = None if about is None else {name: self.value(name, field, about) for name, field in self.fields(operation).items()}
        assert set(more) <= {p["name"] for p in operation.get("parameters", ())}
        while True:
            answer = self.client.request(method, path, json=body, params=more)
            found = self.said(operation, answer)
            if answer.status_code != 429:
                assert answer.status_code == 200, answer.text
                return found
            assert "Retry-After" in operation["responses"]["429"]["headers"]
            self.waited += 1
            time.sleep(float(answer.headers["Retry-After"]))

    def value(self, name: str, field: dict[str, Any], about: dict[str, Any]) -> Any:
        if name in about:
            return about[name]
        if field.get("description") == "Its `id`.":
            return about["id"]
        return "tie" if "tie" in field.get("enum", ()) else uuid.uuid4().hex[: field["maxLength"]]


def test_a_program_that_knows_only_the_description_answers_undoes_and_lists(
    store: Store, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.ask("r", [question(i) for i in range(58)] + [of_four(i) for i in range(2)])
    ask = Program(serve(), invite(store, "machine", simulated=True))
    numbers = dict[int, int]()
    while (shown := ask("get", "/api/next")["question"]) is not None:
        numbers[shown["id"]] = ask("post", "/api/answers", about=shown)["label"]
    assert len(numbers) == 60
    some = next(iter(numbers))
    monkeypatch.setattr(guard, "BURST", 1.0)
    monkeypatch.setattr(guard, "ANSWERS_A_SECOND", 0.5)  # however slow this machine is
    assert ask("post", "/api/undo", about={"question": some}) == {"undone": True}
    waited = ask.waited
    assert ask("post", "/api/undo", about={"question": some}) == {"undone": False}
    assert ask.waited > waited, "it was told to slow down, and did"
    monkeypatch.undo()
    again = ask("get", "/api/next")["question"]
    assert again["id"] == some, "what was undone is asked again"
    numbers[some] = ask("post", "/api/answers", about=again)["label"]
    found = ask("get", "/api/answers")["answers"]
    while page := ask("get", "/api/answers", before=found[-1]["label"])["answers"]:
        found += page
    assert {x["question"]: x["label"] for x in found} == numbers == {x.comparison: x.id for x in store.labels("r")}
    assert {x["choice"] for x in found} == {"tie"}
    assert {x.preference for x in store.labels("r")} == {0.5}


def test_the_program_on_the_page_of_docs_runs_as_it_stands(store: Store, serve: Serve, tmp_path: Path) -> None:
    store.ask("r", [question(i, left="a longer one") for i in range(8)])
    (program,) = re.findall(r"^```python\n(.*?)^```", (DOCS / "reference/rest.md").read_text(), re.DOTALL | re.MULTILINE)
    link = "http://127.0.0.1:8008/join#..."
    assert program.count(link) == 1
    (tmp_path / "program.py").write_text(program.replace(link, f"{serve()}/join#{invite(store, 'machine', simulated=True)}"))
    subprocess.run([sys.executable, "program.py"], cwd=tmp_path, check=True, timeout=60)
    assert [x.preference for x in store.labels("r")] == [1.0] * 8


@pytest.mark.slow
def test_every_error_that_is_described_occurs_and_says_what_is_wrong(store: Store, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    store.ask("r", [question(i) for i in range(3)])
    url = serve()
    described = httpx.get(f"{url}/api/openapi.json").json()
    ann, owner = program(url, store, "ann"), program(url, store, "boss", role="owner")
    visitor = browser(url, invite(store, "ben"))
    visitor.headers["X-Rather-Token"] = "guessed"
    stranger = client_of(url)
    shown = given(ann)
    (boss,) = [p.judge for p in everybody(store) if p.name == "boss"]
    odd, taken = answer_to(shown, order=shown["order"][::-1]), {"name": "ann"}
    garbage: dict[str, Any] = {"content": b"{", "headers": {"Content-Type": "application/json"}}
    calls: list[tuple[httpx.Client, str, str, dict[str, Any], int]] = [
        (visitor, "post", "/api/answers", {"json": answer_to(shown)}, 403), (visitor, "post", "/api/undo", {"json": {"question": 1}}, 403),
        (ann, "post", "/api/answers", {"json": answer_to(shown, question=99)}, 404), (ann, "post", "/api/answers", {"json": odd}, 409),
        (ann, "get", "/api/clips/{trajectory}", {}, 404), (ann, "get", "/api/questions/{question}", {}, 404),
        (owner, "post", "/api/people", {"json": taken}, 409),
    ]  # fmt: skip
    decision = "/api/owner/questions/{number}/decision"
    calls += [
        (owner, "get", "/api/owner/questions/random", {}, 404), (owner, "get", "/api/owner/questions/{number}", {}, 404),
        (owner, "put", decision, {"json": {"choice": "a"}}, 404), (owner, "delete", decision, {}, 404),
    ]  # fmt: skip
    for path, method in (("/api/people/{judge}", "delete"), ("/api/people/{judge}/answers", "delete")):
        calls += [(owner, method, path, {}, 404), (owner, method, path.replace("{judge}", str(boss)), {}, 409)]
    for path, methods in described["paths"].items():
        for method in methods:
            calls += [
                (stranger, method, path, {}, 401),
                (ann, method, path, garbage, 422),
                (ann, method, path, {"content": b" " * 140_000}, 413),
            ]
            if "403" in methods[method]["responses"] and path not in ("/api/answers", "/api/undo"):
                calls.append((ann, method, path, {"json": {"name": "eve"}}, 403))
    valid: dict[str, Any] = {
        "/api/answers": answer_to(shown),
        "/api/undo": {"question": 99},
        "/api/people": {"name": "zoe"},
        "/api/asking": {},
    }
    seen = set[tuple[str, str, int]]()

    def send(client: httpx.Client, method: str, path: str, more: dict[str, Any]) -> httpx.Response:
        return client.request(method, re.sub(r"{\w+}", "99", path), **more)

    def check(answer: httpx.Response, method: str, path: str, expected: int) -> None:
        known = path if path in described["paths"] else path.replace(str(boss), "{judge}")
        assert answer.status_code == expected, (method, path, expected, answer.status_code, answer.text)
        schema = described["paths"][known][method]["responses"][str(expected)]["content"]["application/json"]["schema"]
        jsonschema.validate(answer.json(), schema | {"components": described["components"]})
        assert answer.json()["detail"]
        seen.add((method, known, expected))

    for client, method, path, more, expected in calls:
        time.sleep(0.1)  # as fast as they may be sent
        check(send(client, method, path, more), method, path, expected)
    for method, path in [(m, p) for p, methods in described["paths"].items() for m in methods if "429" in methods[m]["responses"]]:
        body: dict[str, Any] = {"json": valid[path]} if path in valid else {}
        who = ann if path in ("/api/answers", "/api/undo") else owner
        with monkeypatch.context() as patience:
            patience.setattr(guard, "ANSWERS_A_SECOND", 0.5)  # however slow this machine is
            refused = next(x for x in (send(who, method, path, body) for _ in range(200)) if x.status_code == 429)
        assert int(refused.headers["Retry-After"]) > 0
        check(refused, method, path, 429)
    time.sleep(1.5)
    with store.transaction(write=True) as connection:
        connection.exec_driver_sql("drop table invitation")
    for path, methods in described["paths"].items():
        for method in methods:
            check(send(ann, method, path, {}), method, path, 503)
    everything = {
        (m, p, int(c)) for p, methods in described["paths"].items() for m in methods for c in methods[m]["responses"] if c != "200"
    }
    assert seen == everything, "and no other is described"
