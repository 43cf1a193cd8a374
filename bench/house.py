"""How large the library is and how long `import rather` takes: `python bench/house.py`.

Lines of src/rather count without empty lines, comments and docstrings. The import is timed in processes of its own, less the time that
Python itself takes to start.
"""

import ast
import os
import platform
import subprocess
import sys
import time
import tokenize
from pathlib import Path
from statistics import median

from common import headline

TURNS = 15
SOURCE = Path("src/rather")


def source_lines(path: Path) -> int:
    """Lines of code in a file."""
    tree = ast.parse(path.read_text())
    docs = set[int]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docs |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING}
    with path.open("rb") as file:
        tokens = [t for t in tokenize.tokenize(file.readline) if t.type not in nothing]
    code = {line for t in tokens for line in range(t.start[0], t.end[0] + 1)}
    return len(code - docs)


def seconds(code: str) -> float:
    """Wall time of a Python process that runs `code`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    files = list(SOURCE.rglob("*.py"))
    counts = {path: source_lines(path) for path in files}
    rooms = dict[str, int]()
    for path, count in counts.items():
        room = path.relative_to(SOURCE).parts[0]
        rooms[room] = rooms.get(room, 0) + count
    for room, count in sorted(rooms.items(), key=lambda x: -x[1]):
        print(f"{count:6} {room}")
    total = sum(counts.values())
    print(f"{total:6} lines in {len(files)} files")
    times = sorted(seconds("import rather") - seconds("pass") for _ in range(TURNS))
    print(f"import rather: {median(times):.3f} s ({times[0]:.3f} to {times[-1]:.3f})")
    if "--keep" in sys.argv:
        machine = f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} processors"
        headline("source_lines", total, [total, total], "lines", "bench/house.py --keep", machine)
        headline("import_s", round(median(times), 3), [round(times[0], 3), round(times[-1], 3)], "s", "bench/house.py --keep", machine)


if __name__ == "__main__":
    main()
