"""The benchmarks fit the library as it is; that they call it rightly is checked by pyright."""

import ast
import importlib
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "bench").glob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The modules that a script imports, anywhere in it, and the names that it takes from each."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, [alias.name for alias in node.names]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_benchmark_imports_of_the_library_is_there(path: Path) -> None:
    for module, names in imports(path):
        assert not (ROOT / "tests" / f"{module}.py").exists(), f"{module} is not on the path of a benchmark"
        if module.split(".")[0] == "rather":
            found = importlib.import_module(module)
            for name in names:
                assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}"), f"{module} has no {name}"


def test_the_benchmarks_that_docs_name_are_there() -> None:
    pages = [ROOT / "README.md", ROOT / "Makefile", *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"bench/\w+\.py", page.read_text())}
    assert {"bench/cpu.py", "bench/gpu.py"} <= named
    for name in named:
        assert (ROOT / name).exists(), name


def test_rows_of_results_are_those_that_the_benchmark_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    grid, nudge, straight = (importlib.import_module(name) for name in ("grid", "nudge", "straight"))

    def rows(name: str, *keys: str) -> set[str]:
        found = json.loads((ROOT / f"bench/results/{name}.json").read_text())
        return set().union(*(found[key] for key in keys))

    assert rows("grid", "curves") == {*grid.VARIANTS, *grid.MODELS}
    assert rows("grid", "cells") == {*grid.CELLS, *grid.MODELS}
    assert rows("nudge", "found") <= set(nudge.ROWS)
    for task, budgets in straight.BUDGETS.items():
        assert rows(f"straight-{task.lower()}", "found") == {f"{side}/{answers}" for side in straight.SIDES for answers in budgets}
