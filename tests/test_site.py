"""The documentation site: what is made from the code is complete, and links find their files. `make docs` builds it whole."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from rather.config import toml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))
generated, hooks = importlib.import_module("generated"), importlib.import_module("hooks")


def test_every_setting_is_on_the_page_of_settings() -> None:
    named = set(re.findall(r"^\| `(\w+\.\w+)` ", generated.settings(), re.MULTILINE))
    assert named == {name for name in toml.names() if "." in name}


def test_every_command_is_on_the_page_of_commands() -> None:
    page = generated.commands()
    assert {"rather loop", "rather serve", "rather export"} <= set(re.findall("^## (.*)$", page, re.MULTILINE))
    assert "| `--overlap` |" in page
    assert "[cyan]" not in page


def test_every_request_and_its_errors_are_on_the_page_of_rest() -> None:
    page = generated.rest()
    (answers,) = re.findall("^### POST /api/answers\n(.*?)^### ", page, re.MULTILINE | re.DOTALL)
    assert "Body: [Answer](#answer)." in answers
    assert "| 429 | [Problem](#problem) |" in answers
    assert "### Answer\n" in page


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("docs/guides/pairs.md", "guides/pairs.md"),
        ("bench/results/demo.md", "bench/results/demo.md"),
        ("bench/results", "bench/results/index.md"),
    ],
)
def test_a_file_of_the_repository_has_a_place_in_the_site(path: str, uri: str) -> None:
    assert hooks.site_uri(ROOT / path) == uri


def test_links_out_of_docs_are_found_but_not_those_in_code(tmp_path: Path) -> None:
    page = ROOT / "docs/guides/pairs.md"
    text = "[a](../../bench/results/demo.md#x) `[b](../../README.md)`\n```\n[c](../../LICENSE)\n```\n[d](people.md) [e](https://x.org)"
    assert hooks.links(page, text) == {ROOT / "bench/results/demo.md"}


def test_every_page_is_in_the_navigation_and_nothing_is_fetched() -> None:
    settings = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in settings
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in settings, page
    for page in (ROOT / "docs").rglob("*.md"):
        assert not re.search(r"!\[[^]]*\]\(https?:|<(script|iframe|img|link)\b", page.read_text()), page
