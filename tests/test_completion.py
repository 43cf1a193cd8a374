"""The tab key: commands, run files, settings and their values, in real shells."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from rather.config import completion

BIN = Path(sys.executable).parent


def words(offers: completion.Offers) -> list[str]:
    return [word for word, _ in offers]


def test_sections_then_keys_then_values() -> None:
    assert {"run.", "train.", "judge."} <= set(words(completion.settings("")))
    assert "train.lr=" in words(completion.settings("tra"))
    assert words(completion.settings("train.l")) == ["train.learner=", "train.lr="]
    assert words(completion.settings("train.lr")) == ["train.lr=", "train.lr=0.0001"]
    assert words(completion.settings("train.learner=d")) == ["train.learner=dpo"]
    assert words(completion.settings("train.flag")) == ["train.flagged=true", "train.flagged=false"]
    assert words(completion.settings("nix")) == words(completion.settings("train.nix=")) == []


def test_a_shell_that_splits_at_the_equals_sign() -> None:
    assert words(completion.settings("d", ["train.lr", "=", "1", "train.learner", "="])) == ["dpo"]
    assert words(completion.settings("", ["train.lr"])) == ["0.0001"], "where the incomplete word is the sign itself"


def test_run_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / ".hidden").mkdir(parents=True)
    for name in ("run.toml", "pairs.jsonl", "runs/a.toml", "runs/.b.toml"):
        (tmp_path / name).touch()
    assert words(completion.run_files("")) == ["run.toml", "runs/"]
    assert words(completion.run_files("runs/")) == ["runs/a.toml"]
    assert words(completion.run_files(f"{tmp_path}/r")) == [f"{tmp_path}/run.toml", f"{tmp_path}/runs/"]
    assert completion.run_files("pairs") == completion.run_files("nowhere/") == [], "left to the shell"


SHELLS = {
    "bash": (["--norc", "--noprofile"], 'source <("$RATHER" --show-completion)'),
    "zsh": (["-f"], 'autoload -Uz compinit; compinit -D -u; eval "$("$RATHER" --show-completion)"'),
    "fish": (["--no-config"], '"$RATHER" --show-completion | source'),
}


@pytest.mark.parametrize("shell", ["bash", pytest.param("zsh", marks=pytest.mark.slow), pytest.param("fish", marks=pytest.mark.slow)])
def test_at_a_prompt(shell: str, tmp_path: Path) -> None:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"no {shell}")
    options, setup = SHELLS[shell]
    (tmp_path / "run.toml").touch()
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "RATHER": str(BIN / "rather"),
        "TERM": "dumb",
    }
    at = pexpect.spawn(path, options, cwd=str(tmp_path), env=environment, encoding="utf8", dimensions=(50, 200), timeout=30)
    at.sendline(f"{setup}; echo re''ady")
    at.expect("ready")
    for typed, added in [("rather stat", "us "), ("ru", "n.toml "), ("train.lea", "rner="), ("dp", "o ")]:
        at.send(f"{typed}\t")
        at.expect(re.escape(added) if shell != "fish" else re.escape(typed + added))
    at.close(force=True)
    assert not {".bashrc", ".bash_completions", ".zshrc", ".zfunc"} & {p.name for p in tmp_path.iterdir()}, "nothing is installed"


def test_it_needs_no_torch_and_gives_a_line_a_word(tmp_path: Path) -> None:
    code = "import sys; sys.argv[0] = 'rather'; import atexit; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))"
    code += "; from rather.__main__ import main; main()"
    given = {"_RATHER_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args", "COLUMNS": "40"}
    for line, expected in [("rather ", "status"), ("rather status run.toml judge.", "judge.criteria=")]:
        environment = {**os.environ, **given, "_TYPER_COMPLETE_ARGS": line}
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.stderr == "False\n"
        offered = dict(offer.split("\t") for offer in done.stdout.splitlines())
        assert offered[expected]
