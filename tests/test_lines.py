"""Lines on the terminal are broken beside words, never between a figure and its name or unit."""

import json
import os
import pty
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from rather.pipeline.terminal import broken

AGREEMENT = (
    "Agreement of 3 judges on 60 questions: 87 % of pairs of answers, Krippendorff's alpha 0.62 (95 % interval 0.54 to 0.70), n = 60"
)


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (200, [AGREEMENT]),
        (
            80,
            [
                "Agreement of 3 judges on 60 questions: 87 % of pairs of answers, Krippendorff's",
                "alpha 0.62 (95 % interval 0.54 to 0.70), n = 60",
            ],
        ),
        (
            26,
            [
                "Agreement of 3 judges",
                "on 60 questions: 87 % of",
                "pairs of answers,",
                "Krippendorff's alpha 0.62",
                "(95 %",
                "interval 0.54 to 0.70),",
                "n = 60",
            ],
        ),
    ],
)
def test_a_sentence_with_figures(width: int, lines: list[str]) -> None:
    assert broken(Text(AGREEMENT), width).plain.split("\n") == lines


def test_what_is_longer_than_a_line_stays_whole() -> None:
    path = "/runs/" + "x" * 50
    assert broken(Text(f"12 rows in {path}\nmean return 12.4 (+-2.1)"), 16).plain == f"12 rows in\n{path}\nmean\nreturn 12.4 (+-2.1)"


def test_styles_stay_on_their_words() -> None:
    (span,) = broken(Text.from_markup("one two [bold]three four[/bold]"), 13).split("\n")[1].spans
    assert (span.start, span.end, span.style) == (0, 4, "bold")


WORDS = st.sampled_from(
    ["win", "rate", "n", "=", "60", "0.5", "%", "of", "(95", "answers,", "+-", "3.", "interval)", "語語", "a-long-word-with-dashes"]
)


@given(st.lists(WORDS, min_size=1, max_size=30), st.integers(5, 60))
def test_nothing_is_lost_and_no_line_ends_in_a_figure(words: list[str], width: int) -> None:
    lines = broken(Text(" ".join(words)), width).plain.split("\n")
    assert " ".join(lines) == " ".join(words)
    for line, after in pairwise(lines):
        assert after.startswith("(") or not re.fullmatch(r"[\d.]*\d|=|\+-", line.split()[-1]), (
            "a number or a sign at the end has its unit or value on the next line"
        )
        assert after.split()[0] not in {"=", "%", "+-"}
    for line in lines:
        assert cell_len(line) <= width or not re.search(r", \S", line), "which could be shorter"


def test_commands_at_a_terminal_of_few_columns(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("")
    rows = ({"prompt": f"{i}?", "a": "yes", "b": "no", "preference": i % 2, "judge": f"j{i % 2}"} for i in range(12))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    imported = shown(tmp_path, 40, "import", "run.toml", "pairs.jsonl")
    for figure in ("12 new questions,", "0 changed answers,", "0 already there,", "0 skipped,"):
        assert figure in imported
    (tmp_path / "runs" / "run").mkdir(parents=True, exist_ok=True)
    row = {"phase": "train-dpo-0", "step": 1200, "loss": 0.123456, "win_rate_low": 1.0, "checkpoint": "0f" * 40, "settings": {}}
    (tmp_path / "runs" / "run" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    status = shown(tmp_path, 40, "status", "run.toml")
    for figure in (
        r"run: 12 questions\n",
        r"Last metrics: train-dpo-0, step 1200\n",
        r"│ loss +│ +0.1235 │\n",
        r"│ win_rate_low +│ +1 │\n",
    ):
        assert re.search(figure, status), status
    assert max(map(cell_len, status.split("\n"))) <= 40


def shown(folder: Path, columns: int, *arguments: str) -> str:
    """What `rather` shows on a terminal that has so many columns."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)}
    subprocess.run([sys.executable, "-m", "rather", *arguments], cwd=folder, env=environment, stdout=theirs, check=True)
    os.close(theirs)
    data = b""
    while more := _read(ours):
        data += more
    os.close(ours)
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", data.decode()).replace("\r\n", "\n").replace("\r", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # which Linux raises where the other end is closed
        return b""
