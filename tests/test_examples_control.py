"""The examples about control run as they are, with few steps."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("control_from_comparisons.py", ["2", "4", "300"], "after 8 comparisons: mean return -"),
        ("custom_network.py", ["300"], "trained: mean return -"),
    ],
)
def test_it_runs(name: str, arguments: list[str], said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert len((EXAMPLES / name).read_text().splitlines()) <= 40
