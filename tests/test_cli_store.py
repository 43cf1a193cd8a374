"""Import, status and export as somebody at a terminal sees them."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROWS = 6000


class Seen(NamedTuple):
    """What a command showed on the terminal and on stderr, and its exit code."""

    out: str
    err: str
    code: int


def on_terminal(folder: Path, *arguments: str, stop_at: str = "") -> Seen:
    """`python -m rather` with a terminal as its stdout; it gets a Ctrl-C once that shows `stop_at`."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    command = [sys.executable, "-m", "rather", *arguments]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=theirs, stderr=subprocess.PIPE, text=True) as process:
        os.close(theirs)
        out, stopped = "", False
        while data := _read(ours):
            out += data
            if stop_at and not stopped and stop_at in out:
                process.send_signal(signal.SIGINT)
                stopped = True
        os.close(ours)
        err = process.communicate(timeout=60)[1]
    return Seen(out, err, process.returncode)


def _read(terminal: int) -> str:
    try:
        return os.read(terminal, 65536).decode(errors="replace")
    except OSError:  # which Linux raises where the other end is closed
        return ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a run's file and one of comparisons."""
    (tmp_path / "run.toml").write_text("")
    rows = ({"prompt": f"question {i}", "chosen": "yes " * 20, "rejected": "no " * 20} for i in range(ROWS))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_bar_shows_how_far_import_status_and_export_are(folder: Path) -> None:
    done = on_terminal(folder, "import", "run.toml", "pairs.jsonl")
    assert (done.code, done.err) == (0, "")
    assert "importing pairs.jsonl" in done.out
    assert f"{ROWS}/?" in done.out
    assert f"{ROWS} new questions, 0 changed answers, 0 already there, 0 skipped, from pairs.jsonl. Next: rather train run.toml" in done.out
    done = on_terminal(folder, "status", "run.toml")
    assert f"{ROWS}/{ROWS}" in done.out.split("counting answers")[-1]
    done = on_terminal(folder, "export", "run.toml", "out.jsonl")
    assert f"{ROWS}/{ROWS}" in done.out.split("writing out.jsonl")[-1]
    assert f"{ROWS} rows in out.jsonl" in done.out


def test_rows_that_are_left_out_are_counted_with_the_reason(folder: Path) -> None:
    rows = [{"prompt": f"alone {i}", "response": "x", "rating": 1} for i in range(3)]
    rows += [{"prompt": "p", "a": "yes", "b": "no", "preference": 0.5}, {"prompt": "p", "a": "yes", "b": "no!", "preference": 1}]
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = on_terminal(folder, "import", "run.toml", "c.jsonl")
    assert "2 new questions, 0 changed answers, 0 already there, 3 skipped" in done.out
    assert "skipped 3: it is the only rated answer to its prompt by its judge; answers to one prompt should stand together" in done.out
    done = on_terminal(folder, "export", "run.toml", "out.jsonl", "--form", "trl")
    assert "1 rows in out.jsonl" in done.out
    assert "skipped 1: neither answer is preferred, which --form comparisons can hold" in done.out


def test_ctrl_c_during_an_import_says_in_one_line_what_to_do(folder: Path) -> None:
    stopped = on_terminal(folder, "import", "run.toml", "pairs.jsonl", stop_at="000/?")
    assert stopped.code == 130
    assert stopped.err == ("stopped: an import keeps all of a file or nothing; the same command imports what is missing of pairs.jsonl\n")
    assert "Traceback" not in stopped.out
    assert "new questions" not in stopped.out
    again = on_terminal(folder, "import", "run.toml", "pairs.jsonl")
    assert f"{ROWS} new questions, 0 changed answers, 0 already there" in again.out


def test_agreement_that_is_not_known_is_no_number(folder: Path) -> None:
    rows = [{"prompt": "p", "chosen": "x", "rejected": "y", "judge": judge} for judge in ("Ann", "Ben")]
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    on_terminal(folder, "import", "run.toml", "c.jsonl")
    done = on_terminal(folder, "status", "run.toml")
    assert "Agreement of 2 judges on 1 questions: 100 % of pairs of answers" in done.out
    assert "nan" not in done.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["serve", "run.toml", "--port", "99999"], "'--port'"),  # a socket takes it as 99999 - 65536
        (["api", "run.toml", "--port", "99999"], "'--port'"),
        (["serve", "run.toml", "--overlap", "1001"], "'--overlap'"),
        (["serve", "run.toml", "--key", "k.pem"], "--key k.pem is of a certificate, and none is given"),
        (["chat", "run.toml", "--store", "my.db"], "--store my.db is where preferences go, and one model alone gives none"),
        (["serve", "run.toml", "--demo"], "--demo shows questions of its own, and run.toml would be left out"),
    ],
)
def test_what_no_page_can_be_is_refused(folder: Path, arguments: list[str], sentence: str) -> None:
    command = [sys.executable, "-m", "rather", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert sentence in done.stderr
