"""Dependencies run one way: who may import whom."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "rather"
MODULES = sorted(SOURCE.rglob("*.py"))

OWN = {
    "errors": set(),
    "core": set(),
    "losses": set(),
    "wording": {"core"},
    "cost": {"core", "learners", "text", "wording"},
    "kernels": {"kernels"},
    "offsets": {"core", "errors"},
    "store": {"core", "errors", "store"},
    "hacking": set(),
    "curves": {"hacking"},
    "web": {"core", "curves", "data", "errors", "store", "web"},
    "data": {"core", "data", "errors", "store"},
    "ranks": set(),
    "metrics": {"errors", "ranks"},
    "control": {"core", "errors", "losses", "offsets", "control"},
    "text": {"core", "errors", "kernels", "losses", "offsets", "ranks", "text"},
    "spaces": {"core", "errors", "offsets", "spaces", "text"},
    "verify": {"core", "errors", "ranks", "verify"},
    "learners": {"core", "errors", "losses", "ranks", "learners"},
    "scale": {"core", "errors", "scale"},
    "judges": {"core", "errors", "store", "judges", "learners", "wording"},
    "evaluate": {"core", "errors"},
    "checkpoint": {"errors", "ranks"},
    "train": {"checkpoint", "errors", "metrics", "ranks"},
    "sections": set(),
    "guidelines": {"errors"},
    "config": {"errors", "sections"},
    "criteria": {"config", "core", "errors", "store"},
    "settings": {"config", "criteria", "errors", "sections"},
    "progress": set(),
}
ONLY_IN = {
    "transformers": "text",
    "tokenizers": "text",
    "gguf": "text",
    "peft": "text",
    "gymnasium": "control",
    "fastapi": "web",
    "ray": "scale",
}
FORBIDDEN = {"pickle", "dill", "joblib", "marshal", "shelve"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports(path: Path) -> None:
    found = imports(path)
    tops = {name.split(".")[0] for name in found}
    assert not tops & FORBIDDEN
    for package, home in ONLY_IN.items():
        assert package not in tops or part(path) == home, f"{package} may be imported only under {home}/"
    if part(path) in OWN:
        ours = {name.split(".")[1] for name in found if name.startswith("rather.")}
        ours = {name for name in ours if (SOURCE / name).exists() or (SOURCE / f"{name}.py").exists()}
        assert ours <= OWN[part(path)], f"{part(path)} may not import {ours - OWN[part(path)]}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_are_short_and_never_evaluate_strings(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    if path.name == "jail.py":
        return  # it is there to run a stranger's program, behind seccomp; tests/text/test_sandbox.py tries to get out
    calls = {n.func.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not calls & {"eval", "exec", "compile"}


def test_the_store_starts_without_torch() -> None:
    import subprocess
    import sys

    code = "import sys, rather.store, rather.core; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_import_export_and_status_work_without_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    (tmp_path / "c.jsonl").write_text('{"prompt": "Hi?", "chosen": "Hello.", "rejected": "No."}\n')
    (tmp_path / "run.toml").write_text("")
    code = """
import sys
sys.modules |= dict.fromkeys(("torch", "transformers"))
from rather.cli import app
for command in ("import run.toml c.jsonl", "status run.toml", "export run.toml all.jsonl"):
    app(command.split(), standalone_mode=False)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


def test_the_text_engine_stays_small() -> None:
    """Its speed is not paid for with simplicity. Empty lines and docstrings, the constants that are statements, do not count; nor do models
    that `transformers` computes.
    """
    count = 0
    for path in (SOURCE / "text").glob("[!f]*.py"):
        text = path.read_text()
        said = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
        told = {line for n in said for line in range(n.lineno, (n.end_lineno or n.lineno) + 1)}
        count += sum(bool(line.strip()) and i not in told for i, line in enumerate(text.splitlines(), 1))
    assert 1000 < count < 1750
