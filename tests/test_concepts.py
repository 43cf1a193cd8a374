"""The pages about concepts name settings and metrics that exist, with the defaults that they have."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import rather
from rather.config.schema import Config

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs/concepts").glob("*.md"))
LEARNED = ("dpo", "grpo", "kto", "off-policy", "online", "ppo", "reward-head", "reward-model", "sft", "zeroth-order")
ALGORITHMS = [page for page in PAGES if page.stem in LEARNED]
HEADINGS = [
    "The idea", "The equation", "Settings", "What to watch", "What goes wrong", "Choices made here", "Papers",
]  # fmt: skip


def tables(page: Path, first: str) -> list[list[str]]:
    """The rows, as cells, of a page's tables whose first column is called `first`."""
    blocks = re.findall(rf"^\| {first} \|.*\n\|[-| ]+\|\n((?:\|.*\n?)+)", page.read_text(), re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for block in blocks for line in block.splitlines()]


def code(cell: str) -> str:
    """The code in a cell that holds nothing else."""
    found = re.fullmatch(r"`([^`]+)`", cell)
    assert found, f"{cell!r} should be one word of code"
    return found[1]


def section(name: str) -> type[BaseModel]:
    return Config.model_fields[name].annotation  # type: ignore[return-value]


def defaults(name: str) -> Any:
    part, key = name.split(".")
    return getattr(section(part)(), key)  # type: ignore[call-arg]


def value(written: str) -> Any:
    """A TOML value; a word that is none is text, as on the command line."""
    try:
        return tomllib.loads(f"value = {written}")["value"]
    except tomllib.TOMLDecodeError:
        return written


def settings(text: str) -> list[tuple[str, str]]:
    """Every `section.key` and `section.key = value` in a text, and in its code blocks every `section.key=value` behind a command."""
    inline = re.findall(r"`(\w+\.\w+)(?:\s?=\s?([^`]+))?`", text)
    behind = [
        pair
        for block in re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        for pair in re.findall(r"'?(\w+\.\w+)=([^\s']+)", block)
    ]
    return [(name, given) for name, given in [*inline, *behind] if name.split(".")[0] in Config.model_fields and name != "run.toml"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_setting_of_a_page_exists_and_takes_the_value(page: Path) -> None:
    found = settings(page.read_text())
    assert found or page.stem == "trajectories-and-batches"
    for name, given in found:
        part, key = name.split(".")
        assert key in section(part).model_fields, f"there is no setting {name}"
        if given:
            about = {"env": "Pendulum-v1"} if part == "control" else {}
            section(part).model_validate(about | {key: value(given)})


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_default_of_a_page_is_the_default(page: Path) -> None:
    for name, default, *_ in tables(page, "setting"):
        known = defaults(code(name))
        assert default == "unset" if known is None else value(code(default)) == known, f"{name} is {known!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_metric_of_a_page_is_explained_in_the_list_of_metrics(page: Path) -> None:
    (listed,) = [path for path in (ROOT / "docs").rglob("metrics.md") if "concepts" not in path.parts]
    known = {
        key for line in listed.read_text().splitlines() if line.startswith("| `") for key in re.findall("`([^`]+)`", line.split("|")[1])
    }
    for cell, *_ in tables(page, "metric"):
        assert (named := re.findall("`([^`]+)`", cell)), f"{cell!r} names no metric"
        assert set(named) <= known, f"{page.stem} names {set(named) - known}"


@pytest.mark.parametrize("page", ALGORITHMS, ids=lambda p: p.stem)
def test_a_page_about_an_algorithm_has_all_its_parts(page: Path) -> None:
    assert [heading for heading in re.findall("^## (.*)$", page.read_text(), re.MULTILINE) if heading in HEADINGS] == HEADINGS
    assert tables(page, "setting")
    assert tables(page, "metric")


def test_there_is_a_page_about_every_algorithm() -> None:
    assert len(ALGORITHMS) == len(LEARNED)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), link


SNIPPETS = [ROOT / "README.md", ROOT / "docs/coming-from-trl.md", ROOT / "docs/coming-from-sb3.md"]


@pytest.mark.parametrize("page", SNIPPETS, ids=lambda p: p.stem)
def test_python_on_a_page_is_python_and_names_what_the_library_has(page: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        compile(block, page.name, "exec")
    for name in {name for block in blocks for name in re.findall(r"(?<![\w.])rather\.(\w+)", block)}:
        assert hasattr(rather, name), name


@pytest.mark.parametrize("page", SNIPPETS[1:], ids=lambda p: p.stem)
def test_every_setting_beside_another_library_exists(page: Path) -> None:
    found = settings(page.read_text())
    assert len(found) > 10
    for name, _ in found:
        assert name.split(".")[1] in section(name.split(".")[0]).model_fields, name


@pytest.mark.slow
def test_the_python_of_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "adapter/adapter_model.safetensors").exists()
