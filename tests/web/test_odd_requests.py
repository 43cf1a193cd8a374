"""Numbers that are not finite, halves of characters and zero bytes, in every field: refused, never an error of the server."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from clients import answer_to, given
from questions import question

from rather.store import Store
from rather.store.people import everybody, invite
from rather.store.quality import Asking

Bodies = list[tuple[str, str, dict[str, Any]]]
BODIES: Bodies = [
    ("POST", "/api/undo", {"question": 1, "key": "12345678"}),
    ("POST", "/api/people", {"name": "eve", "days": 3.0, "simulated": False, "renew": True, "every_run": False}),
    ("PUT", "/api/asking", {"overlap": 1, "gold": 0.1, "repeats": 0.1, "random": 0.1, "fastest_s": 1.0, "leave_out": ["gold"]}),
]
NO_JSON = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    r'"\ud800"',
    r'"abcdefgh\udfff"',
    r'["\ud800"]',
    '{"x": NaN}',
    r'{"\ud800": 1}',
]


@pytest.fixture
def store(either: Store) -> Store:
    return either


@pytest.fixture
def owner(store: Store, serve: Callable[..., str]) -> httpx.Client:
    store.ask("r", [question(0)])
    token = invite(store, "owner", "owner")
    return httpx.Client(base_url=serve(), headers={"Authorization": f"Bearer {token}"}, timeout=30)


def bodies(owner: httpx.Client) -> Bodies:
    """What can be sent, whole, with an answer to what the owner has been given."""
    whole = answer_to(given(owner)) | {"place": 1, "slight": False, "reason": "", "seconds": 0.0}
    return [("POST", "/api/answers", whole), *BODIES]


def fields(sent: Bodies) -> list[tuple[str, str, dict[str, Any], str]]:
    return [(method, path, whole, field) for method, path, whole in sent for field in whole]


def untouched(store: Store) -> bool:
    return store.history("r") == [] and [p.name for p in everybody(store)] == ["owner"] and store.asking("r") == Asking(repeats=0)


def send(owner: httpx.Client, method: str, path: str, body: bytes, kind: str = "application/json") -> httpx.Response:
    while True:
        answer = owner.request(method, path, content=body, headers={"Content-Type": kind})
        if answer.status_code != 429:
            return answer


def test_what_is_no_json_is_refused_in_every_field(store: Store, owner: httpx.Client) -> None:
    with owner:
        for method, path, whole, field in fields(bodies(owner)):
            for value in NO_JSON:
                body = json.dumps(whole | {field: "HERE"}).replace('"HERE"', value)
                answer = send(owner, method, path, body.encode())
                assert answer.status_code == 422, (path, body, answer.text)
                assert answer.json()["detail"]
        assert untouched(store)
        for method, path, whole in bodies(owner):
            assert send(owner, method, path, json.dumps(whole).encode()).status_code == 200, "and else it would be taken"


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/octet-stream", "multipart/form-data; boundary=x", "\xff"])
def test_bytes_that_are_no_text_are_refused_whatever_they_are_called(store: Store, owner: httpx.Client, kind: str) -> None:
    with owner:
        for method, path, _ in bodies(owner):
            for body in (b"\xff\xfe", b'{"name": "\xed\xa0\x80"}', b"[" * 60_000, b"9" * 60_000, b"{", b"null", b'"\\u0000"', b"\0", b"[]"):
                answer = send(owner, method, path, body, kind.encode("latin-1"))  # type: ignore[arg-type]
                assert answer.status_code == 422, (path, body[:20], answer.text[:200])
        assert untouched(store)


def test_a_zero_byte_is_no_text(store: Store, owner: httpx.Client) -> None:
    with owner:
        texts = [found for found in fields(bodies(owner)) if isinstance(found[2][found[3]], str) and found[3] != "key"]
        assert {field for *_, field in texts} == {"choice", "reason", "name", "lease", "order"}
        for method, path, whole, field in texts:
            answer = send(owner, method, path, json.dumps(whole | {field: "ab\0cdefghi"}).encode())
            assert answer.status_code == (409 if field == "lease" else 422), (path, field, answer.text)
        assert untouched(store)
        whole = bodies(owner)[0][2] | {"key": "abc\0defgh"}
        assert send(owner, "POST", "/api/answers", json.dumps(whole).encode()).status_code == 200, "a key is never kept as it is"


@pytest.mark.parametrize("odd", ["NaN", "1e999", "Infinity", "%00", "%ED%A0%80", "%ff%fe", "%", "\xe9", "9" * 5000])
def test_odd_paths_and_queries_are_refused(store: Store, owner: httpx.Client, odd: str) -> None:
    store.add_judge("ann", "person")
    with owner:
        for method, path, codes in (
            ("GET", "/api/next?held={}", {422}),
            ("GET", "/api/export?form={}", {422}),
            ("GET", "/api/export?file={}", {422}),
            ("GET", "/api/clips/{}", {404, 422}),
            ("DELETE", "/api/people/{}", {404, 422}),
            ("DELETE", "/api/people/{}/answers", {404, 422}),
            ("GET", "/join/{}", {303}),
            ("GET", "/static/{}", {404}),
            ("GET", "/{}", {404}),
            ("GET", "/?{0}={0}", {401}),
        ):
            answer = owner.request(method, path.format(odd))
            assert answer.status_code in codes, (path, answer.status_code, answer.text[:200])
            assert answer.text or answer.is_redirect
        for headers in (
            {"Authorization": b"Bearer \xed\xa0\x80\xff"},
            {"Cookie": b"session=\xff\xed"},
            {"Cookie": b"session=bnVsbA==.x.y"},
        ):
            assert owner.get("/api/next", headers={"Authorization": b"", **headers}).status_code == 401  # type: ignore[arg-type]
        assert untouched(store)
