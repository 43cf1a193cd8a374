"""The file with the owner's guidelines: what is read, and what is refused before anything begins."""

import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from rather.config import guidelines
from rather.errors import ConfigError
from rather.web import words

EMPTY = "the guidelines guidelines.md are empty; write something, or leave judge.guidelines empty"
LONG = "the guidelines guidelines.md have more than 20,000 characters; shorten them"


def test_a_text_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "guidelines.md"
    file.write_bytes("\ufeff# Ü\r\n\r\nBe kind ☃".encode())
    assert guidelines.read(str(file)) == "# Ü\r\n\r\nBe kind ☃"
    file.write_text("☃" * guidelines.LONGEST, encoding="utf-8")
    assert len(guidelines.read(str(file))) == guidelines.LONGEST
    assert guidelines.read("") == ""
    assert guidelines.LONGEST <= words.LONGEST, "the page shows it as Markdown"


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        (None, "there is no file guidelines.md, which judge.guidelines names; write it, or leave the setting empty"),
        (b"", EMPTY),
        (b"\xef\xbb\xbf \n\xc2\xa0\xe2\x80\x8b\n", EMPTY),
        (b"Caf\xe9", "the guidelines guidelines.md are no UTF-8: byte 4 belongs to no character; save them as UTF-8"),
        (b"x" * 20_001, LONG),
        ("\U0001f642".encode() * 20_001, LONG),
        (b"x" + "\U0001f642".encode() * 30_000, LONG),
    ],
)
def test_what_cannot_be_shown_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bytes | None, sentence: str) -> None:
    monkeypatch.chdir(tmp_path)
    if written is not None:
        Path("guidelines.md").write_bytes(written)
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}$"):
        guidelines.read("guidelines.md")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        guidelines.read(str(tmp_path))


@pytest.mark.parametrize("command", ["serve", "label", "sample", "loop"])
def test_every_command_that_asks_people_refuses_them_first(
    rather: Callable[..., CompletedProcess[str]], tmp_path: Path, tiny: Path, command: str
) -> None:
    (tmp_path / "run.toml").write_text(f'[model]\npath = "{tiny}"\n[judge]\nkind = "terminal"\nguidelines = "nowhere.md"\n')
    done = rather(command, "run.toml", code=2)
    assert "there is no file nowhere.md, which judge.guidelines names" in " ".join(done.stderr.split())
