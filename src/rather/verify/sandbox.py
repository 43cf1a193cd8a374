"""Runs programs that a model wrote, and compares what they do with what they should: time, memory, files, network are closed to them.

The program runs in a process of its own behind Linux's seccomp (see jail.py), which knows the inputs alone. The comparison is
made here, so nothing that the program does to its own process can pass a test.
"""

import ast
import json
import os
import platform
import re
import selectors
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rather.errors import ConfigError, DataError

LONGEST_OUTPUT = 10_000_000
"""Bytes that are read before a program is stopped."""


@dataclass(frozen=True)
class Limits:
    """Seconds that pass, and bytes of memory, for one program with all its cases."""

    timeout_s: float = 5.0
    memory_bytes: int = 512 * 2**20


@dataclass(frozen=True)
class Case:
    """What a program is given, as jail.py reads it, and what should come back."""

    given: dict[str, Any]
    expected: object


def cases(tests: str) -> list[Case]:
    """The tests of a task, in one of two forms.

    Python: lines `assert f(literals) == literal`, as in MBPP. JSON: a list of {"input": what the program reads, "output": what it prints}.

    Raises:
        DataError: another form, which could be run only where the program can reach it.
    """
    try:
        rows = json.loads(tests)
    except ValueError:
        rows = None
    if isinstance(rows, list) and rows and all(isinstance(r, dict) and {"input", "output"} <= set(r) for r in rows):
        return [Case({"input": str(r["input"])}, str(r["output"])) for r in rows]
    try:
        statements = ast.parse(tests).body
        found = [_asserted(s) for s in statements]
    except (SyntaxError, ValueError) as e:
        raise DataError(
            f"these tests cannot be used: {e}; write lines of assert f(literals) == literal, or a JSON list of input and output"
        ) from None
    if not found:
        raise DataError("there are no tests; write lines of assert f(literals) == literal, or a JSON list of input and output")
    return found


def _asserted(statement: ast.stmt) -> Case:
    match statement:
        case ast.Assert(test=ast.Compare(left=ast.Call(func=ast.Name(id=name)) as call, ops=[ast.Eq()], comparators=[expected])):
            arguments = [ast.unparse(x) for x in call.args]
            named = {k.arg: ast.unparse(k.value) for k in call.keywords if k.arg}
            for text in (*arguments, *named.values()):
                ast.literal_eval(text)
            return Case({"function": name, "arguments": arguments, "named": named}, ast.literal_eval(expected))
        case _:
            raise ValueError(f"{ast.unparse(statement)!r} compares no call with a literal")


def program(answer: str) -> str:
    """The program in an answer: its last fenced block of code, or all of it."""
    blocks = re.findall(r"```[a-zA-Z]*\n(.*?)```", answer, re.DOTALL)
    return blocks[-1] if blocks else answer


def passed(source: str, tests: list[Case], limits: Limits | None = None) -> list[bool]:
    """Which tests a Python program passes.

    Raises:
        ConfigError: this system has no seccomp.
    """
    limits = limits or Limits()
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"):
        raise ConfigError(f"programs can be run on Linux on x86_64 and aarch64 alone, not on {sys.platform} on {platform.machine()}")
    work = {"source": source, "cases": [t.given for t in tests], "memory_bytes": limits.memory_bytes, "cpu_s": int(limits.timeout_s) + 1}
    found = _results(json.dumps(work).encode(), limits.timeout_s)
    if found.get(-1) != "ready":
        raise ConfigError("programs cannot be run safely here: the system refuses seccomp or the limits on memory")
    return [_is(found.get(number), test) for number, test in enumerate(tests)]


def _is(found: str | None, test: Case) -> bool:
    if found is None:
        return False
    if "input" in test.given:
        return [line.rstrip() for line in found.rstrip().splitlines()] == [x.rstrip() for x in str(test.expected).rstrip().splitlines()]
    try:
        return bool(ast.literal_eval(found) == test.expected)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False


def _results(work: bytes, timeout_s: float) -> dict[int, str]:
    """What the jail tells before it ends, talks too much or runs out of time."""
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("jail.py"))]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env={}, cwd="/", start_new_session=True, **pipes)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(work)
        process.stdin.close()
        reply = _read(process.stdout, time.monotonic() + timeout_s)
    except BrokenPipeError:
        reply = b""
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    found = {}
    for line in reply.decode(errors="replace").splitlines():
        try:
            number, result = json.loads(line)
            found.setdefault(int(number), str(result))
        except (ValueError, TypeError, RecursionError):
            continue
    return found


def _read(stream: Any, until: float) -> bytes:
    reply = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while (left := until - time.monotonic()) > 0 and len(reply) < LONGEST_OUTPUT and selector.select(left):
            part = os.read(stream.fileno(), 1 << 16)
            if not part:
                break
            reply += part
    return bytes(reply)
