import gzip
import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

import huggingface_hub.constants
import pytest

from rather.data.forms import read_comparisons, read_tasks
from rather.data.hub import Config, choose
from rather.errors import DataError

CARD = {
    "configs": [
        {"config_name": "pairs", "data_files": [{"split": "train", "path": "data/pairs-*"}, {"split": "test", "path": ["held/**"]}]},
        {"config_name": "prompts", "default": True, "data_files": "prompts.jsonl"},
    ]
}


def lines(*rows: dict[str, object]) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


PAIRS = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(4)]
REPOSITORIES = {
    "org/carded": {
        "README.md": b"the card",
        "data/pairs-0.jsonl": lines(*PAIRS[:2]),
        "data/pairs-1.jsonl.gz": gzip.compress(lines(*PAIRS[2:])),
        "held/deep/x.csv": b"prompt,chosen,rejected\nq,good,bad\n",
        "prompts.jsonl": lines({"prompt": "one"}, {"prompt": "two"}),
    },
    "org/plain": {"train.jsonl": lines(*PAIRS), "data_test.jsonl": lines(PAIRS[0])},
    "org/script": {"load.py": b"raise SystemExit"},
}


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of the hub: a data set's description and its files."""

    def do_GET(self) -> None:
        parts = unquote(self.path.split("?")[0]).strip("/").split("/")
        sha = "0" * 40
        if parts[:2] == ["api", "datasets"] and (found := REPOSITORIES.get("/".join(parts[2:4]))):
            card = CARD if "README.md" in found else None
            body = {"id": "/".join(parts[2:4]), "sha": sha, "siblings": [{"rfilename": n} for n in found], "cardData": card}
            self.reply(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
        elif parts[0] == "datasets" and (data := REPOSITORIES.get("/".join(parts[1:3]), {}).get("/".join(parts[5:]))) is not None:
            self.reply(200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": sha})
        elif parts[0] == "datasets" and "/".join(parts[1:3]) in REPOSITORIES:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            self.reply(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever)
    thread.start()
    where = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        patch.setattr(huggingface_hub.constants, "ENDPOINT", where)
        patch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", where + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
        yield where
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_data_set_of_the_hub(hub: str) -> None:
    found = list(read_comparisons("hf://datasets/org/carded?config=pairs&split=train"))
    assert [c.a[0].task.prompt for c in found] == ["q0", "q1", "q2", "q3"]
    assert {(c.a if c.preference == 1 else c.b)[0].text for c in found} == {"good"}
    assert len(list(read_comparisons(Path("hf://datasets/org/carded?config=pairs&split=test")))) == 1
    train, _ = read_tasks("hf://datasets/org/carded", held_out=0.0)
    assert [t.prompt for t in train] == ["one", "two"]
    assert len(list(read_comparisons("hf://datasets/org/plain?split=train"))) == 4
    assert len(list(read_comparisons("hf://datasets/org/plain/data_test.jsonl"))) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://datasets/org", "no data set on the hub; write hf://datasets/ORG/NAME"),
        ("hf://models/org/x", "no data set on the hub"),
        ("hf://datasets/org/plain?splitt=train", "has 'splitt'; what can be asked for is split, config, revision"),
        ("hf://datasets/org/plain", "has the splits test, train; name one"),
        ("hf://datasets/org/plain?split=dev", "has no split 'dev'; it has test, train"),
        ("hf://datasets/org/carded?config=other", "has no configuration 'other'; it has pairs, prompts"),
        ("hf://datasets/org/script?split=train", "refs/convert/parquet"),
        ("hf://datasets/org/none?split=train", "did not give .*org/none.* needs HF_TOKEN"),
        ("hf://datasets/org/plain/none.jsonl", "did not give"),
    ],
)
def test_what_the_hub_has_not(hub: str, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_comparisons(name))


def test_a_hub_that_is_not_there(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match="the hub did not give"):
        list(read_comparisons("hf://datasets/org/plain?split=train"))


@pytest.mark.parametrize(
    ("names", "configs", "options", "chosen"),
    [
        (["x.jsonl", "README.md", ".gitattributes"], [], {}, ["x.jsonl"]),
        (["data/train-00000-of-00001.parquet", "data/dev.csv"], [], {"split": "validation"}, ["data/dev.csv"]),
        (["default/train/0.parquet", "other/train/0.parquet"], [], {"config": "other", "split": "train"}, ["other/train/0.parquet"]),
        (["a/train.json", "b/train.json"], [Config("b", {}, "b")], {}, ["b/train.json"]),
        (["x.csv", "y/x.csv", "z/y/x.csv"], [Config("x", {"train": ["**/y/*.csv"]})], {}, ["y/x.csv", "z/y/x.csv"]),
        (["a-1.csv", "a-x.csv", "b/a-1.csv"], [Config("x", {"train": ["./a-[0-9].csv"]})], {}, ["a-1.csv"]),
    ],
)
def test_which_files_are_meant(names: list[str], configs: list[Config], options: dict[str, str], chosen: list[str]) -> None:
    assert choose(names, configs, options, "hf://datasets/org/name") == chosen
