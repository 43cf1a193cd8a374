"""The language judge against a real server on this machine that speaks OpenAI's chat protocol."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rather.core import Comparison, Task, Trajectory
from rather.errors import JudgeError
from rather.judges.language import LanguageJudge, parse


class Server(ThreadingHTTPServer):
    """Prefers the answer with the word "good"; `fails` makes the first requests fail."""

    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict] = []
        self.headers: list[str | None] = []
        self.fails: list[int] = []
        self.says = ""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        self.server.headers.append(self.headers["Authorization"])
        status = self.server.fails.pop() if self.server.fails else 200
        a, _, b = body["messages"][0]["content"].partition("Answer B:")
        says = self.server.says or ("A" if "good" in a else "B" if "good" in b else "TIE")
        answer = {"choices": [{"message": {"role": "assistant", "content": says}}]} if status == 200 else {"error": "no"}
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def judge(server: Server, key: str = "") -> LanguageJudge:
    return LanguageJudge("llm", f"http://127.0.0.1:{server.server_port}/v1", "m", "Which is kinder?", key, timeout_s=5)


def question(a: str, b: str) -> Comparison:
    task = Task("f", "1", [{"role": "user", "content": "Say something."}])
    return Comparison((Trajectory(task, "p", a),), (Trajectory(task, "p", b),))


def test_it_asks_in_both_orders(server: Server) -> None:
    asked = [question("a good one", "poor"), question("poor", "a good one"), question("poor", "poor")]
    assert judge(server).judge(asked) == [1.0, 0.0, 0.5]
    assert len(server.requests) == 6
    content = server.requests[0]["messages"][0]["content"]
    assert "Which is kinder?" in content
    assert "Say something." in content
    assert server.requests[0]["model"] == "m"


def test_a_liking_for_the_first_place_cancels_out(server: Server) -> None:
    server.says = "A"
    assert judge(server).judge([question("x", "y")]) == [0.5]


def test_it_abstains_when_it_cannot_be_parsed(server: Server) -> None:
    server.says = "As an AI I cannot choose."
    assert judge(server).judge([question("x", "y")]) == [None]


def test_it_tries_again_and_sends_the_key(server: Server) -> None:
    server.fails = [429, 503]
    assert judge(server, "secret").judge([question("good", "poor")]) == [1.0]
    assert len(server.requests) == 4
    assert set(server.headers) == {"Bearer secret"}


def test_errors_name_the_endpoint(server: Server) -> None:
    server.fails = [401]
    with pytest.raises(JudgeError, match=r"refuses with status 401.*no"):
        judge(server).judge([question("x", "y")])


def test_an_endpoint_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rather.judges.language.time.sleep", lambda s: None)
    with pytest.raises(JudgeError, match="does not answer.*check judge.url"):
        LanguageJudge("llm", "http://127.0.0.1:9/v1", "m", "?").judge([question("x", "y")])


@pytest.mark.parametrize(
    ("reply", "expected"),
    [("A", 1.0), ("**B**", 0.0), ("TIE", 0.5), ("Both are fine, but...\n\nAnswer: A", 1.0), ("The better answer is B.", 0.0), ('"A"', 1.0)]
    + [(x, None) for x in ("", "A or B", "Apple", "Answer C", "I prefer A because B is bad")],
)
def test_parsing(reply: str, expected: float | None) -> None:
    assert parse(reply) == expected
