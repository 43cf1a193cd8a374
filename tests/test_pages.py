"""The commands of the documents: `sh` blocks run as they stand, from an installed wheel; `console` blocks are at least real commands."""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import typer.main

from rather.cli.app import app
from rather.config import toml

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [block for name, block in found if re.fullmatch(language, name)]


RUN = [page for page in PAGES if blocks(page, "sh")]


def commands(page: Path) -> list[list[str]]:
    """Each call of `rather` in a page's blocks and in its sentences, as its arguments."""
    lines = [line for block in blocks(page, "(?:sh|console)?") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(rather [^`]+)`", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE))
    parts = [shlex.split(part, comments=True) for line in lines if "rather " in line for part in re.split(r"&&|[>|]", line)]
    return [words[1:] for words in parts if words[:1] == ["rather"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_of_a_page_exists(page: Path) -> None:
    group = typer.main.get_command(app)
    keys = toml.names()
    for name, *arguments in commands(page):
        if name.startswith("--"):
            continue
        command = group.commands[name]  # type: ignore[attr-defined]
        if all(word.startswith("-") for word in arguments):  # a sentence may name a command, perhaps with an option, and no file
            known = {option for parameter in command.params for option in parameter.opts}
            assert set(arguments) <= known, f"{page.name}: rather {name} {arguments}"
        else:
            command.make_context(name, [*arguments]).close()
        for word in arguments:
            if (key := re.match(r"(\w+\.\w+)=", word)) is not None:
                assert key[1] in keys, f"{page.name}: {word}"


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's files, as pip unpacks them."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, ROOT], check=True)
    (wheel,) = folder.glob("rather-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def read_only(folders: list[Path], script: str) -> list[str]:
    """A command that runs `script` where those folders cannot be written to, not even by root."""
    quoted = [shlex.quote(str(x)) for x in folders]
    # On lines of their own: in `a && b` the shell's -e ignores that a fails.
    mounts = [line for x in quoted for line in (f"mount --bind {x} {x}", f"mount -o remount,ro,bind {x}")]
    check = f'for folder in {" ".join(quoted)}; do ! touch "$folder/x" 2> /dev/null || exit 99; done'
    return ["unshare", "-m" if os.geteuid() == 0 else "-rm", "sh", "-e", "-c", "\n".join([*mounts, check, script])]


PROBE = ["unshare", "-rm", "sh", "-c", "mount --bind /tmp /tmp && mount -o remount,ro,bind /tmp"]
MOUNTS = pytest.mark.skipif(subprocess.run(PROBE, capture_output=True).returncode != 0, reason="no mount namespaces here")


@MOUNTS
def test_pages_run_where_every_folder_is_read_only_or_not_at_all(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two words"]
    for folder in folders:
        folder.mkdir()
    for folder in folders:
        done = subprocess.run(read_only(folders, f"touch {shlex.quote(str(folder))}/y"), capture_output=True, text=True)
        assert done.returncode == 1
        assert "Read-only file system" in done.stderr
    assert subprocess.run(read_only(folders, "true")).returncode == 0
    assert subprocess.run(read_only([*folders, tmp_path / "missing"], "true"), capture_output=True).returncode not in (0, 99)


@pytest.mark.slow
@MOUNTS
@pytest.mark.parametrize("page", RUN, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_page_runs_as_written(page: Path, installed: Path, tmp_path: Path) -> None:
    """From an installed wheel, in an empty folder, with read-only packages and home, without a compiler."""
    home, work, tools = tmp_path / "home", tmp_path / "work", tmp_path / "bin"
    for folder in (home, work, tools):
        folder.mkdir()
    for name, module in (("rather", "rather"), ("pip", "pip")):
        (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        (tools / name).chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "XDG_", "TRITON", "RATHER"))}
    environment |= {"HOME": str(home), "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(installed), "CC": "/nonexistent/cc"}
    packages = Path(sysconfig.get_paths()["purelib"])
    command = read_only([installed, packages, home], "\n".join(blocks(page, "sh")))
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    where = subprocess.run([sys.executable, "-c", "import rather; print(rather.__file__)"], env=environment, capture_output=True, text=True)
    assert where.stdout.startswith(str(installed))
