"""The loops in C are compiled once and kept, where nobody else can put code in their place."""

import os
import shlex
from pathlib import Path

import pytest

from rather.kernels import compiled

DEFINED = ["-DWIDTH=8", "-DGROUP=1"]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, a file of one function, and a compiler that writes down what it is asked for."""
    log, cc = tmp_path / "calls", tmp_path / "cc.sh"
    cc.write_text(f'echo "$@" >> {shlex.quote(str(log))}\nexec cc "$@"\n')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", f"sh {shlex.quote(str(cc))}")
    (tmp_path / "kernels.c").write_text("int width(void) { return WIDTH; }\n")
    monkeypatch.setattr(compiled, "FOLDER", tmp_path)
    return log


def compilations(calls: Path) -> int:
    return calls.read_text().count("kernels.c")


def kept(calls: Path) -> list[Path]:
    return sorted((calls.parent / "cache").rglob("*.so"))


def test_they_are_compiled_once(calls: Path) -> None:
    for _ in range(2):
        found = compiled.library("kernels.c", DEFINED)
        assert found is not None
        assert found.width() == 8
    assert compilations(calls) == 1
    assert len(kept(calls)) == 1
    other = compiled.library("kernels.c", ["-DWIDTH=16", "-DGROUP=1"])
    assert other is not None
    assert other.width() == 16
    assert compilations(calls) == len(kept(calls)) == 2


def test_a_version_of_rather_has_its_own(calls: Path) -> None:
    compiled.library("kernels.c", DEFINED)
    (calls.parent / "kernels.c").write_text("int width(void) { return 1 + WIDTH; }\n")
    found = compiled.library("kernels.c", DEFINED)
    assert found is not None
    assert found.width() == 9


def test_another_compiler_and_another_processor_compile_anew(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled.library("kernels.c", DEFINED)
    (calls.parent / "cc.sh").write_text((calls.parent / "cc.sh").read_text().replace("exec", '[ "$1" != --version ] || echo 99\nexec'))
    compiled.library("kernels.c", DEFINED)
    assert compilations(calls) == 2
    monkeypatch.setattr(compiled, "_processor", lambda: b"another")
    compiled.library("kernels.c", DEFINED)
    assert compilations(calls) == len(kept(calls)) == 3


def test_a_damaged_file_is_made_again(calls: Path) -> None:
    compiled.library("kernels.c", DEFINED)
    (file,) = kept(calls)
    whole = file.stat().st_size
    file.unlink()  # what is loaded already must stay as it is
    file.write_bytes(b"\x7fELF")
    assert compiled.library("kernels.c", DEFINED) is not None
    assert kept(calls)[0].stat().st_size == whole
    assert compilations(calls) == 2


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o722])
def test_nothing_is_loaded_from_where_others_may_write(calls: Path, mode: int) -> None:
    compiled.library("kernels.c", DEFINED)
    (file,) = kept(calls)
    file.parent.chmod(mode)
    assert compiled.library("kernels.c", DEFINED) is not None
    assert compilations(calls) == 2
    assert kept(calls) == [file]


def test_nothing_is_loaded_from_a_folder_of_somebody_else(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled.library("kernels.c", DEFINED)
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert compiled.library("kernels.c", DEFINED) is not None
    assert compilations(calls) == 2


def test_without_a_home_they_are_compiled_all_the_same(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (calls.parent / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(calls.parent / "file"))
    assert compiled.library("kernels.c", DEFINED) is not None
    assert compiled.library("kernels.c", DEFINED) is not None
    assert compilations(calls) == 2
