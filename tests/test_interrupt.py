"""Ctrl-C at any moment: one line, never a traceback."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PACKAGES = ["_pydantic_core", "_multiarray_umath", "libtorch_cpu", "libtorch_python"]
"""Libraries that are mapped while packages are imported, the earliest first."""


def interrupted(folder: Path, library: str, delay: float) -> None:
    command = [sys.executable, "-m", "rather", "doctor"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and library not in maps.read_text():
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode in (130, 0), (library, delay, process.returncode, out, err)
    assert "Traceback" not in out + err, (library, delay, err)
    assert "Exception ignored" not in err, (library, delay, err)
    if process.returncode:
        assert err.splitlines()[-1].startswith("stopped: what was finished is kept"), (library, delay, err)
        assert len([line for line in err.splitlines() if line]) == 1, (library, delay, err)


@pytest.mark.parametrize("library", ["_multiarray_umath", "libtorch_python"])
def test_while_packages_are_imported(tmp_path: Path, library: str) -> None:
    interrupted(tmp_path, library, 0.0)


@pytest.mark.slow
def test_at_many_moments(tmp_path: Path) -> None:
    for library in PACKAGES:
        for i in range(8):
            interrupted(tmp_path, library, 0.06 * i)
