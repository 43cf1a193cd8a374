"""Dependencies run one way: who may import whom."""

import ast
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "rather"
MODULES = sorted(SOURCE.rglob("*.py"))

ROOMS = [
    *(
        "core",
        "losses",
        "errors",
        "renamed",
        "settings",
        "store",
        "kernels",
        "scale",
        "data",
        "verify",
        "learners",
        "text",
        "control",
    ),
    *("judges", "config", "hacking", "report", "zeroth", "pipeline", "web", "doctor", "cli", "__init__", "__main__"),
]
"""In this order: each may import those before it."""
ROOT = {"core", "losses", "errors", "renamed", "settings", "doctor", "__init__", "__main__"}
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
    """Modules that a file imports, and names from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def module(path: Path) -> str:
    """A module's name below `rather`."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


NAMES = {module(path) for path in MODULES}


def ours(path: Path) -> set[str]:
    """The modules of ours that a file imports; `from rather.store import rows` imports `store.rows`, not `store`."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name.removeprefix("rather.") in NAMES else node.module for name in names}
    return {name.removeprefix("rather.") for name in found} & NAMES - {module(path)}


IMPORTS = {module(path): ours(path) for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports(path: Path) -> None:
    found = imports(path)
    tops = {name.split(".")[0] for name in found}
    assert not tops & FORBIDDEN
    for package, home in ONLY_IN.items():
        assert package not in tops or part(path) == home, f"{package} may be imported only under {home}/"
    room = ROOMS.index(part(path))
    later = {name for name in IMPORTS[module(path)] if ROOMS.index(name.split(".")[0]) > room}
    assert not later, f"{module(path)} may not import {later}: the rooms are {' < '.join(ROOMS)}"


UNTYPED = {
    *(
        "__init__",
        "control",
        "control.agent",
        "control.car",
        "control.exploring_buffer",
        "control.grid",
        "control.replay",
        "control.reward_wrappers",
        "control.wrappers",
        "kernels",
        "kernels.gpu_attention",
    ),
    *("pipeline.terminal", "text.engine", "text.files.fields", "text.files.gguf_file", "text.foreign", "text.foreign_lora", "text.policy"),
    *("text.prompts.special", "text.prompts.template", "text.tokens", "verify.functions", "web.limits"),
}
"""Modules where what comes from another library, or from a user's function, has no type that could be said."""


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_public_signatures_say_types(path: Path) -> None:
    """`Any` alone says nothing; `dict[str, Any]` says JSON, TOML, or a state."""
    found = [f"{name}: {what}" for name, what in signatures(ast.parse(path.read_text())) if what in ("Any", "Any | None")]
    assert module(path) in UNTYPED or not found
    assert module(path) not in UNTYPED or found, "its signatures say types: take it out of UNTYPED"


def signatures(of: ast.Module | ast.ClassDef) -> Iterator[tuple[str, str]]:
    """What public functions take and return, and what public attributes are."""
    for node in of.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from signatures(node)
        elif isinstance(node, ast.AnnAssign):
            yield ast.unparse(node.target), ast.unparse(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (not node.name.startswith("_") or node.name.endswith("__")):
            a = node.args
            arguments = [x for x in (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg) if x and x.annotation]
            yield from ((f"{node.name}({x.arg})", ast.unparse(x.annotation)) for x in arguments if x.annotation)
            yield f"{node.name} returns", ast.unparse(node.returns) if node.returns else "None"


def test_the_root_holds_little() -> None:
    assert {path.stem for path in SOURCE.glob("*.py")} == ROOT


def test_no_circle() -> None:
    """Not even by an import inside a function."""
    assert not circles(IMPORTS)


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules that import each other, directly or not."""

    def reached(start: str) -> set[str]:
        found, left = set[str](), [start]
        while left:
            for name in graph[left.pop()] - found:
                found.add(name)
                left.append(name)
        return found

    reach = {name: reached(name) for name in graph}
    found = [{other for other in reach[name] if name in reach[other]} for name in graph if name in reach[name]]
    return [circle for i, circle in enumerate(found) if circle not in found[:i]]


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


def test_a_run_starts_without_what_few_need() -> None:
    """Parquet, the linear algebra of a reward head: 50 MB that the labelling page does without."""
    import subprocess
    import sys

    code = "import sys, rather.pipeline.run, rather.web.serve; print({'pyarrow', 'scipy.optimize', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_a_model_is_made_without_pytorchs_compiler(tiny: Path) -> None:
    """A second and 100 MB, which many an operation on tensors without data loads."""
    import subprocess
    import sys

    code = """
import sys
from rather.text.weights import load, Path
load(Path(sys.argv[1]))
print({"torch._dynamo", "sympy"} & set(sys.modules))
"""
    assert subprocess.check_output([sys.executable, "-c", code, str(tiny)], text=True) == "set()\n"


def test_import_export_and_status_work_without_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    (tmp_path / "c.jsonl").write_text('{"prompt": "Hi?", "chosen": "Hello.", "rejected": "No."}\n')
    (tmp_path / "run.toml").write_text("")
    code = """
import sys
sys.modules |= dict.fromkeys(("torch", "transformers"))
from rather.cli.app import app
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
    assert 1000 < count < 2300


def test_the_picture_of_the_rooms_is_as_the_code() -> None:
    made = runpy.run_path(str(SOURCE.parent.parent / "docs" / "rooms.py"))
    assert made["PICTURE"].read_text() == made["draw"](), "python docs/rooms.py draws it again"
