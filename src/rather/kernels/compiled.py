"""What is written in C, compiled once for each set of definitions, compiler and processor, and kept in the user's cache."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).parent
COMPILE = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]


def cache() -> Path:
    """What is rather's in the user's cache; it may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rather"


def library(source: str, definitions: Sequence[str] = ()) -> ctypes.CDLL | None:
    """`source`, such as "kernels.c", with definitions such as "-DBFLOAT16"; None without a compiler: the environment's CC, or cc."""
    texts = [path.read_bytes() for path in [FOLDER / source, *sorted(FOLDER.glob("*.h"))]]
    compiler = shlex.split(os.environ.get("CC", "cc"))
    try:
        version = subprocess.run([*compiler, "--version"], check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    with _folder() as folder:
        for threads in ("-fopenmp", "-fopenmp-simd"):  # Apple's compiler knows the second alone
            command = [*compiler, *COMPILE, *definitions, threads, str(FOLDER / source), "-lm"]
            of = hashlib.sha256(b"\0".join([version, _processor(), *texts, shlex.join(command).encode()]))
            if found := _built(command, folder / f"{of.hexdigest()[:32]}.so"):
                return found
    return None


def _built(command: list[str], file: Path) -> ctypes.CDLL | None:
    """What is in `file`, or what the command makes, which is kept there."""
    try:
        return ctypes.CDLL(str(file))
    except OSError:  # not there yet, or damaged
        pass
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:  # whole or not at all, whoever else does the same
        draft = Path(folder) / file.name
        try:
            subprocess.run([*command, "-o", str(draft)], check=True, capture_output=True)
            found = ctypes.CDLL(str(draft))
        except (OSError, subprocess.CalledProcessError):
            return None
        draft.replace(file)
    return found


@contextmanager
def _folder() -> Iterator[Path]:
    """Where compiled code is kept: in the user's cache, if nobody else can write there, or else nowhere for longer than this."""
    folder, ours = None, False
    try:
        folder = cache() / "kernels"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.stat()
        ours = facts.st_uid == os.getuid() and not facts.st_mode & 0o022 and os.access(folder, os.W_OK)
    except (OSError, RuntimeError):  # there is no home, or it cannot be written to
        pass
    if folder is not None and ours:
        yield folder
    else:
        with tempfile.TemporaryDirectory() as passing:
            yield Path(passing)


@functools.cache
def _processor() -> bytes:
    """What code for this very processor depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    described = dict.fromkeys(line for line in lines if line.partition(":")[0].strip() in ("model name", "flags", "Features", "CPU part"))
    return "\n".join([platform.machine(), platform.processor(), *described]).encode()
