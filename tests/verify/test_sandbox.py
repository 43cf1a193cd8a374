"""Programs that try to pass without doing what is asked, and to do what they may not."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rather.errors import DataError
from rather.verify.sandbox import Limits, cases, passed, program

ADD = "assert add(1, 2) == 3\nassert add(b=5, a=2) == 7"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def add(a, b): return a + b", [True, True]),
        ("import math\nfrom functools import reduce\ndef add(a, b): return math.floor(reduce(lambda x, y: x + y, [a, b]))", [True, True]),
        ("def add(a, b): return 3", [True, False]),
        ("def add(a, b): raise SystemExit(0)", [False, False]),
        ("def add(a, b)", [False, False]),
        ("", [False, False]),
    ],
)
def test_a_program_passes_what_it_computes(source: str, expected: list[bool]) -> None:
    assert passed(source, cases(ADD)) == expected


CHEATS = {
    "prints what is expected": "print('3'); print('7')\ndef add(a, b): print([0, '3'])",
    "ends at once, well": "import os\nos._exit(0)",
    "raises SystemExit": "raise SystemExit(0)",
    "returns what equals everything": "class E:\n    def __eq__(s, o): return True\ndef add(a, b): return E()",
    "overrides what is built in": (
        "import builtins\nbuiltins.repr = lambda x: 'True'\nbuiltins.all = lambda x: True\ndef add(a, b): return None"
    ),
    "overrides the module that runs it": (
        "import sys\nm = sys.modules['__main__']\n"
        "m.result_of_call = lambda *a: 'True'\nm.json.dumps = lambda x: '[0, \"x\"]'\ndef add(a, b): return None"
    ),
    "looks for the answer in the frames": (
        "import sys\ndef add(a, b):\n    f = sys._getframe()\n    while f:\n        for v in f.f_locals.values():\n"
        "            if isinstance(v, dict) and 'expected' in v: return v['expected']\n"
        "            if isinstance(v, dict) and 'cases' in v: return v['cases'][0].get('expected')\n        f = f.f_back"
    ),
    "reads the tests": f"def add(a, b): return int(open({str(Path(__file__))!r}).read().split('== ')[1][0])",
    "fills the memory": "x = [0] * 10**10\ndef add(a, b): return a + b",
    "recurses": "import sys\nsys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1)\nf(0)\ndef add(a, b): return a + b",
    "never ends": "while True: pass",
    "talks without end": "import os\ndef add(a, b):\n    while True: os.write(3, b'x' * 65536)",
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheat_passes_nothing(cheat: str) -> None:
    start = time.monotonic()
    assert passed(CHEATS[cheat], cases(ADD), Limits(timeout_s=1.5)) == [False, False]
    assert time.monotonic() - start < 10


FORBIDDEN = {
    "read a file": "open('/etc/passwd').read()",
    "write a file": "open({there!r}, 'w').write('x')",
    "open by number": "__import__('os').open({there!r}, 65)",
    "fork": "__import__('os').fork()",
    "start a program": "1 / (__import__('os').system('true') == 0)",
    "start a thread": "__import__('_thread').start_new_thread(print, ())",
    "open a socket": "__import__('_socket').socket()",
    "kill its parent": "__import__('os').kill(__import__('os').getppid(), 9)",
    "delete": "__import__('os').remove({there!r})",
    "list a folder": "__import__('os').listdir('/')",
    "take rights back": "__import__('resource').setrlimit(9, (-1, -1))",
}


@pytest.mark.parametrize("deed", FORBIDDEN)
def test_what_a_calculation_does_not_need_is_forbidden(deed: str, tmp_path: Path) -> None:
    there = tmp_path / "there"
    source = "def tried():\n    try:\n        {}\n        return 'done'\n    except {}:\n        return 'refused'"
    errors = "(OSError, RuntimeError, ZeroDivisionError, ImportError, ValueError)"
    source = source.format(FORBIDDEN[deed].format(there=str(there)), errors)
    assert passed(source, cases("assert tried() == 'refused'")) == [True]
    assert not there.exists()


def test_the_same_deeds_succeed_outside(tmp_path: Path) -> None:
    """So that what is refused above is refused by the jail."""
    for deed in ("read a file", "write a file", "list a folder", "open a socket"):
        subprocess.run([sys.executable, "-c", FORBIDDEN[deed].format(there=str(tmp_path / "there"))], check=True)
    assert (tmp_path / "there").read_text() == "x"


def test_it_sees_no_environment_and_leaves_no_process() -> None:
    os.environ["SECRET_OF_THE_PARENT"] = "x"
    source = "import os\ndef seen(): return dict(os.environ).get('SECRET_OF_THE_PARENT')"
    assert passed(source, cases("assert seen() == None")) == [True]


def test_programs_that_read_and_print() -> None:
    tests = cases('[{"input": "3 4", "output": "7"}, {"input": "1 1", "output": "2\\n"}]')
    assert passed("a, b = map(int, input().split())\nprint(a + b)", tests) == [True, True]
    assert passed("print(7)\nimport sys; sys.exit(0)", tests) == [True, False]
    assert passed("import os\nos.write(1, b'7')", tests) == [False, False]


@pytest.mark.parametrize(
    "tests", ["", "x = 1", "assert f(1) > 2", "assert f(y) == 2", "assert f(1) == g(1)", "import os", '[{"in": 1}]', "assert"]
)
def test_tests_that_would_have_to_run_beside_the_program_are_refused(tests: str) -> None:
    with pytest.raises(DataError, match="write lines of assert"):
        cases(tests)


def test_the_program_is_the_last_block_of_an_answer() -> None:
    assert program("First\n```python\nx = 1\n```\nbetter:\n```\nx = 2\n```") == "x = 2\n"
    assert program("x = 3") == "x = 3"
